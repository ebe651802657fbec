"""Transfer: features, labels, new heads, foreign checkpoints."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from deepnarrow.errors import NotApplicable, shorten
from deepnarrow.modality import EXAMPLE_MASK, Scores, Task
from deepnarrow.testing.subject import (
    BATCH_SIZE,
    RTOL,
    CheckFailed,
    Subject,
    expect,
    leaves_by_path,
    make_batch,
    name_of,
    spread,
)
from deepnarrow.transfer.finetune import truth


def check_metrics(subject: Subject) -> None:
    """Upstream's metric is one that the loss measures, and a task scores with its own."""
    out = jax.eval_shape(functools.partial(subject.model.loss, train=False), subject.params,
                         subject.batch, None)
    metric, known = subject.upstream.metric.name, sorted({"loss", *out.metrics})
    expect(metric in known, f"upstream's metric is {metric!r} and the model's loss measures "
           f"{', '.join(known)}; name one of these, or add it to LossOutput.metrics")
    for name, task in subject.tasks.items():
        if "fine_tune" in task.kinds:
            scored = _told(f"task {name}: scoring {BATCH_SIZE} predictions",
                           "score, or what it gets", _score, subject, task).metrics
            metric = task.metric.name
            expect(metric in scored, f"task {name}: its metric is {metric!r} and score returns "
                   f"{', '.join(scored)}; give both one name")
            expect(bool(np.isfinite(scored[metric])), f"task {name}: score gives {metric} "
                   f"{scored[metric]} for an untrained model; return a finite number")
        if task.baseline is not None:
            size = task.examples("test").num_examples
            raw = _told(f"task {name}: baseline('test')", "baseline, or give None",
                        lambda make: np.asarray(make("test")), task.baseline)
            expect(raw.ndim == 2 and len(raw) == size and bool(np.isfinite(raw).all()),
                   f"task {name}: baseline gives {raw.dtype}{list(raw.shape)}; return finite "
                   f"numbers [{size}, d], a row for every example of the split")


def _told(what: str, remedy: str, make: Callable[..., Any], *args: Any) -> Any:
    """Calls `make`, which is the author's; what it raises is a failure that says whose it is."""
    try:
        return make(*args)
    except Exception as error:
        raise CheckFailed(f"{what} raises {type(error).__name__}: {shorten(error, 300)}; mend the "
                          f"task's {remedy}") from error


def _score(subject: Subject, task: Task) -> Scores:
    """What the task says of an untrained model's predictions for a few examples."""
    model = subject.model_of("tiny", **task.options)
    params = jax.jit(model.init)(jax.random.key(0))
    source, true = task.examples("validation"), truth(task, "validation")
    batch, indices = make_batch(source, BATCH_SIZE), spread(source, BATCH_SIZE)
    if task.candidates is None:
        predictions = jax.jit(model.predict)(params, batch)
    elif model.score is None:
        raise NotApplicable(f"task {task.name!r}", "ranks candidates, but the model has no score")
    else:
        predictions = jax.jit(model.score)(params, batch, task.candidates(batch))
    chosen = [true[i] for i in indices]
    return task.score(np.asarray(predictions), chosen if task.references else np.asarray(chosen))


def check_features(subject: Subject) -> None:
    """Features are one finite float32 vector an example, each from that example alone."""
    features = np.asarray(jax.jit(subject.model.features)(subject.params, subject.batch))
    size = len(subject.batch[EXAMPLE_MASK])
    expect(features.ndim == 2 and features.shape[0] == size and features.dtype == np.float32,
           f"features are {features.dtype}{list(features.shape)}; return float32 [{size}, d]")
    found = {"upstream": features} | {
        f"task {name}": jax.jit(subject.model.features)(
            subject.params, make_batch(task.examples("test"), 4))
        for name, task in subject.tasks.items() if "few_shot" in task.kinds}
    for name, values in found.items():
        expect(bool(np.isfinite(values).all()), f"features of {name}'s examples are not finite; "
               "look for a division by 0, a logarithm or a root at initialisation")
    # Others beside it, at another place, in a smaller batch:
    few = {k: v[::-2] for k, v in subject.batch.items()}
    others = np.asarray(jax.jit(subject.model.features)(subject.params, few))
    expect(bool(np.allclose(features[::-2], others, rtol=RTOL, atol=1e-5)),
           "features of an example depend on the rest of its batch (its mean or another "
           "statistic, the example's place); let none see another")


def check_labels_do_not_leak(subject: Subject) -> None:
    """Features and predictions of a task's example do not read `batch["label"]`."""
    for name, task in subject.tasks.items():
        if task.num_classes is None:
            continue
        options = {**task.options} if "fine_tune" in task.kinds else {}
        model = subject.model_of("tiny", **options)
        params = jax.jit(model.init)(jax.random.key(0))
        batch = make_batch(task.examples("test"), 4)
        other = {**batch, "label": (batch["label"] + 1) % task.num_classes}
        said = {"features": "the features change", "predict": "the predictions change"}
        for what, words in said.items():
            if what == "predict" and "fine_tune" not in task.kinds:
                continue
            apply = jax.jit(getattr(model, what))
            same = np.allclose(apply(params, batch), apply(params, other), rtol=RTOL,
                               equal_nan=True)
            expect(same, f"task {name}: {words} with the label of the example; "
                   "read the inputs only")


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
        expect(not wrong, f"task {name}: adapt's {name_of(wrong[0]) if wrong else ''} is "
               f"{made.get(wrong[0]) if wrong else ''}, the model's "
               f"{wanted.get(wrong[0]) if wrong else ''}; make a new head of the new size")
        before = leaves_by_path(subject.params)
        for path, value in leaves_by_path(params).items():
            kept = path in before and np.array_equal(before[path], value)
            new = any(path[:len(one)] == tuple(one) for one in fresh)
            expect(kept or new, f"task {name}: adapt changed {name_of(path)} and does not say so; "
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
            expect(same, f"format {name}: {name_of(path)} does not come back; write and read must "
                   "map the same names, without a change of order or type")
