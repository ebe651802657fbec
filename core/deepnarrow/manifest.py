"""The manifest of a folder of files: what must be there, to the bit. Written last, checked first.

Orbax commits a checkpoint atomically, but does not notice a flipped bit, a file cut short or two
files exchanged. A folder without a manifest was never known to be whole.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from deepnarrow.errors import shorten
from deepnarrow.files import rename, sync, write_json

MANIFEST = "manifest.json"
FORMAT = 1
_CHUNK = 2**20


class Damaged(Exception):
    """A folder is not what its manifest says; the message names the first file and how."""


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes the manifest of every file that is in `folder` now, and forces all to disk.

    Args:
      folder: whole, and not changed afterwards.
      facts: JSON-able, kept beside the files' sizes and hashes.
    """
    files = {}
    for path in sorted(_files(folder)):
        sync(path)
        files[str(path.relative_to(folder))] = {"size": path.stat().st_size, "sha256": _hash(path)}
    write_json(folder / MANIFEST, {"format": FORMAT, **facts, "files": files,
                                   "digest": _digest(facts, files)})


def has_manifest(folder: Path) -> bool:
    """True where a manifest was written; whether the folder is as it says, `verify` tells."""
    return (folder / MANIFEST).is_file()


def verify(folder: Path) -> Mapping[str, Any]:
    """Returns the manifest of a folder in which every file is there, and nothing else.

    Raises:
      Damaged: a file is missing, added, of another size or with other contents, or the manifest
        itself cannot be read.
    """
    manifest = _read(folder)
    files: Mapping[str, Any] = manifest["files"]
    found = {str(path.relative_to(folder)): path for path in _files(folder)}
    if missing := sorted(files.keys() - found.keys()):
        raise Damaged(f"{missing[0]} is missing")
    if added := sorted(found.keys() - files.keys()):
        raise Damaged(f"{added[0]} does not belong to it")
    for name, path in sorted(found.items()):
        size = path.stat().st_size
        if size != files[name]["size"]:
            raise Damaged(f"{name} has {size} bytes instead of {files[name]['size']}")
    for name, path in sorted(found.items()):
        if _hash(path) != files[name]["sha256"]:
            raise Damaged(f"{name} has other contents than were written")
    return manifest


def quarantine(folder: Path, into: Path) -> Path:
    """Moves a folder aside, whole, and returns where it is now; nothing is deleted."""
    into.mkdir(parents=True, exist_ok=True)
    place, number = into / folder.name, 1
    while os.path.lexists(place):
        number += 1
        place = into / f"{folder.name}-{number}"
    rename(folder, place)
    return place


def _read(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        facts = {name: value for name, value in manifest.items()
                 if name not in ("format", "files", "digest")}
        whole = (manifest["format"] == FORMAT
                 and manifest["digest"] == _digest(facts, manifest["files"]))
    except FileNotFoundError:
        raise Damaged("it has no manifest: it was never known to be whole") from None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Damaged(f"its manifest cannot be read ({shorten(error, 80)})") from error
    if not whole:
        raise Damaged("its manifest has other contents than were written")
    return manifest


def _files(folder: Path) -> Iterator[Path]:
    """Every file below `folder` but the manifest. A link is no file: it has other folders' data."""
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise Damaged(f"{path.relative_to(folder)} is a link")
        if path.is_file() and path != folder / MANIFEST:
            yield path


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _digest(facts: Mapping[str, Any], files: Mapping[str, Any]) -> str:
    text = json.dumps([dict(facts), dict(files)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
