"""Pre-training a ViT on ImageNet-21k, by the recipe of big_vision's `configs/vit_i21k.py`.

    deepnarrow study configs/vision_vit/pretrain_i21k.py --workdir runs/i21k \\
        --set modalities.vision_vit.data.upstream=folder:/data/imagenet21k

Data: ImageNet-21k as class folders (the archives of image-net.org, unpacked; tensorflow-datasets
has no public builder for it, but what is prepared as ArrayRecord is read by `tfds:PATH`). The first
opening decodes every image once to find corrupt ones, and hashes it: about 1 ms of one core for an
image, 4 core-hours for 14 million; kept in the cache. Slices of a folder are taken in the order of
the images' hashes.

Recipe ("How to train your ViT", Steiner et al. 2021): 300 epochs at batch 4096, Adam with decoupled
decay 1e-4, clipped gradients, cosine to 0 after 10,000 steps of warm-up, sigmoid loss. Augmentation
as that paper chose it for B/16 (`light2`: RandAugment of 2 operations at strength 10, mixup 0.2).
Departures: the head's bias begins at 0, not -10; mixup pairs each image with any other, not with
its neighbour in the batch (see `sources.mix`).

Expected: not run by us, and no number of others is quoted that we could not check.
Hardware: a TPU v3-128 (64 chips of 123 TFLOP/s) or larger. Time: 4.4e20 FLOPs, so 2,350 minutes
there if 40% of the peak is reached (assumption).
"""

from ml_collections import ConfigDict

SIZE = 224
# By "How to train your ViT", figure 4, as big_vision tabulates it: strength of RandAugment (None
# for none), mixup's alpha.
AUGMENTATION = {"none": (None, 0.0), "light1": (0, 0.0), "light2": (10, 0.2),
                "medium1": (15, 0.2), "medium2": (15, 0.5), "strong1": (20, 0.5),
                "strong2": (20, 0.8)}
BATCH = 4096


def train_pp(strength: int | None) -> tuple[dict, ...]:
    """Crop, flip, RandAugment."""
    steps: list[dict] = [{"op": "inception_crop", "size": SIZE}, {"op": "flip"}]
    if strength is not None:
        steps.append({"op": "randaugment", "layers": 2, "magnitude": float(strength)})
    return (*steps, {"op": "value_range"})


def get_config() -> ConfigDict:
    """One modality x one shape x one seed."""
    strength, mixup = AUGMENTATION["light2"]
    return ConfigDict({
        "name": "pretrain_i21k",
        "seeds": (0,),
        "run": {"log_every": 50, "eval_every": 1000, "checkpoint_every": 1000},
        "modalities": {"vision_vit": {
            "shapes": ("B/16",),
            "options": {"loss": "sigmoid", "pool_type": "gap", "compute_dtype": "bfloat16"},
            "data": {
                "upstream": "folder:data/imagenet21k",
                "train": "all[51200:]", "validation": "all[25600:51200]",
                "train_pp": train_pp(strength),
                "eval_pp": ({"op": "resize_small", "size": 256},
                            {"op": "central_crop", "size": SIZE}, {"op": "value_range"}),
                "mixup": mixup,
                "channels": 3,
                "convert": ("palette", "alpha", "cmyk"),
            },
            "protocol": {
                "batch_size": BATCH,
                "budget": {"kind": "epochs", "amount": 300},
                "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine",
                              "warmup_steps": 10_000, "weight_decay": 1e-4, "clip_norm": 1.0},
            },
        }},
    })
