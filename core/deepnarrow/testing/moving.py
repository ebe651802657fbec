"""Transfer: features, labels, new heads, foreign checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import numpy as np

from deepnarrow.errors import NotApplicable
from deepnarrow.modality import EXAMPLE_MASK
from deepnarrow.testing.subject import (
    RTOL,
    Subject,
    expect,
    leaves_by_path,
    make_batch,
    name_of,
)


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
