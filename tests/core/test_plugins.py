"""The plugin loader: whatever one plugin does, the others work and its error names who made it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import itertools
import json
import os
import re
import subprocess
import sys
import traceback
import types

import pytest
from ml_collections import ConfigDict

from deepnarrow.errors import PluginError
from deepnarrow.hookspecs import hookimpl
from deepnarrow.modality import Metric, Scores, Source, Task
from deepnarrow.ops import ShapeOp
from deepnarrow.plugins import GROUP, Launcher, LawForm, Strategy, load_plugins, notify
from deepnarrow.shape import Preset, Shape

COUNTER = itertools.count()
GOOD = """
import dataclasses
from deepnarrow.hookspecs import hookimpl
from toy import toy_modality

@hookimpl
def deepnarrow_register_modalities():
    return [dataclasses.replace(toy_modality(), name={name!r})]
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(distribution, {entry point: source or "module:attribute"})` -> its entry points."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution: str, plugins: dict[str, str]) -> list:
        lines = []
        for name, source in plugins.items():
            module = f"fake_plugin_{next(COUNTER)}"
            attribute = ""
            if source.startswith(":"):
                attribute, _, source = source.partition("\n")
            (tmp_path / f"{module}.py").write_text(source)
            lines.append(f"{name} = {module}{attribute}")
        info = tmp_path / f"{distribution}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\n"
                                       "Version: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(lines) + "\n")
        return [p for d in importlib.metadata.distributions(path=[str(tmp_path)])
                if d.name == distribution for p in d.entry_points]

    return install


def module_with(name: str = "fake", **hooks) -> types.ModuleType:
    """A module whose hooks return the given values, or call them where they can be called."""
    module = types.ModuleType(name)
    for kind, value in hooks.items():
        hook = f"deepnarrow_register_{kind}"
        setattr(module, hook, hookimpl(_returning(value, hook)))
    return module


def _returning(value, name: str):
    def hook():
        return value() if callable(value) else value

    hook.__name__ = name
    return hook


def reason(registry, name: str) -> str:
    [info] = [p for p in registry.plugins if p.name == name]
    assert info.error is not None, f"{name} was accepted"
    assert "\n" not in info.error
    return info.error


# --- what loads ----------------------------------------------------------------------------------
def test_the_core_registers_through_its_own_hooks():
    registry = load_plugins([])
    assert list(registry.shape_ops)[:10] == ["NL", "EL", "DL", "DM", "FF", "KV", "NH", "SH", "SKV",
                                             "SHKV"]
    assert "transformer" in registry.architectures
    assert "local" in registry.launchers
    [builtin] = registry.plugins
    assert (builtin.name, builtin.distribution, builtin.error) == ("builtin", "deepnarrow", None)


def test_an_installed_plugin_is_found_with_distribution_version_and_names(install):
    registry = load_plugins(install("acme-audio", {"audio": GOOD.format(name="audio")}))
    assert registry.modality("audio").name == "audio"
    info = registry.plugins[1]
    assert (info.name, info.distribution, info.version, info.error) == (
        "audio", "acme-audio", "1.2", None)
    assert info.names == {"modalities": ("audio",)}
    assert registry.owners["modalities", "audio"] == "acme-audio"


def make_task(name="speech", **changes):
    def nothing(split):
        raise AssertionError("building a task reads no data")

    task = Task(name=name, kinds=frozenset({"few_shot"}), examples=nothing,
                metric=Metric("accuracy", "max"), num_classes=2,
                score=lambda predictions, labels: Scores({}, None))
    return dataclasses.replace(task, **changes)


def test_every_kind_is_registered_by_name(toy):
    modality, architecture = toy
    registry = load_plugins([], [module_with(
        modalities=[modality], architectures=[architecture], tasks={"toy": [make_task()]},
        shape_ops=[ShapeOp("PS", (), "the patch", "made up", option="patch_size")],
        strategies=[Strategy("mine", lambda *_: None, "made up")],  # pyright: ignore[reportArgumentType]
        law_forms=[LawForm("line", ("a", "b"), lambda p, x: x, "made up")],
        launchers=[Launcher("here", lambda units, session: None)])])
    assert registry.modalities["toy"] is modality
    assert registry.architecture("toy_mlp") is architecture
    assert registry.tasks["toy"]["speech"].num_classes == 2
    assert list(registry.shape_ops)[-1] == "PS"
    assert {"mine", "line", "here"} <= {*registry.strategies, *registry.law_forms,
                                        *registry.launchers}
    assert registry.plugins[1].names["tasks"] == ("toy/speech",)


def test_hook_step_end_and_hook_run_end_are_called_on_every_plugin():
    seen = []
    module = types.ModuleType("observer")

    @hookimpl
    def deepnarrow_step_end(info):
        seen.append(info)

    @hookimpl
    def deepnarrow_run_end(record, info):
        seen.append((record, info))

    module.deepnarrow_step_end = deepnarrow_step_end  # pyright: ignore[reportAttributeAccessIssue]
    module.deepnarrow_run_end = deepnarrow_run_end  # pyright: ignore[reportAttributeAccessIssue]
    registry = load_plugins([], [module])
    registry.hooks.deepnarrow_step_end(info={"step": 1})
    registry.hooks.deepnarrow_run_end(record={"key": "k"}, info={"seed": 0})
    assert seen == [{"step": 1}, ({"key": "k"}, {"seed": 0})]


# --- observers -----------------------------------------------------------------------------------
OBSERVER = """
from deepnarrow.hookspecs import hookimpl

@hookimpl
def deepnarrow_step_end(info):
    print("step", info["step"])
    {step}

@hookimpl
def deepnarrow_run_end():
    {run}
"""


def test_an_observer_that_fails_is_named_once_and_harms_nobody(install, capsys):
    fault = 'raise ValueError("two\\nlines")'
    registry = load_plugins([
        *install("acme-bad", {"bad": OBSERVER.format(step=fault, run="raise SystemExit(3)")}),
        *install("acme-good", {"good": OBSERVER.format(step="pass", run="print('end')")}),
        *install("acme-worse", {"worse": OBSERVER.format(step="info['no']", run="pass")})])
    for step in (1, 2):
        notify(registry, "deepnarrow_step_end", info={"step": step})
        notify(registry, "deepnarrow_run_end", record={"key": "k"}, info={})
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [lines.count(line) for line in ("step 1", "step 2", "end")] == [3, 3, 2]
    told = [re.sub(r"fake_plugin_\d+", "fake_plugin", line) for line in lines]
    assert sorted(line for line in told if line.startswith("warning")) == [
        "warning: plugin 'bad' of acme-bad: deepnarrow_run_end raised SystemExit: 3 "
        "(fake_plugin.py, line 11)",
        "warning: plugin 'bad' of acme-bad: deepnarrow_step_end raised ValueError: two\\nlines "
        "(fake_plugin.py, line 7)",
        "warning: plugin 'worse' of acme-worse: deepnarrow_step_end raised KeyError: 'no' "
        "(fake_plugin.py, line 7)"]
    assert len(lines) == 8 + 3


def test_an_observers_own_plugin_error_names_its_plugin(install, capsys):
    source = ("from deepnarrow.errors import PluginError\n"
              + OBSERVER.format(step="raise PluginError('disk', 'is full')", run="pass"))
    registry = load_plugins(install("acme-bad", {"bad": source}))
    notify(registry, "deepnarrow_step_end", info={"step": 1})
    assert capsys.readouterr().err == (
        "step 1\nwarning: plugin 'bad' of acme-bad: disk: is full\n")


def test_ctrl_c_in_an_observer_gets_through(install):
    source = OBSERVER.format(step="raise KeyboardInterrupt", run="pass")
    registry = load_plugins(install("acme-bad", {"bad": source}))
    with pytest.raises(KeyboardInterrupt):
        notify(registry, "deepnarrow_step_end", info={"step": 1})


# --- broken modules ------------------------------------------------------------------------------
BROKEN = {
    "raises ImportError": ("import no_such_module_here\n",
                           "import failed: ModuleNotFoundError: No module named "
                           "'no_such_module_here'"),
    "has a syntax error": ("def f(:\n", "import failed: SyntaxError: invalid syntax"),
    "exits": ("import sys; sys.exit(3)\n", "import failed: SystemExit: 3"),
    "raises GeneratorExit": ("raise GeneratorExit\n", "import failed: GeneratorExit"),
    "raises": ("raise RuntimeError('two\\nlines')\n", "import failed: RuntimeError: two lines"),
    "misspells a hook": ("from deepnarrow.hookspecs import hookimpl\n@hookimpl\n"
                         "def deepnarrow_register_modalites():\n    return []\n",
                         "deepnarrow_register_modalites is no hook: did you mean "
                         "deepnarrow_register_modalities?"),
    "forgets to decorate": (GOOD.format(name="audio").replace("@hookimpl", ""),
                            "deepnarrow_register_modalities is not decorated with "
                            "deepnarrow.hookimpl"),
    "forgets to decorate one of two": (
        GOOD.format(name="audio") + "\ndef deepnarrow_register_tasks():\n    return {}\n",
        "deepnarrow_register_tasks is not decorated"),
    "has no hooks": ("x = 1\n", "registers no hooks"),
    "takes unknown arguments": ("from deepnarrow.hookspecs import hookimpl\n@hookimpl\n"
                                "def deepnarrow_register_modalities(size):\n    return []\n",
                                "size"),
    "wraps a hook": (OBSERVER.format(step="yield", run="pass").replace(
        "@hookimpl", "@hookimpl(wrapper=True)"),
        "deepnarrow_step_end is a hook wrapper: no hook here can be wrapped"),
    "is a class": (":Plugin\nclass Plugin:\n    pass\n",
                   "the entry point is a type, not a module"),
    "is an object": (":plugin\nplugin = object()\n", "the entry point is a object, not a module"),
    "names nothing": (":absent\nx = 1\n", "import failed: AttributeError"),
    "raises in its hook": (GOOD.format(name="audio").replace(
        "    return", "    raise KeyError('oh')\n    return"),
        "deepnarrow_register_modalities raised KeyError: 'oh'"),
    "exits in its hook": (GOOD.format(name="audio").replace(
        "    return", "    raise SystemExit(4)\n    return"),
        "deepnarrow_register_modalities raised SystemExit: 4"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_plugin_is_contained(install, fault):
    source, expected = BROKEN[fault]
    points = [*install("acme-broken", {"broken": source}),
              *install("acme-good", {"good": GOOD.format(name="good")})]
    registry = load_plugins(points)
    assert expected in reason(registry, "broken")
    assert registry.modality("good").name == "good"
    with pytest.raises(PluginError, match="plugin 'broken' of acme-broken: is unavailable: ") as e:
        registry.modality("broken")
    assert expected in str(e.value)
    with pytest.raises(PluginError, match="plugin 'broken' of acme-broken: "):
        load_plugins(points, strict=True)


def test_the_authors_traceback_comes_with_the_error(install):
    registry = load_plugins(install("acme-broken", {"broken": "x = 1\nraise RuntimeError('oh')\n"}))
    with pytest.raises(PluginError) as caught:
        registry.modality("broken")
    cause = caught.value.__cause__
    assert isinstance(cause, RuntimeError)
    assert traceback.extract_tb(cause.__traceback__)[-1].lineno == 2


def test_a_plugin_that_hangs_is_named_while_it_does(install, monkeypatch, capsys):
    monkeypatch.setattr("deepnarrow.containment.PATIENCE", 0.05)
    slow = "import time\ntime.sleep(0.4)\n"
    registry = load_plugins([
        *install("acme-slow", {"slow": slow + GOOD.format(name="slow")}),
        *install("acme-quick", {"quick": GOOD.format(name="quick")})])
    assert set(registry.modalities) == {"slow", "quick"}
    (line,) = capsys.readouterr().err.splitlines()
    assert line == ("note: plugin 'slow' of acme-slow has been loading for 0.05 s; if it never "
                    "ends, press Ctrl-C and uninstall acme-slow")


def test_list_works_beside_plugins_that_fail_exit_hang_and_print(tmp_path):
    """The installed command, in a process of its own, with four bad distributions on its path."""
    bad = {"fails": "import no_such_module", "exits": "import os, sys\nsys.exit(3)",
           "hangs": "import time\ntime.sleep(5)", "prints": "print('noise')"}
    for name, source in bad.items():
        (tmp_path / f"bad_{name}.py").write_text(source + "\n" + OBSERVER.format(
            step="pass", run="pass"))
        info = tmp_path / f"acme_{name}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: acme-{name}\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text(f"[{GROUP}]\n{name} = bad_{name}\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from deepnarrow.cli import main; sys.exit(main("
         "sys.argv[1:]))", "list", "--json"], capture_output=True, text=True, timeout=120,
        check=True, env={**os.environ, "PYTHONPATH": path})
    plugins = {row["name"]: row for row in json.loads(done.stdout)["plugins"]}
    assert {name: plugins[name]["error"] for name in bad} == {
        "fails": "import failed: ModuleNotFoundError: No module named 'no_such_module' "
                 "(bad_fails.py, line 1)",
        "exits": "import failed: SystemExit: 3 (bad_exits.py, line 2)",
        "hangs": None, "prints": None}
    assert all(plugins[name]["distribution"] == f"acme-{name}" for name in bad)
    assert all(plugins[name]["version"] == "1.2" for name in bad)
    assert {"text_t5", "vision_vit"} <= plugins.keys()
    assert plugins["text_t5"]["registers"]["modalities"] == ["text_t5"]
    assert "noise" in done.stderr


def test_ctrl_c_is_not_contained(install):
    points = install("acme-broken", {"broken": "raise KeyboardInterrupt\n"})
    with pytest.raises(KeyboardInterrupt):
        load_plugins(points)


def test_what_a_plugin_prints_goes_to_stderr(install, capsys):
    source = "print('at import')\n" + GOOD.format(name="loud").replace(
        "    return", "    print('in its hook')\n    return")
    registry = load_plugins(install("acme-loud", {"loud": source}))
    assert registry.modality("loud").name == "loud"
    assert capsys.readouterr() == ("", "at import\nin its hook\n")


def test_observers_of_an_unavailable_plugin_stay_silent(install):
    source = GOOD.format(name="audio").replace("    return", "    raise ValueError\n    return") + (
        "\n@hookimpl\ndef deepnarrow_step_end(info):\n    raise AssertionError('called')\n")
    registry = load_plugins(install("acme-broken", {"broken": source}))
    assert "ValueError" in reason(registry, "broken")
    assert registry.hooks.deepnarrow_step_end(info={}) == []


# --- what hooks return ---------------------------------------------------------------------------
WRONG = {
    "None": (None, "returned no list (got NoneType; expected a list of Modality)"),
    "a tuple": ((), "returned no list (got tuple"),
    "a modality by itself": (lambda m: m, "returned no list (got Modality"),
    "a wrong type": (["toy"], "returned a wrong type (got str; expected Modality)"),
    "a class": (lambda m: [type(m)], "returned a wrong type (got type; expected Modality)"),
    "a name that is none": (lambda m: [dataclasses.replace(m, name="a b")],
                            "modality has a name that cannot be used (got 'a b'"),
    "a name of another type": (lambda m: [dataclasses.replace(m, name=3)], "cannot be used"),
    "a name as a path": (lambda m: [dataclasses.replace(m, name="../x")], "cannot be used"),
    "the same name twice": (lambda m: [m, m], "registers modality 'toy' twice"),
    "no tiny": (lambda m: [dataclasses.replace(m, presets={"base": m.presets["base"]})],
                "modality 'toy' has no preset 'tiny'"),
    "options as a dict": (lambda m: [dataclasses.replace(m, options={})],
                          "modality 'toy': options has a wrong type (got dict; expected "
                          "ConfigDict)"),
    "data options as None": (lambda m: [dataclasses.replace(m, data_options=None)],
                             "data_options has a wrong type (got NoneType"),
    "no function": (lambda m: [dataclasses.replace(m, assemble=None)],
                    "modality 'toy': assemble is not a function (got NoneType)"),
    "no function to prepare": (lambda m: [dataclasses.replace(m, prepare="x")],
                               "modality 'toy': prepare is not a function (got str)"),
    "presets as a list": (lambda m: [dataclasses.replace(m, presets=[])],
                          "presets has a wrong type (got list; expected Mapping)"),
    "a shape as preset": (lambda m: [dataclasses.replace(
        m, presets={"tiny": m.presets["tiny"].shape})], "preset 'tiny' is not a Preset (got S"),
    "an unknown override": (lambda m: [dataclasses.replace(m, presets={"tiny": Preset(
        Shape(1, 0, 8, 8, 8, 1), "made up", {"patch": 4})})],
        "preset 'tiny' overrides 'patch' (expected an option it declares)"),
    "overrides that are no table": (lambda m: [dataclasses.replace(m, presets={"tiny": Preset(
        Shape(1, 0, 8, 8, 8, 1), "made up", 3)})], "deepnarrow_register_modalities: TypeError"),
    "a missing option": (lambda m: [dataclasses.replace(m, options=ConfigDict({"scan": True}))],
                         "lacks an option that every modality declares: 'dropout_rate'"),
    "an unknown suffix": (lambda m: [dataclasses.replace(m, suffix_option="patch_size")],
                          "suffix_option names 'patch_size'"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_modality_makes_its_plugin_unavailable(toy, fault):
    value, expected = WRONG[fault]
    returned = value(toy[0]) if callable(value) else value
    registry = load_plugins([], [module_with(modalities=lambda: returned)])
    assert expected in reason(registry, "fake")
    assert not registry.modalities
    with pytest.raises(PluginError, match="plugin 'fake' of fake: "):
        registry.modality("fake")


OTHER_KINDS = [
    ("architectures", lambda m, a: [m], "expected Architecture or BoundArchitecture"),
    ("architectures", lambda m, a: [dataclasses.replace(a, make_model=3)],
     "architecture 'toy_mlp': make_model is not a function"),
    ("architectures", lambda m, a: [dataclasses.replace(a, operators=["NL"])],
     "operators has a wrong type (got list; expected frozenset)"),
    ("architectures", lambda m, a: [dataclasses.replace(a, modality="absent")],
     "architecture 'toy_mlp' is for an unknown modality, 'absent'"),
    ("tasks", lambda m, a: [make_task()], "returned no mapping (got list"),
    ("tasks", lambda m, a: {"toy": make_task()}, "returned no list (got Task"),
    ("tasks", lambda m, a: {"toy": [m]}, "returned a wrong type (got Modality; expected Task)"),
    ("tasks", lambda m, a: {"absent": [make_task()]},
     "task 'absent/speech' is for an unknown modality, 'absent'"),
    ("tasks", lambda m, a: {"toy": [make_task(), make_task()]}, "'toy/speech' twice"),
    ("tasks", lambda m, a: {"toy": [make_task(kinds=frozenset({"zero_shot"}))]},
     "kinds cannot be (got ['zero_shot']"),
    ("tasks", lambda m, a: {"toy": [make_task(metric="accuracy")]}, "metric has a wrong type"),
    ("tasks", lambda m, a: {"toy": [make_task(examples=Source)]}, None),
    ("shape_ops", lambda m, a: [ShapeOp("nl", ("d_ff",), "x", "y")], "expected letters A-Z"),
    ("shape_ops", lambda m, a: [ShapeOp("XX", ("depth",), "x", "y")], "acts on nothing known"),
    ("shape_ops", lambda m, a: [ShapeOp("XX", (), "x", "y")], "acts on nothing known"),
    ("shape_ops", lambda m, a: [ShapeOp("NL", ("d_ff",), "x", "y")],
     "operator 'NL' is registered twice, by deepnarrow and fake; rename one of them"),
    ("strategies", lambda m, a: [Strategy("s", None, "x")], "propose is not a function"),
    ("law_forms", lambda m, a: None, "returned no list (got NoneType; expected a list of LawForm)"),
    ("launchers", lambda m, a: [Launcher("local", print)],  # pyright: ignore[reportArgumentType]
     "launcher 'local' is registered twice, by deepnarrow and fake"),
]


@pytest.mark.parametrize(("kind", "make", "expected"), OTHER_KINDS)
def test_wrong_items_of_other_kinds(toy, kind, make, expected):
    good = module_with("good", modalities=[toy[0]])
    registry = load_plugins([], [good, module_with(**{kind: lambda: make(*toy)})])
    assert list(registry.modalities) == ["toy"]
    assert "NL" in registry.shape_ops
    assert "local" in registry.launchers
    if expected is None:
        assert all(p.error is None for p in registry.plugins)
    else:
        assert expected in reason(registry, "fake")


def test_a_plugin_is_taken_whole_or_not_at_all(toy):
    registry = load_plugins([], [module_with(modalities=[toy[0]], launchers=None)])
    assert "deepnarrow_register_launchers returned no list" in reason(registry, "fake")
    assert not registry.modalities
    with pytest.raises(PluginError, match="plugin 'fake' of fake: is unavailable"):
        registry.modality("toy")  # the modality's name leads to the plugin too


# --- one name, several owners --------------------------------------------------------------------
def test_a_modality_of_two_distributions_belongs_to_neither(install):
    source = GOOD.format(name="audio")
    registry = load_plugins([*install("acme-one", {"one": source}),
                             *install("acme-two", {"two": source}),
                             *install("acme-good", {"good": GOOD.format(name="good")})])
    expected = ("modality 'audio' is registered twice, by acme-one and acme-two; rename one of "
                "them")
    assert reason(registry, "one") == reason(registry, "two") == expected
    assert list(registry.modalities) == ["good"]
    with pytest.raises(PluginError, match="by acme-one and acme-two"):
        registry.modality("audio")


def test_an_entry_point_name_of_two_distributions_belongs_to_neither(install):
    registry = load_plugins([*install("acme-one", {"audio": GOOD.format(name="one")}),
                             *install("acme-two", {"audio": GOOD.format(name="two")}),
                             *install("acme-good", {"good": GOOD.format(name="good")})])
    assert list(registry.modalities) == ["good"]
    errors = [p.error for p in registry.plugins if p.name == "audio"]
    assert errors == ["two distributions claim the entry-point name 'audio': acme-one and "
                      "acme-two; uninstall one of them"] * 2


def test_the_core_keeps_its_names(install):
    registry = load_plugins([*install("deepnarrow", {"mine": GOOD.format(name="mine")}),
                             *install("acme-thief", {"thief": GOOD.format(name="mine"),
                                                     "mine": GOOD.format(name="other")})])
    assert list(registry.modalities) == ["mine"]
    assert registry.owners["modalities", "mine"] == "deepnarrow"
    assert "by deepnarrow and acme-thief" in reason(registry, "thief")


def test_a_stranger_called_builtin_is_refused_alone(install, toy):
    for number, source in enumerate((GOOD.format(name="other"), "import no_such_module_here\n")):
        points = [*install(f"acme-{number}", {"builtin": source}),
                  *install(f"good-{number}", {"good": GOOD.format(name="good")})]
        registry = load_plugins(points)
        assert list(registry.modalities) == ["good"]
        assert {"NL", "SHKV"} <= set(registry.shape_ops)
        [own, stranger] = [p for p in registry.plugins if p.name == "builtin"]
        assert (own.distribution, own.error) == ("deepnarrow", None)
        assert (stranger.distribution, stranger.error) == (
            f"acme-{number}", "two distributions claim the entry-point name 'builtin': "
            f"acme-{number} and deepnarrow; uninstall one of them")
    registry = load_plugins([], [module_with("builtin", modalities=[toy[0]])])
    assert "already registered" in str(registry.plugins[1].error)
    assert "local" in registry.launchers


def test_a_refused_namesake_takes_nothing_from_the_good_plugin(install, capsys):
    good = GOOD.format(name="mine") + OBSERVER.format(step="pass", run="pass")
    for number, bad in enumerate((GOOD.format(name="thief"), "import no_such_module_here\n")):
        if not number:
            points = install("deepnarrow", {"mine": good})
        registry = load_plugins([*points, *install(f"acme-{number}", {"mine": bad})])
        assert list(registry.modalities) == ["mine"]
        assert [p.distribution for p in registry.plugins if p.error] == [f"acme-{number}"]
        notify(registry, "deepnarrow_step_end", info={"step": 7})
        assert capsys.readouterr() == ("", "step 7\n")


def test_a_namesake_that_points_at_the_good_plugins_module_is_refused(install, tmp_path):
    [point] = install("deepnarrow", {"mine": GOOD.format(name="mine")})
    info = tmp_path / "acme-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nmine = {point.value}\n")
    [stranger] = importlib.metadata.PathDistribution(info).entry_points
    registry = load_plugins([stranger, point])
    assert registry.owners["modalities", "mine"] == "deepnarrow"
    assert [p.distribution for p in registry.plugins if p.error] == ["acme"]


def test_a_module_given_twice_stays_registered(toy, capsys):
    module = module_with("twice", modalities=[toy[0]])

    @hookimpl
    def deepnarrow_step_end(info):
        print(info["step"])

    module.deepnarrow_step_end = deepnarrow_step_end  # pyright: ignore[reportAttributeAccessIssue]
    registry = load_plugins([], [module, module])
    assert list(registry.modalities) == ["toy"]
    assert [p.error for p in registry.plugins] == [
        None, None, "its module is already registered, as 'twice'"]
    notify(registry, "deepnarrow_step_end", info={"step": 1})
    assert capsys.readouterr() == ("", "1\n")


def test_one_entry_point_seen_twice_is_one_plugin(install):
    points = install("acme-good", {"good": GOOD.format(name="good")})
    registry = load_plugins([*points, *points])
    assert [p.name for p in registry.plugins] == ["builtin", "good"]


def test_one_module_under_two_names_is_registered_once(install, tmp_path):
    [point] = install("acme-good", {"good": GOOD.format(name="good")})
    again = importlib.metadata.EntryPoint("other", point.value, GROUP)
    registry = load_plugins([point, again])
    assert list(registry.modalities) == ["good"]
    assert "already registered" in reason(registry, "other")


def test_what_extends_an_unavailable_modality_is_unavailable(toy):
    broken = module_with("broken", modalities=[toy[0]], launchers=None)
    extension = module_with("extension", tasks={"toy": [make_task()]})
    registry = load_plugins([], [broken, extension])
    assert "unknown modality, 'toy'" in reason(registry, "extension")


def test_an_unknown_modality_is_answered_with_what_there_is(toy):
    registry = load_plugins([], [module_with(modalities=[toy[0]]),
                                 module_with("broken", modalities=None)])
    with pytest.raises(PluginError, match="Hint: did you mean toy"):
        registry.modality("tyo")
    with pytest.raises(PluginError, match=r"expected one of toy\).*unavailable: broken"):
        registry.modality("x" * 1000)
    with pytest.raises(PluginError, match="expected one of transformer"):
        registry.architecture("transfomer")


def test_a_broken_core_is_a_bug_not_an_unavailable_plugin(monkeypatch):
    from deepnarrow import builtin

    monkeypatch.setattr(builtin, "CORE_OPS", [3])
    with pytest.raises(PluginError, match="plugin 'builtin' of deepnarrow"):
        load_plugins([])


def test_the_installed_plugins_load_strictly_and_without_jax():
    code = ("import importlib.metadata as m, sys; from deepnarrow.plugins import *; "
            "r = load_plugins(m.entry_points(group=GROUP), strict=True); "
            "print(list(r.modalities)); assert 'jax' not in sys.modules")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "text_t5" in done.stdout
    assert "vision_vit" in done.stdout
