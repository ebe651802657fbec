"""Real text that every Python brings along: its standard library's docstrings and documentation.

A document is one docstring (of a module, class or function) or one topic of the language reference
that `pydoc` carries. The files are parsed, never imported. Other versions of Python hold other
texts, so a corpus is known by the hash of its content.

The labelled part: which package does a docstring belong to? The labels were assigned by the
developers who put the code there. Names of the packages are masked in the text; a text that stands
in several packages is left out. Documents of the labelled validation and test splits are not in the
upstream text, whatever their white space, case and package names.

On Python 3.11.7: 1,467 labelled documents (721 train, 221 validation, 525 test) in six classes;
always answering the largest class of train, asyncio, is right on 19.6% of test. 1.7 M characters of
upstream text. 3.12 and 3.13 differ by a few per cent.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import json
import os
import re
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from deepnarrow.errors import InputError
from deepnarrow_text_t5.cache import cached, digest, share

# Packages that every version from 3.11 on has, that Linux distributions do not split off, and whose
# docstrings number more than a hundred.
CLASSES = ("asyncio", "email", "importlib", "logging", "unittest", "xml")
MIN_PER_CLASS = 100
MIN_WORDS = 5
SAME_START = 48  # characters of normalised text; inputs are longer
SPLITS: Mapping[str, float] = {"train": 0.5, "validation": 0.15, "test": 0.35}
UPSTREAM_VALIDATION = 0.05
# Tests and what distributions leave out or patch: their text is of another kind, or not everywhere.
SKIPPED = frozenset({
    "__pycache__", "dist-packages", "ensurepip", "idle_test", "idlelib", "lib-dynload", "lib2to3",
    "pydoc_data", "site-packages", "test", "tests", "tkinter", "turtledemo",
})
TOPICS = "pydoc_data/topics.py"
MASK = "_"
_NAMES = re.compile("|".join(CLASSES), re.IGNORECASE)
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@dataclasses.dataclass(frozen=True)
class Document:
    """One text and the top-level module or package it stands in, `topics` for the reference."""

    module: str
    text: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Texts by use.

    Attributes:
      train: upstream texts.
      validation: upstream texts that are only evaluated.
      labelled: split -> ((text, index into `CLASSES`), ...).
      content_hash: sha256 of all of it.
    """

    train: tuple[str, ...]
    validation: tuple[str, ...]
    labelled: Mapping[str, tuple[tuple[str, int], ...]]
    content_hash: str


@functools.cache
def load_corpus() -> Corpus:
    """Returns the corpus of the standard library of the Python that runs.

    Raises:
      InputError: a standard library that lacks what is needed.
    """
    return make_corpus(_read_cached(Path(sysconfig.get_paths()["stdlib"])))


def read_documents(root: Path) -> list[Document]:
    """Returns the documents below the standard library's directory `root`, in a fixed order."""
    documents = []
    for path in stdlib_files(root):
        module = path.relative_to(root).parts[0].removesuffix(".py")
        documents += [Document(module, text) for text in docstrings(path.read_bytes())]
    return documents + [Document("topics", text) for text in _topics(root / TOPICS)]


def stdlib_files(root: Path) -> list[Path]:
    """Returns the source files whose docstrings count, sorted by their path below `root`."""
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders  # pruned: site-packages may be huge
                         if name not in SKIPPED and not name.startswith("config-")]
        found += [Path(folder, name) for name in names
                  if name.endswith(".py") and not name.startswith("_sysconfigdata")]
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())


def docstrings(code: bytes) -> Iterator[str]:
    """Yields the docstrings of one source file; a file that does not parse has none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the file's own escapes and literals
            tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED) and (text := ast.get_docstring(node)):
            yield text


def _topics(path: Path) -> list[str]:
    """The language reference, a dict literal of topic -> text; distributions may leave it out."""
    if not path.is_file():
        return []
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            topics = ast.literal_eval(node.value)
            return [topics[name] for name in sorted(topics)]
    return []


def _read_cached(root: Path) -> list[Document]:
    """Parsing takes seconds, hashing the same files a tenth of one."""
    files = [path for path in (*stdlib_files(root), root / TOPICS) if path.is_file()]
    parts = (part for path in files
             for part in (path.relative_to(root).as_posix(), path.read_bytes()))
    key = digest([Path(__file__).read_bytes(), *parts])

    def make() -> bytes:
        rows = [[document.module, document.text] for document in read_documents(root)]
        return json.dumps(rows).encode()

    return [Document(module, text) for module, text in json.loads(cached("documents", key, make))]


def mask(text: str) -> str:
    """Returns `text` without the names of the classes, which would give the label away.

    >>> mask("An email.Message for Asyncio")
    'An _.Message for _'
    """
    return _NAMES.sub(MASK, text)


def normalise(text: str) -> str:
    """The form under which two texts count as one: masked, without case, blanks alike.

    >>> normalise("Return  the\\nasyncio Loop. ")
    'return the _ loop.'
    """
    return " ".join(mask(text).lower().split())


def make_corpus(documents: Iterable[Document]) -> Corpus:
    """Sorts documents into upstream and labelled splits, by the hash of their normalised text.

    Raises:
      InputError: a class has fewer than 100 documents; the message names it.
    """
    texts: dict[str, str] = {}  # normalised -> first spelling
    modules: dict[str, set[str]] = {}
    for document in documents:
        name = normalise(document.text)
        texts.setdefault(name, document.text)
        modules.setdefault(name, set()).add(document.module)
    labelled = _labelled(texts, modules)
    hidden = {name for split in ("validation", "test") for name in labelled[split]}
    upstream = {name: text for name, text in texts.items() if name not in hidden}
    held_out = {name for name in upstream if share("upstream", name) < UPSTREAM_VALIDATION}
    train = tuple(text for name, text in upstream.items() if name not in held_out)
    validation = tuple(text for name, text in upstream.items() if name in held_out)
    splits = {split: tuple(items.values()) for split, items in labelled.items()}
    _check_classes(splits)
    content = json.dumps([train, validation, splits])
    return Corpus(train, validation, splits, digest([content]))


def _labelled(
    texts: Mapping[str, str], modules: Mapping[str, set[str]]
) -> dict[str, dict[str, tuple[str, int]]]:
    """split -> normalised text -> (masked text, class), of texts that stand in one package only."""
    splits: dict[str, dict[str, tuple[str, int]]] = {split: {} for split in SPLITS}
    for name, text in texts.items():
        (module, *others) = modules[name]
        if others or module not in CLASSES or len(name.split()) < MIN_WORDS:
            continue
        splits[_split(name)][name] = (mask(text), CLASSES.index(module))
    return splits


def _split(name: str) -> str:
    """The labelled split of a normalised text: of all texts that begin alike the same one.

    Inputs are cut to some tens of pieces, of which two texts may have the same.
    """
    drawn = share("labelled", name[:SAME_START])
    if drawn < SPLITS["train"]:
        return "train"
    return "validation" if drawn < SPLITS["train"] + SPLITS["validation"] else "test"


def _check_classes(splits: Mapping[str, tuple[tuple[str, int], ...]]) -> None:
    labels = [label for items in splits.values() for _, label in items]
    for index, name in enumerate(CLASSES):
        if labels.count(index) < MIN_PER_CLASS:
            raise InputError(
                "text_t5 data 'stdlib'", f"too few docstrings of package {name!r}",
                got=labels.count(index), expected=f">= {MIN_PER_CLASS}",
                hint="this Python has no complete standard library in source form; install one",
            )
