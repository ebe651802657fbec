"""`deepnarrow merge`."""

from __future__ import annotations

import argparse
import dataclasses

from deepnarrow.cli.output import Output
from deepnarrow.errors import InputError


def run(options: argparse.Namespace) -> Output:
    """Joins records into a workdir or an archive."""
    from deepnarrow.merge import merge_into_archive, merge_into_workdir

    if bool(options.workdir) == bool(options.out):
        raise InputError("deepnarrow merge", "needs either --workdir or --out",
                         expected="--workdir DIR, a study's that goes on, or --out NAME.jsonl.gz")
    target = options.workdir or options.out
    merged = (merge_into_workdir if options.workdir else merge_into_archive)(
        options.sources, target)
    text = (f"{merged.read} records read, {merged.added} new; {target} has {merged.total} "
            + ("trials" if options.workdir else "records"))
    return Output({**dataclasses.asdict(merged), "target": target},
                  lambda console: console.print(text, markup=False, soft_wrap=True))
