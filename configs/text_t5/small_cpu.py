"""Does pre-training help a small T5 on a CPU? Novels and the King James Bible, then WordNet.

    deepnarrow study configs/text_t5/small_cpu.py --workdir runs/text_small_cpu \\
        --set modalities.text_t5.data.source="text:KJV#line + text:AUSTEN#paragraph" \\
        --set modalities.text_t5.data.custom_tasks.gloss_class="jsonl:GLOSSES#gloss->lex"

KJV is the King James Bible as a `.txt(.gz)` with a paragraph a line, AUSTEN Austen's six novels
with blank lines between them (8.2 M characters together, public domain), GLOSSES a file of
WordNet's glosses with a label each (117,659 synsets, 45 lexicographer classes).

A T5 of 6 + 6 layers, d_model 128, is pre-trained for about ten minutes and then fine-tuned on
telling a gloss's class. Beside it the same network is fine-tuned from scratch, by the same steps in
the same order: the control.

Hardware and time: a CPU; about 22 minutes of one core for each seed, ten of them pre-training.
Expect: upstream loss 3.91 to 3.92; test accuracy 0.28 pre-trained, 0.36 from scratch,
0.12 for the commonest class: ten minutes are too few for pre-training to help. Why, and the numbers
of each seed: docs/benchmarks.md, "Text on a CPU".
"""

from ml_collections import ConfigDict

SHAPES = ("tiny-nl6-dm128-ff512-kv32",)


def get_config() -> ConfigDict:
    """One shape x three seeds."""
    return ConfigDict({
        "name": "text_small_cpu",
        "seeds": (0, 1, 2),
        "run": {"log_every": 50, "checkpoint_every": 500},
        "modalities": {"text_t5": {
            "shapes": SHAPES,
            "data": {
                "source": "text:KJV#line + text:AUSTEN#paragraph",
                "num_pieces": 4096,
                "input_length": 64,
                "validation_examples": 1024,
                "custom_tasks": {"gloss_class": "jsonl:GLOSSES#gloss->lex"},
                "task_input_length": 32,
                "task_target_length": 8,
            },
            "protocol": {
                "batch_size": 16,
                "budget": {"kind": "steps", "amount": 2000},
                "optimizer": {"name": "adafactor", "learning_rate": 0.02, "schedule": "rsqrt",
                              "warmup_steps": 100, "timescale": 400, "cooldown_steps": 500},
                "fine_tune": {
                    "tasks": ("gloss_class",), "examples": 64 * 300, "batch_size": 64,
                    "dropout_rate": 0.1, "scratch": True, "decode": "greedy",
                    "optimizer": {"name": "adafactor", "learning_rate": 0.01,
                                  "schedule": "constant", "warmup_steps": 20},
                },
            },
        }},
    })
