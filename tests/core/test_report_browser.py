"""The report of 500 runs in a real browser: opens fast, no console error, every control works.

Drives Chromium over its debugging pipe, with nothing but the standard library. Skipped where no
browser is installed; what can be said without one is in `test_report.py`.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepnarrow.records import CurvePoint, MetricRow, Record
from deepnarrow.report import write_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FOUND = next((path for name in BROWSERS if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(FOUND is None, reason=f"no browser: none of {', '.join(BROWSERS)}")
# The browser reads file 3 and writes file 4.
START = """import fcntl, os, sys
files = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
os.dup2(files[0], 3), os.dup2(files[1], 4)
os.execv(sys.argv[3], sys.argv[3:])"""
HOSTILE = "</script><img src=x onerror=alert(1)>\u202e'\"`${alert(2)}"


class Page:
    """One page of a browser of its own, over Chromium's debugging pipe (NUL between messages)."""

    def __init__(self, folder: Path):
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                   "--disable-extensions", "--remote-debugging-pipe", f"--user-data-dir={folder}",
                   "about:blank"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, str(read), str(write), str(FOUND), *options],
            pass_fds=(read, write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL)
        os.close(read)
        os.close(write)
        self._buffer, self._numbers = b"", itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self._session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def _message(self, deadline: float) -> dict[str, Any]:
        import select

        while b"\0" not in self._buffer:
            ready = select.select([self._read], [], [], max(0, deadline - time.monotonic()))[0]
            part = os.read(self._read, 1 << 20) if ready else b""
            if not part:
                raise TimeoutError("the browser does not answer")
            self._buffer += part
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Sends one command and returns its result; events that come before it are kept."""
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + 60
        while True:
            found = self._message(deadline)
            if found.get("id") == number:
                assert "error" not in found, found
                return found["result"]
            self.events.append(found)

    def wait(self, method: str) -> None:
        """Waits for an event that has not come yet."""
        deadline = time.monotonic() + 60
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._message(deadline))

    def size(self, width: int, height: int = 900, *, phone: bool = False) -> None:
        """Sets the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  deviceScaleFactor=1, mobile=phone)

    def open(self, path: Path) -> float:
        """Opens a file; returns the seconds until its load event, by the page's own clock."""
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait("Page.loadEventFired")
        return self.run("performance.getEntriesByType('navigation')[0].loadEventEnd || "
                        "performance.now()") / 1e3

    def busy(self) -> float:
        """CPU seconds of the page's main thread since it was opened."""
        found = self.call("Performance.getMetrics")["metrics"]
        return next(one["value"] for one in found if one["name"] == "TaskDuration")

    def run(self, source: str) -> Any:
        """Evaluates JavaScript and returns its value."""
        found = self.call("Runtime.evaluate", expression=source, returnByValue=True,
                          awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and everything that was loaded."""
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown" or method == "Page.javascriptDialogOpening":
                found.append(json.dumps(parameters)[:500])
            if method == "Runtime.consoleAPICalled":
                found.append(json.dumps(parameters["args"])[:500])
            if method == "Log.entryAdded":
                found.append(parameters["entry"]["text"])
            if method == "Network.requestWillBeSent" and not parameters["request"][
                    "url"].startswith("file:"):
                found.append(parameters["request"]["url"])
        return found

    def close(self) -> None:
        """Ends the browser."""
        with contextlib.suppress(Exception):
            self.call("Browser.close")
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)


def many_runs(shapes: int = 50, seeds: int = 5) -> list[Record]:
    """500 runs of two modalities: three bases, each with operators, some diverged and failed."""
    rng = np.random.default_rng(7)
    records = []
    for m, modality in enumerate(("text_t5", "vision_vit")):
        for name, base, layers, d_model, d_ff in _shapes(shapes):
            params = layers * (4 * d_model * 64 + 2 * d_model * d_ff)
            level = (3.0 if m == 0 else 0.8) * (params / 1e6) ** -0.07 * (
                1 + 0.03 * math.log(layers / base) ** 2)
            for seed in range(seeds):
                records.append(_record(rng, modality, name, params, layers, d_model, d_ff, seed,
                                       level))
    return records


def _shapes(count: int) -> Iterator[tuple[str, int, int, int, int]]:
    bases = {"micro": (2, 64), "tiny": (4, 128), "mini": (4, 256), "small": (6, 384),
             "base": (12, 512)}
    made = []
    for name, (layers, d_model) in bases.items():
        made.append((name, layers, layers, d_model, 4 * d_model))
        for factor in (2, 3, 4):
            made.append((f"{name}-nl{factor * layers}", layers, factor * layers, d_model,
                         4 * d_model))
        for factor in (2, 4):
            made.append((f"{name}-ff{factor * 4 * d_model}", layers, layers, d_model,
                         factor * 4 * d_model))
        for factor in (0.5, 2):
            made.append((f"{name}-dm{int(factor * d_model)}", layers, layers,
                         int(factor * d_model), 4 * d_model))
        made.append((f"{name}-nl{2 * layers}-dm{d_model // 2}", layers, 2 * layers, d_model // 2,
                     4 * d_model))
        made.append((f"{name}-nl{4 * layers}-dm{d_model // 2}", layers, 4 * layers, d_model // 2,
                     4 * d_model))
    yield from made[:count]


def _record(
    rng: np.random.Generator, modality: str, name: str, params: float, layers: int, d_model: int,
    d_ff: int, seed: int, level: float,
) -> Record:
    final = level * (1 + rng.normal(0, 0.006))
    status = "diverged" if rng.random() < 0.01 else "failed" if rng.random() < 0.01 else "done"
    right = 1 / (1 + math.exp(level - rng.normal(1.5, 0.03)))
    task = "glue" if modality == "text_t5" else "digits"
    metrics = [MetricRow("upstream", "", "loss", "min", final),
               MetricRow("fine_tune", task, "accuracy", "max", right, finetune_seed=0),
               MetricRow("fine_tune", task, "loss", "min", 1.2 - right, finetune_seed=0)]
    if task == "digits":
        metrics += [MetricRow("few_shot", task, "accuracy", "max", value, origin, 10, 0)
                    for origin, value in (("pretrained", right - 0.1), ("untrained", right - 0.3),
                                          ("raw", 0.95))]
    curve = tuple(CurvePoint("upstream", step, "train/loss", final + 2 * math.exp(-step / 100))
                  for step in range(20, 401, 20))
    return Record(
        f"{modality}-{name}-{seed}", "five hundred runs", modality, "transformer", name,
        {"num_encoder_layers": layers, "num_decoder_layers": 0, "d_model": d_model, "d_ff": d_ff,
         "d_kv": 64, "num_heads": 4, "share_heads": False, "share_kv": False}, seed,
        "done" if status == "done" else "diverged" if status == "diverged" else "failed", {},
        {"params_total": params + 800 * d_model, "params_non_embedding": params,
         "flops_forward_per_example": params * 128.0, "flops_train_total": params * 1e7,
         "tokens_seen": 1e6, "step_time_s": 0.002 * layers + params * 2e-9, "peak_bytes": None},
        "matmul", {"device": "cpu", "host": "build", **(
            {"error": "out of memory"} if status == "failed" else {})},
        tuple(metrics) if status == "done" else (), curve if status == "done" else curve[:3])


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    made = Page(tmp_path_factory.mktemp("browser"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return write_report(many_runs(), tmp_path_factory.mktemp("report"), "Five hundred runs")[0]


def test_500_runs_open_within_two_seconds_without_a_complaint(page, report):
    page.size(1400)
    page.call("Performance.enable", timeDomain="threadTicks")
    opened = [(page.open(report), page.busy()) for _ in range(3)]
    page.call("Performance.disable")
    assert min(busy for _, busy in opened) < 1.5  # seconds of CPU, whatever else the machine does
    if os.getloadavg()[0] < (os.cpu_count() or 1):
        assert min(seconds for seconds, _ in opened) < 2
    assert page.run("document.getElementById('explorer').hidden") is False
    assert page.run("document.querySelectorAll('#explorer figure svg').length") == 2
    assert page.run("document.querySelectorAll('#explorer circle.point').length") >= 90
    assert page.complaints() == []


def choose(page, name, value):
    page.run(f"""(() => {{ const e = document.querySelector('#explorer form').elements[{name!r}];
        const o = [...e.options].find(o => o.textContent.includes({value!r}));
        e.value = o.value; e.dispatchEvent(new Event('change')); }})()""")


def toggle(page, selector):
    page.run(f"document.querySelector({selector!r}).click()")


def count(page, selector):
    return page.run(f"document.querySelectorAll({selector!r}).length")


def test_axes_scales_and_filters(page, report):
    page.size(1400)
    page.open(report)
    titles = "[...document.querySelectorAll('#explorer svg text.title')].map(t => t.textContent)"
    assert any("Non-embedding parameters" in title for title in page.run(titles))
    ticks = "[...document.querySelectorAll('#explorer figure svg text')].map(t => t.textContent)"
    points = "[...document.querySelectorAll('#explorer circle.point')]"
    places = f"{points}.map(c => c.getAttribute('cx'))"
    before = page.run(places)
    choose(page, "x", "Step time")
    choose(page, "y", "fine-tuned accuracy")
    shown = page.run(titles)
    assert any("Step time" in title for title in shown)
    assert any("fine-tuned accuracy" in title for title in shown)
    assert any("ms" in tick for tick in page.run(ticks))
    log = page.run(places)
    assert log != before
    toggle(page, "#explorer [name=xLog]")
    assert page.run(places) != log
    high = page.run(f"{points}.map(c => c.getAttribute('cy'))")
    toggle(page, "#explorer [name=yLog]")
    assert page.run(f"{points}.map(c => c.getAttribute('cy'))") != high
    # Upstream against downstream: a quality on both axes, and no front.
    choose(page, "x", "Upstream loss")
    choose(page, "y", "Upstream loss")
    assert count(page, "#explorer circle.point.front") == 0
    both = count(page, "#explorer circle.point")
    choose(page, "y", "digits, fine-tuned accuracy")
    assert "not measured here" in page.run("document.querySelector('.panels').textContent")
    toggle(page, "#explorer .domains input")
    assert count(page, "#explorer figure") == 1
    choose(page, "y", "Upstream loss")
    assert 0 < count(page, "#explorer circle.point") < both
    one = count(page, "#explorer circle.point")
    toggle(page, "#explorer .operators label:nth-of-type(2) input")
    assert 0 < count(page, "#explorer circle.point") < one
    toggle(page, "#explorer .operators button:last-of-type")
    assert count(page, "#explorer circle.point") == 0
    assert "filtered out" in page.run("document.querySelector('#explorer .panels').textContent")
    toggle(page, "#explorer .operators button")
    assert count(page, "#explorer circle.point") == one
    assert page.complaints() == []


def test_raw_inputs_stand_as_a_line_and_what_is_missing_is_named(page, report):
    page.size(1400)
    page.open(report)
    assert count(page, "#explorer path.raw") == 0
    choose(page, "y", "10-shot probe")
    assert count(page, "#explorer path.raw") == 1  # of vision alone: nothing was probed in text
    line, points = page.run("""[
        document.querySelector('#explorer path.raw').getBoundingClientRect().top,
        [...document.querySelectorAll('#explorer circle.point')].map(
            c => c.getBoundingClientRect().top)]""")
    assert points
    assert line < min(points)  # 0.95, above every shape
    captions = page.run("[...document.querySelectorAll('#explorer figcaption')].map("
                        "c => c.textContent)")
    assert any("without digits, 10-shot probe accuracy" in caption for caption in captions)
    assert page.complaints() == []


def test_the_front_drawn_is_the_front_computed(page, report):
    """Filtered to all shapes, filled points are those that Python's front has."""
    page.size(1400)
    page.open(report)
    choose(page, "x", "Non-embedding parameters")
    choose(page, "y", "Upstream loss")
    shown = page.run("document.querySelectorAll('#explorer figure')[0].querySelectorAll("
                     "'circle.point.front').length")
    rows = (report.parent / "fronts.csv").read_text().splitlines()
    header = rows[0].split(",")
    on_front = [row for row in (dict(zip(header, line.split(","), strict=False)) for line in
                                rows[1:]) if (row["modality"], row["quality"], row["cost"],
                                              row["on_front"]) == (
        "text_t5", "upstream/loss", "params_non_embedding", "True")]
    assert shown == len(on_front) > 3


def test_keyboard_hover_and_tap_name_the_shape(page, report):
    page.size(1400)
    page.open(report)
    name = "document.querySelector('#explorer .details h3')?.textContent"
    assert page.run(name) is None
    page.run("document.querySelector('#explorer figure svg').focus()")
    first = page.run(name)
    assert first
    for key in ("ArrowRight", "ArrowRight"):
        page.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        page.call("Input.dispatchKeyEvent", type="keyUp", key=key)
    assert page.run(name) not in (first, None)
    said = page.run("document.querySelector('#explorer .details').textContent")
    for words in ("Non-embedding parameters", "Upstream loss", "5 seeds", "Membership", "seed 0"):
        assert words in said, words
    page.call("Input.dispatchKeyEvent", type="keyDown", key="Home")
    assert page.run(name) == first
    place = page.run("""(() => { const c = document.querySelectorAll('#explorer circle.point')[20];
        c.scrollIntoView({block: 'center'}); const b = c.getBoundingClientRect();
        return [b.x + b.width / 2, b.y + b.height / 2]; })()""")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=place[0], y=place[1])
    hovered = page.run(name)
    assert hovered not in (first, None)
    choose(page, "y", "fine-tuned")
    assert page.run(name) == hovered  # the same shape, by the new axis
    assert "fine-tuned" in page.run("document.querySelector('#explorer .details').textContent")
    choose(page, "y", "Upstream loss")
    # Its trials lead to rows of the page.
    links = page.run("[...document.querySelectorAll('#explorer .details a')]"
                     ".map(a => a.getAttribute('href'))")
    assert len(links) == 6
    assert all(page.run(f"document.querySelector({link!r}) !== null") for link in links)
    assert hovered in page.run(f"document.querySelector({links[-1]!r}).textContent")
    # A phone: a tap names too, and nothing is wider than the window.
    page.size(390, 800, phone=True)
    page.call("Emulation.setTouchEmulationEnabled", enabled=True)
    page.open(report)
    assert page.run("document.documentElement.scrollWidth") <= 390
    place = page.run("""(() => { const c = document.querySelectorAll('#explorer circle.point')[20];
        c.scrollIntoView({block: 'center'}); const b = c.getBoundingClientRect();
        return [b.x + b.width / 2, b.y + b.height / 2]; })()""")
    for kind, points in (("touchStart", [{"x": place[0], "y": place[1]}]), ("touchEnd", [])):
        page.call("Input.dispatchTouchEvent", type=kind, touchPoints=points)
    assert page.run(name)
    page.call("Emulation.setTouchEmulationEnabled", enabled=False)
    assert page.complaints() == []


def test_without_a_script_the_figures_stand(page, report):
    page.size(1400)
    page.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        page.open(report)
        root = page.call("DOM.getDocument")["root"]["nodeId"]
        found = {}
        for selector in ("#explorer[hidden]", "figure svg", "#explorer circle"):
            found[selector] = len(page.call("DOM.querySelectorAll", nodeId=root,
                                            selector=selector)["nodeIds"])
    finally:
        page.call("Emulation.setScriptExecutionDisabled", value=False)
    assert found["#explorer[hidden]"] == 1
    assert found["figure svg"] > 20
    assert found["#explorer circle"] == 0


def test_hostile_names_stay_text(page, tmp_path):
    import dataclasses

    records = [dataclasses.replace(
        record, modality=record.modality + HOSTILE, name=record.name + HOSTILE,
        key=record.key + HOSTILE, study=HOSTILE, metrics=record.metrics[:1], curve=(),
        costs={"params_non_embedding": record.costs["params_non_embedding"]})
        for record in many_runs(6, 2)]
    page.size(1400)
    page.open(write_report(records, tmp_path, HOSTILE)[0])
    page.run("document.querySelector('#explorer figure svg').focus()")
    assert "<img src=x" in page.run("document.querySelector('#explorer .details h3').textContent")
    assert count(page, "img") == 0
    assert count(page, "script") == 2
    assert not re.search("\u202e", page.run("document.body.textContent"))
    assert page.complaints() == []
