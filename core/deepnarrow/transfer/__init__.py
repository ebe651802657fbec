"""Transfer of a pre-trained model to labelled tasks, the same for every modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Shaped

from deepnarrow.errors import Preempted
from deepnarrow.modality import Batch, Params, Source


def apply_all(
    function: Callable[[Params, Batch], Any], params: Params, source: Source, batch_size: int,
    should_stop: Callable[[], bool] | None = None, rows: np.ndarray | None = None,
) -> Shaped[np.ndarray, "n ..."]:
    """Returns what `function` gives for every example of `source`, in order.

    Args:
      function: `function(params, batch) -> [batch, ...]`, jitted, of what this process loads of a
        batch; it gives the whole.
      params: the model's.
      source: the examples.
      batch_size: examples a call; the padding of the last one is dropped.
      should_stop: asked before each call.
      rows: of each batch, those that this process loads; None for all.

    Raises:
      Preempted: `should_stop` said True.
    """
    from deepnarrow.data import eval_batches

    outputs = []
    for batch in eval_batches(source, batch_size, rows):
        if should_stop is not None and should_stop():
            raise Preempted("asked to stop while a model was applied")
        outputs.append(np.asarray(function(params, batch)))
    return np.concatenate(outputs)[:source.num_examples]  # [batches * batch, ...] -> [n, ...]
