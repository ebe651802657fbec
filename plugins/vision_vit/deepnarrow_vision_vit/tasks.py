"""What the ViT is pre-trained on and transferred to. No JAX; building a task reads no images."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from deepnarrow.errors import InputError, suggest
from deepnarrow.modality import Metric, Source, Task, Upstream
from deepnarrow.protocol import check_choice, check_range
from deepnarrow.settings import build
from deepnarrow.transfer.scores import score_accuracy
from deepnarrow_vision_vit import digits, splits
from deepnarrow_vision_vit.dataoptions import default_digits
from deepnarrow_vision_vit.images import CONVERSIONS
from deepnarrow_vision_vit.preprocess import Chain, Form, build_chain, check_chain
from deepnarrow_vision_vit.readers import ImageSet, Pool, open_set
from deepnarrow_vision_vit.sources import (
    CORRUPT,
    WHERE,
    make_source,
    resolve_rows,
    stored_forms,
    warn_overlap,
)

if TYPE_CHECKING:
    from ml_collections import ConfigDict

Kind = Literal["few_shot", "fine_tune"]
DIGITS = "digits"
TRANSFER_SPLITS = ("train", "validation", "test")
MAX_BASELINE_VALUES = 64 * 64 * 3  # an image's values, up to which raw pixels are probed too
# Options that act on every upstream but the embedded study.
_GENERAL = ("train", "validation", "image_size", "channels", "train_pp", "eval_pp", "mixup")


@dataclasses.dataclass(frozen=True)
class TransferSet:
    """One transfer task as a config describes it; see `default_data_options`.

    Attributes:
      source: a line as `readers.py` describes it.
      train: its splits, as `splits.py` describes them; all empty for the defaults.
      validation: may be empty: no fine-tuning then.
      test: never used to choose anything.
      pp: its own preprocessing; empty for `eval_pp`. Of another size it serves fine-tuning alone,
        at that resolution.
    """

    source: str
    train: str = ""
    validation: str = ""
    test: str = ""
    pp: tuple[Any, ...] = ()


@dataclasses.dataclass(frozen=True)
class Opened:
    """Upstream, opened: its images by split, its chains and the form that the model gets."""

    images: ImageSet
    rows: Mapping[str, tuple[Pool, np.ndarray]]
    train_chain: Chain
    eval_chain: Chain
    form: Form


def upstream(data_options: ConfigDict, options: ConfigDict) -> Upstream:
    """Classification of `data_options.upstream`'s images.

    The data decides `image_size`, `channels` and `num_classes` of the model.

    Raises:
      InputError: an option or the data are wrong; every image that cannot be used is reported.
    """
    del options  # the data decides all of the model's options that it knows of
    _check_options(data_options)
    if data_options.upstream == DIGITS:
        return digits.digits_upstream(data_options.digits)
    opened = _open_upstream(_frozen(data_options))
    images, classes = opened.images, opened.images.num_classes
    rows = opened.rows
    warn_overlap({split: _hashes(*r) for split, r in rows.items()}, images.where)
    return Upstream(
        train=make_source(*rows["train"], opened.train_chain, classes, mixup=data_options.mixup),
        validation=make_source(*rows["validation"], opened.eval_chain, classes),
        metric=Metric("loss", "min"),
        options={"image_size": opened.form.height, "channels": opened.form.channels,
                 "num_classes": classes},
    )


def tasks(data_options: ConfigDict, options: ConfigDict) -> Mapping[str, Task]:
    """The transfer tasks: those of `data_options.transfer`, and the embedded study's.

    `digits_new_classes`, classification of `digits.transfer_classes`, belongs to upstream `digits`.
    """
    del options  # the images depend on the data's options alone
    _check_options(data_options)
    found = [_set_task(name, value, data_options)
             for name, value in data_options.transfer.items()]
    if data_options.upstream == DIGITS:
        found.append(_new_classes(data_options.digits))
    return {task.name: task for task in found}


# --- options --------------------------------------------------------------------------------------
def _check_options(data_options: ConfigDict) -> None:
    check_choice(WHERE, "corrupt", data_options.corrupt, CORRUPT)
    check_range(WHERE, "mixup", data_options.mixup, 0, 100)
    check_range(WHERE, "image_size", data_options.image_size, 0, 4096)
    check_choice(WHERE, "channels", data_options.channels, (0, 1, 3))
    for name in data_options.convert:
        if name not in CONVERSIONS:
            near = suggest(str(name), CONVERSIONS)
            raise InputError(WHERE, "convert is unknown", got=name,
                             expected=f"one of {', '.join(CONVERSIONS)}",
                             hint=f"did you mean {near}?" if near else None)
    if data_options.upstream == DIGITS:
        for name in _GENERAL:
            if data_options[name]:
                raise InputError(f"{WHERE}.{name}", "does not act on the embedded study",
                                 got=data_options[name],
                                 hint="see data.digits, or name another upstream")
    elif data_options.digits.to_dict() != default_digits():
        raise InputError(f"{WHERE}.digits", "acts on upstream 'digits' only",
                         got=f"upstream {data_options.upstream!r}", hint="leave it out")


def _frozen(data_options: ConfigDict) -> str:
    """The options as text: a key to open upstream once for all cells and tasks."""
    return json.dumps(data_options.to_dict(), sort_keys=True)


@functools.lru_cache(maxsize=8)
def _open_upstream(frozen: str) -> Opened:
    options: dict[str, Any] = json.loads(frozen)
    images = open_set(options["upstream"])
    given = {name: options[name] for name in ("train", "validation")}
    expressions = _split_expressions(images, given, ("train", "validation"),
                                     splits.default_upstream, WHERE)
    rows = {split: resolve_rows(images, expression, tuple(options["convert"]),
                                options["corrupt"], f"{WHERE}.{split}")
            for split, expression in expressions.items()}
    forms = stored_forms(*rows["train"])
    channels = options["channels"] or max(form.channels or 1 for form in forms)
    size = options["image_size"] or _own_size(forms, options)
    eval_chain = _chain(options["eval_pp"], f"{WHERE}.eval_pp", size, channels, options["convert"])
    train_chain = eval_chain if not options["train_pp"] else _chain(
        options["train_pp"], f"{WHERE}.train_pp", size, channels, options["convert"])
    raw = Form(None, None, None, "raw") if len(forms) > 1 else forms[0]
    ends = {name: check_chain(chain, raw, f"{WHERE}.{name}")
            for name, chain in (("train_pp", train_chain), ("eval_pp", eval_chain))}
    if ends["train_pp"] != ends["eval_pp"]:
        raise InputError(f"{WHERE}.eval_pp", "gives other images than train_pp",
                         got=_shape(ends["eval_pp"]), expected=_shape(ends["train_pp"]))
    if options["image_size"] not in (0, ends["eval_pp"].height):
        raise InputError(f"{WHERE}.image_size", "is not what eval_pp gives",
                         got=options["image_size"], expected=ends["eval_pp"].height,
                         hint="leave image_size out")
    return Opened(images, rows, train_chain, eval_chain, ends["eval_pp"])


def _shape(form: Form) -> str:
    return f"{form.height} x {form.width} x {form.channels}"


def _own_size(forms: list[Form], options: Mapping[str, Any]) -> int:
    """The one size of all images; 0 where a chain decides it."""
    if options["eval_pp"]:
        return 0
    sizes = {(form.height, form.width) for form in forms}
    height, width = next(iter(sizes))
    if len(sizes) > 1 or height != width:
        why = "differ in size" if len(sizes) > 1 else f"are no squares but {height} x {width}"
        raise InputError(f"{WHERE}.image_size", f"is needed: the images {why}",
                         hint="e.g. image_size=224, or end eval_pp in a crop or resize")
    return height or 0


def _chain(steps: Any, where: str, size: int, channels: int, convert: Any) -> Chain:
    """The chain of a config; where that is empty, resize to `size` and scale to -1..1."""
    steps = steps or ({"op": "resize", "size": size}, {"op": "value_range"})
    return build_chain(steps, where, channels, tuple(convert))


def _split_expressions(
    images: ImageSet, given: Mapping[str, str], needed: tuple[str, ...], defaults: Any, where: str
) -> Mapping[str, str]:
    """The splits that the config names, or the defaults where it names none."""
    if not any(given.values()):
        return defaults(images.pools, images.where)
    for name in needed:
        if not given[name]:
            raise InputError(f"{where}.{name}", "is missing: name all splits or none",
                             got=", ".join(f"{k}={v}" for k, v in given.items() if v),
                             expected=f"of {', '.join(images.pools)}")
    return given


def _hashes(pool: Pool, rows: np.ndarray) -> np.ndarray:
    """uint8 [n, 32]: the hashes of the images at `rows`."""
    return pool.index().hashes[rows]


# --- tasks ----------------------------------------------------------------------------------------
def _set_task(name: str, value: Any, data_options: ConfigDict) -> Task:
    """A task on a whole data set: its classes are the task's."""
    where = f"{WHERE}.transfer.{name}"
    settings = {"source": value} if isinstance(value, str) else value
    settings = settings if isinstance(settings, dict) else settings.to_dict()
    wanted = build(TransferSet, settings, where)
    if wanted.source == data_options.upstream == DIGITS:
        raise InputError(where, "holds the images that the embedded study is pre-trained on",
                         hint="take its own task digits_new_classes, or another upstream")
    images = open_set(wanted.source)
    given = {split: getattr(wanted, split) for split in TRANSFER_SPLITS}
    expressions = _split_expressions(images, given, ("train", "test"), splits.default_transfer,
                                     where)

    @functools.cache
    def rows(split: str) -> tuple[Pool, np.ndarray]:
        return resolve_rows(images, expressions[split], tuple(data_options.convert),
                            data_options.corrupt, f"{where}.{split}")

    @functools.cache
    def examples(split: str) -> Source:
        if not expressions.get(split):
            raise InputError(f"task {name!r}", "no such split", got=split,
                             expected=f"one of {', '.join(s for s, e in expressions.items() if e)}")
        if split == "test":
            hashes = {s: _hashes(*rows(s)) for s, e in expressions.items() if e}
            if data_options.upstream != DIGITS:
                opened = _open_upstream(_frozen(data_options))
                hashes["upstream's train"] = _hashes(*opened.rows["train"])
            warn_overlap(hashes, f"task {name!r}")
        return make_source(*rows(split), _transfer_chain(wanted, data_options, where),
                           images.num_classes)

    form = _declared_form(wanted, data_options, where)
    own_size = bool(wanted.pp) and form.height != _model_form(data_options).height
    kinds: set[Kind] = set() if own_size else {"few_shot"}
    if expressions["validation"]:
        kinds.add("fine_tune")
    return _labelled_task(
        name, examples, images.num_classes, frozenset(kinds),
        options={"image_size": form.height} if own_size else {},
        raw=(form.height or 0) ** 2 * (form.channels or 1) <= MAX_BASELINE_VALUES)


def _declared_form(wanted: TransferSet, data_options: ConfigDict, where: str) -> Form:
    """The images of a task as far as the options say, so that nothing need be read."""
    steps = wanted.pp or data_options.eval_pp
    if not steps:
        return Form(data_options.image_size, None, data_options.channels or None, "float32")
    chain = build_chain(steps, f"{where}.pp", data_options.channels or 1)
    return check_chain(chain, Form(None, None, None, "raw"), f"{where}.pp")


def _model_form(data_options: ConfigDict) -> Form:
    """The images that the pre-trained model takes."""
    if data_options.upstream == DIGITS:
        canvas: int = data_options.digits.canvas
        return Form(canvas, canvas, 1, "float32")
    return _open_upstream(_frozen(data_options)).form


def _transfer_chain(wanted: TransferSet, data_options: ConfigDict, where: str) -> Chain:
    """The task's own chain, or upstream's for evaluation; channels are the model's in any case."""
    form = _model_form(data_options)
    size, channels = form.height or 0, form.channels or 0
    steps = wanted.pp or data_options.eval_pp
    chain = _chain(steps, f"{where}.pp", size, channels, data_options.convert)
    end = check_chain(chain, Form(None, None, None, "raw"), f"{where}.pp")
    if end.channels != channels:
        raise InputError(f"{where}.pp", "does not give the images that the model takes",
                         got=f"{end.channels} channels", expected=channels)
    return chain


def _new_classes(options: ConfigDict) -> Task:
    """The embedded study's task: the digits that upstream has not seen."""
    name = "digits_new_classes"

    @functools.cache
    def examples(split: str) -> Source:
        if split not in TRANSFER_SPLITS:
            raise InputError(f"task {name!r}", "no such split", got=split,
                             expected=f"one of {', '.join(TRANSFER_SPLITS)}")
        return digits.digits_examples(options, split)

    return _labelled_task(name, examples, len(digits.classes_of(options, "transfer_classes")),
                          frozenset({"few_shot", "fine_tune"}), options={}, raw=True)


def _labelled_task(
    name: str, examples: Callable[[str], Source], num_classes: int, kinds: frozenset[Kind], *,
    options: Mapping[str, Any], raw: bool,
) -> Task:
    def baseline(split: str) -> np.ndarray:
        source, unused = examples(split), np.random.default_rng(0)
        pixels = [source.load(i, unused)["image"].ravel() for i in range(source.num_examples)]
        return np.stack(pixels)  # n x [pixels] -> [n, pixels]

    return Task(
        name=name, kinds=kinds, examples=examples, metric=Metric("accuracy", "max"),
        score=score_accuracy, num_classes=num_classes,
        options={"num_classes": num_classes, **options},
        # The probe of raw pixels takes [n, pixels] floats: of small images only.
        baseline=baseline if raw else None,
    )
