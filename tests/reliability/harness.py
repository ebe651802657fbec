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


def kill_until_done(zygote, folder, kills, seconds, seed, **args):
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
                                     workdir=str(place / "work"), **args)
        else:
            code = zygote.run("study", place / "log", workdir=str(place / "work"), **args)
        assert code in (0, -signal.SIGKILL), (code, (place / "log").read_text()[-3000:])
        if code == 0:
            done[-1][2] = fingerprint(zygote, place)
        else:
            done[-1][1] += 1
            used += 1
    return done


def damages(folder, flips, seed):
    """Damages for `jobs.damaged`: flips spread over all bytes, at least three a file, and the rest.

    Returns the list; every file is also cut to nothing, to half and by one byte, deleted, made a
    link, and exchanged with its namesake of the other step.
    """
    rng, found = random.Random(seed), []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [str(path.relative_to(folder)) for path in files]
    sizes = [path.stat().st_size for path in files]
    full = [name for name, size in zip(names, sizes, strict=True) if size]
    places = [name for name in full for _ in range(3)]
    places += rng.choices(names, weights=sizes, k=max(0, flips - len(places)))
    for name in places:
        found.append(["flip", name, rng.randrange(8 * sizes[names.index(name)])])
    for name, size in zip(names, sizes, strict=True):
        found += [["truncate", name, at] for at in {0, size // 2, max(size - 1, 0)} if at < size]
        found += [["delete", name, 0], ["link", name, 0]]
        step, _, rest = name.partition("/")
        other = f"{3 - int(step)}/{rest}" if step in ("1", "2") else ""
        if other in names and (folder / name).read_bytes() != (folder / other).read_bytes():
            found.append(["swap", name, other])
    return found


def judge_damage(damage, outcome):
    """Returns what is wrong with what came of a damage; None where it was detected or harmless."""
    (_, name, where), (restored, warnings) = damage, outcome
    touched = {name.partition("/")[0]}
    if damage[0] == "swap":
        touched.add(str(where).partition("/")[0])
    if restored == "wrong values":
        return "wrong values were restored in silence"
    if isinstance(restored, str) and touched != {"1", "2"}:
        return restored  # the other step was whole
    if restored == 1 and not warnings:
        return "the older step was used in silence"
    # The manifest's white space means nothing; all else of a step is in its hashes.
    if restored == 2 and "2" in touched and not name.endswith("manifest.json"):
        return "the damaged step was used"
    return None


def signal_in_phase(zygote, folder, phase, number=signal.SIGTERM):
    """Signals a study in a phase; returns exit code, seconds to the exit, and the steps it lost."""
    folder.mkdir(parents=True, exist_ok=True)
    marker = folder / "marker"
    pid = zygote.start("signalled", folder / "log", workdir=str(folder / "work"), phase=phase,
                       marker=str(marker))
    deadline = time.monotonic() + 120
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    start = time.monotonic()
    os.kill(pid, number)
    marker.with_name("marker.sent").touch()
    return zygote.wait(), time.monotonic() - start


def newest_step(folder):
    """The newest checkpoint of the only run in a study's folder; 0 where there is none."""
    found = [int(p.name) for p in folder.glob("work/runs/*/checkpoints/*") if p.name.isdecimal()]
    return max(found, default=0)


def install_toy(folder):
    """Makes a distribution that registers the toy; children find it with `folder` on their path."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "toy_entry.py").write_text(
        "import toy\nfrom deepnarrow import hookimpl\n\n"
        "@hookimpl\ndef deepnarrow_register_modalities():\n    return [toy.toy_modality()]\n\n"
        "@hookimpl\ndef deepnarrow_register_architectures():\n"
        "    return [toy.toy_architecture()]\n")
    info = folder / "toy_entry-1.0.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy-entry\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[deepnarrow.plugins]\ntoy = toy_entry\n")
    env = environment()
    return {**env, "PYTHONPATH": os.pathsep.join([str(folder), env["PYTHONPATH"]])}


def run_damages(zygote, folder, flips, seed):
    """Damages a checkpoint directory in many ways; returns how many, and what went wrong."""
    source, log = folder / "checkpoints", folder / "log"
    assert zygote.run("save_two", log, folder=str(source)) == 0, log.read_text()[-2000:]
    made = damages(source, flips, seed)
    code = zygote.run("damaged", log, source=str(source), damages=made, folder=str(folder))
    assert code == 0, log.read_text()[-2000:]
    outcomes = json.loads((folder / "outcomes.json").read_text())
    wrong = [[damage, said] for damage, outcome in zip(made, outcomes, strict=True)
             if (said := judge_damage(damage, outcome)) is not None]
    return {"n": len(made), "failures": wrong,
            "fell back": sum(o[0] == 1 for o in outcomes)}


def on_small_disk(folder, size, code):
    """Runs Python code on a tmpfs of `size`, its path the argument; None where none can be."""
    place = folder / "disk"
    place.mkdir()
    mount = f'mount -t tmpfs -o size={size} none "$0" && exec "$1" -c "$2" "$0"'
    done = subprocess.run(["unshare", "-rm", "sh", "-c", mount, str(place), sys.executable, code],
                          capture_output=True, text=True, env=environment(), timeout=300)
    if done.returncode and ("unshare" in done.stderr or "mount" in done.stderr):
        return None
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout
