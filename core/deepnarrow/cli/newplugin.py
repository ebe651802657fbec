"""`deepnarrow new-plugin`."""

from __future__ import annotations

import argparse
from pathlib import Path

from deepnarrow.cli.output import Output


def run(options: argparse.Namespace) -> Output:
    """Writes a distribution that registers a modality."""
    from deepnarrow.newplugin import new_plugin
    from deepnarrow.plugins import registry

    directory = options.out or f"deepnarrow-{options.name}"
    known = registry()
    taken = frozenset({*known.modalities, *(plugin.name for plugin in known.plugins)})
    files = new_plugin(options.name, directory, taken)
    document = {"directory": str(directory), "files": [str(path) for path in files]}
    lines = [*(str(Path(directory) / path) for path in files), "",
             f"now: pip install -e '{directory}[dev]' && deepnarrow check {options.name}"]
    return Output(document, lambda console: console.print(
        "\n".join(lines), markup=False, soft_wrap=True))
