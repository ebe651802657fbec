# ml_collections has no annotations, and what a type checker infers for `config.key` is the union of
# every type a value might have. A value is whatever the config holds: Any.
from ml_collections import config_dict as config_dict
from ml_collections.config_dict import ConfigDict as ConfigDict
from ml_collections.config_dict import FrozenConfigDict as FrozenConfigDict
