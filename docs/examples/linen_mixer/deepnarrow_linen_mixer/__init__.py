"""An MLP-Mixer in Flax Linen as an architecture of deepnarrow."""
