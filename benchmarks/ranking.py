"""Rank classification: all candidates at once against one after the other, on the CPU.

    python -m benchmarks.ranking [--shape tiny-nl6-dm128-ff512-kv32] [--vocab-size 4224]
        [--batch-size 64] [--input-length 64] [--length 4] [--candidates 2 4 8] [--rounds 7]
        [--json]

A T5 with random weights scores the same candidates of every example twice: by one call of `score`,
which encodes the inputs once, and by a call a candidate, which encodes them again each time. Both
are compiled, and their log-likelihoods are asserted equal; the contenders take turns, and the ratio
is the median of those of the rounds.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import jax
import numpy as np

from benchmarks.timing import median_ratio, take_turns
from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry


def make_score(args: argparse.Namespace) -> tuple[Any, Any]:
    """Returns random params and the jitted `score`."""
    modality = registry().modality("text_t5")
    shape = resolve(args.shape, registry().vocabulary(modality)).shape
    options = resolve_options(modality.options, {
        "vocab_size": args.vocab_size, "input_length": args.input_length,
        "target_length": args.length}, "options")
    model = make_model(modality, registry().architecture("transformer"), shape, options)
    return jax.jit(model.init)(jax.random.key(0)), jax.jit(model.score)


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Seconds a batch of both ways, for each number of candidates."""
    params, score = make_score(args)
    rng = np.random.default_rng(0)
    batch = {"inputs": rng.integers(2, args.vocab_size, (args.batch_size, args.input_length),
                                    dtype=np.int32)}
    rows = []
    for number in args.candidates:
        # [batch, candidates, length]
        targets = rng.integers(2, args.vocab_size, (args.batch_size, number, args.length),
                               dtype=np.int32)
        targets[..., -1] = 1

        def together(targets: np.ndarray = targets) -> np.ndarray:
            return np.asarray(score(params, batch, {"targets": targets}))

        def one_by_one(targets: np.ndarray = targets) -> np.ndarray:
            return np.concatenate([score(params, batch, {"targets": targets[:, [i]]})
                                   for i in range(targets.shape[1])], axis=1)

        np.testing.assert_allclose(together(), one_by_one(), rtol=1e-5)
        seconds = take_turns({"together": together, "one_by_one": one_by_one}, args.rounds)
        rows.append({
            "candidates": number, "seconds": {k: float(np.median(v)) for k, v in seconds.items()},
            "ratio": median_ratio(seconds["together"], seconds["one_by_one"]),
            "ratios": sorted(b / a for a, b in zip(*seconds.values(), strict=True))})
    return rows


def main() -> None:
    """Prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny-nl6-dm128-ff512-kv32")
    parser.add_argument("--vocab-size", type=int, default=4224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--input-length", type=int, default=64)
    parser.add_argument("--length", type=int, default=4)
    parser.add_argument("--candidates", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    rows = measure(args)
    if args.json:
        print(json.dumps(rows))
        return
    print(f"{args.shape}, vocabulary {args.vocab_size}: {args.batch_size} examples of "
          f"{args.input_length} tokens, candidates of {args.length}; medians of {args.rounds} "
          "rounds")
    for row in rows:
        seconds, ratios = row["seconds"], row["ratios"]
        print(f"{row['candidates']} candidates: {seconds['one_by_one']:.2f} s one by one, "
              f"{seconds['together']:.2f} s together: {row['ratio']:.2f} times as fast "
              f"({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
