"""`deepnarrow probe`: the few-shot probe on anybody's features."""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table
from deepnarrow.cli.parser import integer, integers, number
from deepnarrow.protocol import AUTO, L2

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.transfer.fewshot import ProbeResult

MAX_SHOTS = 10_000_000
MAX_SEEDS = 10_000


def run(options: argparse.Namespace) -> Output:
    """Probes features in `.npz` files; classes are taken in sorted order."""
    shots = integers("--shots", options.shots, 1, MAX_SHOTS)
    seeds = tuple(range(integer("--seeds", options.seeds, 1, MAX_SEEDS)))
    hint = f"{AUTO} chooses it from the shots"
    l2: L2 = AUTO if options.l2 == AUTO else number("--l2", options.l2, hint)
    from deepnarrow.transfer.featurefile import count_repeated, encode_labels, load_probe_arrays
    from deepnarrow.transfer.fewshot import probe

    x_train, y_train = load_probe_arrays(options.train)
    x_test, y_test = load_probe_arrays(options.test)
    y_train, y_test, classes = encode_labels(y_train, y_test)
    result = probe(x_train, y_train, x_test, y_test, num_classes=len(classes), shots=shots,
                   seeds=seeds, l2=(l2,), class_names=classes.tolist())
    repeated = count_repeated(x_train, x_test)
    if repeated:
        print(f"warning: {options.test}: {repeated} of {len(x_test)} rows are also in "
              f"{options.train}: accuracy may be too high", file=sys.stderr)
    document = _document(result)
    return Output(document, lambda console: _show(console, document, len(classes)))


def _document(result: ProbeResult) -> dict[str, Any]:
    results = []
    # [l2, shots, seeds] -> [shots, seeds]: one strength was asked for
    for k, per_seed, used in zip(result.shots, result.accuracy[0], result.strength[0], strict=True):
        # One seed has no spread.
        sd = float(per_seed.std(ddof=1)) if len(per_seed) > 1 else None
        row = {"shots": k, "accuracy_mean": float(per_seed.mean()), "accuracy_sd": sd,
               "accuracy_per_seed": per_seed.tolist()}
        results.append(row | ({"l2_per_seed": used.tolist()} if AUTO in result.l2 else {}))
    return {"results": results, "l2": result.l2[0], "seeds": list(result.seeds)}


def _show(console: Console, document: dict[str, Any], num_classes: int) -> None:
    from deepnarrow.report.text import quality

    chosen = document["l2"] == AUTO
    columns, rows = ["shots:", "accuracy:"], []
    for row in document["results"]:
        rows.append([row["shots"], quality(row["accuracy_mean"], row["accuracy_sd"])])
        if chosen:  # all are powers of 2
            rows[-1].append(" ".join(f"2^{math.log2(v):g}" for v in row["l2_per_seed"]))
    console.print(table(columns + (["l2 of each draw"] if chosen else []), rows))
    strength = "l2 chosen from each draw's own shots" if chosen else f"l2 {document['l2']:g}"
    console.print(f"mean and sd over {len(document['seeds'])} draws; {num_classes} classes; "
                  f"{strength}")
