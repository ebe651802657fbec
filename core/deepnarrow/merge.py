"""Joining the records of studies that ran apart. What has finished elsewhere is not run again."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

from deepnarrow.errors import InputError, shorten
from deepnarrow.files import WorkdirLock
from deepnarrow.recordfile import SUFFIX, read_archive, write_archive
from deepnarrow.records import Record
from deepnarrow.store import Store
from deepnarrow.study import STORE_FILE


@dataclasses.dataclass(frozen=True)
class Merged:
    """What a merge did: records read, those that were new, and those that are there now."""

    read: int
    added: int
    total: int


def read_source(source: str | Path) -> list[Record]:
    """Returns all records of a workdir, a record store or an archive.

    Raises:
      InputError: it is none of these, or cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        path = path / STORE_FILE
    if path.is_file() and path.name.endswith(SUFFIX):
        return read_archive(path)
    if not path.is_file():
        raise InputError(f"source '{shorten(str(source))}'", "has no records",
                         expected=f"a workdir with {STORE_FILE}, such a file, or NAME{SUFFIX}")
    with Store(path, read_only=True) as store:
        return store.records()


def merge_into_workdir(sources: Sequence[str], workdir: str | Path) -> Merged:
    """Adds the records of `sources` to a workdir's, all or none; once more changes nothing.

    The order of the sources does not matter to what has finished: a key has one result.

    Raises:
      InputError: a source cannot be read, or a key has finished with another result.
    """
    records = [record for source in sources for record in read_source(source)]
    workdir = Path(workdir)
    with WorkdirLock(workdir), Store(workdir / STORE_FILE) as store:
        added = store.add_all(records)
        return Merged(len(records), added, sum(store.statuses().values()))


def merge_into_archive(sources: Sequence[str], path: str | Path) -> Merged:
    """Writes the records of `sources` into one archive, each once.

    Raises:
      InputError: as `merge_into_workdir`, or the archive cannot be written.
    """
    records = [record for source in sources for record in read_source(source)]
    with tempfile.TemporaryDirectory() as folder, Store(Path(folder) / STORE_FILE) as store:
        added = store.add_all(records)
        return Merged(len(records), added, write_archive(store.records(), path))
