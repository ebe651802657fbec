"""Makes the golden files of the T5 model from Hugging Face's `transformers`, an independent one.

    python tests/text_t5/make_golden.py            # needs torch and transformers; takes seconds

Each case is a T5 with random weights: its weights, a batch with padding, and what `transformers`
computes from them in float32: logits, the gradients of the mean loss over real target tokens, and
greedily decoded tokens. `test_model.py` holds ours against it; `hugging_face_case` also serves the
live test there.
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys

import numpy as np

GOLDEN = pathlib.Path(__file__).with_name("golden")
VOCAB_SIZE = 96


@dataclasses.dataclass(frozen=True)
class Case:
    """One golden file: sizes, lengths and the seed of everything random.

    `eos_id` is a token that random weights happen to decode in the middle of some rows.
    """

    name: str
    num_layers: int
    num_decoder_layers: int
    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    input_length: int
    target_length: int
    seed: int
    eos_id: int


CASES = (
    Case("square", 2, 2, 32, 64, 8, 4, input_length=40, target_length=12, seed=3,
         eos_id=22),
    Case("narrow_heads", 3, 2, 32, 48, 4, 3, input_length=40, target_length=12, seed=4,
         eos_id=13),
    # Longer than relative_max_distance, in both stacks.
    Case("long", 1, 1, 24, 32, 8, 2, input_length=160, target_length=136, seed=7, eos_id=12),
)


def random_batch(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and targets int32, rows of different lengths, ending with token 1."""
    rng = np.random.default_rng(case.seed)

    def rows(length: int, used: list[int]) -> np.ndarray:
        tokens = rng.integers(2, VOCAB_SIZE, (len(used), length), dtype=np.int32)
        for row, count in zip(tokens, used, strict=True):
            row[count - 1] = 1
            row[count:] = 0
        return tokens

    inputs = rows(case.input_length, [case.input_length, case.input_length * 3 // 4, 5])
    targets = rows(case.target_length, [case.target_length, 3, case.target_length // 2])
    return inputs, targets


def hugging_face_case(case: Case) -> dict[str, np.ndarray]:
    """Runs `case` in transformers: `weights/NAME`, `gradients/NAME`, and the other arrays."""
    import torch
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(case.seed)
    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=case.d_model, d_kv=case.d_kv, d_ff=case.d_ff,
        num_layers=case.num_layers, num_decoder_layers=case.num_decoder_layers,
        num_heads=case.num_heads, dropout_rate=0.0, feed_forward_proj="relu",
        decoder_start_token_id=0,
    )
    model = T5ForConditionalGeneration._from_config(config, attn_implementation="eager")
    _randomise(model, case.seed)
    inputs, targets = random_batch(case)
    mask = torch.tensor(inputs != 0).long()
    labels = torch.tensor(np.where(targets == 0, -100, targets)).long()
    out = model.eval()(input_ids=torch.tensor(inputs).long(), attention_mask=mask, labels=labels)
    out.loss.backward()
    with torch.no_grad():
        decoded = model.generate(
            torch.tensor(inputs).long(), attention_mask=mask, do_sample=False, num_beams=1,
            max_new_tokens=case.target_length, eos_token_id=case.eos_id, pad_token_id=0)
    arrays = {"inputs": inputs, "targets": targets, "loss": np.float32(out.loss.item()),
              "logits": out.logits.detach().numpy(),
              "decoded": _pad(decoded.numpy()[:, 1:], case.target_length)}
    for name, parameter in model.named_parameters():
        arrays[f"weights/{name}"] = parameter.detach().numpy()
        arrays[f"gradients/{name}"] = parameter.grad.numpy()
    return arrays


def _randomise(model: object, seed: int) -> None:
    """Other weights than the initial ones: norms' scales differ from 1, attention is not flat.

    The table is small beside the layers' outputs, or else the tied projection would make greedy
    decoding repeat what the decoder starts with.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # type: ignore[attr-defined]
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                parameter.copy_(1.0 + 0.2 * noise)
            elif "relative" in name:
                parameter.copy_(noise)
            elif "shared" in name:
                parameter.copy_(0.1 * noise)
            else:
                parameter.copy_(noise * parameter.shape[1] ** -0.5)


def _pad(tokens: np.ndarray, length: int) -> np.ndarray:
    padded = np.zeros((len(tokens), length), np.int32)
    padded[:, :tokens.shape[1]] = tokens
    return padded


def main() -> int:
    """Writes every case to `golden/NAME.npz`."""
    GOLDEN.mkdir(exist_ok=True)
    for case in CASES:
        path = GOLDEN / f"{case.name}.npz"
        arrays = hugging_face_case(case)
        np.savez_compressed(path, **arrays)
        print(f"{path.name}: {path.stat().st_size} bytes, loss {arrays['loss']:.4f}, decoded:",
              *(row[:16].tolist() for row in arrays["decoded"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
