"""Layers that average over positions, in plain JAX functions, as an architecture of deepnarrow."""
