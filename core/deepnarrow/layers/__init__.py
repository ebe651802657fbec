"""Blocks that architectures and modalities share, in Flax NNX, and the general `transformer`.

| module | holds |
|---|---|
| `transformer.py` | `TRANSFORMER`: checks, closed-form costs, the `Stack` |
| `stack.py` | equal layers on a leading `layers` axis, scanned or unrolled |
| `block.py` | one pre-norm layer, the whole stack's forward pass |
| `decoding.py` | the same stack one position at a time, with a cache |
| `attention.py`, `mlp.py`, `norms.py`, `relative.py`, `linear.py` | the parts |

Importing this package does not import JAX; importing its modules does, `transformer.py` excepted.
"""
