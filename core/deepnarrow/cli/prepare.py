"""`deepnarrow prepare`: makes a config's data ready, once."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output
from deepnarrow.errors import InputError, Preempted, suggest

if TYPE_CHECKING:
    from deepnarrow.config import StudyConfig
    from deepnarrow.modality import Modality


def run(options: argparse.Namespace) -> Output:
    """Prepares the data of the config's modality that can be prepared."""
    from deepnarrow.config import load_config, resolve_options
    from deepnarrow.plugins import registry
    from deepnarrow.progress import ShareProgress

    if not options.out:
        raise InputError("deepnarrow prepare", "--out is missing",
                         expected="a new folder, or one that was begun", hint="--out data/NAME")
    config = load_config(options.config, options.settings)
    known = {name: registry().modality(name) for name in config.modalities}
    modality = _chosen(config, known, options.modality)
    data = resolve_options(modality.data_options, config.modalities[modality.name].data,
                           f"modalities.{modality.name}.data")
    assert modality.prepare is not None
    try:
        with ShareProgress() as progress:
            facts = modality.prepare(data, Path(options.out), progress.update)
    except KeyboardInterrupt as stop:
        raise Preempted("what is finished is kept") from stop
    document = {"directory": options.out, "modality": modality.name, **facts}
    return Output(document, lambda console: console.print(
        facts["summary"], markup=False, soft_wrap=True))


def _chosen(
    config: StudyConfig, known: Mapping[str, Modality], name: str | None
) -> Modality:
    able = [key for key, modality in known.items() if modality.prepare is not None]
    if name is None and len(able) == 1:
        return known[able[0]]
    facts: dict[str, Any] = {"expected": f"one of {', '.join(able) or 'none'}"}
    where = f"study {config.name!r}"
    if name is None and not able:
        raise InputError(where, "none of its modalities has data to prepare",
                         got=", ".join(known))
    if name is None:
        raise InputError(where, "several of its modalities have data to prepare",
                         got=", ".join(able), hint=f"--modality {able[0]}")
    if name not in able:
        near = suggest(name, able)
        raise InputError("--modality", "has no data to prepare in this config", got=name,
                         hint=f"did you mean {near}?" if near else None, **facts)
    return known[name]
