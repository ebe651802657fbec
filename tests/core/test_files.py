"""Small files are whole or not there; a workdir has one writer."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepnarrow.errors import InputError
from deepnarrow.files import WorkdirLock, is_alive, safe_join, write_bytes, write_json


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1})
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_interrupted_replace_leaves_no_temporary(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes(tmp_path / "a", b"x")
    assert list(tmp_path.iterdir()) == []


def test_second_writer_is_refused_and_names_the_holder(tmp_path):
    with WorkdirLock(tmp_path):
        code = (
            "from pathlib import Path; from deepnarrow.files import WorkdirLock\n"
            f"WorkdirLock(Path({str(tmp_path)!r})).__enter__()"
        )
        second = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert second.returncode == 1
    assert f"is in use by another run (got pid {os.getpid()} on " in second.stderr


def test_a_dead_holder_frees_the_lock(tmp_path):
    code = (
        "import os, signal; from pathlib import Path; from deepnarrow.files import WorkdirLock\n"
        f"WorkdirLock(Path({str(tmp_path)!r})).__enter__(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -9
    with WorkdirLock(tmp_path) as lock:
        assert lock.workdir == tmp_path


def test_a_workdir_that_is_a_file_is_bad_input(tmp_path):
    path = tmp_path / "file"
    path.write_text("")
    with pytest.raises(InputError, match="cannot be written"), WorkdirLock(Path(path)):
        pass


def test_a_process_that_ended_and_was_not_waited_for_is_not_alive():
    assert is_alive(os.getpid())
    child = subprocess.Popen([sys.executable, "-c", "pass"], stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.read()  # ends when the child does
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # ended, and still a zombie
    assert not is_alive(child.pid)
    child.wait()
    child.stdout.close()
    assert not is_alive(child.pid)


@pytest.mark.parametrize("name", ["", "/etc/passwd", "../x", "a/../../x", "a/..", "x\0y"])
def test_names_from_data_do_not_lead_out(tmp_path, name):
    with pytest.raises(InputError, match="plan: names a file outside of its folder"):
        safe_join(tmp_path, name, "plan")


def test_names_from_data_do_not_lead_through_links(tmp_path):
    (tmp_path / "there").symlink_to(tmp_path.parent)
    with pytest.raises(InputError, match="is a link, which is not followed"):
        safe_join(tmp_path, "there/x", "plan")
    assert safe_join(tmp_path, "a/b", "plan") == tmp_path / "a" / "b"
