"""The practical road to "Scale Efficiently": its released checkpoints under one protocol.

    deepnarrow study configs/text_t5/transfer_released.py --workdir runs/transfer_released

Every cell starts from a Hugging Face folder under MODELS (config.json, model.safetensors and
spiece.model of google/t5-efficient-NAME; a `.bin` is refused, convert it first). That spiece.model
tokenises the tasks; another one in `data.vocabulary` is an error. Intermediate steps are entries of
their own: `{"name": "t5-efficient-small", "step": 100_000, ...}`. Nothing is pre-trained, so the
upstream metric is empty; the source's content is hashed into each trial's key.

Protocol: the probe on encoder features, and fine-tuning with Adafactor at a constant 1e-3, dropout
0.1, on RTE, BoolQ and WiC, the checkpoint best on validation, three seeds.
Hardware: made for one TPU host or a GPU; `tiny` and `mini` run on a CPU within hours.
Time: not known: this project has not run it (no released weights, no SuperGLUE were to be had);
`examples` lowered to some thousands brings `tiny` down to minutes on a CPU.
Expect: deep shapes (`small-nl16`, `small-nl24`) near `base` at 60% and 86% of its parameters, as
the paper reports for SuperGLUE.
"""

from ml_collections import ConfigDict

MODELS = "models"
NAMES = ("tiny", "tiny-nl8", "mini", "mini-nl8", "small", "small-nl16", "small-nl24", "base")
TASKS = ("super_glue_rte", "super_glue_boolq", "super_glue_wic")


def get_config() -> ConfigDict:
    """Eight released checkpoints x three seeds of fine-tuning and shots."""
    names = [f"t5-efficient-{name}" for name in NAMES]
    return ConfigDict({
        "name": "transfer_released",
        "seeds": (0,),
        "modalities": {"text_t5": {
            "checkpoints": tuple({"name": name, "format": "huggingface",
                                  "path": f"{MODELS}/{name}"} for name in names),
            "data": {
                "tasks": {"super_glue": "data/SuperGLUE"},
                "task_input_length": 512,
                "task_target_length": 16,
            },
            "protocol": {
                "few_shot": {"tasks": TASKS, "shots": (5, 25), "seeds": 5, "l2": "auto"},
                "fine_tune": {
                    "tasks": TASKS, "seeds": 3, "dropout_rate": 0.1, "decode": "rank",
                    "batch_size": 32, "examples": 32 * 4_000,
                    "eval_every": 500, "select": "best",
                    "optimizer": {"name": "adafactor", "learning_rate": 1e-3,
                                  "schedule": "constant"},
                },
            },
        }},
    })
