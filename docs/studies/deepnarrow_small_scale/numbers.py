"""Every number of the study's write-up, from its records.

    cd docs/studies/deepnarrow_small_scale
    python numbers.py records.jsonl.gz

The argument may also be a workdir that `deepnarrow merge` made of the archive. Writes
`numbers.json` (all numbers) and `numbers.md` (the same as tables) beside this file, or into `--out
DIR`. Written before there were results; what is asked stands in `../deepnarrow_small_scale.md`.
Records that are not complete give what they can, and `not yet` for verdicts.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
# This file bears the name of a module of the standard library, which numpy imports: it is to be
# found first, and the modules beside this file last.
sys.path[:] = [*(path for path in sys.path if path != str(FOLDER)), str(FOLDER)]
DIGITS = 9  # significant ones that are written
WIDTH = 140  # of a line of JSON, where a list or table fits one


def derive(source: str | Path) -> dict[str, Any]:
    """Returns the document that `numbers.json` holds.

    Raises:
      InputError: the records cannot be read, or are not those of the plan.
    """
    import small_scale_described as described
    from small_scale_plan import read
    from small_scale_verdicts import hypotheses

    from deepnarrow.merge import read_source

    study = read(read_source(source))
    return rounded({
        "statuses": described.statuses(study), "hypotheses": hypotheses(study),
        "slopes": described.slopes(study), "rates": described.rates(study),
        "cost": described.cost(study), "fronts": described.quality_fronts(study)})


def rounded(value: Any) -> Any:
    """Plain values with `DIGITS` digits; what is not finite is None, as in records.

    >>> rounded({"a": (0.1 + 0.2, float("inf"), 3)})
    {'a': [0.3, None, 3]}
    """
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(one) for one in value]
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def dump(value: Any, indent: int = 0) -> str:
    """JSON in which what fits on one line stands on one: small to read, and its changes too.

    >>> dump({"a": [1, 2]})
    '{"a": [1, 2]}'
    """
    flat = json.dumps(value, ensure_ascii=False, allow_nan=False)
    if len(flat) + indent <= WIDTH or not isinstance(value, dict | list):
        return flat
    pad = " " * (indent + 1)
    if isinstance(value, list):
        lines = [pad + dump(one, indent + 1) for one in value]
        return "[\n" + ",\n".join(lines) + "\n" + " " * indent + "]"
    lines = [f"{pad}{json.dumps(key)}: {dump(one, indent + 1)}" for key, one in value.items()]
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes both files; returns the exit code, 2 for records that cannot be used."""
    parser = argparse.ArgumentParser(description="Every number, from the records.")
    parser.add_argument("records", help="archive NAME.jsonl.gz, or a workdir made of it")
    parser.add_argument("--out", type=Path, default=FOLDER, help="where the files go")
    options = parser.parse_args(arguments)
    from small_scale_tables import pages

    from deepnarrow.errors import InputError
    from deepnarrow.files import write_bytes

    try:
        document = derive(options.records)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    for name, text in (("numbers.json", dump(document)), ("numbers.md", pages(document))):
        write_bytes(options.out / name, f"{text}\n".encode())
        print(options.out / name)
    for name, one in document["hypotheses"].items():
        print(f"{name} {one['hypothesis']}: {one['verdict']}"
              + (f" (so far: {one['so_far']})" if one["verdict"] == "not yet" else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
