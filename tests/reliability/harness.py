"""What the reliability tests and the scoreboard share: children that are killed, and bounds."""

import contextlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1]


def environment(**more):
    """The environment of children: this checkout's code and the tests' compilation cache."""
    paths = [ROOT / "core", *sorted((ROOT / "plugins").iterdir()), HERE.parent, HERE]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "JAX_PLATFORMS": "cpu", **more}


def upper_bound(failures, n):
    """The one-sided 95% bound on a rate of which `failures` were seen in `n` (Clopper-Pearson).

    >>> round(upper_bound(0, 30), 3), round(upper_bound(0, 300), 4)
    (0.095, 0.0099)
    """
    from scipy.stats import beta

    return 1.0 if failures >= n else float(beta.ppf(0.95, failures + 1, n - failures))


class Zygote:
    """Forks children that run a job; see `zygote.py`. Use as a context."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "zygote.py")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, env=environment(), text=True)
        return self

    def __exit__(self, *exception):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)

    def start(self, job, log, **args):
        """Begins a job and returns its process id; `wait` must follow."""
        self._process.stdin.write(json.dumps({"job": job, "args": args, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())["pid"]

    def wait(self):
        """Returns the exit code of the job under way; negative for a signal."""
        return json.loads(self._process.stdout.readline())["exit"]

    def run(self, job, log, **args):
        """Runs a job to its end; returns its exit code."""
        self.start(job, log, **args)
        return self.wait()

    def run_killed(self, job, log, after, number=signal.SIGKILL, **args):
        """Runs a job and kills it `after` seconds, if it runs still; returns its exit code."""
        pid = self.start(job, log, **args)
        time.sleep(after)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)  # not yet reaped where it has ended: the id is nobody else's
        return self.wait()


def finished(zygote, folder, **args):
    """Runs the toy study unbroken; returns its fingerprint and the seconds it took."""
    start = time.monotonic()
    assert zygote.run("study", folder / "log", workdir=str(folder / "work"), **args) == 0, (
        folder / "log").read_text()[-2000:]
    return fingerprint(zygote, folder), time.monotonic() - start


def fingerprint(zygote, folder):
    """Returns the hash of everything that the study in `folder` left."""
    into = folder / "fingerprint.json"
    code = zygote.run("fingerprint", folder / "log", workdir=str(folder / "work"), into=str(into))
    assert code == 0, (folder / "log").read_text()[-2000:]
    return json.loads(into.read_text())


def kill_until_done(zygote, folder, kills, seconds, seed):
    """Kills the toy study at random moments, `kills` times, then lets it end.

    A study that ends before all kills are used is begun anew in another folder, so every kill hits
    a process at work. Returns the folders of the studies that ended, with the kills each took.
    """
    rng, done, used = random.Random(seed), [], 0
    while used < kills or not done or done[-1][2] is None:
        if not done or done[-1][2] is not None:
            done.append([folder / f"study{len(done)}", 0, None])
            done[-1][0].mkdir(parents=True)
        place = done[-1][0]
        if used < kills:
            code = zygote.run_killed("study", place / "log", rng.uniform(0, seconds),
                                     workdir=str(place / "work"))
        else:
            code = zygote.run("study", place / "log", workdir=str(place / "work"))
        assert code in (0, -signal.SIGKILL), (code, (place / "log").read_text()[-3000:])
        if code == 0:
            done[-1][2] = fingerprint(zygote, place)
        else:
            done[-1][1] += 1
            used += 1
    return done
