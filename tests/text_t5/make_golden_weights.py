"""Makes `golden/weights.zip`: checkpoints that other libraries wrote, and what they compute.

    python tests/text_t5/make_golden_weights.py huggingface      # torch, transformers
    python tests/text_t5/make_golden_weights.py t5x CHECKOUT     # tensorflow, T5X

Each needs the libraries that its comment names, and replaces its own members of the archive.
`huggingface` and `huggingface_sharded` are folders by `save_pretrained`; `t5x` and `t5x_scanned`
are steps that T5X's own `Checkpointer` saved, of its minimal T5 and of its scalable one with
stacked layers. All weights are random. Beside each, `NAME.npz` has a batch, the library's logits in
float32 and, from `transformers`, what it decodes greedily.
"""

from __future__ import annotations

import importlib.machinery
import io
import pathlib
import sys
import tempfile
import types
import zipfile
from typing import Any
from unittest import mock

import numpy as np

ARCHIVE = pathlib.Path(__file__).with_name("golden") / "weights.zip"
VOCAB_SIZE, INPUT_LENGTH, TARGET_LENGTH, EOS_ID = 48, 20, 8, 37
D_MODEL, D_FF, D_KV, NUM_HEADS, ENCODER_LAYERS, DECODER_LAYERS = 16, 24, 6, 3, 2, 1
Files = dict[str, bytes]


def batch(seed: int) -> dict[str, np.ndarray]:
    """Inputs and targets int32 with padding at the ends of some rows."""
    rng = np.random.default_rng(seed)
    inputs = rng.integers(2, VOCAB_SIZE, (3, INPUT_LENGTH), dtype=np.int32)
    targets = rng.integers(2, VOCAB_SIZE, (3, TARGET_LENGTH), dtype=np.int32)
    inputs[1, 12:], inputs[2, 5:], targets[1, 3:] = 0, 0, 0
    return {"inputs": inputs, "targets": targets}


# --- transformers -----------------------------------------------------------------------------
def hugging_face_files() -> Files:
    """Folders that `transformers` writes: in one file, and in shards."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(5)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=D_MODEL, d_kv=D_KV, d_ff=D_FF, num_layers=ENCODER_LAYERS,
        num_decoder_layers=DECODER_LAYERS, num_heads=NUM_HEADS, dropout_rate=0.0,
        relative_attention_num_buckets=8, relative_attention_max_distance=16,
        decoder_start_token_id=0, eos_token_id=EOS_ID)
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.2 * noise if "norm" in name else noise * (
                0.1 if "shared" in name else parameter.shape[-1] ** -0.5))
    files: Files = {}
    for name, settings in (("huggingface", {}), ("huggingface_sharded", {"max_shard_size": "8KB"})):
        with tempfile.TemporaryDirectory() as folder:
            model.save_pretrained(folder, **settings)
            files |= _folder(pathlib.Path(folder), name)
    return files | {"huggingface.npz": _npz(hugging_face_outputs(model))}


def hugging_face_outputs(model: Any) -> dict[str, np.ndarray]:
    """Logits and greedy tokens of a T5 of `transformers` on `batch`."""
    import torch

    arrays = batch(1)
    inputs, targets = (torch.tensor(arrays[name]).long() for name in ("inputs", "targets"))
    mask = (inputs != 0).long()
    shifted = torch.nn.functional.pad(targets[:, :-1], (1, 0))
    with torch.no_grad():
        logits = model(input_ids=inputs, attention_mask=mask, decoder_input_ids=shifted).logits
        decoded = model.generate(inputs, attention_mask=mask, do_sample=False, num_beams=1,
                                 max_new_tokens=TARGET_LENGTH)
    tokens = np.zeros((len(inputs), TARGET_LENGTH), np.int32)
    tokens[:, :decoded.shape[1] - 1] = decoded.numpy()[:, 1:]
    return {**arrays, "logits": logits.numpy(), "decoded": tokens}


# --- T5X ----------------------------------------------------------------------------------------
class _Absent:
    """Imports modules that T5X names and that nothing here uses as empty stand-ins."""

    names = ("airio", "fiddle", "jestimator", "tensorboard", "cached_property")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        del path, target
        if name.split(".")[0] in self.names:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)  # type: ignore[arg-type]
        return None

    def create_module(self, spec: Any) -> Any:
        module = mock.MagicMock(name=spec.name)
        module.__path__, module.__spec__, module.__name__ = [], spec, spec.name
        return module

    def exec_module(self, module: Any) -> None:
        del module


def t5x_files(checkout: str) -> Files:
    """Steps that T5X's `Checkpointer` saves."""
    sys.meta_path.append(_Absent())  # type: ignore[arg-type]
    package = types.ModuleType("t5x")  # its own __init__ imports everything
    package.__path__ = [f"{checkout}/t5x"]
    sys.modules["t5x"] = package
    return _t5x_case("t5x", "t5", {}) | _t5x_case("t5x_scanned", "scalable_t5",
                                                  {"scan_layers": True})


def _t5x_case(name: str, example: str, settings: dict[str, Any]) -> Files:
    import jax
    import jax.numpy as jnp
    from flax import core, traverse_util

    network = importlib.import_module(f"t5x.examples.{example}.network")
    config = network.T5Config(
        vocab_size=VOCAB_SIZE, emb_dim=D_MODEL, num_heads=NUM_HEADS, head_dim=D_KV, mlp_dim=D_FF,
        num_encoder_layers=ENCODER_LAYERS, num_decoder_layers=DECODER_LAYERS, dropout_rate=0.0,
        mlp_activations=("relu",), logits_via_embedding=True, dtype=jnp.float32, **settings)
    model, arrays = network.Transformer(config), batch(2)
    targets = arrays["targets"]
    arguments = (jnp.asarray(arrays["inputs"]), jnp.pad(targets[:, :-1], ((0, 0), (1, 0))),
                 jnp.asarray(targets))
    variables = model.init(jax.random.key(0), *arguments, enable_dropout=False)
    rng, flat = np.random.default_rng(3), {}
    params = core.unfreeze(variables["params"])
    for path, array in traverse_util.flatten_dict(params, sep="/").items():
        noise = rng.normal(size=array.shape)
        if "relpos" in path and "/encoder/encoder/" in f"/{path}":
            # All layers alike: our stacks have one bias. [heads, layers, buckets]
            noise = np.repeat(noise[:, :1], array.shape[1], axis=1)
        flat[path] = np.float32(1 + 0.2 * noise if "scale" in path else 0.3 * noise)
    params = traverse_util.unflatten_dict(flat, sep="/")
    logits = model.apply({"params": params}, *arguments, enable_dropout=False)
    with tempfile.TemporaryDirectory() as folder:
        _save_t5x(folder, params)
        files = _folder(pathlib.Path(folder) / "checkpoint_7", name)
    return files | {f"{name}.npz": _npz({**arrays, "logits": np.asarray(logits)})}


def _save_t5x(folder: str, params: Any) -> None:
    """Saves step 7: matrices in Zarr's format, vectors in the msgpack file."""
    import jax
    from flax import core
    from t5x import checkpoints, partitioning, train_state  # type: ignore[import-not-found]

    state = train_state.InferenceState(np.int32(7), core.freeze(params))
    partitioner = mock.MagicMock()
    partitioner.get_data_layout.return_value = partitioning.DataLayout(1, 0, 1, True)
    partitioner.get_local_chunk_info.side_effect = lambda shape, axes: partitioning.LocalChunkInfo(
        tuple(slice(None) for _ in shape), 0)
    axes = jax.tree.map(lambda a: partitioning.PartitionSpec("x") if np.ndim(a) > 1 else None,
                        state.state_dict())
    partitioner.get_mesh_axes.return_value.state_dict.return_value = axes
    checkpoints.Checkpointer(state, partitioner, folder).save(state)


# --- the archive --------------------------------------------------------------------------------
def _folder(folder: pathlib.Path, name: str) -> Files:
    return {f"{name}/{path.relative_to(folder)}": path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def main(arguments: list[str]) -> int:
    """Replaces one library's members of the archive."""
    made = t5x_files(arguments[1]) if arguments[0] == "t5x" else hugging_face_files()
    own = {name.split("/")[0] for name in made}
    kept: Files = {}
    if ARCHIVE.exists():
        with zipfile.ZipFile(ARCHIVE) as archive:
            kept = {name: archive.read(name) for name in archive.namelist()
                    if name.split("/")[0] not in own}
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in sorted((kept | made).items()):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size} bytes, {len(kept | made)} files")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
