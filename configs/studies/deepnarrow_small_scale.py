"""Depth first, width first, or both? Thirteen shapes in text, vision and peptides, on two cores.

    python configs/studies/prepare_deepnarrow_small_scale.py SOURCES data/deepnarrow_small_scale
    pip install tests/third_party/deepnarrow_peptides
    deepnarrow study configs/studies/deepnarrow_small_scale.py --workdir runs/small_scale

The plan, written before the runs: docs/studies/deepnarrow_small_scale.md. The environment variable
`DEEPNARROW_SMALL_SCALE` names the folder of the data where it lies elsewhere.

Upstream, text is span corruption on Austen, the King James Bible and WordNet's glosses; vision
Fashion-MNIST; peptides masked residues. Transfer: gloss -> class and paragraph -> novel; MNIST-5k
and digits; antimicrobial or not. Every shape has its own tuned learning rate.

Time: see the plan; minutes a trial. Expect: what is expected stands in the plan, too.

`DEEPNARROW_SEEDS=0` (or `0,1`) and `DEEPNARROW_DOMAINS=text_t5` (or `vision_vit,peptides`) run part
of the study: seed 0 of everything first, and a process a core; `deepnarrow merge` joins the parts.
"""

import os

from ml_collections import ConfigDict

DATA = os.environ.get("DEEPNARROW_SMALL_SCALE", "data/deepnarrow_small_scale")
DOMAINS = os.environ.get("DEEPNARROW_DOMAINS", "vision_vit,peptides,text_t5").split(",")
SEEDS = tuple(int(seed) for seed in os.environ.get("DEEPNARROW_SEEDS", "0,1,2").split(","))

# What follows the preset's name; the same in every domain, so that a shape is one operator. From
# the base, of N parameters outside embeddings, three ways lead to 2N, 4N and 8N: depth first (what
# `deepnarrow shape --strategy deepnarrow` gives), width first, and both (the reference family).
# Heads are four and as wide as d_model / 4; d_ff, near 4 d_model, makes counts agree on a rung.
BASE = "nl2-dm32-ff128-kv8-nh4"
UNIFORM = ("nl3-dm36-ff156-kv9-nh4", "nl4-dm44-ff192-kv11-nh4", "nl5-dm56-ff240-kv14-nh4")
DEEP = ("nl4-dm32-ff128-kv8-nh4", "nl8-dm32-ff128-kv8-nh4", "nl16-dm32-ff128-kv8-nh4")
WIDE = ("nl2-dm44-ff192-kv11-nh4", "nl2-dm64-ff256-kv16-nh4", "nl2-dm88-ff384-kv22-nh4")
# Between both and depth first, on the two upper rungs.
DEEPER = ("nl6-dm36-ff156-kv9-nh4", "nl8-dm44-ff192-kv11-nh4")
# The reference goes a third further, so that shapes of 8N have one at 1 / 0.8 times their cost.
BEYOND = "nl6-dm60-ff240-kv15-nh4"
RUNGS = ((UNIFORM[0], DEEP[0], WIDE[0]), (UNIFORM[1], DEEP[1], WIDE[1], DEEPER[0]),
         (UNIFORM[2], DEEP[2], WIDE[2], DEEPER[1]))
SHAPES = (BASE, *(shape for rung in RUNGS for shape in rung), BEYOND)


def get_config() -> ConfigDict:
    """Three domains x thirteen shapes x three seeds."""
    return ConfigDict({
        "name": "deepnarrow_small_scale",
        "seeds": SEEDS,
        "run": {"log_every": 50, "checkpoint_every": 500},
        "modalities": {name: {"vision_vit": vision, "peptides": peptides, "text_t5": text}[name]()
                       for name in DOMAINS},
    })


def text() -> dict:
    """T5: 64 tokens, 2,048 pieces, span corruption."""
    tasks = ("gloss_class", "novel")
    return {
        "shapes": tuple(f"micro-{shape}" for shape in SHAPES),
        "data": {
            "source": f"jsonl:{DATA}/upstream_{{split}}.jsonl.gz#text",
            "num_pieces": 2048,
            "input_length": 64,
            "validation_examples": 1024,
            "custom_tasks": {
                task: f"jsonl:{DATA}/{task}_{{split}}.jsonl.gz#text->label" for task in tasks},
            "task_input_length": 32,
            "task_target_length": 6,
        },
        "protocol": protocol(
            16, 2500, tasks, (0.02, 0.04, 0.08), optimizer("adafactor", 0.04, warmup_steps=100),
            fine_tune=optimizer("adafactor", 0.02, warmup_steps=20)),
    }


def vision() -> dict:
    """ViT: Fashion-MNIST in 16 patches of 7 x 7, cropped and flipped at random."""
    return {
        "shapes": tuple(f"tiny-{shape}" for shape in SHAPES),
        "options": {"patch_size": 7},
        "data": {
            "upstream": f"idx:{DATA}/fashion_mnist",
            "train_pp": ({"op": "pad", "pixels": 2}, {"op": "random_crop", "size": 28},
                         {"op": "flip"}, {"op": "value_range"}),
            "eval_pp": ({"op": "resize", "size": 28}, {"op": "value_range"}),
            "transfer": {"mnist5k": f"idx:{DATA}/mnist_5k", "digits": "digits"},
        },
        "protocol": protocol(
            64, 1500, ("mnist5k", "digits"), (4e-3, 8e-3, 16e-3),
            optimizer("adamw", 8e-3, warmup_steps=100, clip_norm=1.0),
            fine_tune=optimizer("adamw", 4e-3, warmup_steps=20, clip_norm=1.0)),
    }


def peptides() -> dict:
    """An encoder over 48 residues, of which a share is masked."""
    return {
        "shapes": tuple(f"tiny-{shape}" for shape in SHAPES),
        "data": {"path": f"{DATA}/peptides.csv", "length": 48},
        "protocol": protocol(
            32, 1500, ("antimicrobial",), (4e-3, 8e-3, 16e-3),
            optimizer("adamw", 8e-3, warmup_steps=100, clip_norm=1.0),
            fine_tune=optimizer("adamw", 4e-3, warmup_steps=20, clip_norm=1.0)),
    }


def protocol(
    batch_size: int, steps: int, tasks: tuple[str, ...], rates: tuple[float, ...], pretrain: dict,
    fine_tune: dict,
) -> dict:
    """Tuning, pre-training, a probe and fine-tuning, alike for all shapes."""
    return {
        "batch_size": batch_size,
        "budget": {"kind": "examples", "amount": batch_size * steps},
        "optimizer": pretrain,
        # Each try is a quarter of a training; the seed is none that is reported.
        "tune": {"learning_rates": rates, "seeds": (100,), "fraction": 0.25, "extend": 2},
        "few_shot": {"tasks": tasks, "shots": (10, 25), "seeds": 3},
        "fine_tune": {"tasks": tasks, "examples": 32 * 150, "batch_size": 32, "decode": "greedy",
                      "optimizer": fine_tune},
    }


def optimizer(name: str, learning_rate: float, **settings: float) -> dict:
    """Linear warm-up, then a cosine to 0 at the budget's end."""
    return {"name": name, "learning_rate": learning_rate, "schedule": "cosine", **settings}
