"""What takes seconds to make is made once a machine: bytes under a key that says what made them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable

from deepnarrow.errors import InputError
from deepnarrow.files import cache_dir, write_bytes

DIGEST_BYTES = 32


def digest(parts: Iterable[bytes | str]) -> str:
    """Returns a sha256 (hex) of `parts` that depends on where one part ends and the next begins.

    >>> digest(["ab", "c"]) == digest(["a", "bc"])
    False
    """
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "little"))
        total.update(data)
    return total.hexdigest()


def share(salt: str, name: str) -> float:
    """A number in [0, 1) that depends on `salt` and `name` only, uniform over names."""
    head = hashlib.sha256(f"{salt}\n{name}".encode()).digest()[:8]
    return int.from_bytes(head, "big") / 2**64


def cached(name: str, key: str, make: Callable[[], bytes]) -> bytes:
    """Returns `make()`, kept between runs in `files.cache_dir()` as `NAME-KEY`.

    The file ends with the sha256 of its content; one that does not match is made again.

    Raises:
      InputError: the cache directory cannot be written.
    """
    path = cache_dir() / "text_t5" / f"{name}-{key[:32]}"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    content, seal = stored[:-DIGEST_BYTES], stored[-DIGEST_BYTES:]
    if hashlib.sha256(content).digest() == seal:
        return content
    content = make()
    try:
        write_bytes(path, content + hashlib.sha256(content).digest())
    except OSError as error:
        raise InputError(f"cache '{path}'", f"cannot be written: {error.strerror}",
                         hint="set DEEPNARROW_CACHE to a directory you may write to") from error
    return content
