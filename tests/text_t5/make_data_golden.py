"""Writes golden/objectives.json: lengths, masks and examples by T5's own TensorFlow code.

    python tests/text_t5/make_data_golden.py      # with t5 0.9.4, seqio 0.0.20, tensorflow 2.21

The functions called are those of `t5.data.preprocessors` that the released gin files name.
"""

import json
import pathlib

import numpy as np
import tensorflow as tf
from t5.data import preprocessors as t5

PATH = pathlib.Path(__file__).with_name("golden") / "objectives.json"
PIECES, VOCAB_SIZE = 1000, 1100


class FakeVocabulary:
    """All that the functions ask of a vocabulary."""

    vocab_size = VOCAB_SIZE


def lengths():
    """[inputs, density, mean span, tokens, targets] by `random_spans_helper`."""
    rows = []
    for density, mean in ((0.15, 3.0), (0.1, 3.0), (0.25, 2.0), (0.15, 10.0), (0.5, 3.0)):
        for inputs in (8, 9, 16, 31, 64, 100, 128, 256, 333, 512, 1024):
            tokens, targets = t5.random_spans_helper(
                inputs_length=inputs, noise_density=density, mean_noise_span_length=mean,
                extra_tokens_per_span_inputs=1, extra_tokens_per_span_targets=1)
            rows.append([inputs, density, mean, int(tokens), int(targets)])
    return rows


def examples():
    """What each pair of functions of the gin files makes of the same tokens and mask."""
    rows = []
    for seed, length in enumerate((10, 17, 60)):
        tokens = np.random.default_rng(seed).integers(3, PIECES, length).astype(np.int32)
        mask = t5.random_spans_noise_mask(
            tf.constant(length), 0.15, tf.constant([[seed, 1], [seed, 2]], tf.int32), 3.0)
        iid = t5.iid_noise_mask(tf.constant(length), 0.3, tf.constant([[seed, 3]], tf.int32))
        pairs = {
            "span_corruption": (mask, t5.noise_span_to_unique_sentinel,
                                t5.nonnoise_span_to_unique_sentinel),
            "iid_replace_spans": (iid, t5.noise_span_to_unique_sentinel,
                                  t5.nonnoise_span_to_unique_sentinel),
            "iid_drop_tokens": (iid, t5.drop_noise_tokens, t5.drop_nonnoise_tokens),
            "mass_style": (iid, t5.noise_token_to_sentinel, lambda tokens, *_: tokens),
        }
        for name, (noise, inputs_fn, targets_fn) in pairs.items():
            made = [fn(tf.constant(tokens), noise, FakeVocabulary, None).numpy().tolist()
                    for fn in (inputs_fn, lambda t, *rest, f=targets_fn: tf.identity(f(t, *rest)))]
            rows.append({"objective": name, "tokens": tokens.tolist(),
                         "mask": noise.numpy().astype(int).tolist(),
                         "inputs": made[0], "targets": made[1]})
    return rows


if __name__ == "__main__":
    content = {"pieces": PIECES, "first_sentinel": VOCAB_SIZE - 1, "lengths": lengths(),
               "examples": examples()}
    PATH.write_text(json.dumps(content) + "\n")
