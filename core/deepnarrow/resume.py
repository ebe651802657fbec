"""What may differ between a run's beginning and its resumption: one table says what that means.

A trial's key holds everything that determines its result, so a changed setting makes another trial
and never mixes into a begun one. This table is about all the rest: what one process of a run notes
in `steps.jsonl`, and the next one finds changed; and a study's config beside the one before it.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

from deepnarrow.errors import InputError, shorten

if TYPE_CHECKING:
    from deepnarrow.plugins import Registry

Kind = Literal["fatal", "warn", "free"]
MAX_TOLD = 5  # changes that a note names


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a change of the keys that match `pattern` means, and why."""

    pattern: str
    kind: Kind
    why: str


RULES = (
    # Of one run, between two of its processes.
    Rule("plugins.*", "fatal", "its modality's code is another now: install that version again, or "
         "train this trial in a fresh run directory"),
    Rule("revision", "fatal", "deepnarrow computes something else now"),
    Rule("devices", "warn", "the order of the data is equal; sums are rounded otherwise"),
    Rule("processes", "warn", "the order of the data is equal; sums are rounded otherwise"),
    Rule("mesh", "warn", "the order of the data is equal; sums are rounded otherwise"),
    Rule("micro_batches", "warn", "sums are rounded otherwise"),
    Rule("platform", "warn", "other devices round otherwise"),
    Rule("device", "warn", "other devices round otherwise"),
    Rule("versions.*", "warn", "other versions may round otherwise"),
    Rule("run.*", "free", "how a run is watched changes nothing of it"),
    # Of a study's config, between two calls.
    Rule("config.name", "warn", "records of both names stand in one workdir"),
    Rule("config.seeds*", "free", "other seeds are other trials"),
    Rule("config.modalities.*.shapes*", "free", "other shapes are other trials"),
    Rule("config.modalities.*.architectures*", "free", "other architectures are other trials"),
    Rule("config.modalities.*.checkpoints*", "free", "other checkpoints are other trials"),
    Rule("config.modalities.*.protocol*", "warn", "these are other trials: what ended under the "
         "earlier setting stays in the store and is not counted"),
    Rule("config.modalities.*.options*", "warn", "these are other trials: what ended under the "
         "earlier setting stays in the store and is not counted"),
    Rule("config.modalities.*.data*", "warn", "these are other trials if the data's content is "
         "another: what ended before stays in the store"),
    Rule("config.modalities*", "free", "modalities come and go"),
    Rule("config.run.*", "free", "how a run is watched changes nothing of it"),
    Rule("config.sharding.*", "free", "each run notes its own"),
    Rule("config.launch.*", "free", "where a run takes place changes nothing of it"),
    Rule("*", "warn", "not in the table of changes"),
)


@dataclasses.dataclass(frozen=True)
class Change:
    """One key that differs; None where it is absent."""

    key: str
    before: Any
    now: Any
    rule: Rule

    def __str__(self) -> str:
        return f"{self.key} {shorten(self.before, 60)} -> {shorten(self.now, 60)}"


def plugin_versions(registry: Registry, modality: str, architecture: str) -> dict[str, str]:
    """Returns the version of each distribution that a run of these two takes code from."""
    owners = {registry.owners["modalities", modality],
              registry.owners["architectures", architecture]}
    return {info.distribution: info.version for info in registry.plugins
            if info.distribution in owners}


def rule_of(key: str) -> Rule:
    """Returns the first rule that matches `key`.

    >>> rule_of("versions.jax").kind, rule_of("plugins.acme").kind, rule_of("run.log_every").kind
    ('warn', 'fatal', 'free')
    """
    return next(rule for rule in RULES if fnmatch.fnmatchcase(key, rule.pattern))


def changes(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Returns every key that differs, by its path, with its rule."""
    old, new = dict(_flat(before, prefix)), dict(_flat(now, prefix))
    return [Change(key, old.get(key), new.get(key), rule_of(key))
            for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]


def judge(where: str, found: list[Change]) -> str | None:
    """Returns what is to be said of the changes, None where all are free.

    Raises:
      InputError: one of them is fatal; it names the value then and now.
    """
    for change in found:
        if change.rule.kind == "fatal":
            raise InputError(where, f"was begun with another {change.key}", got=change.now,
                             expected=change.before, hint=change.rule.why)
    told = [change for change in found if change.rule.kind == "warn"]
    if not told:
        return None
    more = f"; and {len(told) - MAX_TOLD} more" if len(told) > MAX_TOLD else ""
    reasons = "; ".join(dict.fromkeys(change.rule.why for change in told[:MAX_TOLD]))
    return f"{where}: changed: {'; '.join(map(str, told[:MAX_TOLD]))}{more} ({reasons})"


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        key = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, Mapping) and value:
            yield from _flat(value, key)
        else:
            yield key, list(value) if isinstance(value, tuple) else value
