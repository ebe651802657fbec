"""`deepnarrow probe`: the few-shot probe on anybody's features."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer, integers, number

if TYPE_CHECKING:
    from rich.console import Console

MAX_SHOTS = 10_000_000
MAX_SEEDS = 10_000


def run(options: argparse.Namespace) -> Output:
    """Probes features in `.npz` files; classes are taken in sorted order."""
    shots = integers("--shots", options.shots, 1, MAX_SHOTS)
    seeds = tuple(range(integer("--seeds", options.seeds, 1, MAX_SEEDS)))
    l2 = number("--l2", options.l2)
    from deepnarrow.transfer.fewshot import encode_labels, load_probe_arrays, probe

    x_train, y_train = load_probe_arrays(options.train)
    x_test, y_test = load_probe_arrays(options.test)
    y_train, y_test, classes = encode_labels(y_train, y_test)
    result = probe(x_train, y_train, x_test, y_test, num_classes=len(classes), shots=shots,
                   seeds=seeds, l2=(l2,), class_names=classes.tolist())
    accuracy = result.accuracy[0]  # [l2, shots, seeds] -> [shots, seeds]
    results = []
    for k, per_seed in zip(shots, accuracy, strict=True):
        # One seed has no spread.
        sd = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
        results.append({"shots": k, "accuracy_mean": float(per_seed.mean()), "accuracy_sd": sd,
                        "accuracy_per_seed": [float(value) for value in per_seed]})
    document = {"results": results, "l2": l2, "seeds": list(seeds)}
    return Output(document, lambda console: _show(console, document, len(classes)))


def _show(console: Console, document: dict[str, Any], num_classes: int) -> None:
    from deepnarrow.report.text import quality

    rows = [(row["shots"], quality(row["accuracy_mean"], row["accuracy_sd"]))
            for row in document["results"]]
    console.print(table(["shots:", "accuracy:"], rows))
    console.print(f"mean and sd over {len(document['seeds'])} draws; {num_classes} classes; "
                  f"l2 {document['l2']:g}")
