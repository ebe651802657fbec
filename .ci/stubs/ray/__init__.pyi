# Ray is an extra of which one module uses a few functions; types are checked without it.
from typing import Any

def __getattr__(name: str) -> Any: ...
