"""Makes `golden_weights/`: small checkpoints written by transformers and timm, and their outputs.

Run once, and again only if the cases change, where PyTorch, transformers and timm are installed:

    python tests/vision_vit/make_weights_golden.py tests/vision_vit/golden_weights

The committed folder came from transformers 5.24.0, timm 1.0.31 and PyTorch 2.13.0 on a CPU. timm
asks for torchvision when it is imported; a ViT does not need it, so empty modules stand in where it
is not installed.

A folder each: `hf_classifier` (`ViTForImageClassification`), `hf_pooler` (`ViTModel`, without
biases of query, key and value), `timm_tok`, `timm_gap` (with LayerScale), `timm_map`. In
`outputs.npz`: `image` [batch, size, size, channels], and by folder the logits, or the pooler's
output. Weights are the libraries' own initial ones, plus noise so that no array is a constant.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, DEPTH, HEADS, MLP_DIM = 16, 2, 2, 24
IMAGE_SIZE, PATCH, CHANNELS, CLASSES, BATCH = 12, 4, 3, 5, 3


def make_image() -> np.ndarray:
    """Images [batch, size, size, channels] in [-1, 1]."""
    rng = np.random.default_rng(2)
    return rng.uniform(-1, 1, (BATCH, IMAGE_SIZE, IMAGE_SIZE, CHANNELS)).astype(np.float32)


def import_timm() -> Any:
    """Returns timm; ImportError where it, or PyTorch, is not installed."""
    import torch  # noqa: F401

    if importlib.util.find_spec("timm") is None:
        raise ImportError("timm is not installed")
    names = ["torchvision", "torchvision.ops", "torchvision.ops.misc", "torchvision.datasets",
             "torchvision.models", "torchvision.models.feature_extraction",
             "torchvision.transforms", "torchvision.transforms.functional"]
    stubs = {} if importlib.util.find_spec("torchvision") else {n: _Stub(n) for n in names}
    for name, stub in stubs.items():
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, stub)
    sys.modules.update(stubs)
    try:
        import timm
        import timm.models
    finally:  # nobody else shall take the empty modules for torchvision
        for name in stubs:
            del sys.modules[name]
    return timm


class _Stub(types.ModuleType):
    """A module in which every name is an empty class."""

    __path__ = ()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__getattr__": lambda self, _: None, "NEAREST": 0, "BILINEAR": 1,
                               "BICUBIC": 2, "BOX": 3, "HAMMING": 4, "LANCZOS": 5})


def disturb(model: Any) -> Any:
    """Adds noise to every array, so that none is a constant and none can be mistaken."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def make_hf(name: str) -> Any:
    """One of transformers' models."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    sizes: dict[str, Any] = {
        "hidden_size": WIDTH, "num_hidden_layers": DEPTH, "num_attention_heads": HEADS,
        "intermediate_size": MLP_DIM, "image_size": IMAGE_SIZE, "patch_size": PATCH,
        "num_channels": CHANNELS}
    if name == "hf_classifier":
        return disturb(ViTForImageClassification(ViTConfig(**sizes, num_labels=CLASSES)))
    return disturb(ViTModel(ViTConfig(**sizes, qkv_bias=False, pooler_output_size=8,
                                      hidden_act="gelu_pytorch_tanh")))


def make_timm(timm: Any, name: str) -> Any:
    """One of timm's models."""
    arguments = {
        "timm_tok": {},
        "timm_gap": {"global_pool": "avg", "class_token": False, "fc_norm": False,
                     "init_values": 0.5, "qkv_bias": False},
        "timm_map": {"global_pool": "map", "class_token": False, "act_layer": "gelu_tanh"},
    }[name]
    return disturb(timm.create_model(
        "vit_base_patch16_224", img_size=IMAGE_SIZE, patch_size=PATCH, in_chans=CHANNELS,
        num_classes=CLASSES, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS,
        mlp_ratio=MLP_DIM / WIDTH, **arguments))


def outputs(model: Any, image: np.ndarray) -> np.ndarray:
    """Logits, or the pooler's output, of images in our layout."""
    import torch

    with torch.no_grad():
        # [batch, size, size, channels] -> [batch, channels, size, size]
        out = model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
    for field in ("logits", "pooler_output"):
        out = getattr(out, field, out)
    return out.numpy()


def main(path: str) -> None:
    """Writes the folder `path`."""
    import torch

    torch.manual_seed(1)
    folder, image = Path(path), make_image()
    results = {"image": image}
    for name in ("hf_classifier", "hf_pooler"):
        model = make_hf(name)
        model.save_pretrained(folder / name)
        results[name] = outputs(model, image)
    timm = import_timm()
    for name in ("timm_tok", "timm_gap", "timm_map"):
        model = make_timm(timm, name)
        timm.models.save_for_hf(model, folder / name, safe_serialization=True)
        for pickled in (folder / name).glob("*.bin"):
            pickled.unlink()
        results[name] = outputs(model, image)
    np.savez_compressed(folder / "outputs.npz", **results)


if __name__ == "__main__":
    main(sys.argv[1])
