"""T5 pre-trained on C4 by span corruption, as Raffel et al. and Tay et al. pre-train.

    deepnarrow prepare configs/text_t5/pretrain_c4.py --out data/c4_en
    deepnarrow study configs/text_t5/pretrain_c4.py --workdir runs/pretrain_c4 \\
        --set modalities.text_t5.data.source=prepared:data/c4_en

C4 and T5's vocabulary are to be there already; C4 as tensorflow-datasets prepares it in ArrayRecord
(`data/c4/en/3.0.1`), or its public shards, by `--set modalities.text_t5.data.source=c4_json:...`.
`--set modalities.text_t5.shapes="('base',)"` takes another shape.

Protocol: 2^19 steps of 128 segments of 512 tokens (targets 114), Adafactor, learning rate 0.01 for
10,000 steps, then its inverse square root; no dropout. That reads 38 billion tokens, so a quarter
of C4's shards are enough; a store takes 2 bytes a token. `prepare` makes about 2 M tokens a second
and core, and goes on where it was stopped.
Hardware: TPU v3-8 or better; on one CPU only for a look (`--set
modalities.text_t5.protocol.budget.amount=12800`). This project has not run it at full length.
Time: 380 minutes for `small` at the 23 steps a second of the paper's table (16 TPU v3 chips).
Expect (Tay et al., as read from the paper): a validation loss near 2.0 nats a token for `small`,
1.75 for `base`.
"""

from ml_collections import ConfigDict

STEPS, BATCH_SIZE = 2**19, 128


def get_config() -> ConfigDict:
    """One shape, one seed."""
    return ConfigDict({
        "name": "pretrain_c4",
        "seeds": (0,),
        "run": {"log_every": 100, "eval_every": 10_000, "checkpoint_every": 5_000},
        "modalities": {"text_t5": {
            "shapes": ("small",),
            "options": {"compute_dtype": "bfloat16", "dropout_rate": 0.0},
            "data": {
                "source": "tfds:data/c4/en/3.0.1",
                "vocabulary": "data/t5/spiece.model",
                "input_length": 512,
                "validation_examples": 8192,
            },
            "protocol": {
                "batch_size": BATCH_SIZE,
                "budget": {"kind": "examples", "amount": BATCH_SIZE * STEPS},
                "optimizer": {"name": "adafactor", "learning_rate": 0.01,
                              "schedule": "inverse_sqrt", "warmup_steps": 10_000},
            },
        }},
    })
