"""Parameters for another task: text to text, every task has the same model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepnarrow.errors import InputError
from deepnarrow.modality import Key, Params, Path

if TYPE_CHECKING:
    from ml_collections import ConfigDict


def adapt(
    params: Params, source_options: ConfigDict, target_options: ConfigDict, key: Key
) -> tuple[Params, Sequence[Path]]:
    """Returns `params` as they are: no array depends on the task or on lengths.

    Raises:
      InputError: the two models count their tokens or distances differently.
    """
    del key  # nothing is drawn anew
    for option in ("vocab_size", "relative_buckets", "relative_max_distance"):
        source, target = source_options[option], target_options[option]
        if source != target:
            raise InputError("text_t5 transfer", f"{option} differs from pre-training's",
                             got=target, expected=source,
                             hint="name the model's own SentencePiece file: data.vocabulary=PATH"
                             if option == "vocab_size" else
                             "fine-tune with the options of pre-training")
    return params, ()
