"""Makes `tiny_tfds/`: two small data sets prepared by tensorflow-datasets itself.

    python tests/vision_vit/make_tfds.py tests/vision_vit/tiny_tfds

Needs tensorflow-cpu (made with 2.21.0, tensorflow-datasets 4.9.10). Sixteen PNGs of 8 x 8, four
classes, splits train (12) and test (4): pixel (y, x, c) of image i is `(16 i + y + x + 40 c) % 256`
and its label `i % 4`. `array_record/` has random access, `tfrecord/` has not.
"""

import pathlib
import shutil
import sys
import tempfile

import numpy as np
import tensorflow_datasets as tfds


class TinyImages(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
            "image": tfds.features.Image(shape=(8, 8, 3)),
            "label": tfds.features.ClassLabel(num_classes=4),
        }))

    def _split_generators(self, dl_manager):
        return {"train": self._examples(range(12)), "test": self._examples(range(12, 16))}

    def _generate_examples(self):
        raise NotImplementedError

    def _examples(self, numbers):
        y, x, c = np.ogrid[:8, :8, :3]
        for i in numbers:
            yield i, {"image": ((16 * i + y + x + 40 * c) % 256).astype(np.uint8), "label": i % 4}


def main(out: pathlib.Path) -> None:
    for file_format in ("array_record", "tfrecord"):
        with tempfile.TemporaryDirectory() as folder:
            builder = TinyImages(data_dir=folder, file_format=file_format)
            builder.download_and_prepare()
            shutil.copytree(builder.data_dir, out / file_format, dirs_exist_ok=True)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
