"""The options of the T5 model and of its data, and their checks. Imports no JAX."""

from __future__ import annotations

from ml_collections import ConfigDict

from deepnarrow.errors import InputError
from deepnarrow.protocol import check_choice, check_range
from deepnarrow.shape import Shape

WHERE = "text_t5 options"
# Typing errors, not models: 100 times the largest published vocabulary, 1000 times T5's length.
MAX_VOCAB, MAX_LENGTH = 2**24, 2**20


def default_options() -> ConfigDict:
    """Returns the defaults of the model's options, as T5 1.0 and t5-efficient have them.

    Options:
      vocab_size: rows of the embedding table, sentinels and unused rows included.
      input_length: tokens the encoder sees, EOS included.
      target_length: tokens the decoder predicts at most, EOS included.
      dropout_rate: on embeddings, residual branches, attention weights and the stacks' outputs.
      compute_dtype: `float32` or `bfloat16`; parameters, logits and losses stay float32.
      remat: `none`, `full` or `dots`: what the backward pass recomputes.
      scan: apply the layers by a scan (compile time independent of depth).
      relative_buckets: of the relative position bias.
      relative_max_distance: from it on all distances share a bucket.
      pad_id: token that fills up a sequence; also what the decoder starts with.
      eos_id: token that ends a sequence.
    """
    return ConfigDict({
        "vocab_size": 32_128,
        "input_length": 512,
        "target_length": 114,
        "dropout_rate": 0.0,
        "compute_dtype": "float32",
        "remat": "none",
        "scan": True,
        "relative_buckets": 32,
        "relative_max_distance": 128,
        "pad_id": 0,
        "eos_id": 1,
    }).lock()


def default_data_options() -> ConfigDict:
    """Returns the defaults of the data's options.

    Options:
      source: name of the corpus; `stdlib` is the text of Python's standard library.
      num_pieces: SentencePiece pieces of the vocabulary that is trained on it; with 100 sentinels,
        and rounded up to a multiple of 128, it decides the model's `vocab_size` (1024 -> 1152).
      input_length: tokens of the encoder; it decides the model's `input_length` and, by the
        arithmetic of span corruption, its `target_length` (64 -> 14).
      tasks: where the benchmarks' data lie: folders by benchmark (`glue`, `super_glue`, `squad`),
        by task (`glue_cola`), and `dpr`; official downloads, or `tfds:` prepared ones.
      custom_tasks: labelled files as tasks, by name: `jsonl:PATH#TEXT->LABEL` or `tsv:...`.
      task_input_length: tokens of the encoder when fine-tuning on them; None for `input_length`.
      task_target_length: tokens of the decoder then; None for 16 (GLUE and
        custom tasks), 32 (SuperGLUE), 64 (SQuAD).
    """
    return ConfigDict({
        "source": "stdlib", "num_pieces": 1024, "input_length": 64, "tasks": {},
        "custom_tasks": {}, "task_input_length": None, "task_target_length": None,
    }).lock()


def check_options(shape: Shape, options: ConfigDict) -> None:
    """Raises `InputError` where the options, or the shape, make no T5."""
    check_range(WHERE, "vocab_size", options.vocab_size, 2, MAX_VOCAB)
    check_range(WHERE, "input_length", options.input_length, 1, MAX_LENGTH)
    check_range(WHERE, "target_length", options.target_length, 1, MAX_LENGTH)
    check_range(WHERE, "relative_buckets", options.relative_buckets, 0, MAX_LENGTH)
    check_range(WHERE, "relative_max_distance", options.relative_max_distance, 1, MAX_LENGTH)
    check_range(WHERE, "dropout_rate", options.dropout_rate, 0, 0.99)
    check_choice(WHERE, "compute_dtype", options.compute_dtype, ("float32", "bfloat16"))
    check_choice(WHERE, "remat", options.remat, ("none", "full", "dots"))
    check_range(WHERE, "pad_id", options.pad_id, 0, options.vocab_size - 1)
    check_range(WHERE, "eos_id", options.eos_id, 0, options.vocab_size - 1)
    if options.pad_id == options.eos_id:
        raise InputError(WHERE, "pad_id and eos_id are the same token", got=options.pad_id,
                         expected="two tokens")
    for role in ("encoder", "decoder"):
        if getattr(shape, f"num_{role}_layers") == 0:
            raise InputError("text_t5 shape", f"a T5 has an encoder and a decoder, this no {role}",
                             got=f"num_{role}_layers 0", expected="at least 1")
