"""The format `huggingface`: a folder as `transformers` writes it for T5 1.0.

`config.json` says the shape; `model.safetensors` (or its shards) hold the weights; the data's
option `vocabulary` is held to `spiece.model`, where that lies beside them. T5 1.1 (gated
MLP, a table of its own for the logits) is another model and refused; so are pickles.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.errors import InputError, NotApplicable
from deepnarrow.files import write_bytes
from deepnarrow.formats import CheckpointHeader
from deepnarrow.modality import Params
from deepnarrow.shape import Shape
from deepnarrow.tensorfiles import (
    read_arrays,
    read_headers,
    read_json,
    safetensors_files,
    write_safetensors,
)
from deepnarrow_text_t5.convert import UNUSED, check_state, from_hugging_face, to_hugging_face

if TYPE_CHECKING:
    from ml_collections import ConfigDict

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
PIECES = "spiece.model"
NORM_EPS = 1e-6
# Their names of our fields and options, and what their configuration takes where one is left out.
_FIELDS = {"num_encoder_layers": ("num_layers", 6), "d_model": ("d_model", 512),
           "d_ff": ("d_ff", 2048), "d_kv": ("d_kv", 64), "num_heads": ("num_heads", 8)}
_OPTIONS = {"vocab_size": ("vocab_size", 32128), "pad_id": ("pad_token_id", 0),
            "eos_id": ("eos_token_id", 1),
            "relative_buckets": ("relative_attention_num_buckets", 32),
            "relative_max_distance": ("relative_attention_max_distance", 128)}


def inspect(path: str) -> CheckpointHeader:
    """Reads the config and the arrays' headers and compares them.

    Raises:
      InputError: no such folder of weights, or the config and the arrays disagree.
      NotApplicable: it is no T5 1.0.
    """
    if not Path(path).is_dir():
        raise InputError(f"checkpoint '{path}'", "is no folder",
                         expected=f"a folder with {CONFIG} and {WEIGHTS}")
    config = read_json(path, CONFIG)
    where = f"checkpoint file '{Path(path) / CONFIG}'"
    _check_supported(where, config)
    fields: dict[str, Any] = {ours: _integer(where, config, *theirs)
                              for ours, theirs in _FIELDS.items()}
    decoder = config.get("num_decoder_layers")
    shape = Shape(num_decoder_layers=fields["num_encoder_layers"] if decoder is None
                  else _integer(where, config, "num_decoder_layers", None), **fields)
    options = {ours: _integer(where, config, *theirs) for ours, theirs in _OPTIONS.items()}
    files = safetensors_files(path)
    found = {name: header.shape for name, header in read_headers(path, files).items()}
    check_state(f"checkpoint '{path}'", found, shape, options["vocab_size"],
                options["relative_buckets"])
    pieces = PIECES if (Path(path) / PIECES).exists() else None
    return CheckpointHeader(shape, options, (CONFIG, *files), data_files={"vocabulary": pieces})


def read(path: str, header: CheckpointHeader) -> Params:
    """Returns the weights as our params, float32."""
    arrays = read_arrays(path, header.files[1:])
    return from_hugging_face({name: array for name, array in arrays.items()
                              if name not in UNUSED}, header.shape)


def write(path: str, shape: Shape, options: ConfigDict, params: Params) -> None:
    """Writes a folder that `T5ForConditionalGeneration.from_pretrained` loads.

    Raises:
      NotApplicable: the shape shares projections, which that model cannot.
    """
    state = to_hugging_face(params, shape)
    folder = Path(path)
    folder.mkdir()
    write_safetensors(folder / WEIGHTS, state)
    special = {theirs: options[ours] for ours, (theirs, _) in _OPTIONS.items()
               if theirs.endswith("token_id")} | {"decoder_start_token_id": options.pad_id}
    _write_json(folder / "generation_config.json", special)
    _write_json(folder / CONFIG, {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        **{theirs: getattr(shape, ours) for ours, (theirs, _) in _FIELDS.items()},
        "num_decoder_layers": shape.num_decoder_layers,
        **{theirs: options[ours] for ours, (theirs, _) in _OPTIONS.items()},
        **special,
        "dropout_rate": options.dropout_rate,
        "layer_norm_epsilon": NORM_EPS,
        "feed_forward_proj": "relu",
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
        "dtype": "float32",
    })


def _check_supported(where: str, config: Mapping[str, Any]) -> None:
    kind = config.get("model_type")
    if kind != "t5":
        raise NotApplicable(where, "is of another model", got=f"model_type {kind}",
                            expected="model_type t5")
    activation = config.get("feed_forward_proj", "relu")
    if activation != "relu":
        what = "gated MLPs, as T5 1.1 has, are not supported" if str(activation).startswith(
            "gated") else "its activation is not supported"
        raise NotApplicable(where, what, got=f"feed_forward_proj {activation}", expected="relu",
                            hint="T5 1.0 and t5-efficient have ReLU")
    for name in ("tie_word_embeddings", "scale_decoder_outputs"):
        if config.get(name, True) is not True:
            raise NotApplicable(where, "its logits have a table of their own, as T5 1.1's, which "
                                "is not supported", got=f"{name} {config[name]}", expected=True)
    epsilon = config.get("layer_norm_epsilon", NORM_EPS)
    if epsilon != NORM_EPS:
        raise NotApplicable(where, "has another epsilon in its norms",
                            got=f"layer_norm_epsilon {epsilon}", expected=NORM_EPS)
    start, pad = config.get("decoder_start_token_id", 0), config.get("pad_token_id", 0)
    if start != pad:
        raise NotApplicable(where, "its decoder starts with another token than padding",
                            got=f"decoder_start_token_id {start}", expected=pad)


def _integer(where: str, config: Mapping[str, Any], name: str, default: int | None) -> int:
    value = config.get(name, default)
    if type(value) is not int or value < 0:
        raise InputError(where, f"{name} is no integer >= 0", got=repr(value))
    return value


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    write_bytes(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode())
