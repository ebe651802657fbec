"""Every promise of a modality, one function each; `CHECKS` is all of them, cheap ones first."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from deepnarrow.contract import check_modality as check_contract
from deepnarrow.cost import summarize
from deepnarrow.errors import InputError, NotApplicable, ShapeError
from deepnarrow.modality import EXAMPLE_MASK, LOGICAL_AXES, Source, axes_tree
from deepnarrow.ops import CORE_OPS
from deepnarrow.testing.subject import (
    Subject,
    expect,
    leaves_by_path,
    load,
    make_batch,
)

COUNTED = ("tiny", "tiny-nl2", "tiny-dm32", "tiny-ff48", "tiny-kv8", "tiny-nh2", "tiny-sh",
           "tiny-skv")
# Float32 sums in another order differ by about a millionth; this is far from any wrong formula.
RTOL = 1e-4
STEPS, LEARNING_RATE = 100, 3e-3
# At initialisation features may grow with depth as a sum of independent residual branches does
# (square root of 4 layers: 2) and must not with width; beyond this a shape study compares scales.
DRIFT = 4.0


# --- registration and shapes ----------------------------------------------------------------------
def check_registration(subject: Subject) -> None:
    """Members have the types of the contract, and `tiny` is there."""
    try:
        check_contract(subject.modality)
    except InputError as error:
        expect(False, f"what the plugin registers breaks the contract: {error}")


def check_operators_build(subject: Subject) -> None:
    """Every operator of the core either makes a model of `tiny` or says that it does not apply."""
    for op in CORE_OPS:
        text = f"tiny-{op.symbol.lower()}" + ("" if op.is_flag else "2")
        try:
            jax.eval_shape(subject.model_of(text).init, jax.random.key(0))
        except (NotApplicable, ShapeError):
            continue
        except Exception as error:
            expect(False, f"{text} raises {type(error).__name__}: {error}; build it, or let "
                          "stack_specs or assemble raise NotApplicable with the reason")


def check_depth_is_layers(subject: Subject) -> None:
    """Twice the layers change the `layers` axis and nothing else."""
    once = leaves_by_path(_shapes(subject, "tiny-nl2"))
    twice = leaves_by_path(_shapes(subject, "tiny-nl4"))
    expect(once.keys() == twice.keys(), "tiny-nl2 and tiny-nl4 have other parameters, first "
           f"{_first(once.keys() ^ twice.keys())}; put the layers of a stack on one leading axis")
    axes = leaves_by_path(subject.model_of("tiny-nl2").param_axes)
    for path, leaf in once.items():
        deep = (4, *leaf.shape[1:]) if "layers" in axes.get(path, ()) else leaf.shape
        expect(twice[path].shape == deep, f"{_name(path)} is {leaf.shape} with 2 layers and "
               f"{twice[path].shape} with 4; only the leading axis `layers` may change with depth")


# --- counting -------------------------------------------------------------------------------------
def check_params_are_counted(subject: Subject) -> None:
    """`count_frame` lists exactly the arrays that `init` makes, for every kind of shape."""
    for text in COUNTED:
        counted = {array.path: array.shape for array in subject.costs_of(text).arrays}
        made = {path: leaf.shape for path, leaf in leaves_by_path(_shapes(subject, text)).items()}
        for path in sorted(counted.keys() | made.keys()):
            have, said = made.get(path, "not there"), counted.get(path, "not there")
            expect(have == said, f"{text}: {_name(path)} is {have} in init's params and {said} in "
                   "the count; make count_frame list every array of the frame, with its shape")


def check_flops_are_counted(subject: Subject) -> None:
    """Forward FLOPs are half to all of XLA's count of the unscanned model, for two depths."""
    for text in ("tiny-nl1", "tiny-nl3"):
        model = subject.model_of(text, scan=False)
        batch = make_batch(subject.upstream.validation, 1)
        lowered = jax.jit(lambda p, b, model=model: model.loss(p, b, None, train=False)).lower(
            jax.eval_shape(model.init, jax.random.key(0)), batch)
        analysis: Any = lowered.cost_analysis()
        theirs = float(analysis["flops"])
        ours = sum(term.forward for term in subject.costs_of(text).flops)
        # XLA counts norms, softmax and activations too, which weigh most in small models.
        expect(0.5 * theirs < ours < 1.05 * theirs,
               f"{text}: {ours:.3g} FLOPs are counted and XLA counts {theirs:.3g} with elementwise "
               "work; make count_frame count every matrix product of the frame, 2 a multiply-add")


def check_flops_grow_with_depth(subject: Subject) -> None:
    """Each further layer costs the same number of FLOPs, more than none."""
    flops = [summarize(subject.costs_of(f"tiny-nl{n}"), "matmul").flops_forward_per_example
             for n in (2, 3, 4)]
    first, second = np.diff(flops)
    expect(bool(first > 0 and abs(second - first) <= 1e-9 * flops[0]),
           f"2, 3 and 4 layers cost {flops} FLOPs; count what every layer does, once a layer")


def check_axes(subject: Subject) -> None:
    """`param_axes` names every axis of every parameter, with the core's names."""
    axes, made = leaves_by_path(subject.model.param_axes), leaves_by_path(_shapes(subject, "tiny"))
    expect(axes.keys() == made.keys(), "param_axes and init's params differ, first "
           f"{_first(axes.keys() ^ made.keys())}; give every parameter its axes")
    for path, names in axes.items():
        expect(len(names) == made[path].ndim, f"{_name(path)} has {made[path].ndim} axes and "
               f"{len(names)} names {names}; name each axis, or say None")
        unknown = {name for name in names if name is not None} - LOGICAL_AXES
        expect(not unknown, f"{_name(path)} names {sorted(unknown)}; the core knows "
               f"{', '.join(sorted(LOGICAL_AXES))}")
    counted = leaves_by_path(axes_tree(subject.costs_of("tiny").arrays))
    wrong = [path for path in axes if counted.get(path) != axes[path]]
    expect(not wrong, f"{_name(wrong[0]) if wrong else ''} has other axes in the count than in "
           "param_axes; make both of the same list of arrays")


# --- data -----------------------------------------------------------------------------------------
def check_loading_is_a_function(subject: Subject) -> None:
    """An example depends on its index and the generator it gets, and on nothing before it."""
    for name, source in _sources(subject).items():
        indices = [0, min(1, source.num_examples - 1), source.num_examples - 1]
        forwards = [load(source, i) for i in indices]
        backwards = [load(source, i) for i in reversed(indices)][::-1]
        for index, one, other in zip(indices, forwards, backwards, strict=True):
            same = one.keys() == other.keys() and all(
                np.array_equal(one[k], other[k]) for k in one)
            expect(same, f"{name}: example {index} is another one when loaded again; draw only "
                   "from the `rng` that load gets, and keep no state between calls")


def check_examples_have_one_form(subject: Subject) -> None:
    """All examples of a source have the same arrays, of the same shapes and types."""
    for name, source in _sources(subject).items():
        forms = {index: {k: (np.shape(v), np.asarray(v).dtype) for k, v in load(
            source, index).items()} for index in _spread(source)}
        first = forms[0]
        for index, form in forms.items():
            expect(form == first, f"{name}: example {index} has {form}, example 0 {first}; pad or "
                   "cut to one shape")
        objects = [key for key, (_, dtype) in first.items() if dtype.hasobject]
        expect(not objects, f"{name}: {objects} hold objects; load must return numbers")


def check_content_hash(subject: Subject) -> None:
    """Made again, a source has the same hash; training and validation have different ones."""
    again = subject.modality.upstream(subject.data_options, subject.modality.options)
    for split in ("train", "validation"):
        first, second = getattr(subject.upstream, split), getattr(again, split)
        expect(first.content_hash == second.content_hash, f"upstream {split} has another "
               "content_hash when made again; hash the data's bytes and options, nothing else")
    expect(again.train.content_hash != again.validation.content_hash,
           "upstream's training and validation splits have one content_hash; hash the examples")


def check_splits_share_no_example(subject: Subject) -> None:
    """No example of a task's test split is in its training split."""
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        seen = {_digest(load(task.examples("train"), i))
                for i in _spread(task.examples("train"), 512)}
        test = task.examples("test")
        shared = [i for i in _spread(test, 512) if _digest(load(test, i)) in seen]
        expect(not shared, f"task {name}: example {shared[:1]} of the test split is in the "
               "training split; remove repeats, and split by a hash of the content")


def check_labels(subject: Subject) -> None:
    """`labels()` says what the examples say, and every class is there to draw shots from."""
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        source = task.examples("train")
        labels = None if source.labels is None else np.asarray(source.labels())
        expect(labels is not None and labels.shape == (source.num_examples,),
               f"task {name}: the source's labels are missing or too few; give `labels`")
        assert labels is not None
        for index in _spread(source):
            expect(int(load(source, index)["label"]) == int(labels[index]), f"task {name}: example "
                   f"{index} has another label than labels() says; keep them in one order")
        classes = set(np.unique(labels).tolist())
        expect(classes == set(range(task.num_classes)), f"task {name}: labels are "
               f"{sorted(classes)[:5]}, num_classes is {task.num_classes}; number them from 0")


# --- numerics -------------------------------------------------------------------------------------
def check_init_follows_the_key(subject: Subject) -> None:
    """One key, one set of parameters; another key, another."""
    init = jax.jit(subject.model.init)
    again, other = init(jax.random.key(0)), init(jax.random.key(1))
    for path, leaf in leaves_by_path(subject.params).items():
        expect(leaf.dtype == jnp.float32, f"{_name(path)} is {leaf.dtype}; parameters are float32")
        expect(np.array_equal(leaf, leaves_by_path(again)[path]),
               f"{_name(path)} differs between two calls with one key; draw from the key only")
    expect(not all(np.array_equal(a, b) for a, b in zip(
        jax.tree.leaves(subject.params), jax.tree.leaves(other), strict=True)),
        "two keys give the same parameters; draw them from the key")


def check_loss_is_a_sum(subject: Subject) -> None:
    """The loss of a batch is the sum of its halves' losses, and so are its weights."""
    loss = jax.jit(functools.partial(subject.model.loss, train=False))
    half = len(subject.batch[EXAMPLE_MASK]) // 2
    whole = loss(subject.params, subject.batch, None)
    parts = [loss(subject.params, {k: v[part] for k, v in subject.batch.items()}, None)
             for part in (slice(None, half), slice(half, None))]
    for field in ("loss_sum", "weight_sum"):
        total = float(getattr(whole, field))
        found = sum(float(getattr(part, field)) for part in parts)
        expect(bool(np.isfinite(total)), f"{field} is {total} at initialisation")
        expect(bool(np.isclose(total, found, rtol=RTOL)), f"{field} of a batch is {total:.6g} and "
               f"its halves' together {found:.6g}; return sums over the examples, not means")


def check_masked_examples_count_for_nothing(subject: Subject) -> None:
    """What has `example_mask` 0 changes neither loss nor weight nor metrics."""
    loss = jax.jit(functools.partial(subject.model.loss, train=False))
    half = len(subject.batch[EXAMPLE_MASK]) // 2
    mask = np.where(np.arange(2 * half) < half, 1, 0).astype(np.float32)
    masked = loss(subject.params, {**subject.batch, EXAMPLE_MASK: mask}, None)
    alone = loss(subject.params, {k: v[:half] for k, v in subject.batch.items()}, None)
    for left, right in zip(jax.tree.leaves(masked), jax.tree.leaves(alone), strict=True):
        expect(bool(np.allclose(left, right, rtol=RTOL, atol=1e-6)),
               f"with half the examples masked {float(left):.6g}, of the other half alone "
               f"{float(right):.6g}; multiply every weight by batch['{EXAMPLE_MASK}']")


def check_every_parameter_learns(subject: Subject) -> None:
    """Upstream's loss has a gradient for every parameter."""
    def total(params: Any) -> Any:
        out = subject.model.loss(params, subject.batch, None, train=False)
        return out.loss_sum / out.weight_sum + out.aux_loss

    # A little away from the start, where a head of zeros would hide what is behind it.
    moved = jax.tree.map(lambda x: x + 0.01 * jnp.cos(jnp.arange(x.size).reshape(x.shape)),
                         subject.params)
    for path, gradient in leaves_by_path(jax.jit(jax.grad(total))(moved)).items():
        expect(bool(np.isfinite(gradient).all()), f"{_name(path)} has no finite gradient")
        expect(bool(np.any(gradient)), f"{_name(path)} has no gradient: nothing uses it; use it, "
               "or do not make it")


def check_it_learns(subject: Subject) -> None:
    """A hundred steps of Adam on one batch take a fifth off its loss."""
    import optax

    optimizer = optax.adam(LEARNING_RATE)
    batch = subject.batch

    def mean(params: Any) -> Any:
        out = subject.model.loss(params, batch, None, train=False)
        return out.loss_sum / out.weight_sum + out.aux_loss

    def step(carry: Any, _: Any) -> Any:
        params, state = carry
        value, gradient = jax.value_and_grad(mean)(params)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(params, updates), state), value

    run = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS))
    _, losses = run(subject.params)
    expect(bool(losses[-1] < 0.8 * losses[0]), f"the loss of one batch goes from "
           f"{float(losses[0]):.4g} to {float(losses[-1]):.4g} in {STEPS} steps of Adam; do the "
           "targets depend on the inputs, and the loss on the parameters?")


def check_scale_of_features(subject: Subject) -> None:
    """Features at initialisation keep their scale over width and depth (a coordinate check)."""
    sizes = {}
    d_model = subject.shape("tiny").shape.d_model
    for text in ("tiny", f"tiny-dm{4 * d_model}", "tiny-nl*4"):
        model = subject.model_of(text)
        features = jax.jit(lambda key, model=model: model.features(
            model.init(key), subject.batch))(jax.random.key(0))
        sizes[text] = float(jnp.sqrt(jnp.mean(features**2)))
    for text, size in sizes.items():
        expect(sizes["tiny"] / DRIFT < size < sizes["tiny"] * DRIFT,
               f"features of {text} have a root mean square of {size:.3g}, of tiny "
               f"{sizes['tiny']:.3g}; scale the initialisation by the fan-in, or normalise")


# --- transfer -------------------------------------------------------------------------------------
def check_features(subject: Subject) -> None:
    """Features are one finite float32 vector an example, each from that example alone."""
    features = np.asarray(jax.jit(subject.model.features)(subject.params, subject.batch))
    size = len(subject.batch[EXAMPLE_MASK])
    expect(features.ndim == 2 and features.shape[0] == size and features.dtype == np.float32,
           f"features are {features.dtype}{list(features.shape)}; return float32 [{size}, d]")
    expect(bool(np.isfinite(features).all()), "features are not finite")
    back = {k: v[::-1] for k, v in subject.batch.items()}
    turned = np.asarray(jax.jit(subject.model.features)(subject.params, back))[::-1]
    expect(bool(np.allclose(features, turned, rtol=RTOL, atol=1e-5)),
           "features of an example depend on the rest of its batch; let none see another")


def check_labels_do_not_leak(subject: Subject) -> None:
    """Features and predictions of a task's example are the same whatever its label says."""
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        options = {**task.options} if "fine_tune" in task.kinds else {}
        model = subject.model_of("tiny", **options)
        params = jax.jit(model.init)(jax.random.key(0))
        batch = make_batch(task.examples("test"), 4)
        other = {**batch, "label": (batch["label"] + 1) % task.num_classes}
        for what in ("features", "predict") if "fine_tune" in task.kinds else ("features",):
            apply = jax.jit(getattr(model, what))
            same = np.allclose(apply(params, batch), apply(params, other), rtol=RTOL)
            expect(same, f"task {name}: {what} changes with the label of the example; "
                   "let it read the inputs only")


def check_adapt(subject: Subject) -> None:
    """`adapt` makes the parameters of the task's model, and names what it made anew."""
    for name, task in subject.tasks.items():
        if "fine_tune" not in task.kinds:
            continue
        target = subject.with_options(**task.options)
        params, fresh = subject.modality.adapt(
            subject.params, subject.options, target, jax.random.key(1))
        made = {p: v.shape for p, v in leaves_by_path(params).items()}
        model = subject.model_of("tiny", **task.options)
        wanted = {p: v.shape for p, v in leaves_by_path(
            jax.eval_shape(model.init, jax.random.key(0))).items()}
        wrong = [p for p in sorted(made.keys() | wanted.keys()) if made.get(p) != wanted.get(p)]
        expect(not wrong, f"task {name}: adapt's {_name(wrong[0]) if wrong else ''} is "
               f"{made.get(wrong[0]) if wrong else ''}, the model's "
               f"{wanted.get(wrong[0]) if wrong else ''}; make a new head of the new size")
        before = leaves_by_path(subject.params)
        for path, value in leaves_by_path(params).items():
            kept = path in before and np.array_equal(before[path], value)
            new = any(path[:len(one)] == tuple(one) for one in fresh)
            expect(kept or new, f"task {name}: adapt changed {_name(path)} and does not say so; "
                   "return its path, or leave it")


def check_checkpoint_formats(subject: Subject) -> None:
    """What a format writes it reads again, to the bit."""
    for name, one in subject.modality.checkpoint_formats.items():
        if one.write is None or one.architecture != subject.architecture.name:
            continue
        shape, options = subject.shape("tiny").shape, subject.options
        params = jax.tree.map(np.asarray, subject.params)
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "checkpoint")
            try:
                one.write(path, shape, options, params)
            except NotApplicable:
                continue
            header = one.inspect(path)
            read = leaves_by_path(one.read(path, header))
        expect(header.shape == shape, f"format {name}: tiny comes back as {header.shape}; write "
               "and inspect must agree on every field")
        for path, leaf in leaves_by_path(params).items():
            same = path in read and np.array_equal(read[path], leaf)
            expect(same, f"format {name}: {_name(path)} does not come back; write and read must "
                   "map the same names, without a change of order or type")


# --- helpers --------------------------------------------------------------------------------------
def _shapes(subject: Subject, text: str) -> Any:
    return jax.eval_shape(subject.model_of(text).init, jax.random.key(0))


def _sources(subject: Subject) -> Mapping[str, Source]:
    found = {"upstream train": subject.upstream.train,
             "upstream validation": subject.upstream.validation}
    for (name, task), split in itertools.product(subject.tasks.items(), ("train", "test")):
        found[f"task {name} {split}"] = task.examples(split)
    return found


def _spread(source: Source, count: int = 16) -> list[int]:
    """Up to `count` indices over the whole source, the first and the last among them."""
    return sorted({int(i) for i in np.linspace(0, source.num_examples - 1, count)})


def _digest(example: Mapping[str, Any]) -> tuple[tuple[str, bytes], ...]:
    return tuple((k, np.asarray(v).tobytes()) for k, v in sorted(example.items()) if k != "label")


def _name(path: tuple[str, ...]) -> str:
    return "/".join(path)


def _first(paths: Any) -> str:
    return _name(min(paths)) if paths else ""


Check = Callable[[Subject], None]
CHECKS: dict[str, Check] = {
    function.__name__.removeprefix("check_"): function for function in (
        check_registration, check_content_hash, check_loading_is_a_function,
        check_examples_have_one_form, check_splits_share_no_example, check_labels,
        check_params_are_counted, check_axes, check_operators_build, check_depth_is_layers,
        check_flops_are_counted, check_flops_grow_with_depth, check_init_follows_the_key,
        check_loss_is_a_sum, check_masked_examples_count_for_nothing, check_every_parameter_learns,
        check_features, check_labels_do_not_leak, check_adapt, check_checkpoint_formats,
        check_scale_of_features, check_it_learns,
    )
}
