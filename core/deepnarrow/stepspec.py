"""What a modality says of one of its training steps, so that it can be planned without its data.

Part of the contract.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from deepnarrow.protocol import OptimizerConfig


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape (without the batch's axis) and type of one array of an example.

    >>> ArraySpec((512,), "int32").item_bytes
    4
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int32"]

    @property
    def item_bytes(self) -> int:
        """Bytes of one element: 4, whichever it is."""
        return 4


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """One training step of a modality, where nobody says otherwise.

    Attributes:
      arrays: `arrays(options) -> {name: ArraySpec}`: what `Model.loss` reads of an example in
        training, the core's `example_mask` included if it does.
      optimizer: what the modality is usually pre-trained with.
    """

    arrays: Callable[[ConfigDict], Mapping[str, ArraySpec]]
    optimizer: OptimizerConfig
