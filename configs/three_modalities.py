"""One question, three modalities, one report: text, vision and peptides at tiny sizes.

    pip install tests/third_party/deepnarrow_peptides
    deepnarrow study configs/three_modalities.py --workdir runs/three

Peptides are a stranger's plugin: the core has never heard of them. Text is the docstrings of the
Python standard library, vision scikit-learn's digits, peptides are made up; each is pre-trained on
the same number of examples and transferred to one task. Every modality has a reference, a
deep-narrow and a shallow-wide shape of its cost, in the same notation.

Time: 8.6 minutes of CPU time, everything cold; by the clock 20 minutes on 2 cores that a test suite
and two more programs shared, so about 6 when idle. Memory: 1.4 GB.
Expect: too few steps for an answer (peptides 2.97 to 3.00, text 4.50 to 4.59, vision 2.5 to 2.9
upstream). What is shown is that one study, one store and one report hold three modalities: a row a
shape, a front a modality, and whether operators agree over all three.
"""

from ml_collections import ConfigDict

STEPS, BATCH = 60, 32


def get_config() -> ConfigDict:
    """Three modalities x three shapes x two seeds."""
    return ConfigDict({
        "name": "three modalities",
        "seeds": (0, 1),
        "run": {"log_every": 20},
        "modalities": {
            "text_t5": modality("micro", "adafactor", 0.03, "stdlib_module"),
            "vision_vit": modality("tiny", "adamw", 1e-3, "digits_new_classes",
                                   {"patch_size": 4, "pool_type": "tok"}),
            "peptides": modality("tiny", "adamw", 3e-3, "antimicrobial"),
        },
    })


def modality(
    base: str, optimizer: str, rate: float, task: str, options: dict | None = None
) -> dict:
    """A reference, half as wide and twice as deep, twice as wide and half as deep."""
    update = {"name": optimizer, "learning_rate": rate, "schedule": "constant"}
    return {
        "shapes": (base, f"{base}-nl*2-dm*0.5", f"{base}-nl*0.5-dm*2"),
        "options": options or {},
        "protocol": {
            "batch_size": BATCH,
            "budget": {"kind": "examples", "amount": BATCH * STEPS},
            "optimizer": update,
            "few_shot": {"tasks": (task,), "shots": (5,), "seeds": 3},
            "fine_tune": {"tasks": (task,), "examples": BATCH * STEPS, "batch_size": BATCH,
                          "optimizer": update},
        },
    }
