"""deepnarrow: which shape should my Transformer have, and does the answer hold in another domain?"""

__version__ = "0.1.0"
