"""Published shapes of Vision Transformers, as big_vision's `models/vit.py` defines them.

Two of the paper's sizes differ from the repository's: `g` and `G` are those of "Scaling Vision
Transformers", `g-opt` and `G-opt` widen or narrow them to heads of 96.
"""

from __future__ import annotations

from deepnarrow.shape import Preset, Shape

BIG_VISION = (
    "google-research/big_vision, big_vision/models/vit.py, decode_variant (commit 0127fb6), "
    "after Zhai et al., Scaling Vision Transformers (arXiv 2106.04560), Table 2"
)


def _vit(depth: int, width: int, mlp_dim: int, num_heads: int) -> Shape:
    """A ViT's shape: every head is `width / num_heads` wide, which must divide evenly."""
    d_kv, rest = divmod(width, num_heads)
    assert rest == 0, (width, num_heads)
    return Shape(
        num_encoder_layers=depth, num_decoder_layers=0, d_model=width, d_ff=mlp_dim, d_kv=d_kv,
        num_heads=num_heads,
    )


# name: depth, width, mlp_dim, num_heads, and the patch size it is usually published with.
_TABLE: dict[str, tuple[int, int, int, int, int]] = {
    "mu": (1, 32, 128, 2, 16),
    "Ti": (12, 192, 768, 3, 16),
    "S": (12, 384, 1536, 6, 16),
    "M": (12, 512, 2048, 8, 16),
    "B": (12, 768, 3072, 12, 16),
    "L": (24, 1024, 4096, 16, 16),
    "So400m": (27, 1152, 4304, 16, 14),
    "H": (32, 1280, 5120, 16, 14),
    "g": (40, 1408, 6144, 16, 14),
    "g-opt": (40, 1536, 6144, 16, 14),
    "G": (48, 1664, 8192, 16, 14),
    "G-opt": (48, 1536, 8192, 16, 14),
    "e": (56, 1792, 15360, 16, 14),
}

PRESETS: dict[str, Preset] = {
    # No published size: small enough for every check, and wide enough to scale either way.
    "tiny": Preset(_vit(4, 64, 256, 4), source="this plugin's own test size"),
    **{
        name: Preset(_vit(*numbers), source=BIG_VISION, overrides={"patch_size": patch})
        for name, (*numbers, patch) in _TABLE.items()
    },
}
