"""Counting and axes: the closed form is what is made, and every axis has its name."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from deepnarrow.cost import summarize
from deepnarrow.mesh import MeshShape, find_rules, place_arrays
from deepnarrow.modality import LOGICAL_AXES, axes_tree
from deepnarrow.testing.shapes import CLAIMS
from deepnarrow.testing.subject import (
    Subject,
    axes_of,
    doubled,
    expect,
    first_of,
    leaves_by_path,
    make_batch,
    name_of,
    shapes_of,
)

COUNTED = ("tiny", "tiny-nl2", "tiny-dm32", "tiny-ff48", "tiny-kv8", "tiny-nh2", "tiny-sh",
           "tiny-skv")
BIG = 0.02  # of the parameters: an array of more that lies whole on every device is told


def check_params_are_counted(subject: Subject) -> None:
    """`count_frame` lists exactly the arrays that `init` makes, for every kind of shape."""
    for text in filter(subject.applies, COUNTED):
        counted = {array.path: array.shape for array in subject.costs_of(text).arrays}
        made = {path: leaf.shape for path, leaf in leaves_by_path(shapes_of(subject, text)).items()}
        for path in sorted(counted.keys() | made.keys()):
            have, said = made.get(path, "not there"), counted.get(path, "not there")
            expect(have == said, f"{text}: {name_of(path)} is {have} in init's params and "
                   f"{said} in the count; make count_frame list every array of the frame, with "
                   "its shape")


def check_flops_are_counted(subject: Subject) -> None:
    """Forward FLOPs are half to all of XLA's count of the unscanned model, for two depths."""
    for text in filter(subject.applies, ("tiny-nl1", "tiny-nl3")):
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
    if not subject.applies("tiny-nl2"):
        return
    flops = [summarize(subject.costs_of(f"tiny-nl{n}"), "matmul").flops_forward_per_example
             for n in (2, 3, 4)]
    first, second = np.diff(flops)
    expect(bool(first > 0 and abs(second - first) <= 1e-9 * flops[0]),
           f"2, 3 and 4 layers cost {flops} FLOPs; count what every layer does, once a layer")


def check_axes(subject: Subject) -> None:
    """`param_axes` names every axis of every parameter, with the core's names."""
    axes, made = axes_of(subject, "tiny"), leaves_by_path(shapes_of(subject, "tiny"))
    expect(axes.keys() == made.keys(), "param_axes and init's params differ, first "
           f"{first_of(axes.keys() ^ made.keys())}; give every parameter its axes")
    for path, names in axes.items():
        expect(len(names) == made[path].ndim, f"{name_of(path)} has {made[path].ndim} axes and "
               f"{len(names)} names {names}; name each axis, or say None")
        unknown = {name for name in names if name is not None} - LOGICAL_AXES
        expect(not unknown, f"{name_of(path)} names {sorted(unknown)}; the core knows "
               f"{', '.join(sorted(LOGICAL_AXES))}")
    counted = leaves_by_path(axes_tree(subject.costs_of("tiny").arrays))
    wrong = [path for path in axes if counted.get(path) != axes[path]]
    expect(not wrong, f"{name_of(wrong[0]) if wrong else ''} has other axes in the count than in "
           "param_axes; make both of the same list of arrays")


def check_flops_grow_with_width(subject: Subject) -> None:
    """Twice the width, MLP, heads or d_kv cost more FLOPs, and no fewer parameters."""
    once = summarize(subject.costs_of("tiny"), "matmul")
    for symbol, (field, _) in CLAIMS.items():
        text = doubled(subject, symbol, field)
        if not subject.applies(text):
            continue
        twice = summarize(subject.costs_of(text), "matmul")
        flops = once.flops_forward_per_example, twice.flops_forward_per_example
        expect(flops[1] > flops[0], f"tiny costs {flops[0]:.4g} FLOPs and {text} {flops[1]:.4g}; "
               "count products with the shape's own sizes, none fixed")


def check_big_arrays_are_split(subject: Subject) -> None:
    """Every matrix that is large beside the others can be split over devices."""
    arrays = subject.costs_of("tiny").arrays
    total, mesh = sum(array.size for array in arrays), MeshShape(fsdp=2)
    specs, _ = place_arrays(arrays, find_rules("fsdp", mesh), mesh)
    for array in arrays:
        split = any(target is not None for target in specs["/".join(array.path)])
        rank = sum(size > 1 for size, axis in zip(array.shape, array.axes, strict=True)
                   if axis != "layers")
        expect(split or rank < 2 or array.size <= BIG * total,
               f"{name_of(array.path)} {array.axes} holds {array.size / total:.0%} of the "
               "parameters and lies whole on every device; name its long axis 'embed', 'mlp', "
               "'heads', 'vocab' or 'classes', whichever it is")
