"""`deepnarrow check`."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import sys
from typing import TYPE_CHECKING, Any

from deepnarrow.cli.output import Output, table

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.testing import CheckResult

EXIT_FAILED = 4


def run(options: argparse.Namespace) -> Output:
    """Runs every check of the kit on one modality, or some."""
    from deepnarrow.environment import enable_compilation_cache
    from deepnarrow.settings import Report, parse_settings
    from deepnarrow.testing import CHECKS, check_modality, fake_devices, make_subject
    from deepnarrow.testing.run import known_checks

    report = Report("")
    data: dict[str, Any] = {}
    for keys, value in parse_settings(options.settings, report).items():
        table_ = data
        for key in keys[:-1]:
            table_ = table_.setdefault(str(key), {})
        table_[str(keys[-1])] = value
    report.raise_any()
    only = () if options.only is None else tuple(options.only.split(","))
    known_checks("deepnarrow check --only", only)
    subject = make_subject(options.modality, options.architecture, data)
    subject.data_options  # noqa: B018 - bad settings are an error of the user's, not a failed check
    enable_compilation_cache()
    fake_devices()
    numbers = itertools.count(1)
    total = len(set(only) or CHECKS)
    results = check_modality(subject, only=only, on_fail="return",
                             on_result=lambda result: _say(next(numbers), total, result))
    failed = [result for result in results if not result.ok]
    if subject.left_out:
        print(f"note: {len(subject.left_out)} tasks are not checked, for want of their data: "
              f"{', '.join(subject.left_out)}; --set gives it", file=sys.stderr)
    document = {"modality": options.modality, "ok": not failed,
                "left_out": dict(subject.left_out),
                "checks": [dataclasses.asdict(result) for result in results]}
    return Output(document, lambda console: _show(console, results),
                  EXIT_FAILED if failed else 0)


def _say(number: int, total: int, result: CheckResult) -> None:
    print(f"{number:>3}/{total} {result.outcome:>10} {result.seconds:6.1f} s  {result.name}",
          file=sys.stderr, flush=True)


def _show(console: Console, results: list[CheckResult]) -> None:
    failed = [result for result in results if not result.ok]
    if failed:
        console.print(table(["check", "what to change"], [(r.name, r.message) for r in failed]))
    console.print(f"{len(results) - len(failed)} of {len(results)} checks passed in "
                  f"{sum(result.seconds for result in results):.0f} s")
