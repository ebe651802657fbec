"""Huge pages for what XLA allocates, which glibc only gives to a process that starts with them."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

TUNABLES, HUGE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
# Commands that run a model.
COMMANDS = ("study", "train", "transfer", "probe", "check")
FIRST_GLIBC = (2, 35)
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages(arguments: Sequence[str]) -> None:
    """Starts this program anew, once, with malloc asking for transparent huge pages.

    XLA's CPU runtime takes the temporaries of every step anew: 200 MB, or 50,000 page faults, in a
    ViT of 12 layers. As huge pages they are 500, and the step takes 0.87 times as long
    (docs/benchmarks.md). The process keeps its number. Nothing happens where that is of no use,
    and where the environment says something of `glibc.malloc.hugetlb` itself.
    """
    if arguments[:1] and arguments[0] in COMMANDS and _wanted():
        others = [os.environ[TUNABLES]] if os.environ.get(TUNABLES) else []
        environment = {**os.environ, TUNABLES: ":".join([*others, f"{HUGE}=1"])}
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)


def _wanted() -> bool:
    if HUGE in os.environ.get(TUNABLES, "") or not sys.executable:
        return False
    try:  # with [always] malloc need not ask, with [never] it would in vain
        library, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
        numbers = tuple(int(part) for part in version.split("."))
        return library == "glibc" and numbers >= FIRST_GLIBC and "[madvise]" in _THP.read_text()
    except (AttributeError, OSError, ValueError):  # another system, or one that does not say
        return False
