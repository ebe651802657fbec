"""Few-shot and fine-tuned ImageNet-1k of ViTs pre-trained on ImageNet-21k.

    deepnarrow study configs/vision_vit/fewshot_i1k.py --workdir runs/fewshot_i1k \\
        --set modalities.vision_vit.data.upstream=folder:/data/imagenet21k \\
        --set modalities.vision_vit.data.transfer.imagenet.source=tfds:/data/imagenet2012/5.1.0 \\
        --set modalities.vision_vit.data.transfer.imagenet384.source=tfds:/data/imagenet2012/5.1.0

Few-shot: 1, 5, 10 and 25 images a class out of `train[:65000]`, which big_vision takes because it
holds at least 30 of every class, tested on the 50,000 of `validation`; L2 of 2^10, three draws.
Fine-tuning: 20,000 steps of 512 at 384 pixels with positions resampled, as Dosovitskiy et al.
(2021) fine-tune on ImageNet, but with Adam where they take SGD. The last per cent of `train` may be
chosen on; `validation` is only tested.

Pre-training is that of `pretrain_i21k.py` for 30 epochs, without RandAugment and mixup. Expected:
not run by us. Hardware: a TPU v3-128 (64 chips of 123 TFLOP/s) or larger; about 300 minutes of
pre-training for both shapes and 25 of fine-tuning if 40% of the peak is reached (assumption).
"""

from ml_collections import ConfigDict

BATCH = 4096


def get_config() -> ConfigDict:
    """One modality x two shapes x one seed."""
    return ConfigDict({
        "name": "fewshot_i1k",
        "seeds": (0,),
        "run": {"log_every": 50, "eval_every": 1000, "checkpoint_every": 1000},
        "modalities": {"vision_vit": {
            "shapes": ("S/16", "B/16"),
            "options": {"loss": "sigmoid", "pool_type": "gap", "compute_dtype": "bfloat16"},
            "data": data(),
            "protocol": {
                "batch_size": BATCH,
                "budget": {"kind": "epochs", "amount": 30},
                "optimizer": {"name": "adamw", "learning_rate": 1e-3, "schedule": "cosine",
                              "warmup_steps": 10_000, "weight_decay": 1e-4, "clip_norm": 1.0},
                "few_shot": {"tasks": ("imagenet",), "shots": (1, 5, 10, 25), "seeds": 3},
                "fine_tune": {
                    "tasks": ("imagenet384",), "examples": 20_000 * 512, "batch_size": 512,
                    "optimizer": {"name": "adamw", "learning_rate": 3e-5, "schedule": "cosine",
                                  "warmup_steps": 500, "clip_norm": 1.0},
                },
            },
        }},
    })


def data() -> dict:
    """ImageNet-21k upstream; ImageNet-1k at 224 pixels for few-shot and at 384 for fine-tuning."""
    return {
        "upstream": "folder:data/imagenet21k",
        "train": "all[51200:]", "validation": "all[25600:51200]",
        "train_pp": ({"op": "inception_crop", "size": 224}, {"op": "flip"}, {"op": "value_range"}),
        "eval_pp": ({"op": "resize_small", "size": 256}, {"op": "central_crop", "size": 224},
                    {"op": "value_range"}),
        "channels": 3,
        "convert": ("palette", "alpha", "cmyk"),
        "transfer": {
            "imagenet": {"source": "tfds:data/imagenet2012/5.1.0", "train": "train[:65000]",
                         "validation": "", "test": "validation", "pp": ()},
            "imagenet384": {
                "source": "tfds:data/imagenet2012/5.1.0", "train": "train[:99%]",
                "validation": "train[99%:]", "test": "validation",
                "pp": ({"op": "resize", "size": 384}, {"op": "value_range"})},
        },
    }
