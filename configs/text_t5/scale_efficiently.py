"""The grid of "Scale Efficiently" (Tay et al., ICLR 2022): does depth first pay after transfer?

    deepnarrow prepare configs/text_t5/scale_efficiently.py --out data/c4_en
    deepnarrow study configs/text_t5/scale_efficiently.py --workdir runs/scale_efficiently \\
        --set modalities.text_t5.data.source=prepared:data/c4_en

C4 and T5's vocabulary are to be there already: see `pretrain_c4.py`. `--dry-run` shows every cell's
costs before anything is trained. `--set modalities.text_t5.shapes="('small', 'small-nl16')"` takes
a part of the grid; other shapes of the paper are written likewise (`base-ff6k`, `large-nh8`).

Protocol: every shape is pre-trained alike, 2^19 steps of 128 segments of 512 tokens, Adafactor with
an inverse square root schedule, no dropout: 34 billion tokens, a thirtieth of T5's own. Then one
model is fine-tuned on a mixture of the 17 tasks, Adafactor at a constant 1e-3, dropout 0.1 (batch
and 100,000 steps as unconfirmed notes on the paper have them); for each task the checkpoint that is
best on validation is reported, on the whole split as in the paper and on halves (docs/tasks.md).
Hardware: made for TPU pods (the paper: 16 TPU v3 chips a model, 64 for the largest); `small` needs
7e18 FLOPs, `xl` 54 times that.
Time: at the steps a second of the paper's table (23, 9 and 1) `small` takes 380 minutes, `base`
970, `xl` 6 days. This project has not run it.
Expect (as read from the paper): `small-nl16` and `small-nl24` reach `base` after fine-tuning with
60% and 86% of its parameters, `base-nl36` passes `large`, `large-nl36` passes `xl`, while the
pre-training loss follows the number of parameters.
"""

from ml_collections import ConfigDict

STEPS, BATCH_SIZE = 2**19, 128
# The 17 tasks of the paper; WNLI is in no average.
TASKS = (
    *(f"glue_{name}" for name in ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte")),
    *(f"super_glue_{name}" for name in ("boolq", "cb", "copa", "multirc", "record", "rte", "wic",
                                        "wsc")),
    "squad",
)

# Each group: the sizes everybody trains, then the shapes that put depth first, up to their cost.
SHAPES = (
    "small", "mini-nl8",
    "base", "small-nl16", "small-nl20", "small-nl22", "small-nl24", "small-el32",
    "large", "base-nl36",
    "xl", "large-nl36",
)


def get_config() -> ConfigDict:
    """Twelve shapes, one seed, as in the paper; more seeds tell luck from shape."""
    return ConfigDict({
        "name": "scale_efficiently",
        "seeds": (0,),
        "run": {"log_every": 100, "eval_every": 10_000, "checkpoint_every": 5_000},
        "modalities": {"text_t5": {
            "shapes": SHAPES,
            "options": {"compute_dtype": "bfloat16", "dropout_rate": 0.0, "remat": "dots"},
            "data": {
                "source": "tfds:data/c4/en/3.0.1",
                "vocabulary": "data/t5/spiece.model",
                "input_length": 512,
                "validation_examples": 8192,
                "tasks": {"glue": "tfds:data/glue", "super_glue": "tfds:data/super_glue",
                          "squad": "tfds:data/squad"},
                "task_input_length": 512,
                "task_target_length": 64,
            },
            "protocol": protocol(),
        }},
    })


def protocol() -> dict:
    """The paper's, for every shape."""
    return {
        "batch_size": BATCH_SIZE,
        "budget": {"kind": "examples", "amount": BATCH_SIZE * STEPS},
        "optimizer": {"name": "adafactor", "learning_rate": 0.01, "schedule": "inverse_sqrt",
                      "warmup_steps": 10_000},
        "fine_tune": {
            "tasks": TASKS, "mixture": "proportional", "dropout_rate": 0.1, "decode": "greedy",
            "batch_size": BATCH_SIZE, "examples": BATCH_SIZE * 100_000,
            "eval_every": 5_000, "select": "best",
            "optimizer": {"name": "adafactor", "learning_rate": 1e-3, "schedule": "constant"},
        },
    }
