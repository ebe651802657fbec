"""A training step beside big_vision's, T5X's and transformers', and beside the machine's limits.

    PYTHONPATH=.../big_vision:.../t5x python -m benchmarks.train_step [--rounds 7] [--json]

Two models in float32 with AdamW, no dropout, the same synthetic batch for all:

    ViT  12 layers, d_model 192, 3 heads, d_ff 768; 64 patches of 4 x 4, 10 classes; batch 16
    T5   4 + 4 layers, d_model 256, d_ff 1024, d_kv 32, 4 heads, vocabulary 32128; 128 tokens in
         and 32 out; batch 8

Ours is the step of a study (`make_program`), with the gradient's norm, its check for finite numbers
and metrics in it; the peers' steps are loss, gradient and update alone, by their fastest optimiser
(`optax.adamw`, `torch.optim.AdamW(fused=True)`). transformers' ViT has a class token more.
Beside them: the matrix products of one step alone, forward and backward, at their shapes, by XLA
and by PyTorch. All in one process, taking turns. Needs nothing; measures beside ours what it finds:
checkouts of big_vision and T5X on PYTHONPATH, `pip install einops torch transformers`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import itertools
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import find_checkout, import_big_vision, import_t5x
from benchmarks.timing import Seconds, median_ratio, take_turns
from deepnarrow.assemble import make_model
from deepnarrow.config import resolve_options
from deepnarrow.plugins import registry
from deepnarrow.protocol import OptimizerConfig
from deepnarrow.shape import Shape
from deepnarrow.step import make_program

LEARNING_RATE, WEIGHT_DECAY = 1e-3, 1e-4
VIT_BATCH, IMAGE, PATCH, CLASSES = 16, 32, 4, 10
T5_BATCH, INPUTS, TARGETS, VOCABULARY = 8, 128, 32, 32128
VIT = Shape(num_encoder_layers=12, num_decoder_layers=0, d_model=192, d_ff=768, d_kv=64,
            num_heads=3)
T5 = Shape(num_encoder_layers=4, num_decoder_layers=4, d_model=256, d_ff=1024, d_kv=32,
           num_heads=4)

Batch = dict[str, np.ndarray]
Step = Callable[[], object]  # makes one update and waits for it


def vit_batch() -> Batch:
    """Random images and labels."""
    rng = np.random.default_rng(0)
    return {"image": rng.normal(size=(VIT_BATCH, IMAGE, IMAGE, 3)).astype(np.float32),
            "label": rng.integers(CLASSES, size=VIT_BATCH, dtype=np.int32),
            "example_mask": np.ones(VIT_BATCH, np.float32)}


def t5_batch() -> Batch:
    """Random tokens without padding."""
    rng = np.random.default_rng(0)
    return {"inputs": rng.integers(1, VOCABULARY, (T5_BATCH, INPUTS), dtype=np.int32),
            "targets": rng.integers(1, VOCABULARY, (T5_BATCH, TARGETS), dtype=np.int32),
            "example_mask": np.ones(T5_BATCH, np.float32)}


# --- ours -----------------------------------------------------------------------------------------
def ours(modality_name: str, shape: Shape, options: Mapping[str, Any], batch: Batch) -> Step:
    """The step of a study."""
    modality = registry().modality(modality_name)
    resolved = resolve_options(modality.options, options, "options")
    model = make_model(modality, registry().architecture("transformer"), shape, resolved)
    program = make_program(model, OptimizerConfig(
        "adamw", LEARNING_RATE, "constant", weight_decay=WEIGHT_DECAY * LEARNING_RATE), 2**20)
    state = program.init(np.int32(0))

    def step() -> None:
        nonlocal state
        state, metrics = program.step(state, batch, program.args(0))
        jax.block_until_ready(metrics)
        jax.block_until_ready(state)

    return step


def our_vit(batch: Batch, scan: bool = True) -> Step:
    """Our ViT; scanned, as it is by default, it keeps what big_vision's scan computes again."""
    return ours("vision_vit", VIT, {"image_size": IMAGE, "patch_size": PATCH,
                                    "num_classes": CLASSES, "loss": "softmax",
                                    "dropout_rate": 0.0, "scan": scan}, batch)


def our_t5(batch: Batch, scan: bool = True) -> Step:
    """Our T5."""
    return ours("text_t5", T5, {"vocab_size": VOCABULARY, "input_length": INPUTS,
                                "target_length": TARGETS, "dropout_rate": 0.0, "scan": scan},
                batch)


# --- the peers ------------------------------------------------------------------------------------
def linen_step(loss: Callable[[Any, Batch], jax.Array], params: Any, batch: Batch) -> Step:
    """Loss, gradients and AdamW of a peer's network, jitted, its state donated."""
    optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

    def update(state: Any, batch: Batch) -> tuple[Any, jax.Array]:
        params, opt_state = state
        value, grads = jax.value_and_grad(loss)(params, batch)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    jitted = jax.jit(update, donate_argnums=0)
    state = params, optimizer.init(params)

    def step() -> None:
        nonlocal state
        state, value = jitted(state, batch)
        jax.block_until_ready((state, value))

    return step


def big_vision(batch: Batch, scan: bool = False) -> Step:
    """big_vision's ViT; scanned, it computes each layer again in the backward pass."""
    vit = import_big_vision(find_checkout("big_vision"))
    model = vit._Model(
        num_classes=CLASSES, patch_size=(PATCH, PATCH), width=VIT.d_model,
        depth=VIT.num_encoder_layers, mlp_dim=VIT.d_ff, num_heads=VIT.num_heads, scan=scan)

    def loss(params: Any, batch: Batch) -> jax.Array:
        logits, _ = model.apply({"params": params}, batch["image"], train=True)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    return linen_step(loss, jax.jit(model.init)(jax.random.key(0), batch["image"])["params"], batch)


def t5x(batch: Batch) -> Step:
    """T5X's minimal network."""
    network = import_t5x(find_checkout("t5x"))
    model = network.Transformer(network.T5Config(
        vocab_size=VOCABULARY, emb_dim=T5.d_model, num_heads=T5.num_heads,
        num_encoder_layers=T5.num_encoder_layers, num_decoder_layers=T5.num_decoder_layers,
        head_dim=T5.d_kv, mlp_dim=T5.d_ff, mlp_activations=("relu",), dropout_rate=0.0,
        logits_via_embedding=True))

    def apply(batch: Batch, function: Callable[..., Any], first: Any) -> Any:
        before = jnp.pad(batch["targets"], ((0, 0), (1, 0)))[:, :-1]
        return function(first, batch["inputs"], before, batch["targets"], enable_dropout=False)

    def loss(params: Any, batch: Batch) -> jax.Array:
        logits = apply(batch, model.apply, {"params": params})
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"]).mean()

    init = jax.jit(lambda batch: apply(batch, model.init, jax.random.key(0))["params"])
    return linen_step(loss, init(batch), batch)


def torch_step(model: Any, inputs: Mapping[str, Any]) -> Step:
    """Loss, gradients and AdamW of a model of transformers."""
    import torch  # pyright: ignore[reportMissingImports]

    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY,
                                  fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        model(**inputs).loss.backward()
        optimizer.step()

    return step


def transformers_vit(batch: Batch) -> Step:
    """transformers' ViT."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        ViTConfig,
        ViTForImageClassification,
    )

    model = ViTForImageClassification(ViTConfig(
        hidden_size=VIT.d_model, num_hidden_layers=VIT.num_encoder_layers,
        num_attention_heads=VIT.num_heads, intermediate_size=VIT.d_ff, image_size=IMAGE,
        patch_size=PATCH, num_labels=CLASSES, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0)).train()
    images = torch.tensor(batch["image"]).permute(0, 3, 1, 2).contiguous()
    return torch_step(model, {"pixel_values": images,
                              "labels": torch.tensor(batch["label"]).long()})


def transformers_t5(batch: Batch) -> Step:
    """transformers' T5."""
    import torch  # pyright: ignore[reportMissingImports]
    from transformers import (  # pyright: ignore[reportMissingImports]
        T5Config,
        T5ForConditionalGeneration,
    )

    model = T5ForConditionalGeneration(T5Config(
        vocab_size=VOCABULARY, d_model=T5.d_model, d_kv=T5.d_kv, d_ff=T5.d_ff,
        num_layers=T5.num_encoder_layers, num_decoder_layers=T5.num_decoder_layers,
        num_heads=T5.num_heads, dropout_rate=0.0, use_cache=False,
        decoder_start_token_id=0)).train()
    return torch_step(model, {"input_ids": torch.tensor(batch["inputs"]).long(),
                              "labels": torch.tensor(batch["targets"]).long()})


# --- the limits -----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Product:
    """`count` products of `[batch, rows, inner]` and `[batch, inner, columns]`."""

    count: int
    rows: int
    inner: int
    columns: int
    batch: int = 1

    def step(self) -> tuple[Product, Product, Product]:
        """The product, and the two of its backward pass."""
        m, k, n = self.rows, self.inner, self.columns
        return (self, dataclasses.replace(self, inner=n, columns=k),
                dataclasses.replace(self, rows=k, inner=m))

    @property
    def flops(self) -> float:
        """Two a multiply-add."""
        return 2.0 * self.count * self.batch * self.rows * self.inner * self.columns


def _stack(shape: Shape, layers: int, examples: int, length: int,
           context: int | None = None) -> Iterator[Product]:
    d, width, rows = shape.d_model, shape.num_heads * shape.d_kv, examples * length
    heads = examples * shape.num_heads
    for keys in (length,) if context is None else (length, context):
        yield Product(2 * layers, rows, d, width)  # query; out has the same two sides
        yield Product(2 * layers, examples * keys, d, width)  # key and value
        yield Product(2 * layers, length, shape.d_kv, keys, heads)  # scores; weighted sums likewise
    yield Product(2 * layers, rows, d, shape.d_ff)  # both of the MLP


def vit_products() -> list[Product]:
    """The forward products of the ViT that take time."""
    patches = (IMAGE // PATCH) ** 2
    return [Product(1, VIT_BATCH * patches, 3 * PATCH**2, VIT.d_model),
            *_stack(VIT, VIT.num_encoder_layers, VIT_BATCH, patches)]


def t5_products() -> list[Product]:
    """The forward products of the T5."""
    return [*_stack(T5, T5.num_encoder_layers, T5_BATCH, INPUTS),
            *_stack(T5, T5.num_decoder_layers, T5_BATCH, TARGETS, INPUTS),
            Product(1, T5_BATCH * TARGETS, T5.d_model, VOCABULARY)]


def _operands(product: Product) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """As few arrays as make `count` different pairs, so that no product can stand for another."""
    side = int(np.ceil(np.sqrt(product.count)))
    rng = np.random.default_rng(0)
    left, right = ((product.batch, product.rows, product.inner),
                   (product.batch, product.inner, product.columns))

    def draw(shape: tuple[int, ...]) -> np.ndarray:
        drawn = rng.normal(size=shape).astype(np.float32)
        return drawn[0] if product.batch == 1 else drawn

    return [draw(left) for _ in range(side)], [draw(right) for _ in range(side)]


def _pairs(product: Product, left: Any, right: Any) -> Iterator[tuple[Any, Any]]:
    return itertools.islice(itertools.product(left, right), product.count)


def _all_products(forward: list[Product]) -> list[Product]:
    return [product for one in forward for product in one.step()]


def xla_products(forward: list[Product]) -> Step:
    """All products of a step, one program of XLA's a kind."""
    programs = []
    for product in _all_products(forward):
        def multiply(left: Any, right: Any, product: Product = product) -> Any:
            return [a @ b for a, b in _pairs(product, left, right)]

        programs.append((jax.jit(multiply), jax.device_put(_operands(product))))

    def step() -> None:
        for multiply, (left, right) in programs:
            jax.block_until_ready(multiply(left, right))

    return step


def torch_products(forward: list[Product]) -> Step:
    """All products of a step, by PyTorch."""
    import torch  # pyright: ignore[reportMissingImports]

    operands = [(product, [[torch.tensor(x) for x in side] for side in _operands(product)])
                for product in _all_products(forward)]

    def step() -> None:
        for product, (left, right) in operands:
            for a, b in _pairs(product, left, right):
                torch.matmul(a, b)

    return step


# --- measuring ------------------------------------------------------------------------------------
MODELS: dict[str, tuple[Callable[[], Batch], dict[str, Callable[[Batch], Step]],
                        Callable[[], list[Product]]]] = {
    "ViT": (vit_batch, {"ours": our_vit, "ours, unrolled": functools.partial(our_vit, scan=False),
                        "big_vision": big_vision,
                        "big_vision, scanned": functools.partial(big_vision, scan=True),
                        "transformers": transformers_vit}, vit_products),
    "T5": (t5_batch, {"ours": our_t5, "ours, unrolled": functools.partial(our_t5, scan=False),
                       "T5X": t5x, "transformers": transformers_t5}, t5_products),
}


def contenders(name: str) -> dict[str, Step]:
    """Returns the steps of a model that can be measured here; says which cannot."""
    make_batch, sides, products = MODELS[name]
    batch = make_batch()
    makers = {side: lambda make=make: make(batch) for side, make in sides.items()}
    makers |= {"XLA's products": lambda: xla_products(products()),
               "PyTorch's products": lambda: torch_products(products())}
    made: dict[str, Step] = {}
    for side, make in makers.items():
        try:
            made[side] = make()
        except ImportError as error:
            print(f"{name}: {side} is left out: {error}", file=sys.stderr)
    return made


def report(name: str, seconds: Seconds) -> dict[str, Any]:
    """Medians, ratios to ours, and the rate of the products."""
    gflop = sum(p.flops for p in _all_products(MODELS[name][2]())) / 1e9
    medians = {side: statistics.median(times) for side, times in seconds.items()}
    return {"model": name, "gflop": gflop, "seconds": medians,
            "ratio_to_ours": {side: median_ratio(seconds["ours"], times)
                              for side, times in seconds.items()}}


def measure(rounds: int, names: Sequence[str] = tuple(MODELS)) -> list[dict[str, Any]]:
    """Every model of `names`."""
    return [report(name, take_turns(contenders(name), rounds, calls=2)) for name in names]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--model", choices=tuple(MODELS), action="append")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure(options.rounds, options.model or tuple(MODELS))
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for row in found:
        print(f"{row['model']}, {row['gflop']:.1f} GFLOP in products")
        for side, seconds in row["seconds"].items():
            print(f"  {side:22}{seconds * 1e3:8.1f} ms, {row['ratio_to_ours'][side]:.2f} x ours")


if __name__ == "__main__":
    main()
