"""Quickstart: deep-narrow against shallow-wide in text and vision, on real data, in minutes.

    deepnarrow study configs/quickstart.py --workdir runs/quickstart

Text: a T5 pre-trained by span corruption on the docstrings of the Python standard library, then
transferred to naming the package a docstring comes from (labels by the standard library's authors).
Vision: a ViT pre-trained on five of scikit-learn's handwritten digit classes, transferred to the
other five. No network; the corpus, its vocabulary and compiled programs are cached at first use.
"""

from ml_collections import ConfigDict

TEXT_SHAPES = ("mu", "mu-nl6", "mu-nl1-ff1k", "mu-nl2-dm96")
VISION_SHAPES = ("mu-nl4", "mu-nl8", "mu-nl2", "mu-nl2-dm96")


def get_config() -> ConfigDict:
    """Four shapes a modality, two seeds, upstream, few-shot and fine-tuning."""
    config = ConfigDict()
    config.name = "quickstart"
    config.seeds = (0, 1)
    return config
