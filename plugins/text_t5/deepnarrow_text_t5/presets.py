"""Published shapes of T5: open presets, which take operators, and the released checkpoints' names.

A released name looks like an expression and is not one: `t5-efficient-base-ff2000` has a d_ff of
2048. `CATALOGUE` therefore maps each released name to the open expression of the same size, by a
rule for the thousands and a table of the names that follow no rule.
"""

from __future__ import annotations

import re

from deepnarrow.ops import CORE_OPS, Vocabulary, resolve
from deepnarrow.shape import Preset, Shape

_TABLE_1 = (
    "Tay et al., Scale Efficiently (ICLR 2022), table of T5 shapes; d_kv as in the released "
    "checkpoint's config.json"
)
_KV_NOTE = f"{_TABLE_1} (64; the paper's table prints 32, which fits neither its own counts)"
_UNCONFIRMED = (
    "unconfirmed: the paper names XXXL (33B); no source states these six numbers, no checkpoint of "
    "it is released"
)
PREFIX = "t5-efficient-"
RELEASED = "config.json of huggingface.co/google/{name} (Tay et al., Scale Efficiently, ICLR 2022)"

PRESETS: dict[str, Preset] = {
    "micro": Preset(Shape(2, 2, d_model=64, d_ff=256, d_kv=16, num_heads=4),
                    "this project, for studies that a CPU runs in minutes; not published"),
    "tiny": Preset(Shape(4, 4, d_model=256, d_ff=1024, d_kv=64, num_heads=4), _KV_NOTE),
    "mini": Preset(Shape(4, 4, d_model=384, d_ff=1536, d_kv=64, num_heads=8), _KV_NOTE),
    "small": Preset(Shape(6, 6, d_model=512, d_ff=2048, d_kv=64, num_heads=8), _KV_NOTE),
    "base": Preset(Shape(12, 12, d_model=768, d_ff=3072, d_kv=64, num_heads=12), _TABLE_1),
    "large": Preset(Shape(24, 24, d_model=1024, d_ff=4096, d_kv=64, num_heads=16), _TABLE_1),
    "xl": Preset(Shape(24, 24, d_model=1024, d_ff=16384, d_kv=128, num_heads=32), _TABLE_1),
    "xxl": Preset(Shape(24, 24, d_model=1024, d_ff=65536, d_kv=128, num_heads=128), _TABLE_1),
    "xxxl": Preset(Shape(28, 28, d_model=1280, d_ff=131072, d_kv=128, num_heads=256), _UNCONFIRMED),
}

# The suffixes released for each size, besides the plain size itself. Ten more names (sh, skv, shkv)
# were announced and never converted; they have no known shape and are left out.
_RELEASED_SUFFIXES = {
    "tiny": "dl2 dl6 dl8 el2 el6 el8 el12 ff2000 ff3000 ff6000 ff9000 ff12000 nh1 nh8 nh16 nh32 "
            "nl2 nl6 nl8 nl12 nl16 nl24 nl32",
    "mini": "nl6 nl8 nl12 nl24",
    "small": "dl2 dl4 dl8 dl12 dl16 dm128 dm256 dm768 dm1000 dm2000 el2 el4 el8 el8-dl1 el8-dl2 "
             "el8-dl4 el12 el16 el16-dl1 el16-dl2 el16-dl4 el16-dl8 el32 el48 el64 ff1000 ff3000 "
             "ff6000 ff9000 ff12000 kv16 kv32 kv128 kv256 nl2 nl4 nl8 nl16 nl20 nl22 nl24 nl32 "
             "nl36 nl40 nl48",
    "base": "dl2 dl4 dl6 dl8 dm256 dm512 dm1000 dm2000 el2 el4 el6 el8 el16 ff1000 ff2000 ff6000 "
            "ff9000 ff12000 kv16 kv32 kv128 kv256 nh8 nh16 nh24 nh32 nl2 nl4 nl8 nl16 nl24 nl32 "
            "nl36 nl40 nl48",
    "large": "dl2 dl4 dl6 dl8 dl12 dl16 dl32 dm128 dm256 dm512 dm768 dm2000 el2 el4 el6 el8 el12 "
             "kv16 kv32 kv128 kv256 nh2 nh4 nh8 nh8-nl16 nh8-nl32 nh12 nh24 nh32 nl2 nl4 nl8 nl10 "
             "nl12 nl16 nl20 nl32 nl36",
    "xl": "nl2 nl4 nl6 nl8 nl12 nl16 nl28",
    "xxl": "nl4",
}

# Released names whose checkpoint is not what the name says: the stack that a tiny name leaves alone
# has 12 layers instead of 4, and tiny-ff2000 is plain tiny.
_QUIRKS = {
    "tiny-ff2000": "tiny",
    "tiny-el2": "tiny-el2-dl12",
    "tiny-el6": "tiny-el6-dl12",
    "tiny-el8": "tiny-el8-dl12",
    "tiny-el12": "tiny-el12-dl12",
    "tiny-dl2": "tiny-el12-dl2",
    "tiny-dl6": "tiny-el12-dl6",
    "tiny-dl8": "tiny-el12-dl8",
}


def _open_name(size: str, suffix: str) -> str:
    """The open expression of a released name's size: thousands of ff and dm are x 1024."""
    name = f"{size}-{suffix}" if suffix else size
    return _QUIRKS.get(name) or re.sub(r"(ff|dm)(\d+)000\b", r"\1\2k", name)


def open_name(text: str) -> str | None:
    """Returns the open expression of a name of the released kind, released or not.

    >>> open_name("t5-efficient-large-ff2000"), open_name("t5-efficient-tiny-el4")
    ('large-ff2k', 'tiny-el4-dl12')
    """
    size, _, suffix = text.removeprefix(PREFIX).partition("-")
    if not text.startswith(PREFIX) or size not in _RELEASED_SUFFIXES:
        return None
    if size == "tiny" and (match := re.fullmatch(r"(el|dl)\d+", suffix)):
        other = {"el": f"{suffix}-dl12", "dl": f"el12-{suffix}"}[match[1]]
        return f"{size}-{other}"
    return _open_name(size, suffix)


def _catalogue() -> dict[str, Preset]:
    vocabulary = Vocabulary("text_t5", PRESETS, {}, {op.symbol: op for op in CORE_OPS})
    entries: dict[str, Preset] = {}
    for size, suffixes in _RELEASED_SUFFIXES.items():
        for suffix in ("", *suffixes.split()):
            name = f"{PREFIX}{size}{'-' if suffix else ''}{suffix}"
            open_text = _open_name(size, suffix)
            entries[name] = Preset(resolve(open_text, vocabulary).shape,
                                   RELEASED.format(name=name), open_name=open_text)
    return entries


CATALOGUE: dict[str, Preset] = _catalogue()
