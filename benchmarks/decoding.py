"""Greedy decoding beside `transformers`: the same weights, inputs and tokens, in one process.

    python benchmarks/decoding.py [--shape small] [--examples 256] [--length 32] [--rounds 5]
                                  [--json]

Needs torch and transformers besides deepnarrow. A T5 with random weights is exported by us and
loaded by `T5ForConditionalGeneration`; both decode every example for exactly `--length` tokens (no
row ends early), in one batch of all examples and in the batch size in which each side is fastest
of those tried (`--batch-sizes`). Rounds take turns; medians of the rounds, and the ratio of each
round's pair. The tokens of both sides are asserted equal.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")


def make_batch(args):
    import numpy as np

    rng = np.random.default_rng(0)
    inputs = rng.integers(2, args.vocab_size, (args.examples, args.input_length), dtype=np.int32)
    for row, used in zip(inputs, rng.integers(args.input_length // 4, args.input_length + 1,
                                              args.examples), strict=True):
        row[used - 1], row[used:] = 1, 0
    return inputs


def make_run(args, folder):
    """Random weights in a run directory; returns (params, jitted predict)."""
    import jax

    from deepnarrow.assemble import make_model
    from deepnarrow.foreign import save_run
    from deepnarrow.ops import resolve
    from deepnarrow.plugins import registry
    from deepnarrow.rundir import RunInfo, run_options

    modality = registry().modality("text_t5")
    shape = resolve(args.shape, registry().vocabulary(modality)).shape
    # An end token that is never the best: row `vocab_size - 1` of the table is set to zeros below,
    # and its logit of 0 is below the largest of thousands.
    options = {**modality.options.to_dict(), "vocab_size": args.vocab_size,
               "input_length": args.input_length, "target_length": args.length,
               "eos_id": args.vocab_size - 1}
    info = RunInfo("text_t5", "transformer", args.shape, shape, options, {}, {"kind": "import"})
    model = make_model(modality, registry().architecture("transformer"), shape,
                       run_options(info, registry()))
    params = jax.jit(model.init)(jax.random.key(0))
    table = 0.1 * params["embedding"]
    params["embedding"] = table.at[-1].set(0.0)
    save_run(folder, info, params)
    return params, jax.jit(model.predict)


def load_transformers(folder):
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration.from_pretrained(folder).eval()


def our_decode(predict, params, inputs, batch_size):
    import numpy as np

    return np.concatenate([np.asarray(predict(params, {"inputs": inputs[i:i + batch_size]}))
                           for i in range(0, len(inputs), batch_size)])


def their_decode(model, inputs, batch_size, length):
    import numpy as np
    import torch

    decoded = []
    with torch.inference_mode():
        for i in range(0, len(inputs), batch_size):
            batch = torch.tensor(inputs[i:i + batch_size]).long()
            tokens = model.generate(batch, attention_mask=(batch != 0).long(), do_sample=False,
                                    num_beams=1, max_new_tokens=length)
            decoded.append(tokens.numpy()[:, 1:])
    return np.concatenate(decoded)


def measure(args):
    import jax
    import torch
    import transformers

    from deepnarrow.foreign import export_checkpoint
    from deepnarrow.plugins import registry

    inputs = make_batch(args)
    with tempfile.TemporaryDirectory() as folder:
        params, predict = make_run(args, Path(folder) / "run")
        export_checkpoint(Path(folder) / "run", "huggingface", Path(folder) / "theirs", registry())
        model = load_transformers(Path(folder) / "theirs")
    sizes = sorted({min(size, args.examples) for size in (*args.batch_sizes, args.examples)})
    sides = {"ours": lambda size: our_decode(predict, params, inputs, size),
             "transformers": lambda size: their_decode(model, inputs, size, args.length)}
    expected = sides["transformers"](args.examples)
    for size in sizes:  # compiles ours, warms up theirs
        tokens = sides["ours"](size)
        assert tokens.shape == (args.examples, args.length)
        assert (tokens == expected).all(), f"tokens differ: {(tokens != expected).mean():.2%}"
    times = {name: {size: [] for size in sizes} for name in sides}
    for _ in range(args.rounds):
        for size in sizes:
            for name, decode in sides.items():
                start = time.perf_counter()
                decode(size)
                times[name][size].append(time.perf_counter() - start)
    medians = {name: {size: statistics.median(found) for size, found in by_size.items()}
               for name, by_size in times.items()}
    best = {name: min(by_size, key=by_size.get) for name, by_size in medians.items()}
    pairs = [theirs / ours for theirs, ours in zip(
        times["transformers"][best["transformers"]], times["ours"][best["ours"]], strict=True)]
    whole = [theirs / ours for theirs, ours in zip(
        times["transformers"][args.examples], times["ours"][args.examples], strict=True)]
    return {
        "shape": args.shape, "examples": args.examples, "tokens": args.length,
        "input_length": args.input_length, "vocab_size": args.vocab_size, "rounds": args.rounds,
        "seconds": medians, "best_batch_size": best,
        "ratio_one_batch": statistics.median(whole), "ratio_one_batch_range": _range(whole),
        "ratio_best": statistics.median(pairs), "ratio_best_range": _range(pairs),
        "versions": {"jax": jax.__version__, "torch": torch.__version__,
                     "transformers": transformers.__version__},
        "torch_threads": torch.get_num_threads(), "cpus": os.cpu_count(),
    }


def _range(values):
    return [min(values), max(values)]


def show(found):
    print(f"{found['shape']}, vocabulary {found['vocab_size']}: {found['examples']} examples of up "
          f"to {found['input_length']} tokens, {found['tokens']} tokens decoded, equal on both "
          f"sides; medians of {found['rounds']} rounds")
    print(f"{'batch':>6} {'ours':>9} {'transformers':>13}")
    for size in found["seconds"]["ours"]:
        print(f"{size:>6} {found['seconds']['ours'][size]:>8.2f}s "
              f"{found['seconds']['transformers'][size]:>12.2f}s")
    for name, title in (("one_batch", "all in one batch"), ("best", "each at its best batch")):
        low, high = found[f"ratio_{name}_range"]
        print(f"{title}: {found[f'ratio_{name}']:.2f}x as fast ({low:.2f} to {high:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--input-length", type=int, default=64)
    parser.add_argument("--vocab-size", type=int, default=32_128)
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = measure(args)
    if args.json:
        print(json.dumps(found, indent=2))
    else:
        show(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
