"""The options of vision_vit's data. Apart from what reads images, so that registering is cheap."""

from __future__ import annotations

from typing import Any

from ml_collections import ConfigDict


def default_data_options() -> ConfigDict:
    """Returns the defaults of the data's options.

    Options:
      upstream: what pre-training reads, a line as `readers.py` describes it; `digits` for the
        embedded study, whose own options are under `digits`.
      train: upstream's training split, as `splits.py` describes it; empty with `validation` for
        the source's own splits, or 90 and 10 per cent by content.
      validation: upstream's validation split.
      image_size: side of the images that the model gets, 0 for upstream's own.
      channels: 1 or 3, 0 for upstream's own.
      train_pp: preprocessing of upstream's training images, see `preprocess.py`; empty for that
        of evaluation.
      eval_pp: preprocessing of all other images; empty to resize to `image_size` and scale to
        -1..1.
      mixup: alpha of mixup's Beta distribution on upstream's training images, 0 for none.
      transfer: few-shot and fine-tuning tasks: name -> a line as `upstream`'s, or a table with
        `source`, `train`, `validation` (may be empty: no fine-tuning), `test` and `pp`.
      convert: conversions that are allowed: palette, alpha, cmyk, sixteen_bit.
      corrupt: `refuse` images that cannot be decoded, or `skip` them with a warning.
      digits: options of the embedded study, see `digits.py`.
    """
    return ConfigDict({
        "upstream": "digits",
        "train": "",
        "validation": "",
        "image_size": 0,
        "channels": 0,
        "train_pp": (),
        "eval_pp": (),
        "mixup": 0.0,
        "transfer": {},
        "convert": (),
        "corrupt": "refuse",
        "digits": default_digits(),
    }).lock()


def default_digits() -> dict[str, Any]:
    """Returns the defaults of the embedded study's options.

    Options:
      upstream_classes: labels that pre-training sees.
      transfer_classes: labels of the transfer task; none of them upstream's.
      rotations: 4 makes each upstream image turned by 0, 90, 180 and 270 degrees a class of its own
        (four times the classes, as Santoro et al. 2016 do for few-shot learning); 1 leaves it.
      canvas: side of the empty square, in pixels, on which each image lies at a place hashed from
        it, upstream and in transfer (as in translated MNIST); the images' own side for none.
      augment: `place` lays upstream's training images elsewhere each time they are read; `none`
        leaves them.
    """
    return {
        "upstream_classes": (0, 1, 2, 3, 4),
        "transfer_classes": (5, 6, 7, 8, 9),
        "rotations": 4,
        "canvas": 12,
        "augment": "place",
    }
