"""Hostile files: refused in one line, nothing is run, nothing large is allocated.

Each case writes a file that lies, in a child with a bound on its memory, and reads it the way a
command does. A pickle that is read would leave a canary.
"""

import gzip
import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import harness
import numpy as np
import pytest

from deepnarrow.errors import InputError

MEMORY = 700_000_000  # resident, of which the modules themselves take a part
BIG = 10**12


class Canary:
    """What leaves a trace when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def npy(shape, dtype="<f4", payload=b"\0" * 64):
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + payload


def zipped(**members):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "."), data)
    return out.getvalue()


NPZ = "from deepnarrow.transfer.featurefile import load_probe_arrays as f; f(path)"
ARCHIVE = "from deepnarrow.recordfile import read_archive as f; f(path)"
RUN = "from deepnarrow.rundir import read_run as f; import pathlib; f(pathlib.Path(path).parent)"
ORDER = "from deepnarrow.launch.orders import read_order as f; f(path)"
STEPS = "from deepnarrow.stepslog import read_lines as f; import pathlib; f(pathlib.Path(path))"
STATUS = ("from deepnarrow.study import study_status as f; import pathlib; "
          "f(pathlib.Path(path).parent)")
STORE = "from deepnarrow.store import Store as f; f(path, read_only=True).records()"
DEEP = b"[" * 10**6
PICKLED = pickle.dumps


def cases(folder):
    """name -> (file name, content, code that reads `path`)."""
    canary = Canary(folder / "canary")
    objects = io.BytesIO()
    np.save(objects, np.array([canary], object), allow_pickle=True)
    evil = PICKLED(canary)
    plan = [{"key": "../../../etc", "modality": "toy"}]
    return {
        "npz of pickled objects": ("x.npz", zipped(x__npy=objects.getvalue(), y__npy=npy((1,))),
                                   NPZ),
        "npz of 10^12 floats": ("x.npz", zipped(x__npy=npy((BIG, 2)), y__npy=npy((BIG,), "<i8")),
                                NPZ),
        "npz whose shape wraps": ("x.npz", zipped(x__npy=npy((2**40, 2**40)),
                                                  y__npy=npy((2**62, 4), "<i8")), NPZ),
        "npz bomb": ("x.npz", zipped(x__npy=npy((10, 2), payload=b"\0" * 10**8),
                                     y__npy=npy((10,), "<i8")), NPZ),
        "npz that is a pickle": ("x.npz", evil, NPZ),
        "record archive bomb": ("x.jsonl.gz", gzip.compress(b"0" * (2**28 + 10), 9), ARCHIVE),
        "record archive of deep JSON": ("x.jsonl.gz", gzip.compress(DEEP + b"\n"), ARCHIVE),
        "record archive that is a pickle": ("x.jsonl.gz", gzip.compress(evil + b"\n"), ARCHIVE),
        "run.json of deep JSON": ("run.json", DEEP, RUN),
        "run.json of another version": ("run.json", b'{"format": 99}', RUN),
        "run.json that is a pickle": ("run.json", evil, RUN),
        "order of deep JSON": ("order.json", DEEP, ORDER),
        "order that is a pickle": ("order.json", evil, ORDER),
        "steps log of deep JSON": ("steps.jsonl", DEEP + b"\n", STEPS),
        "steps log that is a pickle": ("steps.jsonl", evil + b"\n", STEPS),
        "plan of deep JSON": ("plan.json", DEEP, STATUS),
        "plan whose keys lead out": ("plan.json", json.dumps(plan).encode(), STATUS),
        "plan whose keys are numbers": ("plan.json", b'[{"key": 3, "modality": "toy"}]', STATUS),
        "store that is a pickle": ("records.sqlite", evil, STORE),
        "store of random bytes": ("records.sqlite", b"SQLite format 3\0" + b"\xff" * 4096, STORE),
    }


NAMES = sorted(cases(harness.HERE))


def read_all(folder):
    """Reads each case in a forked child; writes `{name: [what was printed, peak bytes]}`."""
    found = {}
    for name in NAMES:
        place = folder / name.replace(" ", "-")
        place.mkdir()
        file, content, code = cases(place)[name]
        (place / file).write_bytes(content)
        del content
        if not (pid := os.fork()):
            _read(place, file, code)
        _, status, usage = os.wait4(pid, 0)
        said = place / "said"
        found[name] = [said.read_text() if said.exists() else f"exit {status}",
                       usage.ru_maxrss * 1024, (place / "canary").exists()]
    print(json.dumps(found))


def _read(place, file, code):
    text = "not refused"
    try:
        exec(code, {"path": str(place / file)})
    except InputError as error:
        text = f"refused: {error}"
    except BaseException as error:
        text = f"raised {error!r}"[:500]
    (place / "said").write_text(text)
    os._exit(0)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came of every case."""
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path_factory.mktemp("hostile"))],
        capture_output=True, text=True, timeout=400, env=harness.environment())
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_file_is_refused(found, name):
    said, peak, canary = found[name]
    assert said.startswith("refused: "), said
    assert "\n" not in said
    assert not canary
    assert peak < MEMORY


def test_the_canary_sings_when_it_is_unpickled(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary"))).close()
    assert (tmp_path / "canary").exists()


def test_nothing_here_unpickles_or_evaluates():
    """Of all source files: what may run code from data, with the places that may not."""
    allowed = {("config.py", "exec(code, module.__dict__)")}  # the user's own config
    words = ("import pickle", "pickle.load", "allow_pickle=True", "yaml.load", "torch.load",
             "eval(", "exec(", "joblib.load", "marshal.load", "shelve.open", "extractall(")
    found = set()
    for folder in ("core", "plugins"):
        for path in (harness.ROOT / folder).rglob("*.py"):
            for line in path.read_text().splitlines():
                text = line.strip().replace("literal_eval(", "")
                if any(word in text for word in words) and not text.startswith("#"):
                    found.add((path.name, text))
    assert found == allowed


if __name__ == "__main__":
    read_all(pathlib.Path(sys.argv[1]))
