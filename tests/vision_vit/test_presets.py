"""ViT's shapes: parameter counts equal big_vision's own model."""

import numpy as np
import pytest

from deepnarrow.assemble import count_costs
from deepnarrow.config import resolve_options
from deepnarrow.cost import summarize
from deepnarrow.ops import resolve
from deepnarrow.plugins import registry
from deepnarrow_vision_vit.options import default_options
from deepnarrow_vision_vit.presets import PRESETS

# Parameters of big_vision.models.vit.Model(num_classes, variant, pool_type) on a 224 x 224 image,
# counted by jax.eval_shape on a checkout of google-research/big_vision at commit 0127fb6: pool_type
# gap, tok and map, each without and with a head of 1000 classes. Patches of 16 up to L, else 14.
BIG_VISION = {
    "mu": (43_648, 76_648, 43_680, 76_680, 56_320, 89_320),
    "Ti": (5_524_032, 5_717_032, 5_524_224, 5_717_224, 5_968_704, 6_161_704),
    "S": (21_664_896, 22_049_896, 21_665_280, 22_050_280, 23_438_976, 23_823_976),
    "M": (38_323_712, 38_836_712, 38_324_224, 38_837_224, 41_475_584, 41_988_584),
    "B": (85_797_120, 86_566_120, 85_797_888, 86_566_888, 92_884_224, 93_653_224),
    "L": (303_299_584, 304_324_584, 303_300_608, 304_325_608, 315_894_784, 316_919_784),
    "So400m": (412_442_352, 413_595_352, 412_443_504, 413_596_504, 427_680_704, 428_833_704),
    "H": (630_762_240, 632_043_240, 630_763_520, 632_044_520, 650_438_400, 651_719_400),
    "g": (1_011_199_616, 1_012_608_616, 1_011_201_024, 1_012_610_024, 1_036_448_384,
          1_037_857_384),
    "g-opt": (1_134_561_792, 1_136_098_792, 1_134_563_328, 1_136_100_328, 1_162_891_776,
              1_164_428_776),
    "G": (1_842_772_352, 1_844_437_352, 1_842_774_016, 1_844_439_016, 1_881_132_416,
          1_882_797_416),
    "G-opt": (1_663_302_144, 1_664_839_144, 1_663_303_680, 1_664_840_680, 1_697_925_632,
              1_699_462_632),
    "e": (3_805_417_728, 3_807_210_728, 3_805_419_520, 3_807_212_520, 3_873_342_720,
          3_875_135_720),
}


def count(text, convention="matmul", **options):
    modality = registry().modality("vision_vit")
    named = resolve(text, registry().vocabulary(modality))
    resolved = resolve_options(default_options(), {**named.overrides, **options}, "options")
    return summarize(count_costs(modality, registry().architecture("transformer"), named.shape,
                                 resolved), convention)


@pytest.mark.parametrize("name", BIG_VISION)
def test_counts_equal_big_vision(name):
    counted = [count(name, pool_type=pool_type, num_classes=num_classes).params_total
               for pool_type in ("gap", "tok", "map") for num_classes in (0, 1000)]
    assert tuple(counted) == BIG_VISION[name]


def test_every_preset_of_big_vision_is_there_and_tiny_is_small():
    assert set(PRESETS) == {*BIG_VISION, "tiny"}
    assert count("tiny", num_classes=10).params_total < 10**6


@pytest.mark.parametrize("name", PRESETS)
def test_heads_divide_the_width(name):
    shape = PRESETS[name].shape
    assert shape.d_kv * shape.num_heads == shape.d_model
    assert shape.num_decoder_layers == 0


@pytest.mark.parametrize(("text", "patch_size"), [("B", 16), ("B/32", 32), ("So400m", 14),
                                                  ("g-opt/16-nl24", 16)])
def test_the_suffix_is_the_patch_size(text, patch_size):
    modality = registry().modality("vision_vit")
    named = resolve(text, registry().vocabulary(modality))
    assert named.overrides == {"patch_size": patch_size}


@pytest.mark.parametrize(("pool_type", "positions"), [("gap", 196), ("tok", 197), ("map", 196)])
def test_kaplan_and_palm_count_the_head_at_one_position(pool_type, positions):
    """By hand, S/16: an encoder at every position, its head at one, the probe's keys at all."""
    # Each part as (weights of linear maps, biases and norms).
    layer = np.array([4 * 384 * 384 + 2 * 384 * 1536, 4 * 384 + 1536 + 384 + 4 * 384])
    encoder = 12 * layer + [0, 2 * 384]
    at_one = np.array([384 * 1000, 1000 + (384 if pool_type == "tok" else 0)])
    at_all = np.array([0, 0])
    scores = 2 * 12 * positions**2 * 384
    if pool_type == "map":
        at_all = np.array([2 * 384 * 384, 2 * 384])
        at_one += at_all + np.array([2 * 384 * 1536, 384 + 2 * 384 + 1536 + 384])
        scores += 2 * positions * 384
    linear, others = 2 * (positions * (encoder + at_all) + at_one)
    forward = linear + scores
    kaplan, palm = (count("S/16", pool_type=pool_type, convention=name)
                    for name in ("kaplan", "palm"))
    assert kaplan.flops_forward_per_example == forward
    assert kaplan.flops_train_per_example == 3 * forward
    embedding = 2 * (196 * (16 * 16 * 3 * 384 + 384) + 196 * 384)
    assert palm.flops_forward_per_example == linear + others + 2 * scores + embedding


def test_parts_of_the_frame():
    costs = count("B/16", num_classes=1000)
    assert costs.params_by_component["head"] == 768 * 1000 + 1000
    assert costs.params_by_component["position"] == 14 * 14 * 768
    assert costs.params_embedding == 14 * 14 * 768 + 16 * 16 * 3 * 768 + 768
    assert count("B/16", num_classes=0).params_by_component.get("head", 0) == 0
    assert count("B/16", image_size=384).tokens_per_example == 24 * 24
    assert count("B/16", pool_type="tok").tokens_per_example == 14 * 14 + 1
