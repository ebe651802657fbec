"""Released ViTs under one few-shot protocol: which shape transfers best for its cost?

    deepnarrow study configs/vision_vit/transfer_released.py --workdir runs/vit_released

Every cell starts from a big_vision `.npz` under MODELS (the i21k checkpoints of "How to train your
ViT" have their names there); Hugging Face and timm folders work likewise with their `format`.
Nothing is pre-trained, so the upstream metric is empty; the source's content is hashed into each
trial's key.

Protocol: big_vision's few-shot probe on two of its sets; L2 fixed at 2^10, and chosen on the shots.
Hardware: one accelerator; a CPU takes hours for S/16.
Time: minutes to hours: forward passes over the sets only. This project has not run it: no released
weights and none of the sets were to be had.
Expect: features of larger models probe better; 10-shot accuracies rise from S/32 to B/16.
"""

from ml_collections import ConfigDict

MODELS = "models"
CHECKPOINTS = ("S_32", "S_16", "B_32", "B_16")
SETS = {"pets": "tfds:data/oxford_iiit_pet/3.2.0", "cars": "tfds:data/cars196/2.1.0"}


def get_config() -> ConfigDict:
    """Four checkpoints, probed on two sets."""
    scale = ({"op": "resize", "size": 224}, {"op": "value_range"})
    return ConfigDict({
        "name": "vit_released",
        "seeds": (0,),
        "modalities": {"vision_vit": {
            "checkpoints": tuple({"name": f"i21k-{name}", "format": "big_vision",
                                  "path": f"{MODELS}/{name}.npz"} for name in CHECKPOINTS),
            "data": {"upstream": SETS["pets"], "train": "train[:90%]",
                     "validation": "train[90%:]", "train_pp": scale, "eval_pp": scale,
                     "transfer": SETS},
            "protocol": {"few_shot": {"tasks": tuple(SETS), "shots": (1, 5, 10, 25), "seeds": 3,
                                      "l2": "auto"}},
        }},
    })
