"""Planted bugs: each a change of one place in a copy of the tree, and the tests that must notice.

    from mutations import run; run(folder, 15)
"""

import os
import shutil
import subprocess
import sys

import harness

CORE = "core/deepnarrow"
# name -> (file, what stands there, what is planted, pytest arguments)
MUTANTS = {
    "the stream begins anew on resuming": (
        f"{CORE}/train.py", "batch_size=batch_size, start_step=start,",
        "batch_size=batch_size, start_step=0,",
        ["tests/core/test_train.py", "-k", "resumed_run_ends_with_the_same_bits and 5"]),
    "the sums of metrics are not in the checkpoint": (
        f"{CORE}/runlog.py", 'Meter(extra.get("totals"))', "Meter(None)",
        ["tests/core/test_train.py", "-k", "resumed_run_ends_with_the_same_bits"]),
    "Orbax prunes before our manifest": (
        f"{CORE}/checkpoint.py", "max_to_keep=None", "max_to_keep=1",
        ["tests/core/test_checkpoint.py"]),
    "hashes are not compared": (
        f"{CORE}/manifest.py", 'if _hash(path) != files[name]["sha256"]:', "if False:",
        ["tests/core/test_checkpoint.py"]),
    "steps without a manifest are believed": (
        f"{CORE}/checkpoint.py",
        "if not has_manifest(self.directory / str(step)):\n                self",
        "if False:\n                self", ["tests/core/test_checkpoint.py"]),
    "dtypes are not compared": (
        f"{CORE}/checkpoint.py", 'f"{leaf.dtype}{list(leaf.shape)}"', 'f"{list(leaf.shape)}"',
        ["tests/core/test_checkpoint.py"]),
    "files are written in place": (
        f"{CORE}/files.py", "        with open(temporary, \"wb\") as file:\n            _write",
        "        with open(temporary := path, \"wb\") as file:\n            _write",
        ["tests/reliability/test_interruptions.py", "-k", "crash_of_the_file_layer"]),
    "a torn line is not cut": (
        f"{CORE}/stepslog.py", "if dropped := cut_torn_tail(path):", "if dropped := 0:",
        ["tests/core/test_stepslog.py"]),
    "the chain of a step reached before is not compared": (
        f"{CORE}/stepslog.py", "        elif known != self.chain:", "        elif False:",
        ["tests/core/test_stepslog.py"]),
    "late attempts are not fenced off": (
        f"{CORE}/store.py", "if attempt != self._newest_claim(record.key):", "if False:",
        ["tests/reliability/test_launchers.py", "-k", "fenced"]),
    "the lock is shared": (
        f"{CORE}/files.py", "fcntl.LOCK_EX", "fcntl.LOCK_SH", ["tests/core/test_files.py"]),
    "other results of a finished key are taken": (
        f"{CORE}/store.py", "            _refuse_conflict(earlier[0], record)", "            pass",
        ["tests/core/test_records.py", "-k", "other_results or conflict"]),
    "the watchdog counts only compiling": (
        f"{CORE}/watchdog.py", "if self._compiles() else self.hang_after_s", "if True else 0",
        ["tests/core/test_watchdog.py"]),
    "failures have no budget": (
        f"{CORE}/launch/pool.py", "and job.failures <= limits.max_failures", "",
        ["tests/reliability/test_launchers.py", "-k", "budget", "-x"]),
    "names from data may lead out": (
        f"{CORE}/files.py", 'or ".." in parts', "", ["tests/core/test_files.py",
                                                     "tests/text_t5/test_weights.py", "-k",
                                                     "outside or lead_out"]),
    "a page's field is not escaped": (
        f"{CORE}/report/text.py", "html.escape(plain(text, limit), quote=True)",
        "plain(text, limit)", ["tests/core/test_report.py", "-k", "escaped_text"]),
}


def run(folder, number):
    """Plants each bug in turn; returns how many nothing noticed."""
    copy = folder / "tree"
    shutil.copytree(harness.ROOT, copy, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    missed, names = [], list(MUTANTS)[:number]
    for name in names:
        file, old, new, arguments = MUTANTS[name]
        path = copy / file
        text = path.read_text()
        assert text.count(old) == 1, (name, text.count(old))
        assert not _noticed(copy, arguments), f"{name}: its tests fail without it, too"
        path.write_text(text.replace(old, new))
        if not _noticed(copy, arguments):
            missed.append(name)
        path.write_text(text)
    return {"n": len(names), "failures": missed,
            "note": "each by the tests named for it, which pass without it"}


def _noticed(copy, arguments):
    paths = [copy / "core", *sorted((copy / "plugins").iterdir())]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)),
           "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments],
            cwd=copy, env=env, capture_output=True, text=True, timeout=900)
    except subprocess.TimeoutExpired:
        return True  # it waits for ever: nobody overlooks that
    assert done.returncode in (0, 1), done.stdout[-2000:]
    return done.returncode == 1
