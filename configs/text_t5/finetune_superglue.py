"""Fine-tunes one released T5 on SuperGLUE, each task by itself, as the T5 paper does.

    deepnarrow study configs/text_t5/finetune_superglue.py --workdir runs/superglue \\
        --set modalities.text_t5.data.tasks.super_glue=tfds:/data/super_glue

The data is SuperGLUE's official download, or what tensorflow-datasets prepared as ArrayRecord; the
model a Hugging Face folder with config.json and model.safetensors. `--dry-run` shows the costs.

Protocol (Raffel et al., JMLR 2020, section 3.1.2): Adafactor at a constant 1e-3, batches of 128
segments of 512 tokens, 2^18 steps, dropout 0.1, greedy decoding, for each task the checkpoint that
is best on validation. Reported beside it: the checkpoint chosen on one half of validation, scored
on the other (docs/tasks.md).
Hardware: made for TPUs; at these steps `base` takes 1.3e19 FLOPs a task, `small` 3.1e18.
Time: days on a TPU; with `examples` lowered to some thousands, minutes. This project has not run
it: no SuperGLUE and no released weights were to be had.
Expect: T5-base (another, longer pre-training) has a SuperGLUE average of 76.2 in the T5 paper's
table 14; the paper of the t5-efficient models gives theirs only as figures.
"""

from ml_collections import ConfigDict

STEPS, BATCH_SIZE = 2**18, 128
TASKS = tuple(f"super_glue_{name}" for name in (
    "boolq", "cb", "copa", "multirc", "record", "rte", "wic", "wsc"))


def get_config() -> ConfigDict:
    """One checkpoint x eight tasks x three fine-tuning seeds."""
    return ConfigDict({
        "name": "finetune_superglue",
        "seeds": (0,),
        "modalities": {"text_t5": {
            "checkpoints": ({"name": "t5-efficient-base", "format": "huggingface",
                             "path": "models/t5-efficient-base"},),
            "options": {"compute_dtype": "bfloat16", "remat": "dots"},
            "data": {
                "vocabulary": "models/t5-efficient-base/spiece.model",
                "tasks": {"super_glue": "data/SuperGLUE"},
                "task_input_length": 512,
                "task_target_length": 64,
            },
            "protocol": {
                "fine_tune": {
                    "tasks": TASKS, "seeds": 3, "dropout_rate": 0.1, "decode": "greedy",
                    "batch_size": BATCH_SIZE, "examples": BATCH_SIZE * STEPS,
                    "eval_every": 5_000, "select": "best",
                    "optimizer": {"name": "adafactor", "learning_rate": 1e-3,
                                  "schedule": "constant"},
                },
            },
        }},
    })
