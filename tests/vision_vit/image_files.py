"""Writes small image data sets for the tests, in every layout that `readers.py` opens."""

from __future__ import annotations

import gzip
import io
import struct

import numpy as np
from PIL import Image


def pixels(count, size=8, channels=3, seed=0):
    """uint8 [count, size, size, channels], smooth enough for JPEG."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (count, 3, 3, channels), np.uint8)
    return np.stack([np.stack([
        np.asarray(Image.fromarray(c[..., i]).resize((size, size))) for i in range(channels)
    ], axis=-1) for c in coarse])


def encode(array, kind="PNG", **options):
    """An image [h, w, 1 or 3] as the bytes of a file."""
    out = io.BytesIO()
    Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array).save(out, kind, **options)
    return out.getvalue()


def write_folder(root, classes=("ant", "bee"), count=6, seed=0, kind="PNG", size=8):
    """`root/CLASS/i.png`, `count` a class."""
    images = pixels(count * len(classes), size=size, seed=seed)
    for i, image in enumerate(images):
        folder = root / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        suffix = {"PNG": "png", "JPEG": "jpg"}[kind]
        (folder / f"{i}.{suffix}").write_bytes(encode(image, kind))
    return images


def idx_bytes(array):
    """The IDX format of an uint8 array."""
    return (bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            + array.tobytes())


def write_idx(root, prefixes=("train-", "t10k-"), count=20, classes=4, zipped=True, size=8, seed=0):
    """MNIST's four files (two without a prefix): `count` images a split."""
    root.mkdir(parents=True, exist_ok=True)
    for i, prefix in enumerate(prefixes):
        images = pixels(count, size=size, channels=1, seed=seed + i)[..., 0]
        labels = (np.arange(count) % classes).astype(np.uint8)
        for name, array in ((f"{prefix}images-idx3-ubyte", images),
                            (f"{prefix}labels-idx1-ubyte", labels)):
            data = idx_bytes(array)
            path = root / (f"{name}.gz" if zipped else name)
            path.write_bytes(gzip.compress(data) if zipped else data)
