"""Image input: ours beside tf.data on the same JPEG files, a core each; the share of waiting.

    python benchmarks/image_input.py --peer-python /path/to/python-with-tensorflow [--json]

Writes photo-like JPEGs of 500 x 375 to a temporary folder. Every contender decodes them, takes an
inception crop resized to 224, flips and scales to -1..1, on one core (the process is pinned), files
in the page cache. Rounds alternate; figures are medians of images a second of CPU time, which other
work on the machine disturbs less than wall time does.

Two pipelines of tf.data: `same` does what we do (whole image decoded, crop, antialiased resize);
`big_vision` what its configs do (decodes the crop alone, resizes without antialiasing). tf.data's
own parallelism and ours are off: a host has many cores, and both scale by processes or threads.

Waiting: two ViTs are trained through `TrainStream`, and the time that the loop waits for the next
batch is set against the whole: Ti/16 on the same files, and the smallest shape of
`configs/vision_vit/small_cpu.py` on images of 28 x 28 in memory, where a step takes least.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = 224
PEER = r"""
import glob, json, os, sys, time
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

folder, kind = sys.argv[1:]
tf.config.threading.set_intra_op_parallelism_threads(1)
tf.config.threading.set_inter_op_parallelism_threads(1)

def example(path):
    data = tf.io.read_file(path)
    crop = kind == "big_vision"
    image = None if crop else tf.io.decode_jpeg(data, channels=3)
    shape = tf.image.extract_jpeg_shape(data) if crop else tf.shape(image)
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        shape, tf.zeros([0, 0, 4]), area_range=(0.05, 1.0), aspect_ratio_range=(0.75, 1.33),
        min_object_covered=0, use_image_if_no_bounding_boxes=True)
    if crop:
        image = tf.image.decode_and_crop_jpeg(
            data, tf.concat([begin[:2], size[:2]], 0), channels=3)
    else:
        image = tf.slice(image, begin, size)
    image = tf.image.resize(image, (224, 224), antialias=not crop)
    image = tf.image.random_flip_left_right(tf.cast(image, tf.uint8))
    return tf.cast(image, tf.float32) / 127.5 - 1.0

options = tf.data.Options()
options.threading.private_threadpool_size = 1
options.threading.max_intra_op_parallelism = 1
paths = sorted(glob.glob(folder + "/*/*.jpg"))
images = tf.data.Dataset.from_tensor_slices(paths).map(example).batch(64).with_options(options)

def run():
    cpu, wall, count = time.process_time(), time.perf_counter(), 0
    for batch in images:
        count += len(batch)
    return count / (time.process_time() - cpu), count / (time.perf_counter() - wall)

run()
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(run()), flush=True)
"""


def write_photos(folder: Path, count: int) -> int:
    """Writes smooth random images with a little noise, 500 x 375; returns their mean size."""
    total = 0
    for i in range(count):
        rng = np.random.default_rng(i)
        image = rng.normal(120, 6, (375, 500, 3))
        for side, strength in ((6, 90), (20, 40), (60, 25)):
            coarse = rng.normal(0, strength, (side, side, 3)).astype(np.float32)
            image += np.stack([np.asarray(Image.fromarray(coarse[..., c]).resize(
                (500, 375), Image.Resampling.BICUBIC)) for c in range(3)], axis=-1)
        out = io.BytesIO()
        Image.fromarray(np.clip(image, 0, 255).astype(np.uint8)).save(out, "JPEG", quality=92)
        path = folder / f"class{i % 4}" / f"{i}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(out.getvalue())
        total += len(out.getvalue())
    return total // count


def open_source(folder: Path, extra: tuple[dict[str, Any], ...] = (), mixup: float = 0.0) -> Any:
    """Upstream's training source on all files."""
    from deepnarrow.config import resolve_options
    from deepnarrow_vision_vit import sources
    from deepnarrow_vision_vit.dataoptions import default_data_options
    from deepnarrow_vision_vit.tasks import upstream

    sources.MAX_CACHED_BYTES = 0  # as for a set too large to be kept decoded
    crop = {"op": "inception_crop", "size": SIZE}
    data = resolve_options(default_data_options(), {
        "upstream": f"folder:{folder}", "train": "hash(all)[:99%]", "validation": "hash(all)[99%:]",
        "train_pp": (crop, {"op": "flip"}, *extra, {"op": "value_range"}), "mixup": mixup,
        "image_size": SIZE}, "data")
    return upstream(data, None).train  # type: ignore[arg-type]


def run_ours(source: Any) -> tuple[float, float]:
    """Images a second of CPU time and of wall time: each example once, batches of 64 stacked."""
    from deepnarrow.data import _load_train

    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, source.num_examples, 64):
        _load_train(source, 0, range(start, min(start + 64, source.num_examples)))
    return (source.num_examples / (time.process_time() - cpu),
            source.num_examples / (time.perf_counter() - wall))


class Peer:
    """tf.data in another interpreter, pinned to this process's core, run on demand."""

    def __init__(self, python: str, folder: Path, kind: str):
        self.process = subprocess.Popen(
            [python, "-c", PEER, str(folder), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, text=True)
        self._read()

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the peer's interpreter ended; has it TensorFlow?")
        return line

    def run(self) -> tuple[float, float]:
        """Images a second of CPU time and of wall time."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        cpu, wall = json.loads(self._read())
        return cpu, wall

    def close(self) -> None:
        """Ends the interpreter."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(folder: Path, python: str | None, rounds: int) -> dict[str, Any]:
    """Images a second of one core, by contender: all rounds and their median."""
    source = open_source(folder)
    augmented = open_source(folder, ({"op": "randaugment", "layers": 2, "magnitude": 15},))
    mixed = open_source(folder, mixup=0.2)
    contenders: dict[str, Any] = {
        "ours": lambda: run_ours(source),
        "ours, RandAugment(2, 15)": lambda: run_ours(augmented),
        "ours, mixup": lambda: run_ours(mixed),
    }
    kinds = ("same", "big_vision") if python else ()
    peers = [Peer(python or "", folder, kind) for kind in kinds]
    contenders |= {f"tf.data, {kind}": peer.run for kind, peer in zip(kinds, peers, strict=True)}
    run_ours(source)
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            measured[name].append(run())
    for peer in peers:
        peer.close()
    result: dict[str, Any] = {}
    for name, pairs in measured.items():
        cpu, wall = (statistics.median(p[i] for p in pairs) for i in (0, 1))
        ratios = [ours[0] / own[0] for ours, own in zip(measured["ours"], pairs, strict=True)]
        result[name] = {"images_per_core_second": cpu, "images_per_second": wall,
                        "ours_over_it": statistics.median(ratios),
                        "rounds": [p[0] for p in pairs]}
    return result


def write_small(path: Path) -> Any:
    """A source of 4,000 grey images of 28 x 28 in memory, augmented as in `small_cpu.py`."""
    from deepnarrow.config import resolve_options
    from deepnarrow_vision_vit.dataoptions import default_data_options
    from deepnarrow_vision_vit.tasks import upstream

    images = np.random.default_rng(0).integers(0, 256, (4000, 28, 28), np.uint8)
    np.savez(path, images=images, labels=np.arange(4000) % 10)
    steps = ({"op": "pad", "pixels": 2}, {"op": "random_crop", "size": 28}, {"op": "flip"},
             {"op": "value_range"})
    data = resolve_options(default_data_options(), {
        "upstream": f"npz:{path}", "train_pp": steps, "image_size": 28}, "data")
    return upstream(data, None).train  # type: ignore[arg-type]


def waiting_share(
    source: Any, shape: str, options: dict[str, Any], batch_size: int, steps: int
) -> dict[str, float]:
    """Trains a shape; how much of the time the loop waits for its batches."""
    import jax

    from deepnarrow.assemble import make_model
    from deepnarrow.config import resolve_options
    from deepnarrow.data import TrainStream
    from deepnarrow.ops import resolve
    from deepnarrow.plugins import registry
    from deepnarrow.protocol import OptimizerConfig
    from deepnarrow.step import make_program

    found = registry()
    modality = found.modality("vision_vit")
    named = resolve(shape, found.vocabulary(modality))
    model = make_model(modality, found.architecture("transformer"), named.shape,
                       resolve_options(modality.options, options, "options"))
    program = make_program(model, OptimizerConfig("adamw", 1e-3, "constant"), steps + 2)
    state, waited, began = program.init(np.int32(0)), 0.0, 0.0
    with TrainStream(source, seed=0, batch_size=batch_size) as stream:
        for step in range(steps + 2):
            if step == 2:  # compiled
                jax.block_until_ready(state)
                began, waited = time.perf_counter(), 0.0
            before = time.perf_counter()
            batch = next(stream)
            waited += time.perf_counter() - before
            state, metrics = program.step(state, batch, program.args(0))
            jax.block_until_ready(metrics)
        seconds = time.perf_counter() - began
    return {"steps": steps, "seconds_a_step": seconds / steps, "waiting_share": waited / seconds}


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--peer-python", help="an interpreter that has TensorFlow")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="of the training that may wait")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        os.environ.setdefault("DEEPNARROW_CACHE", f"{root}/cache")
        folder = Path(root) / "photos"
        folder.mkdir()
        size = write_photos(folder, arguments.images)
        # On all cores, before the pinning.
        training = {
            "Ti/16, JPEG at 224, batch 16": waiting_share(
                open_source(folder), "Ti", {"num_classes": 4}, 16, arguments.steps),
            "tiny-nl2, 28 x 28 in memory, batch 128": waiting_share(
                write_small(Path(root) / "small.npz"), "tiny-nl2",
                {"num_classes": 10, "image_size": 28, "patch_size": 7, "channels": 1}, 128,
                10 * arguments.steps),
        }
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        speeds = compare(folder, arguments.peer_python, arguments.rounds)
    document = {"images": arguments.images, "mean_bytes": size, "speeds": speeds,
                "training": training}
    if arguments.json:
        json.dump(document, sys.stdout, indent=1)
        return
    for name, values in speeds.items():
        print(f"{name:28s} {values['images_per_core_second']:7.1f} images a core-second, "
              f"ours is {values['ours_over_it']:.2f} x it")
    for name, values in training.items():
        print(f"training {name}: {values['seconds_a_step']:.3f} s a step, "
              f"{values['waiting_share']:.2%} of it waiting for input")


if __name__ == "__main__":
    main()
