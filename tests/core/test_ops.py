"""The expression grammar and the operators: laws over random compositions, and every bad input."""

import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import InputError, ShapeError
from deepnarrow.ops import (
    CORE_OPS,
    Expression,
    NamedShape,
    ShapeOp,
    Term,
    Vocabulary,
    apply,
    apply_term,
    format_decimal,
    parse,
    resolve,
    round_half_up,
)
from deepnarrow.shape import FIELD_LIMITS, Preset, Shape

BASE = Shape(12, 12, d_model=768, d_ff=3072, d_kv=64, num_heads=12)
SMALL = Shape(6, 6, d_model=512, d_ff=2048, d_kv=64, num_heads=8)
PATCHY = Shape(12, 0, d_model=384, d_ff=1536, d_kv=64, num_heads=6)
OPS = {op.symbol: op for op in CORE_OPS}
# An operator of a plugin, on a model option.
EXPERTS = ShapeOp("NE", (), "experts", "a test", option="num_experts")

TEXT = Vocabulary(
    "text", {"small": Preset(SMALL, "a test"), "base": Preset(BASE, "a test")},
    {"rel-base": Preset(BASE, "a test", open_name="base"),
     "rel-base-nl4": Preset(BASE.replace(num_encoder_layers=4, num_decoder_layers=4), "a test",
                            open_name="base-nl4"),
     "rel-odd": Preset(SMALL, "a test")},
    {**OPS, "NE": EXPERTS}, frozenset({"num_experts"}))
VISION = Vocabulary(
    "vision", {"S": Preset(PATCHY, "a test", {"patch_size": 16}),
               "g": Preset(PATCHY, "a test"), "g-opt": Preset(PATCHY, "a test")},
    {}, OPS, frozenset({"patch_size"}), "patch_size")


def refuse(text, vocabulary=TEXT) -> str:
    with pytest.raises(ShapeError) as caught:
        resolve(text, vocabulary)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- what an expression means ------------------------------------------------------------------
@pytest.mark.parametrize(("text", "fields"), [
    ("base", {}),
    ("base-nl16", {"num_encoder_layers": 16, "num_decoder_layers": 16}),
    ("base-el2", {"num_encoder_layers": 2}),
    ("base-dl2", {"num_decoder_layers": 2}),
    ("base-dm1024", {"d_model": 1024}),
    ("base-ff2k", {"d_ff": 2048}),
    ("base-ff2000", {"d_ff": 2000}),
    ("base-kv128", {"d_kv": 128}),
    ("base-nh32", {"num_heads": 32}),
    ("base-sh", {"share_heads": True}),
    ("base-skv", {"share_kv": True}),
    ("base-shkv", {"share_heads": True, "share_kv": True}),
    ("base-nl*2", {"num_encoder_layers": 24, "num_decoder_layers": 24}),
    ("base-nl*1.25", {"num_encoder_layers": 15, "num_decoder_layers": 15}),
    ("base-nh*0.125", {"num_heads": 2}),  # 1.5 rounds half up
    ("base-dm*0.0001", {"d_model": 1}),
    ("base-el2-dl4-ff1k-nh1", {"num_encoder_layers": 2, "num_decoder_layers": 4, "d_ff": 1024,
                               "num_heads": 1}),
])
def test_each_operator_changes_its_own_fields_and_no_other(text, fields):
    assert resolve(text, TEXT).shape == BASE.replace(**fields)


def test_scaling_each_stack_on_its_own():
    uneven = resolve("base-el16-dl2", TEXT).shape
    term = parse("base-nl*1.5", TEXT).terms[0]
    scaled = apply_term(uneven, OPS["NL"], term, where="x", owner="x")
    assert (scaled.num_encoder_layers, scaled.num_decoder_layers) == (24, 3)


def test_a_suffix_sets_its_option_and_presets_may_contain_dashes():
    assert resolve("S/8-nl24", VISION) == NamedShape(
        "S/8-nl24", PATCHY.replace(num_encoder_layers=24), {"patch_size": 8},
        fixed=frozenset({"patch_size"}), operators=("NL",))
    assert resolve("S", VISION) == NamedShape("S", PATCHY, {"patch_size": 16})
    assert resolve("g-opt/14-nl2", VISION).name == "g-opt/14-nl2"


def test_an_operator_may_act_on_an_option():
    assert resolve("base-ne8", TEXT).overrides == {"num_experts": 8}
    assert "no value to scale" in refuse("base-ne*2")


def test_a_released_name_is_itself():
    named = resolve("rel-base-nl4", TEXT)
    assert named.name == "rel-base-nl4"
    assert named.shape.num_encoder_layers == 4
    assert named.operators == ()


@pytest.mark.parametrize("text", ["S", "S-nl24"])
def test_a_given_option_wins_over_a_presets_default(text):
    named = resolve(text, VISION)
    assert named.options({"patch_size": 32, "x": 1}, "--set ") == {"patch_size": 32, "x": 1}
    assert named.options({"x": 1}, "--set ") == {"patch_size": 16, "x": 1}


@pytest.mark.parametrize(("text", "vocabulary", "option", "value"), [
    ("S/16", VISION, "patch_size", 16),  # also where it is the default
    ("S/8-nl24", VISION, "patch_size", 8),
    ("base-ne8", TEXT, "num_experts", 8),
    ("rel-S", Vocabulary("vision", {}, {"rel-S": VISION.presets["S"]}, OPS), "patch_size", 16),
])
def test_a_given_option_must_not_contradict_the_name(text, vocabulary, option, value):
    named = resolve(text, vocabulary)
    assert named.options({option: value}, "--set ") == {option: value}
    with pytest.raises(InputError) as caught:
        named.options({option: value + 1}, "--set ")
    assert str(caught.value) == (f"--set {option}: the name {text!r} sets this option "
                                 f"(got {value + 1}; expected {value})")


def test_a_shape_knows_the_operators_on_its_fields():
    # NE acts on an option: no business of the architecture.
    assert resolve("base-shkv-nl4-ne8", TEXT).operators == ("NL", "SHKV")
    assert resolve("S/8", VISION).operators == ()


def test_all_upper_and_lower_limits_are_reachable():
    for op in CORE_OPS:
        if not op.is_flag:
            high = FIELD_LIMITS[op.fields[0]][1]
            for value in (1, high):
                shape = resolve(f"base-{op.symbol.lower()}{value}", TEXT).shape
                assert {getattr(shape, field) for field in op.fields} == {value}
            refuse(f"base-{op.symbol.lower()}{high + 1}")


# --- laws --------------------------------------------------------------------------------------
@st.composite
def expressions(draw, vocabulary):
    """Expressions that set no field twice and apply in the vocabulary."""
    preset = draw(st.sampled_from(sorted(vocabulary.presets)))
    shape = vocabulary.presets[preset].shape
    suffix = draw(st.none() | st.integers(1, 64)) if vocabulary.suffix_option else None
    free = {"num_encoder_layers", "d_model", "d_ff", "d_kv", "num_heads", "share_heads", "share_kv"}
    free |= {"num_decoder_layers"} if shape.num_decoder_layers else set()
    terms = []
    for op in draw(st.permutations(CORE_OPS)):
        fields = {f for f in op.fields if f != "num_decoder_layers" or shape.num_decoder_layers}
        if not fields or not fields <= free or draw(st.booleans()):
            continue
        free -= fields
        if op.is_flag:
            terms.append(op.symbol.lower())
        elif draw(st.booleans()):
            high = min(FIELD_LIMITS[f][1] for f in fields)
            terms.append(f"{op.symbol.lower()}{draw(st.integers(1, high))}")
        else:
            factor = draw(st.sampled_from(["2", "1.5", "0.5", "3", "0.1", "1.125"]))
            terms.append(f"{op.symbol.lower()}*{factor}")
    return preset, suffix, terms


def join(preset, suffix, terms) -> str:
    return "-".join([preset if suffix is None else f"{preset}/{suffix}", *terms])


@pytest.mark.parametrize("vocabulary", [TEXT, VISION], ids=["text", "vision"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_parse_and_format_round_trip_and_operators_commute(vocabulary, data):
    preset, suffix, terms = data.draw(expressions(vocabulary))
    text = join(preset, suffix, terms)
    expression = parse(text, vocabulary)
    canonical = str(expression)
    assert parse(canonical, vocabulary) == expression
    assert str(parse(canonical, vocabulary)) == canonical
    assert apply(expression, vocabulary) == resolve(text, vocabulary)
    other = join(preset, suffix, data.draw(st.permutations(terms)))
    assert resolve(other, vocabulary) == resolve(text, vocabulary)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_no_operator_names_stays(data):
    preset, suffix, terms = data.draw(expressions(TEXT))
    text = join(preset, suffix, terms)
    shape = resolve(text, TEXT).shape
    named = {f for term in parse(text, TEXT).terms for f in OPS[term.symbol].fields}
    for field, value in TEXT.presets[preset].shape.to_dict().items():
        assert field in named or getattr(shape, field) == value


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_an_operator_given_twice_is_refused(data):
    preset, suffix, terms = data.draw(expressions(TEXT))
    again = data.draw(st.sampled_from(terms or ["nl4"]))
    terms = [*(terms or ["nl4"]), again]
    assert "both set" in refuse(join(preset, suffix, terms))


@given(a=st.sampled_from([2, 3, 4, 8]), b=st.sampled_from([2, 3, 5]), op=st.sampled_from(
    [op for op in CORE_OPS if not op.is_flag]))
def test_scaling_by_whole_factors_composes(a, b, op):
    def scale(shape, factor):
        return apply_term(shape, op, parse(f"base-{op.symbol.lower()}*{factor}", TEXT).terms[0],
                          where="x", owner="x")

    assert scale(scale(SMALL, a), b) == scale(SMALL, a * b)


@given(st.fractions(min_value=0, max_value=10**6))
def test_rounding_is_half_up_and_at_least_one(value):
    rounded = round_half_up(value)
    assert rounded >= 1
    if value >= 1:
        assert rounded - value <= 1 / 2
        assert value - rounded < 1 / 2


@given(st.integers(0, 10**6), st.integers(0, 6))
def test_decimals_are_written_as_they_are_read(digits, places):
    value = Fraction(digits, 10**places)
    assert Fraction(format_decimal(value)) == value
    assert "e" not in format_decimal(value)


# --- any text at all ---------------------------------------------------------------------------
def check_total(text, vocabulary):
    started = time.thread_time()  # other processes on the machine do not count
    try:
        message = resolve(text, vocabulary).name
    except ShapeError as error:
        message = str(error)
    assert time.thread_time() - started < 0.05
    assert 0 < len(message) < 2000
    assert "\n" not in message


WORDS = st.sampled_from([
    "base", "small", "rel-base", "rel-base-nl4", "S", "g-opt", "nl", "NL", "ff", "sh", "shkv", "kv",
    "-", "--", "/", "*", ".", "k", "0", "00", "1", "16", "9" * 30, "1e9", "-5", "_", " ", "\u2011",
    "\u0661", "\x00", "\ud800", "x" * 300, "ne", "16k", "1.5", "\n"])


@pytest.mark.parametrize("vocabulary", [TEXT, VISION], ids=["text", "vision"])
@settings(max_examples=300, deadline=None)
@given(text=st.text(max_size=120) | st.lists(WORDS, max_size=8).map("".join)
       | st.lists(WORDS, max_size=8).map("-".join))
def test_any_text_gives_a_shape_or_a_shape_error_in_time(vocabulary, text):
    check_total(text, vocabulary)


@pytest.mark.parametrize("text", ["x" * 100_000, "base" + "-nl4" * 30_000, "-" * 200, "9" * 200,
                                  "base-nl" + "9" * 190, "a-" * 100, "\u2011" * 150])
def test_long_texts_are_refused_in_time(text):
    check_total(text, TEXT)
    refuse(text)


# --- bad inputs by name ------------------------------------------------------------------------
@pytest.mark.parametrize(("text", "parts"), [
    ("base-nl0", ["column 8", "nl must be at least 1", "got 0", "1..4096"]),
    ("base-dm0", ["dm must be at least 1"]),
    ("nl-5", ["starts with an operator", "small, base"]),
    ("nl16", ["starts with an operator", "write the preset first: small-nl16"]),
    ("base-nl-5", ["nl needs a positive integer", "got '-5'"]),
    ("base-nl*-1", ["positive decimal factor", "got '-1'"]),
    ("bsae-nl4", ["did you mean base-nl4?"]),
    ("base-nl", ["nl needs a positive integer"]),
    ("base-NL4", ["column 6", "lower case", "'nl4'"]),
    ("base-nl1e9", ["plain digits 0-9 without a leading 0"]),
    ("base-nl4.5", ["plain digits 0-9 without a leading 0"]),
    ("base-nl\u0661\u0662", ["column 8", "U+0661", "write the digit 1"]),
    ("base-nl_1_0", ["plain digits"]),
    ("base-nl+4", ["column 8", "U+002B"]),
    ("base-nl04", ["without a leading 0"]),
    ("base-nl99999999999999999999", ["at most 4096"]),
    ("base-ff99999k", ["at most 1048576"]),
    ("base-nl4-nl8", ["column 10", "both set", "keep one"]),
    ("base-nl4-nl4", ["both set"]),
    ("base-nl4-el8", ["el and nl both set num_encoder_layers"]),
    ("base-sh-shkv", ["both set share_heads"]),
    ("base-xx3", ["column 6", "unknown operator", "nl, el, dl, dm, ff, kv, nh, sh, skv, shkv"]),
    ("base-l4", ["did you mean nl?"]),
    ("base-sh3", ["sh is a flag and takes no value"]),
    ("bsae", ["unknown preset of text", "did you mean base?"]),
    ("BASE", ["did you mean base?"]),
    ("base-", ["column 6", "an operator is missing"]),
    ("base--nl4", ["column 6", "an operator is missing"]),
    ("-base", ["unknown preset"]),
    ("", ["no shape given"]),
    ("  ", ["no shape given"]),
    ("base\u2011nl4", ["column 5", "U+2011", "did you mean '-'?"]),
    ("base-\u200bnl4", ["column 6", "U+200B", "leave it out"]),
    ("base nl4", ["column 5", "U+0020", "leave it out"]),
    ("ba\u0455e", ["column 3", "U+0455", "did you mean 's'?"]),
    ("\u0412ase", ["column 1", "U+0412", "did you mean 'B'?"]),
    ("base-\uff4e\uff4c4", ["column 6", "U+FF4E", "did you mean 'n'?"]),
    ("base-nl\u00d72", ["column 8", "did you mean '*'?"]),
    ("base/16", ["'/' means nothing in text", "write base"]),
    ("base-nl*0", ["positive decimal factor"]),
    ("base-nl*", ["positive decimal factor"]),
    ("base-nl*1e3", ["positive decimal factor"]),
    ("base-nl*4000", ["column 6", "out of range for num_encoder_layers", "got 48000",
                      "nl4096 is the most"]),
    ("base-ff4-nl*4000", ["column 10", "out of range for num_encoder_layers"]),
    ("base-nl*0.33333333333333333333", ["column 9", "too long a factor", "22 characters",
                                        "at most 20"]),
    # Closed names.
    ("rel-base-nl17", ["no checkpoint of that name is released", "the open name is base-nl17"]),
    ("rel-base-nl4-ff2k", ["rel-base-nl4 is a released name", "the open name is base-nl4-ff2048"]),
    ("rel-base-nl4-nl8", ["takes no operators", "did you mean rel-base-nl4?"]),
    ("rel-base-", ["did you mean rel-base?"]),
    ("rel-base/16", ["takes no operators"]),
    ("rel-odd-nl4", ["takes no operators"]),
    ("rel-bsae", ["unknown preset", "did you mean rel-base?"]),
])
def test_bad_input_says_what_is_wrong_where(text, parts):
    message = refuse(text)
    for part in parts:
        assert part in message, message


@pytest.mark.parametrize(("text", "parts"), [
    ("S-dl2", ["column 3", "dl acts on decoder layers; vision has none", "use el or nl"]),
    ("S/16-ff4-dl2", ["shape 'S/16-ff4-dl2', column 10", "dl acts on decoder layers"]),
    ("S-nl2-dl1", ["both set num_decoder_layers"]),
    ("S/", ["'/' (patch_size) needs a positive integer"]),
    ("S/0", ["'/' (patch_size) must be at least 1"]),
    ("S/016", ["without a leading 0"]),
    ("S/16/16", ["column 5", "a second '/'", "write S/16"]),
    ("S-nl24/16", ["column 7", "'/' stands in the wrong place", "S/16-nl4"]),
    ("s/16", ["did you mean S/16?"]),
    ("S16", ["did you mean S/16?"]),
    ("S-ne8", ["unknown operator"]),
])
def test_bad_input_of_a_modality_with_one_stack(text, parts):
    message = refuse(text, VISION)
    for part in parts:
        assert part in message, message


def test_an_operator_on_an_option_the_modality_has_not():
    vocabulary = Vocabulary("vision", VISION.presets, {}, {**OPS, "NE": EXPERTS})
    assert "ne acts on experts; vision has none" in refuse("S-ne8", vocabulary)


# --- Shape itself ------------------------------------------------------------------------------
@pytest.mark.parametrize(("fields", "part"), [
    ({"d_model": 0}, "d_model is out of range"),
    ({"d_model": 2.0}, "d_model is out of range"),
    ({"num_heads": True}, "num_heads is out of range"),
    ({"num_encoder_layers": -1}, "num_encoder_layers is out of range"),
    ({"d_ff": 10**9}, "d_ff is out of range"),
    ({"share_kv": 1}, "share_kv is a flag"),
    ({"num_encoder_layers": 0, "num_decoder_layers": 0}, "no layers"),
])
def test_a_shape_that_cannot_be_is_refused(fields, part):
    with pytest.raises(ShapeError, match=part):
        BASE.replace(**fields)


def test_a_shape_lists_its_eight_fields_in_order():
    assert list(BASE.to_dict()) == ["num_encoder_layers", "num_decoder_layers", "d_model", "d_ff",
                                    "d_kv", "num_heads", "share_heads", "share_kv"]
    assert BASE.num_layers == 24


def test_terms_and_expressions_are_plain_values():
    assert str(Expression("base", 16, (Term("SH", "flag"),))) == "base/16-sh"
