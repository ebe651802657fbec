"""The text input pipeline beside T5's own TensorFlow preprocessing, and whether training waits.

    python benchmarks/text_input.py --text FILE.txt.gz ... --vocabulary spiece.model \\
        --peer-python PYTHON_WITH_T5 [--rounds 7] [--json]
    python benchmarks/text_input.py --text FILE.txt.gz ... --vocabulary spiece.model --train STEPS

The first compares, on the same documents, vocabulary, lengths (512 and 114) and batches of 128,
each side in a process of its own pinned to one core, TensorFlow with one thread, runs taking turns:

    ids      token ids in memory -> packed, corrupted batches
    text     strings in memory -> the same, tokenised on the way

T5's side is `t5.data.preprocessors.span_corruption` and seqio's `tokenize` and
`append_eos_after_trim` over tensors in memory, batched: no files, no shuffling. Ours is the
`TrainStream` a training run reads, shuffled, over a store on disk (ids) or over what was tokenised
in memory (text). Tokens are those of the text that went into finished examples.

The second trains a micro T5 by the real loop: time it waits for batches as a share of all, and the
step time beside that with one and the same batch held in memory. Waits overlap with computing, so
the share is an upper bound.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

INPUTS, TARGETS, RAW, BATCH = 512, 114, 568, 128
DOCUMENT_CHARACTERS = 2000  # paragraphs are joined to documents as long as C4's


def read_documents(paths):
    documents, held = [], []
    for path in paths:
        opened = gzip.open if path.endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8") as file:
            for line in file:
                held.append(line.strip())
                if sum(map(len, held)) >= DOCUMENT_CHARACTERS:
                    documents.append(" ".join(" ".join(held).split()))
                    held = []
    return documents


# --- ours -----------------------------------------------------------------------------------------
def our_runs(folder, documents, model):
    import numpy as np

    from deepnarrow.data import TrainStream
    from deepnarrow_text_t5.building import StoreSettings, build_store, end_to_end
    from deepnarrow_text_t5.objectives import OBJECTIVES, Noise
    from deepnarrow_text_t5.sources import TextData, text_source
    from deepnarrow_text_t5.store import Tokens
    from deepnarrow_text_t5.vocabulary import read_vocabulary

    vocabulary = read_vocabulary(model)
    objective = OBJECTIVES["span_corruption"]
    noise = Noise(0.15, 3.0, vocabulary.first_sentinel, vocabulary.num_pieces)
    lengths = objective.lengths(INPUTS, noise)
    assert (lengths.raw, lengths.targets) == (RAW, TARGETS)

    def consume(tokens):
        data = TextData({"train": tokens}, vocabulary, objective, noise, lengths, False, 0)
        source = text_source(data, "train")
        steps = source.num_examples // BATCH
        with TrainStream(source, seed=0, batch_size=BATCH) as stream:
            for _ in range(steps):
                batch = next(stream)
        assert batch["inputs"].shape == (BATCH, INPUTS)
        return steps * BATCH * RAW

    def ids():
        return consume(store.splits["train"])

    def text():
        parts = [end_to_end(vocabulary.encode_all(documents[i:i + 500]), np.uint16)
                 for i in range(0, len(documents), 500)]
        return consume(Tokens([tokens for tokens, _ in parts], [ends for _, ends in parts], "x"))

    def prepare():
        made = build_store(wanted, folder / f"store-{time.monotonic_ns()}", lambda *_: None)
        return sum(tokens.num_tokens for tokens in made.splits.values())

    (folder / "documents.txt").write_text("\n".join(documents))
    wanted = StoreSettings(f"text:{folder}/documents.txt#line", model, 512, 0.001)
    store = build_store(wanted, folder / "store", lambda *_: None)
    return {"ids": ids, "text": text, "prepare": prepare}


# --- T5's -----------------------------------------------------------------------------------------
def peer_runs(folder, documents, model):
    del folder
    import seqio
    import tensorflow as tf
    from t5.data import preprocessors as t5

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    vocabulary = seqio.SentencePieceVocabulary(model, 100)
    features = {name: seqio.Feature(vocabulary=vocabulary, add_eos=True)
                for name in ("inputs", "targets")}
    lengths = {"inputs": INPUTS, "targets": TARGETS}
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    options.threading.max_intra_op_parallelism = 1
    encoded = tf.ragged.constant(vocabulary.tokenizer.encode(documents), tf.int32)

    def consume(dataset):
        dataset = t5.span_corruption(dataset, lengths, features)
        dataset = seqio.preprocessors.append_eos_after_trim(
            dataset, output_features=features, sequence_length=lengths)
        dataset = dataset.padded_batch(BATCH, {k: [n] for k, n in lengths.items()},
                                       drop_remainder=True).with_options(options)
        count = 0
        for batch in dataset.as_numpy_iterator():
            assert batch["inputs"].shape == (BATCH, INPUTS)
            count += 1
        return count * BATCH * RAW

    def ids():
        return consume(tf.data.Dataset.from_tensor_slices({"targets": encoded}))

    def text():
        dataset = tf.data.Dataset.from_tensor_slices({"targets": documents})
        return consume(seqio.preprocessors.tokenize(
            dataset, {"targets": features["targets"]}, copy_pretokenized=False))

    return {"ids": ids, "text": text}


def work(side, folder, model, core):
    """Runs what is asked for on stdin; answers tokens and seconds on stdout."""
    os.sched_setaffinity(0, {core})
    documents = json.loads((folder / "documents.json").read_text())
    runs = (our_runs if side == "ours" else peer_runs)(folder, documents, model)
    print("ready", flush=True)
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        tokens = runs[line.strip()]()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu_start
        print(json.dumps([tokens / seconds, tokens / cpu]), flush=True)


# --- the comparison -------------------------------------------------------------------------------
def compare(options, folder):
    core = min(os.sched_getaffinity(0))
    pythons = {"ours": sys.executable, "peer": options.peer_python}
    workers = {}
    for side, python in pythons.items():
        if python is None:
            continue
        environment = dict(os.environ, TF_CPP_MIN_LOG_LEVEL="3", OMP_NUM_THREADS="1")
        if side == "peer":
            environment.pop("PYTHONPATH", None)
        workers[side] = subprocess.Popen(
            [python, __file__, "--worker", side, "--folder", str(folder), "--core", str(core),
             "--vocabulary", options.vocabulary],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        while workers[side].stdout.readline().strip() != "ready":
            if workers[side].poll() is not None:
                raise SystemExit(f"{side} could not start")
    rates = {}
    for mode in ("ids", "text", "prepare"):
        rates[mode] = {side: [] for side in workers if mode != "prepare" or side == "ours"}
        for number in range(options.rounds + 1):
            for side in rates[mode]:
                workers[side].stdin.write(mode + "\n")
                workers[side].stdin.flush()
                found = json.loads(workers[side].stdout.readline())
                if number:  # the first round warms up
                    rates[mode][side].append(found)
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return rates


def summarise(rates):
    """Medians by wall clock and by the process's CPU time, which others on the machine leave alone.
    """
    rows = {}
    for mode, sides in rates.items():
        for column, clock in enumerate(("wall", "cpu")):
            row = {f"{side}_tokens_per_second": statistics.median(v[column] for v in values)
                   for side, values in sides.items()}
            if "peer" in sides:
                ratios = [a[column] / b[column]
                          for a, b in zip(sides["ours"], sides["peer"], strict=True)]
                row |= {"ratio": statistics.median(ratios), "ratio_min": min(ratios),
                        "ratio_max": max(ratios), "rounds": len(ratios)}
            rows[f"{mode}, {clock}"] = row
    return rows


# --- training -------------------------------------------------------------------------------------
def train_waits(options, folder):
    """Waiting as a share of the time of a real run, and step times with and without loading."""
    import numpy as np

    from deepnarrow import step
    from deepnarrow import train as loop
    from deepnarrow.assemble import make_model
    from deepnarrow.data import TrainStream
    from deepnarrow.modality import Source
    from deepnarrow.ops import resolve
    from deepnarrow.plugins import registry
    from deepnarrow.protocol import OptimizerConfig, RunOptions
    from deepnarrow_text_t5.sources import upstream

    found = registry()
    modality = found.modality("text_t5")
    (folder / "documents.txt").write_text("\n".join(read_documents(options.text)))
    data_options = modality.data_options.copy_and_resolve_references()
    with data_options.unlocked():
        data_options.update({"source": f"text:{folder}/documents.txt#line",
                             "input_length": options.input_length, "num_pieces": 4000})
    data = upstream(data_options, modality.options)
    model_options = modality.options.copy_and_resolve_references()
    with model_options.unlocked():
        model_options.update(data.options)
    named = resolve(options.shape, found.vocabulary(modality))
    model = make_model(modality, found.architecture("transformer"), named.shape, model_options)
    optimizer = OptimizerConfig("adafactor", 0.01, "constant")
    held = data.train.load(0, np.random.default_rng(0))
    still = Source(data.train.num_examples, lambda *_: held, "held")
    waits, ends = [], []

    class Timed(TrainStream):
        def __next__(self):
            start = time.perf_counter()
            batch = super().__next__()
            ends.append(time.perf_counter())
            waits.append(ends[-1] - start)
            return batch

    loop.TrainStream = Timed
    program = step.make_program(model, optimizer, options.train)
    rows = {"loaded": [], "held": [], "waiting": []}
    for number in range(options.rounds + 1):
        for name, source in (("loaded", data.train), ("held", still)):
            waits.clear()
            ends.clear()
            loop.train(program, source, seed=0, batch_size=options.batch_size,
                       run=RunOptions(log_every=20))
            if number:  # the first round compiles
                rows[name].append((ends[-1] - ends[9]) / (len(ends) - 10))
                if name == "loaded":
                    rows["waiting"].append(sum(waits[10:]) / (ends[-1] - ends[9]))
    ratios = [a / b for a, b in zip(rows["loaded"], rows["held"], strict=True)]
    return {"training": {
        "shape": options.shape, "batch_size": options.batch_size,
        "input_length": options.input_length, "step_seconds": statistics.median(rows["loaded"]),
        "waiting_share": statistics.median(rows["waiting"]),
        "step_over_held_batch": statistics.median(ratios),
        "ratio_min": min(ratios), "ratio_max": max(ratios), "rounds": len(ratios)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", nargs="+", help="text files, .txt or .txt.gz")
    parser.add_argument("--vocabulary", help="T5's spiece.model")
    parser.add_argument("--peer-python", help="an interpreter with t5, seqio and tensorflow")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--train", type=int, metavar="STEPS", help="measure waiting instead")
    parser.add_argument("--shape", default="micro", help="that is trained")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--input-length", type=int, default=64)
    parser.add_argument("--json", action="store_true")
    for name in ("--worker", "--folder", "--core"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, Path(options.folder), options.vocabulary, int(options.core))
        return
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DEEPNARROW_CACHE"] = str(Path(folder, "cache"))
        if options.train:
            rows = train_waits(options, Path(folder))
        else:
            Path(folder, "documents.json").write_text(json.dumps(read_documents(options.text)))
            rows = summarise(compare(options, Path(folder)))
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        for mode, row in rows.items():
            print(mode, *(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
                          for name, value in row.items()))


if __name__ == "__main__":
    main()
