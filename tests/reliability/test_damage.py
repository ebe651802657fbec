"""Damaged checkpoints, full disks: detected, told in one line, and never used in silence."""

import json

import harness
import pytest

FLIPS = 24  # the scoreboard takes 300


def test_damage_to_any_file_of_a_checkpoint_is_detected_or_harmless(zygote, tmp_path):
    found = harness.run_damages(zygote, tmp_path, FLIPS, seed=4)
    assert found["failures"] == []
    assert found["n"] >= 100


def test_checkpoints_on_a_full_disk(tmp_path):
    found = harness.on_small_disk(tmp_path, "8m", "import jobs, sys; jobs.disk_full(sys.argv[1])")
    if found is None:
        pytest.skip("no user namespaces with tmpfs here")
    told = json.loads(found)
    assert "a checkpoint cannot be written" in told["told"]
    assert "bytes free" in told["told"]
    assert (told["restored"], told["same"], told["newest"]) == (1, True, 3)


WRITERS = {
    "json": "from deepnarrow.files import write_json as w; w(p / 'f.json', {'a': 'x' * n})",
    "steps": "from deepnarrow.stepslog import StepsLog; g = StepsLog(p / 's.jsonl', {'a': 1}); "
             "[g.open({'a': 'x' * 100}) for _ in range(n // 100)]",
    "records": "from deepnarrow.store import Store; import filework; s = Store(p / 'r.sqlite'); "
               "[s.add(filework.record(f'{i:032x}')) for i in range(n // 100)]",
    "archive": "from deepnarrow.recordfile import write_archive; import filework; "
               "write_archive([filework.record(hashlib.sha256(b'%d' % i).hexdigest()) "
               "for i in range(n // 20)], p / 'a.jsonl.gz')",
    "new_path": "from deepnarrow.files import new_path\n"
                "with new_path(p / 'made') as m: m.write_bytes(b'x' * n)",
}
FULL = """
import hashlib, pathlib, sys
sys.path.insert(0, {here!r})
from deepnarrow.errors import InputError
p, told = pathlib.Path(sys.argv[1]), None
{ballast}
def go(n):
    code = {code!r}
    exec(code, dict(globals(), n=n))
go(200)
ballast()
try:
    go(400_000)
except (OSError, InputError) as error:
    told = str(error)
(p / "ballast").unlink()
import shutil
shutil.rmtree(p / "made", ignore_errors=True); (p / "made").unlink(missing_ok=True)
go(400)
assert told and ("space" in told or "full" in told), told
print("survived")
"""
BALLAST = """
def ballast():
    with open(p / "ballast", "wb", buffering=0) as file:
        try:
            while file.write(b"x" * 1024):
                pass
        except OSError:
            pass
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_on_a_full_disk(tmp_path, writer):
    code = WRITERS[writer]
    if writer == "new_path":
        code = "import shutil\n(p / 'made').unlink(missing_ok=True)\n" + code
    found = harness.on_small_disk(
        tmp_path, "1m", FULL.format(here=str(harness.HERE), ballast=BALLAST, code=code))
    if found is None:
        pytest.skip("no user namespaces with tmpfs here")
    assert found.endswith("survived\n")


def test_the_harness_can_tell_wrong_from_right(tmp_path):
    flip = ["flip", "2/state/x", 5]
    assert harness.judge_damage(flip, [1, 1]) is None  # set aside, told, the older one used
    assert harness.judge_damage(flip, [1, 0]) is not None
    assert harness.judge_damage(flip, [2, 0]) is not None
    assert harness.judge_damage(flip, ["wrong values", 1]) is not None
    assert harness.judge_damage(["swap", "1/x", "2/x"], ["refused: both", 2]) is None
    assert harness.upper_bound(0, 300) < 0.01
