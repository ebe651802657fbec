"""Our networks and the peers' released ones, compiled for one TPU chip: memory and bytes accessed.

    python -m benchmarks.tpu_peers ours-vit big_vision ours-t5 t5x --out tpu_peers.json \\
        --big-vision /path/to/big_vision --t5x /path/to/t5x [--chips v5e:1x1]

Needs the extra [tpu] (libtpu), no TPU; checkouts of big_vision and T5X for their networks. Compiled
are loss and gradients, no optimiser, with bfloat16 compute and float32 parameters: ViT-S/16 at 224
pixels, batch 128, scanned, each layer recomputed in the backward pass, as big_vision's scan has it;
T5-small with inputs of 512 and targets of 114 tokens, batch 16, not scanned and nothing recomputed,
as T5X's minimal network has it, without dropout. XLA counts the body of a loop once, so bytes are
only comparable between two scanned or two unscanned networks. One compile takes 10 to 60 s of CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import SingleDeviceSharding

from benchmarks.peers import import_big_vision, import_t5x
from deepnarrow.assemble import make_model
from deepnarrow.files import write_json
from deepnarrow.planning.cells import shape_cells
from deepnarrow.planning.compiled import FAST, devices
from deepnarrow.planning.topology import parse_topology
from deepnarrow.plugins import registry

VIT_BATCH, T5_BATCH = 128, 16
INPUTS, TARGETS = 512, 114
VOCABULARY, CLASSES = 32128, 1000
GIB = 2.0**30

# Loss of params and a batch; abstract params; abstract batch.
Network = tuple[Callable[[Any, Any], jax.Array], Any, dict[str, jax.ShapeDtypeStruct]]


def array(shape: tuple[int, ...], dtype: Any = jnp.int32) -> jax.ShapeDtypeStruct:
    """An abstract array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def ours(modality: str, shape: str, batch_size: int, **settings: Any) -> Network:
    """A shape of ours, under its modality's defaults but for `settings`."""
    remat = settings.pop("remat")
    cell = shape_cells(registry(), modality, [shape], settings, batch_size, 0)[0]
    model = make_model(cell.modality, cell.architecture, cell.shape.shape, cell.resolved(remat))
    batch = {name: array((batch_size, *spec.shape), jnp.dtype(spec.dtype))
             for name, spec in cell.step.arrays.items()}

    def loss(params: Any, batch: Any) -> jax.Array:
        out = model.loss(joined(params), batch, None, train=True)
        return out.loss_sum / out.weight_sum

    params = jax.eval_shape(model.init, jax.random.key(0))
    return loss, params if settings.get("scan", True) else split(params), batch


def split(params: Any) -> Any:
    """An array a layer, abstract, as peers' unscanned networks have them."""
    if not isinstance(params, dict):
        return params
    found = {name: split(part) for name, part in params.items()}
    if "layers" in params:
        leaves, treedef = jax.tree.flatten(params["layers"])
        found["layers"] = [treedef.unflatten([array(x.shape[1:], x.dtype) for x in leaves])
                           for _ in range(leaves[0].shape[0])]
    return found


def joined(params: Any) -> Any:
    """What `split` took apart, as our model takes it."""
    if isinstance(params, list):
        return jax.tree.map(lambda *layers: jnp.stack(layers), *params)
    return ({name: joined(part) for name, part in params.items()} if isinstance(params, dict)
            else params)


def big_vision(checkout: Path) -> Network:
    """Its scanned ViT-S/16; pooling, positions and loss are those of our defaults."""
    vit = import_big_vision(checkout)
    model = vit.Model(CLASSES, variant="S/16", pool_type="gap", posemb="learn", scan=True,
                      dtype_mm="bfloat16")
    batch = {"image": array((VIT_BATCH, 224, 224, 3), jnp.float32), "label": array((VIT_BATCH,))}

    def loss(params: Any, batch: Any) -> jax.Array:
        logits, _ = model.apply({"params": params}, batch["image"])
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(
            logits.astype(jnp.float32), batch["label"]))

    params = jax.eval_shape(model.init, jax.random.key(0), batch["image"])["params"]
    return loss, params, batch


def t5x(checkout: Path) -> Network:
    """Its minimal network (`t5x/examples/t5/network.py`) in the size of T5.1.0 small."""
    network = import_t5x(checkout)
    model = network.Transformer(network.T5Config(
        vocab_size=VOCABULARY, dtype=jnp.bfloat16, dropout_rate=0.0, logits_via_embedding=True,
        mlp_activations=("relu",)))
    batch = {"inputs": array((T5_BATCH, INPUTS)), "targets": array((T5_BATCH, TARGETS))}

    def loss(params: Any, batch: Any) -> jax.Array:
        targets = batch["targets"]
        before = jnp.pad(targets, ((0, 0), (1, 0)))[:, :-1]
        logits = model.apply({"params": params}, batch["inputs"], before, targets,
                             enable_dropout=False).astype(jnp.float32)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
        weights = (targets > 0).astype(jnp.float32)
        return jnp.sum(losses * weights) / jnp.sum(weights)

    def init(inputs: Any, targets: Any) -> Any:
        return model.init(jax.random.key(0), inputs, targets, targets, enable_dropout=False)

    return loss, jax.eval_shape(init, batch["inputs"], batch["targets"])["params"], batch


def measure(network: Network, device: Any) -> dict[str, float]:
    """Compiles loss and gradients for one device."""
    loss, params, batch = network
    place = SingleDeviceSharding(device)
    arguments = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), (params, batch))
    began = time.process_time()
    compiled = jax.jit(jax.value_and_grad(loss)).trace(*arguments).lower(
        lowering_platforms=("tpu",)).compile(compiler_options=dict(FAST))
    memory: Any
    cost: Any
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    return {"params": sum(x.size for x in jax.tree.leaves(params)),
            "bytes_accessed": cost["bytes accessed"], "flops": cost["flops"],
            "temporary_bytes": memory.temp_size_in_bytes,
            "argument_bytes": memory.argument_size_in_bytes,
            "cpu_s": time.process_time() - began}


def main() -> None:
    """Compiles what was asked for and adds it to the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("networks", nargs="+",
                        choices=("ours-vit", "big_vision", "ours-t5", "ours-t5-scanned", "t5x"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--chips", default="v5e:1x1")
    parser.add_argument("--big-vision", type=Path)
    parser.add_argument("--t5x", type=Path)
    options = parser.parse_args()
    make = {
        "ours-vit": lambda: ours("vision_vit", "S/16", VIT_BATCH, remat="full"),
        "big_vision": lambda: big_vision(options.big_vision),
        "ours-t5": lambda: ours("text_t5", "small", T5_BATCH, remat="none", scan=False),
        "ours-t5-scanned": lambda: ours("text_t5", "small", T5_BATCH, remat="none"),
        "t5x": lambda: t5x(options.t5x),
    }
    device = devices(parse_topology(options.chips))[0]
    for name in options.networks:
        rows = json.loads(options.out.read_text()) if options.out.exists() else {}
        row = rows[name] = measure(make[name](), device)
        write_json(options.out, rows)
        print(f"{name}: {row['params']:,.0f} parameters, {row['bytes_accessed'] / 1e9:.2f} GB "
              f"accessed, {row['temporary_bytes'] / GIB:.3f} GiB temporary, "
              f"{row['flops']:.4g} FLOPs", flush=True)


if __name__ == "__main__":
    main()
