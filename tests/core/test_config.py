"""Configs: what loads, what is refused, and that every refusal says where and what instead."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from deepnarrow.config import from_json, load_config, resolve_options, to_json
from deepnarrow.errors import InputError, InputErrors
from deepnarrow.protocol import Budget, FewShot, OptimizerConfig, Protocol, RunOptions
from deepnarrow.settings import Report, build, parse_literal, parse_settings

GOOD = """
from ml_collections import ConfigDict

def get_config():
    config = ConfigDict()
    config.name = "study"
    config.seeds = (0, 1)
    config.modalities = ConfigDict({"toy": {
        "shapes": ["tiny", "tiny-nl4"],
        "options": {"lengths": (4, 8), "patch_size": 4},
        "protocol": {
            "batch_size": 8,
            "budget": {"kind": "examples", "amount": 100},
            "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine"},
            "few_shot": {"tasks": ("digits",)},
        },
    }})
    return config.lock()
"""
PROTOCOL = Protocol(8, Budget("examples", 100.0), OptimizerConfig("adamw", 1e-3, "cosine"),
                    FewShot(("digits",)))


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "good.py"
    path.write_text(GOOD)
    return path


def messages(error: InputError) -> list[str]:
    errors = error.errors if isinstance(error, InputErrors) else [error]
    return [str(e) for e in errors]


def refusals(path, *overrides: str) -> list[str]:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return messages(caught.value)


# --- what loads ----------------------------------------------------------------------------------
def test_a_config_becomes_frozen_dataclasses(good):
    config = load_config(good)
    study = config.modalities["toy"]
    assert (config.name, config.seeds, config.run) == ("study", (0, 1), RunOptions())
    assert study.modality == "toy"
    assert study.shapes == ("tiny", "tiny-nl4")
    assert study.architectures == ("transformer",)
    assert study.options == {"lengths": (4, 8), "patch_size": 4}
    assert study.protocol == PROTOCOL
    assert type(study.protocol.budget.amount) is float
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_plain_dict_and_config_dicts_within_one_will_do(good, tmp_path):
    path = tmp_path / "plain.py"
    path.write_text(GOOD.replace("return config.lock()", "return config.to_dict()"))
    assert load_config(path) == load_config(good)
    path.write_text(GOOD.replace("return config.lock()", "return dict(config.items())"))
    assert load_config(path) == load_config(good)


def test_a_reference_between_values_is_resolved(tmp_path):
    path = tmp_path / "reference.py"
    path.write_text(GOOD.replace("return", (
        "config.modalities.toy.protocol.batch_size = 32\n"
        "    config.run = {'log_every': config.modalities.toy.protocol.get_ref('batch_size')}\n"
        "    return")))
    assert load_config(path).run.log_every == 32


def test_settings_are_laid_over_the_file(good):
    config = load_config(good, [
        "name=two words", "seeds=[3]", "run.log_every=7", "modalities.toy.shapes=('tiny',)",
        "modalities.toy.protocol.optimizer.learning_rate=1", "modalities.toy.data.noise=0.5",
        "modalities.toy.protocol.few_shot=None", "modalities.toy.options.lengths=[1, 2, 3]",
    ])
    study = config.modalities["toy"]
    assert (config.name, config.seeds, config.run.log_every) == ("two words", (3,), 7)
    assert study.shapes == ("tiny",)
    assert study.protocol.optimizer.learning_rate == 1.0
    assert type(study.protocol.optimizer.learning_rate) is float
    assert study.protocol.few_shot is None
    assert study.data == {"noise": 0.5}
    assert study.options == {"lengths": (1, 2, 3), "patch_size": 4}


@pytest.mark.parametrize(("text", "value"), [("auto", "auto"), ("64", 64.0), ("1e3", 1000.0)])
def test_a_number_with_a_word_beside_it(good, text, value):
    config = load_config(good, [f"modalities.toy.protocol.few_shot.l2={text}"])
    few_shot = config.modalities["toy"].protocol.few_shot
    assert few_shot is not None
    assert (few_shot.l2, type(few_shot.l2)) == (value, type(value))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


@pytest.mark.parametrize(("text", "message"), [
    ("atuo", "l2: is unknown (got 'atuo'; expected a number or auto). Hint: did you mean auto?"),
    ("'64'", "l2: is unknown (got '64'; expected a number or auto)"),
    ("None", "l2: has a wrong type, NoneType (got None; expected a number)"),
    ("True", "l2: has a wrong type, bool (got True; expected a number)"),
    ("0", "l2: is out of range (got 0.0;"),
])
def test_neither_the_number_nor_the_word(good, text, message):
    with pytest.raises(InputError) as error:
        load_config(good, [f"modalities.toy.protocol.few_shot.l2={text}"])
    assert message in str(error.value)


def test_json_round_trip(good):
    config = load_config(good, ["modalities.toy.options.nested={'a': [1, (2, None)]}"])
    text = json.dumps(to_json(config), allow_nan=False)
    assert from_json(json.loads(text)) == config


def test_a_stored_config_that_was_edited_is_refused(good):
    values = to_json(load_config(good))
    values["modalities"]["toy"]["protocol"]["batch_size"] = "8"
    with pytest.raises(InputError, match=r"study\.json: modalities\.toy\.protocol\.batch_size"):
        from_json(values, where="study.json")


def test_what_a_config_prints_goes_to_stderr(tmp_path, capsys):
    path = tmp_path / "loud.py"
    path.write_text("print('at import')\n" + GOOD.replace("config = ", "print('in'); config = "))
    load_config(path)
    assert capsys.readouterr() == ("", "at import\nin\n")


def test_loading_writes_nothing_and_imports_no_jax(good):
    code = ("import sys; from deepnarrow.config import load_config; load_config(sys.argv[1]); "
            "print([m for m in ('jax', 'flax', 'scipy') if m in sys.modules])")
    done = subprocess.run([sys.executable, "-c", code, str(good)], capture_output=True, text=True,
                          check=True)
    assert done.stdout == "[]\n"
    assert [p.name for p in good.parent.iterdir()] == ["good.py"]


# --- the file ------------------------------------------------------------------------------------
@pytest.mark.parametrize(("content", "expected"), [
    ("def get_config(:\n    pass\n", "line 1: is not valid Python (got invalid syntax)"),
    ("x = 1\n", "has no function get_config(). Hint: define get_config() returning an "
                "ml_collections.ConfigDict"),
    ("get_config = 3\n", "has no function get_config()"),
    ("\n\nimport no_such_module_at_all\n", "line 3 raised ModuleNotFoundError (got No module named "
                                           "'no_such_module_at_all')"),
    ("def get_config():\n    return 1 / 0\n", "line 2 raised ZeroDivisionError (got division by "
                                              "zero)"),
    ("def get_config():\n    raise SystemExit\n", "line 2 raised SystemExit"),
    ("import sys; sys.exit(0)\n", "line 1 raised SystemExit (got 0)"),
    ("def get_config(size):\n    return {}\n", "get_config() raised TypeError (got "
     "get_config() missing 1 required positional argument: 'size')"),
    ("def get_config():\n    return [1]\n", "get_config() returned a wrong type (got list; "
     "expected an ml_collections.ConfigDict or a dict)"),
    ("def get_config():\n    return None\n", "returned a wrong type (got NoneType"),
    ("from ml_collections import config_dict\n"
     "def get_config():\n    return config_dict.ConfigDict(\n"
     "        {'a': config_dict.required_placeholder(int)})\n", "a required value is not set"),
    ("(" * 5000, "is not valid Python"),
])
def test_a_broken_file_is_named_in_one_line(tmp_path, content, expected):
    path = tmp_path / "broken.py"
    path.write_text(content)
    [message] = refusals(path)
    assert message.startswith(f"config '{path}': ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [b"\x00\x01\x02", b"\x80\xff" * 9, b"x = 1\x00\n"])
def test_a_binary_file_is_refused(tmp_path, content):
    path = tmp_path / "binary.py"
    path.write_bytes(content)
    [message] = refusals(path)
    assert message.startswith(f"config '{path}': ")
    assert "is not valid Python" in message


def test_a_byte_order_mark_is_no_error(good):
    config = load_config(good)
    good.write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_config(good) == config


def test_what_is_no_python_file_is_refused(good, tmp_path):
    assert refusals(tmp_path / "goood.py") == [
        f"config '{tmp_path}/goood.py': no such file. Hint: did you mean {good}?"]
    assert "no such file" in refusals(tmp_path / "absent" / "x.py")[0]
    assert "is not a file" in refusals(tmp_path)[0]
    table = tmp_path / "config.yaml"
    table.write_text("a: 1")
    assert "is not a Python file (got '.yaml'; expected '.py')" in refusals(table)[0]
    large = tmp_path / "large.py"
    large.write_text("#" * 1_000_001)
    assert "is too large" in refusals(large)[0]


def test_ctrl_c_in_a_config_is_no_config_error(tmp_path):
    path = tmp_path / "stop.py"
    path.write_text("raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        load_config(path)


# --- settings ------------------------------------------------------------------------------------
TOY = "modalities.toy"


@pytest.mark.parametrize(("override", "expected"), [
    ("run.log_evry=5", "unknown key (expected one of log_every, eval_every, checkpoint_every, "
                       "few_shot_every, tensorboard, profile, hang_after_s, "
                       "compile_within_s). Hint: did "
                       "you mean log_every?"),
    ("nmae=x", "unknown key"),
    ("modalities.txt.shapes=('tiny',)", "unknown key (expected one of toy)"),
    (f"{TOY}.protocol.budget.amout=3", "Hint: did you mean amount?"),
    ("run.log_every=True", "has a wrong type, bool (got True; expected an integer)"),
    ("run.log_every=1.5", "has a wrong type, float (got 1.5; expected an integer)"),
    ("run.log_every=2.0", "expected an integer). Hint: write 2"),
    ("run.log_every=1e3", "Hint: write 1000"),
    ("run.log_every='5'", "expected an integer). Hint: write it without quotes"),
    ("run.log_every=no", "has a wrong type, str (got 'no'; expected an integer)"),
    ("run.log_every=None", "has a wrong type, NoneType"),
    ("run.log_every=0", "is out of range (got 0; expected >= 1)"),
    ("run.log_every.x=0", "is no table here"),
    ("run=3", "has a wrong type, int (got 3; expected a table of settings)"),
    (f"{TOY}.protocol.optimizer.learning_rate='1e-3'", "has a wrong type, str (got '1e-3'; "
     "expected a number). Hint: write it without quotes"),
    (f"{TOY}.protocol.optimizer.learning_rate=nan", "has a wrong type, str"),
    (f"{TOY}.protocol.optimizer.learning_rate=1e999", "is out of range (got inf; expected > 0 "
         "and <= 1e+30)"),
    (f"{TOY}.protocol.optimizer.learning_rate=False", "has a wrong type, bool"),
    (f"{TOY}.protocol.optimizer.schedule=cosin", "is unknown (got 'cosin'; expected one of "
     "inverse_sqrt, rsqrt, cosine, linear, constant). Hint: did you mean cosine?"),
    (f"{TOY}.protocol.batch_size=1{'0' * 400}.5", "has a wrong type, float"),
    (f"{TOY}.protocol.budget.amount=1{'0' * 400}", "is too large"),
    (f"{TOY}.protocol.batch_size={'1' * 10001}", "value is too long"),
    ("seeds=()", "is empty (expected at least one)"),
    ("seeds=3", "has a wrong type, int (got 3; expected a tuple or a list). Hint: write (3,)"),
    ("seeds=(1, 1)", "has a value twice (got 1)"),
    ("seeds=(-1,)", "a seed is out of range (got -1; expected >= 0 and < 2^31)"),
    (f"seeds=({2**31},)", "a seed is out of range"),
    (f"{TOY}.shapes=()", "is empty"),
    (f"{TOY}.shapes=tiny", "Hint: write ('tiny',)"),
    (f"{TOY}.shapes=('tiny', 'tiny')", "has a value twice (got tiny)"),
    (f"{TOY}.architectures=()", "is empty"),
    (f"{TOY}.modality=other", "is another modality's name"),
    (f"{TOY}.options.patch_size=True", "has a wrong type, bool (got True; expected an integer)"),
    (f"{TOY}.options.patch_size.x=1", "is no table here"),
    (f"{TOY}.options.noise=1e999", "is not finite"),
    (f"{TOY}.options.noise={{1, 2}}", "has a wrong type, set"),
    (f"{TOY}.options.noise={{1: 2}}", "has a key that is no name (got 1)"),
    (f"{TOY}.options.noise={'[' * 60}{']' * 60}", "is nested too deep"),
    ("modalities={}", "is empty (expected at least one modality)"),
    ("name=''", "cannot be used"),
    ("name='a\\nb'", "cannot be used"),
])
def test_a_bad_setting_is_named(good, override, expected):
    [message] = refusals(good, override)
    assert message.startswith((f"--set {override.partition('=')[0]}", f"{good}: "))
    assert expected in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(("overrides", "expected"), [
    (["run.log_every"], "--set: is not a setting (got 'run.log_every'; expected key=value"),
    (["=3"], "--set: is not a setting"),
    (["run..log_every=3"], "--set: is not a setting"),
    (["name=a", "name=a"], "--set name: is set twice. Hint: keep one of them"),
    (["run.log_every=3", "run={}"], "--set run: is set twice"),
    (["run={}", "run.log_every=3"], "--set run.log_every: is set twice"),
])
def test_settings_that_are_none(good, overrides, expected):
    [message] = refusals(good, *overrides)
    assert expected in message


def test_every_error_is_reported_at_once(good):
    found = refusals(good, "run.log_evry=5", "run.eval_every=-1", "seeds=(-1,)", "nothing",
                     f"{TOY}.protocol.batch_size=8.5", f"{TOY}.protocol.budget.kind=hours")
    assert [m.split(": ")[0] for m in found] == [
        "--set", "--set run.log_evry", f"--set {TOY}.protocol.batch_size",
        f"--set {TOY}.protocol.budget.kind", "--set run.eval_every"]


def test_a_table_that_is_made_by_settings_must_be_whole(good):
    found = refusals(good, f"{TOY}.protocol.fine_tune.batch_size=8")
    assert [m.split("fine_tune.")[1] for m in found] == [
        "tasks: is missing", "examples: is missing", "optimizer: is missing"]


def test_errors_of_the_file_name_file_and_path(tmp_path):
    path = tmp_path / "bad.py"
    path.write_text("def get_config():\n    return {'seeds': [0, '1'], 'extra': 1, 'modalities': "
                    "{'a': {'shapes': ['tiny', 3], 'protocol': None}, 'b': 7}}\n")
    assert refusals(path) == [
        f"{path}: extra: unknown key (expected one of name, seeds, modalities, run, sharding, "
        "launch)",
        f"{path}: name: is missing",
        f"{path}: seeds[1]: has a wrong type, str (got '1'; expected an integer). Hint: write it "
        "without quotes",
        f"{path}: modalities.a.shapes[1]: has a wrong type, int (got 3; expected a string)",
        f"{path}: modalities.a.protocol: has a wrong type, NoneType (got None; expected a table of "
        "settings)",
        f"{path}: modalities.b: has a wrong type, int (got 7; expected a table of settings)",
    ]


@settings(deadline=None)  # a busy machine is no failure
@given(st.text())
def test_any_text_is_a_setting_or_an_error(text):
    report = Report("x")
    parsed = parse_settings([text], report)
    assert len(parsed) + len(report.errors) == 1


@settings(deadline=None)  # a busy machine is no failure
@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner)))
def test_literals_come_back(value):
    text = repr(value)
    assert parse_literal(text) == (value if "inf" not in text else parse_literal(text))


# --- building ------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Inner:
    size: int
    rate: float = 0.5

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError("inner", "size is out of range", got=self.size, expected=">= 1")


@dataclasses.dataclass(frozen=True)
class Outer:
    inners: tuple[Inner, ...]
    by_name: Mapping[str, Inner]
    kind: Literal["a", "b", 1]
    flag: bool = False
    maybe: Inner | None = None
    free: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def test_build_nests():
    built = build(Outer, {"inners": [{"size": 1}], "by_name": {"x": {"size": 2, "rate": 1}},
                          "kind": 1, "maybe": {"size": 3}, "free": {"a": [1]}}, "here")
    assert built == Outer((Inner(1),), {"x": Inner(2, 1.0)}, 1, False, Inner(3), {"a": (1,)})


@pytest.mark.parametrize(("change", "expected"), [
    ({"inners": [{"size": 1}, {"size": 0}]}, "here: inners[1].size: is out of range (got 0; "
                                             "expected >= 1)"),
    ({"inners": {"size": 1}}, "here: inners: has a wrong type, dict"),
    ({"by_name": {"x": {"szie": 1}}}, "here: by_name.x.szie: unknown key (expected one of size, "
                                      "rate). Hint: did you mean size?"),
    ({"by_name": [1]}, "here: by_name: has a wrong type, list"),
    ({"kind": True}, "here: kind: is unknown (got True; expected one of a, b, 1)"),
    ({"kind": None}, "here: kind: is unknown (got None"),
    ({"flag": 1}, "here: flag: has a wrong type, int (got 1; expected True or False)"),
    ({"maybe": 0}, "here: maybe: has a wrong type, int"),
    ({"free": {"f": len}}, "here: free.f: has a wrong type, builtin_function_or_method"),
])
def test_build_is_strict(change, expected):
    values = {"inners": [], "by_name": {}, "kind": "a", **change}
    with pytest.raises(InputError) as caught:
        build(Outer, values, "here")
    assert expected in "\n".join(messages(caught.value))


# --- options -------------------------------------------------------------------------------------
DEFAULTS = ConfigDict({"patch_size": 16, "rate": 0.1, "pool": "gap", "scan": True, "path": None,
                       "sizes": (224, 224), "names": ["a"], "mixed": (1, "a"),
                       "nested": {"depth": 2}}).lock()


def test_options_keep_their_types_and_the_defaults_stay():
    options = resolve_options(DEFAULTS, {"patch_size": 4, "rate": 1, "sizes": [32], "path": "x",
                                         "names": ("b", "c"), "nested": {"depth": 3}}, "options")
    assert options.to_dict() == {
        "patch_size": 4, "rate": 1.0, "pool": "gap", "scan": True, "path": "x", "sizes": (32,),
        "names": ["b", "c"], "mixed": (1, "a"), "nested": {"depth": 3}}
    assert type(options.rate) is float
    assert options.is_locked
    assert DEFAULTS.patch_size == 16
    assert resolve_options(DEFAULTS, {}, "options").to_dict() == DEFAULTS.to_dict()


@pytest.mark.parametrize(("overrides", "expected"), [
    ({"patchsize": 4}, "toy.options: patchsize: unknown key (expected one of"),
    ({"patchsize": 4}, "Hint: did you mean patch_size?"),
    ({"patch_size": True}, "toy.options: patch_size: has a wrong type, bool (got True; expected an "
                           "integer)"),
    ({"patch_size": None}, "has a wrong type, NoneType"),
    ({"rate": "0.1"}, "has a wrong type, str"),
    ({"rate": float("nan")}, "is not finite"),
    ({"scan": 1}, "expected True or False"),
    ({"pool": 3}, "expected a string"),
    ({"sizes": 3}, "expected a tuple or a list"),
    ({"sizes": (3, "4")}, "toy.options: sizes[1]: has a wrong type, str"),
    ({"nested": 3}, "toy.options: nested: has a wrong type, int"),
    ({"nested": {"dpeth": 3}}, "toy.options: nested.dpeth: unknown key"),
])
def test_options_of_another_type_are_refused(overrides, expected):
    with pytest.raises(InputError) as caught:
        resolve_options(DEFAULTS, overrides, "toy.options")
    assert expected in str(caught.value)


def test_all_wrong_options_are_named_at_once():
    with pytest.raises(InputErrors) as caught:
        resolve_options(DEFAULTS, {"x": 1, "rate": "a", "scan": 0}, "options")
    assert len(caught.value.errors) == 3
