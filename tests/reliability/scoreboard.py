"""The scoreboard: runs every case of the reliability tests and writes docs/reliability.md.

    python tests/reliability/scoreboard.py                      the numbers of the document; hours
    python tests/reliability/scoreboard.py --kills 30 --flips 24 --only kills,crashes

Rows that are not run keep what an earlier run found (docs/reliability.json), with its commit.
"""

import argparse
import contextlib
import json
import pathlib
import signal
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
import harness
import mutations
from jobs import PHASES

DATA = harness.ROOT / "docs" / "reliability.json"
PAGE = harness.ROOT / "docs" / "reliability.md"
SEED = 8


def filework(what, folder, *numbers):
    """Runs one of the cases of `filework.py`."""
    done = subprocess.run([sys.executable, str(harness.HERE / "filework.py"), what, str(folder),
                           *map(str, numbers)], capture_output=True, text=True, check=True,
                          env=harness.environment())
    return json.loads(done.stdout)


def kills(zygote, folder, options):
    """SIGKILL at random moments of a small study, restarted until done."""
    for name in ("warm", "unbroken"):
        (folder / name).mkdir()
        expected, seconds = harness.finished(zygote, folder / name, transfer=False)
    done = harness.kill_until_done(zygote, folder / "killed", options.kills, seconds, SEED,
                                   transfer=False)
    wrong = [str(place) for place, _, found in done if found != expected]
    return {"n": options.kills, "failures": wrong,
            "note": f"{len(done)} studies ended; states, records and the chain of example ids are "
            "those of an unbroken run"}


def crashes(_, folder, __):
    """A crash at every call of our file layer that changes the disk."""
    return filework("crashes", folder)


def errors(_, folder, __):
    """Every such call failing, once and for ever, with EIO and ENOSPC."""
    return filework("errors", folder)


def damage(zygote, folder, options):
    """Flips, truncations, deletions, links and swaps over all files of a checkpoint directory."""
    found = harness.run_damages(zygote, folder, options.flips, SEED)
    return {**found, "note": f"{options.flips} of them flips; restored from the step before: "
            f"{found['fell back']}"}


def signals(zygote, folder, options):
    """SIGTERM in each phase: compile, train, evaluation, save, few-shot, fine-tune."""
    wrong, seconds = [], []
    for number in range(options.signals):
        for phase in PHASES:
            code, took = harness.signal_in_phase(zygote, folder / f"{phase}{number}", phase,
                                                 signal.SIGTERM)
            seconds.append(took)
            if code != 75:
                wrong.append([phase, code])
    return {"n": len(seconds), "failures": wrong,
            "note": f"exit code 75; median {statistics.median(seconds):.1f} s to the exit, with "
            "what else the machine did"}


def lock(_, folder, options):
    """A second process on a workdir is refused, and a dead holder's lock is free."""
    return filework("lock", folder, options.locks, SEED)


def writers(_, folder, options):
    """2 to 10 writers on one store, all killed at random moments."""
    found = filework("writers", folder, options.rounds, SEED)
    return {**found, "note": f"acknowledged {found['acknowledged']}, lost {found['lost']}, doubled "
            f"{found['doubled']}"}


def hostile(_, folder, __):
    """Hostile files refused, pickle canaries fired, peak memory."""
    done = subprocess.run([sys.executable, str(harness.HERE / "test_hostile.py"), str(folder)],
                          capture_output=True, text=True, check=True, env=harness.environment())
    found = json.loads(done.stdout)
    wrong = [name for name, (said, _, canary) in found.items()
             if canary or not said.startswith("refused: ")]
    peak = max(peak for _, peak, _ in found.values())
    return {"n": len(found), "failures": wrong, "note": f"canaries fired "
            f"{sum(c for _, _, c in found.values())}; peak {peak / 1e6:.0f} MB"}


def mutants(_, folder, options):
    """Planted bugs that the named tests catch; a failure is one that nothing noticed."""
    return mutations.run(folder, options.mutants)


def by_pytest(*arguments):
    """A row that is a run of pytest: each test is one case."""
    def row(_, folder, __):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments,
             f"--junitxml={folder / 'junit.xml'}"], cwd=harness.ROOT, capture_output=True,
            text=True)
        import xml.etree.ElementTree as tree

        (suite,) = tree.parse(folder / "junit.xml").getroot()
        n = int(suite.get("tests")) - int(suite.get("skipped"))
        bad = int(suite.get("failures")) + int(suite.get("errors"))
        return {"n": n, "failures": [done.stdout[-500:]] * bad}

    return row


ROWS = {
    "kills": ("SIGKILL at random moments, restarted until done: bit-identical", kills),
    "crashes": ("crash before every call of the file layer", crashes),
    "errors": ("every such call failing, EIO and ENOSPC, once and for ever", errors),
    "damage": ("damage to checkpoint files: detected or harmless", damage),
    "signals": ("SIGTERM in each phase: saved, exit 75", signals),
    "lock": ("second runner on a workdir refused, dead holder freed", lock),
    "writers": ("writers killed on the store: nothing lost, nothing doubled", writers),
    "disk": ("full disk in each writer: told, old data whole, goes on",
             by_pytest("tests/reliability/test_damage.py", "-k", "full_disk")),
    "hang": ("hung work ended with its stacks; progress, compiling and stops let alone",
             by_pytest("tests/core/test_watchdog.py")),
    "hostile": ("hostile files refused", hostile),
    "plugins": ("broken plugins contained", by_pytest("tests/core/test_plugins.py", "-k",
                                                      "broken_plugin_is_contained")),
    "launchers": ("launchers: orders, budgets, fencing, real processes",
                  by_pytest("tests/reliability/test_launchers.py")),
    "ray": ("Ray: node removed, command killed twice: the grid once",
            by_pytest("tests/reliability/test_ray.py", "-m", "slow")),
    "mutants": ("planted bugs caught by the tests", mutants),
}


def write_page(found):
    """Writes docs/reliability.md from the results."""
    lines = [(harness.HERE / "page_head.md").read_text().rstrip(), "",
             "| what | passed | 95% bound on the failure rate | commit | seconds | remarks |",
             "|---|---|---|---|---|---|"]
    for name, (title, _) in ROWS.items():
        row = found.get(name)
        if row is None:
            lines.append(f"| {title} | not run | | | | |")
            continue
        bad = len(row["failures"])
        bound = harness.upper_bound(bad, row["n"])
        lines.append(f"| {title} | {row['n'] - bad}/{row['n']} | {bound:.1%} | {row['commit']} | "
                     f"{row['seconds']:.0f} | {row.get('note', '')} |")
    PAGE.write_text("\n".join(lines) + "\n")


def main():
    """Runs the rows that are asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default=",".join(ROWS))
    for name, number in (("kills", 300), ("flips", 300), ("signals", 5), ("locks", 50),
                         ("rounds", 40), ("mutants", 15)):
        parser.add_argument(f"--{name}", type=int, default=number)
    options = parser.parse_args()
    found = json.loads(DATA.read_text()) if DATA.exists() else {}
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=harness.ROOT, text=True,
                            capture_output=True).stdout.strip()
    with contextlib.ExitStack() as stack:
        zygote = stack.enter_context(harness.Zygote())
        for name in filter(None, options.only.split(",")):
            start = time.monotonic()
            with tempfile.TemporaryDirectory() as folder:
                row = ROWS[name][1](zygote, pathlib.Path(folder), options)
            found[name] = {**row, "commit": commit, "seconds": time.monotonic() - start}
            print(name, f"{row['n'] - len(row['failures'])}/{row['n']}", row["failures"][:3],
                  flush=True)
            DATA.write_text(json.dumps(found, indent=1) + "\n")
            write_page(found)
    write_page(found)


if __name__ == "__main__":
    main()
