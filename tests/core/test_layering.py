"""Who may import what, how long things may be, and what no tracked file may hold."""

from __future__ import annotations

import ast
import importlib.metadata
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
CORE = sorted((ROOT / "core").rglob("*.py"))
PLUGINS = sorted((ROOT / "plugins").rglob("*.py"))
PLUGIN_PACKAGES = sorted(path.name for path in (ROOT / "plugins").glob("*/deepnarrow_*"))
ENTRY_POINTS = sorted(
    point.value for point in importlib.metadata.entry_points(group="deepnarrow.plugins")
    if point.value.split(".")[0] in PLUGIN_PACKAGES)
HEAVY = ("jax", "flax", "optax", "grain", "orbax", "tensorflow")
# Analysis, and everything that a command needs before it trains.
WITHOUT_JAX = [
    "deepnarrow", "agreement", "bootstrap", "builtin", "claims", "cli", "cli.analysis",
    "cli.claims", "cli.compare", "cli.fit", "cli.listing", "cli.parser", "cli.probe", "cli.shape",
    "cli.study", "cli.train", "cli.transfer", "cli.weights", "compare", "config", "containment",
    "contract",
    "cost", "dominance", "errors", "export", "foreign", "hardware", "hookspecs", "hosts",
    "hypervolume", "lawfit", "lawforms", "laws", "layers.transformer", "mesh", "modality",
    "operators", "ops", "pareto", "plugins", "pretrained", "protocol", "records", "regions",
    "report", "report.charts", "report.csvfiles", "report.explorer", "report.findings",
    "report.morecharts", "report.page", "report.recordsections", "report.render", "report.results",
    "report.sections", "report.sheets",
    "report.tables", "report.terminal", "report.text", "rundir", "settings", "shape", "store",
    "strategies", "study", "summary", "table", "tablefile", "tensorfiles", "transfer.fewshot",
    "trialkey",
]
MAX_FUNCTION_LINES = 80
MAX_MODULE_LINES = 500


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


def imported(tree: ast.AST) -> set[str]:
    """Every module that is imported anywhere, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def docstrings(tree: ast.AST) -> set[int]:
    """Ids of the nodes that are docstrings."""
    return {
        id(node.body[0].value) for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body and isinstance(node.body[0], ast.Expr)}


def words(tree: ast.AST) -> set[str]:
    """Names, attributes, arguments, keywords and strings of the code, without docstrings."""
    prose, found = docstrings(tree), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
            found.add(node.value)
        for field in ("id", "attr", "arg", "name"):
            value = getattr(node, field, None)
            found |= {value} if isinstance(value, str) else set()
    return found


def test_there_is_something_to_check():
    assert len(CORE) > 20
    assert PLUGIN_PACKAGES == ["deepnarrow_text_t5", "deepnarrow_vision_vit"]
    assert len(ENTRY_POINTS) == 2


@pytest.mark.parametrize("name", names(CORE))
def test_the_core_imports_no_plugin_and_names_no_modality(name):
    tree = ast.parse((ROOT / name).read_text())
    found = {module for module in imported(tree) if module.split(".")[0] in PLUGIN_PACKAGES}
    assert not found
    modalities = {package.removeprefix("deepnarrow_") for package in PLUGIN_PACKAGES}
    named = {word for word in words(tree) for modality in modalities if modality in word}
    assert not named


@pytest.mark.parametrize("name", names(PLUGINS))
def test_a_plugin_imports_no_other_plugin(name):
    own = pathlib.Path(name).parts[2]
    tree = ast.parse((ROOT / name).read_text())
    others = {package for package in PLUGIN_PACKAGES if package != own}
    assert not {module for module in imported(tree) if module.split(".")[0] in others}


@pytest.mark.parametrize("name", names([*CORE, *PLUGINS]))
def test_functions_and_modules_are_short(name):
    text = (ROOT / name).read_text()
    assert len(text.splitlines()) <= MAX_MODULE_LINES
    long = {node.name: node.end_lineno - node.lineno + 1 for node in ast.walk(ast.parse(text))
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            and node.end_lineno is not None
            and node.end_lineno - node.lineno >= MAX_FUNCTION_LINES}
    assert not long


def test_what_must_not_import_jax_does_not():
    """One process a module would take minutes: each is imported after the others, then checked."""
    modules = [f"deepnarrow.{name}" if name != "deepnarrow" else name for name in WITHOUT_JAX]
    code = f"""
import importlib, sys
for module in {[*modules, *ENTRY_POINTS]!r}:
    importlib.import_module(module)
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    if heavy:
        sys.exit(f"{{module}} imports {{heavy}}")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ENTRY_POINTS)
def test_an_entry_point_imports_without_jax(module):
    code = f"import sys, {module}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


def tracked_files() -> list[pathlib.Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_no_tracked_file_names_a_machine():
    """Paths of one machine and addresses of package indexes."""
    pattern = re.compile(rb"(?<![\w.~}])/(?:work|root|home|tmp|Users|opt)/"
                         rb"|--(?:extra-)?index[-]url")
    found = {}
    for path in tracked_files():
        content = path.read_bytes()
        if b"\0" not in content and (match := pattern.search(content)):
            line = content[: match.start()].count(b"\n") + 1
            found[f"{path.relative_to(ROOT)}:{line}"] = match.group().decode()
    assert not found


def test_tracked_files_are_small():
    large = {str(path.relative_to(ROOT)): path.stat().st_size for path in tracked_files()
             if path.stat().st_size > 2_000_000}
    assert not large
