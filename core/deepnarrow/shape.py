"""`Shape`: the eight numbers that say how large a Transformer is, and where the size sits."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from deepnarrow.errors import ShapeError

# Upper limits stop typing errors ("nl1600000") before anything is counted or allocated; they lie
# well above every published shape (XXXL: d_ff 131072, 256 heads).
FIELD_LIMITS: Mapping[str, tuple[int, int]] = {
    "num_encoder_layers": (0, 4096),
    "num_decoder_layers": (0, 4096),
    "d_model": (1, 131_072),
    "d_ff": (1, 1_048_576),
    "d_kv": (1, 65_536),
    "num_heads": (1, 4096),
}
FLAG_FIELDS = ("share_heads", "share_kv")


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of a Transformer, in the notation of "Scale Efficiently" (Tay et al., ICLR 2022).

    Every field stands alone: `d_kv` is the width of one head whatever `d_model / num_heads` is. A
    stack that a modality does not have has 0 layers (a ViT: `num_decoder_layers=0`).

    Attributes:
      num_encoder_layers: layers in the encoder stack (EL).
      num_decoder_layers: layers in the decoder stack (DL).
      d_model: width of the residual stream (DM).
      d_ff: width of the MLP's hidden layer (FF).
      d_kv: width of each head's keys, queries and values (KV).
      num_heads: attention heads a layer (NH).
      share_heads: one query projection serves all heads (SH; an assumption: the paper names the
        operator, its definition is not published).
      share_kv: one key and value projection serves all heads (SKV; an assumption, likewise).

    Raises:
      ShapeError: a field is not an integer in its range, or no stack has a layer.

    >>> Shape(12, 12, d_model=768, d_ff=3072, d_kv=64, num_heads=12).replace(d_ff=2048).d_ff
    2048
    """

    num_encoder_layers: int
    num_decoder_layers: int
    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    share_heads: bool = False
    share_kv: bool = False

    def __post_init__(self) -> None:
        for field, (low, high) in FIELD_LIMITS.items():
            value = getattr(self, field)
            if type(value) is not int or not low <= value <= high:
                raise ShapeError(
                    "shape", f"{field} is out of range", got=value, expected=f"{low}..{high}"
                )
        for field in FLAG_FIELDS:
            if type(getattr(self, field)) is not bool:
                raise ShapeError("shape", f"{field} is a flag", got=getattr(self, field),
                                 expected="True or False")
        if self.num_layers == 0:
            raise ShapeError("shape", "no layers", got="0 encoder and 0 decoder layers",
                             expected="at least 1 layer in one stack")

    @property
    def num_layers(self) -> int:
        """Layers in both stacks."""
        return self.num_encoder_layers + self.num_decoder_layers

    def replace(self, **fields: int | bool) -> Shape:
        """Returns this shape with `fields` changed, validated again."""
        return dataclasses.replace(self, **fields)

    def to_dict(self) -> dict[str, int | bool]:
        """The eight fields, in order."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A shape somebody published, under its name.

    Attributes:
      shape: the shape.
      source: where the numbers come from (paper and table, or repository and file).
      overrides: model options that come with the name, e.g. `{"patch_size": 16}`.
      open_name: for closed (released) names, the open expression nearest to it, used in hints.
    """

    shape: Shape
    source: str
    overrides: Mapping[str, int] = dataclasses.field(default_factory=dict)
    open_name: str | None = None
