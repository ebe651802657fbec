"""deepnarrow: which shape should my Transformer have, and does the answer hold elsewhere?"""

from deepnarrow.hookspecs import hookimpl

__all__ = ["hookimpl"]
__version__ = "0.1.0"
