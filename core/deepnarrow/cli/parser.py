"""Arguments of every command; strict: no abbreviations, no flag twice, errors as everywhere."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from deepnarrow.cli.output import write_text
from deepnarrow.errors import InputError, shorten, suggest

PROG = "deepnarrow"
EPILOG = """exit codes: 0 done, 1 a bug, 2 bad input, 3 diverged (train), 4 a check failed, 70 hung,
75 stopped on request (run it again)
deepnarrow COMMAND --help shows a command's arguments"""
LIST_KINDS = (
    "modalities", "architectures", "ops", "tasks", "strategies", "forms", "launchers",
    "conventions", "chips", "plugins",
)
Command = Callable[[argparse.Namespace], Any]


class Parser(argparse.ArgumentParser):
    """Raises `InputError` where argparse would print its usage."""

    def __init__(self, prog: str, description: str, **settings: Any):
        super().__init__(prog=prog, description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **settings)

    def print_help(self, file: Any = None) -> None:
        """Prints to stdout, whose reader may have gone away."""
        del file
        write_text(self.format_help())

    def error(self, message: str) -> NoReturn:
        raise InputError(self.prog, message, hint=f"{self.prog} --help")


class Once(argparse.Action):
    """Stores a flag's value; a second value is an error, never last-wins."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:
        given = namespace.__dict__.setdefault("given", set())
        if self.dest in given:
            raise InputError(f"{parser.prog} {option_string}", "is given twice",
                             got=None if values is True else values, hint="keep one of them")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class OnceFlag(Once):
    """Switches a flag without a value on, once."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any):
        super().__init__(option_strings, dest, nargs=0, default=False, **settings)

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any,
        option_string: str | None = None,
    ) -> None:
        del values
        super().__call__(parser, namespace, True, option_string)


def parse(arguments: Sequence[str]) -> tuple[Command, argparse.Namespace]:
    """Returns the command's function (imported now) and its arguments.

    Raises:
      InputError: no such command, flag or argument; something is missing or given twice.
      SystemExit: `--help` or `--version` has printed.
    """
    if not arguments or arguments[0] in ("-h", "--help", "--version"):
        _top_level(arguments)
    name, *rest = arguments
    if name not in COMMANDS:
        near = suggest(name, COMMANDS)
        what = "unknown flag before the command" if name.startswith("-") else "unknown command"
        raise InputError(PROG, what, got=repr(shorten(name)),
                         expected=f"one of {', '.join(COMMANDS)}",
                         hint=f"did you mean {near}?" if near else None)
    summary, target, add_arguments = COMMANDS[name]
    parser = Parser(f"{PROG} {name}", summary)
    add_arguments(parser)
    parser.add_argument("--json", action=OnceFlag, help="print one JSON document")
    parser.add_argument("--debug", action=OnceFlag, help="show tracebacks of input errors")
    options, extras = parser.parse_known_intermixed_args(rest)
    if extras:
        raise _unknown_argument(parser, extras[0])
    module, _, function = target.partition(":")
    return getattr(importlib.import_module(module), function), options


def _top_level(arguments: Sequence[str]) -> NoReturn:
    from deepnarrow import __version__

    if arguments[:1] == ["--version"]:
        write_text(f"{PROG} {__version__}\n")
        raise SystemExit(0)
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:{width}}  {COMMANDS[name][0]}" for name in COMMANDS)
    write_text(f"usage: {PROG} COMMAND ...\n\nWhich shape should my Transformer have, and does the "
               f"answer hold in another domain?\n\ncommands:\n{lines}\n\n{EPILOG}\n")
    raise SystemExit(0)


def _unknown_argument(parser: argparse.ArgumentParser, argument: str) -> InputError:
    flag = argument.partition("=")[0]
    if not flag.startswith("-"):
        return InputError(parser.prog, "unexpected argument", got=repr(shorten(argument)),
                          hint=f"{parser.prog} --help")
    known = [f for action in parser._actions for f in action.option_strings]
    near = next((f for f in known if f.startswith(flag)), None) or suggest(flag, known)
    return InputError(parser.prog, "unknown flag", got=repr(shorten(flag)),
                      expected=f"one of {', '.join(f for f in known if f.startswith('--'))}",
                      hint=f"did you mean {near}?" if near else None)


# --- numbers ------------------------------------------------------------------------------------
def integer(flag: str, text: str, low: int, high: int) -> int:
    """Reads an integer in plain digits.

    Raises:
      InputError: it is none, or out of range.
    """
    if not re.fullmatch(r"-?[0-9]{1,18}", text) or not low <= int(text) <= high:
        raise InputError(flag, "is not an integer in range", got=repr(shorten(text)),
                         expected=f"{low}..{high}")
    return int(text)


def integers(flag: str, text: str, low: int, high: int) -> tuple[int, ...]:
    """Reads integers with commas between them, each once.

    >>> integers("--shots", "1,5,10", 1, 100)
    (1, 5, 10)
    """
    values = tuple(integer(flag, part, low, high) for part in text.split(","))
    if len(set(values)) < len(values):
        raise InputError(flag, "has a value twice", got=text, hint="keep one of them")
    return values


def number(flag: str, text: str, hint: str | None = None) -> float:
    """Reads a finite number greater than 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise InputError(flag, "is not a positive number", got=repr(shorten(text)),
                         expected="> 0, e.g. 1024 or 1e3", hint=hint)
    return value


# --- commands -----------------------------------------------------------------------------------
def _list(parser: Parser) -> None:
    parser.add_argument("kind", metavar="KIND", nargs="?", help=f"one of {', '.join(LIST_KINDS)}; "
                        "an overview if left out")


def _set(parser: Parser, metavar: str, help_: str) -> None:
    parser.add_argument("--set", dest="settings", metavar=metavar, action="append", default=[],
                        help=help_)


def _shape(parser: Parser) -> None:
    from deepnarrow.cost import CONVENTIONS
    from deepnarrow.hardware import CHIPS
    from deepnarrow.strategies import BUDGET_KINDS

    parser.add_argument("modality", metavar="MODALITY", help="deepnarrow list modalities")
    parser.add_argument("expressions", metavar="EXPR", nargs="*", default=[],
                        help="e.g. base-nl16-ff2k; none with --strategy")
    _set(parser, "OPTION=VALUE", "a model option; several may be given")
    parser.add_argument("--convention", action=Once, default="matmul",
                        help=f"how FLOPs are counted: {', '.join(CONVENTIONS)} (default: matmul)")
    parser.add_argument("--architecture", action=Once, default="transformer",
                        help="what fills the stacks (default: transformer)")
    parser.add_argument("--ledger", action=OnceFlag, help="costs by component")
    parser.add_argument("--optimizer", action=Once, help="whose statistics the ledger and time "
                        "budgets count: adafactor or adamw (default: adafactor)")
    parser.add_argument("--strategy", metavar="NAME", action=Once, help="walk from a shape as far "
                        "as a budget goes: deepnarrow list strategies")
    parser.add_argument("--from", dest="base", metavar="EXPR", action=Once,
                        help="where a strategy starts")
    parser.add_argument("--budget", metavar="KIND:AMOUNT[,AMOUNT...]", action=Once,
                        help=f"KIND: {', '.join(BUDGET_KINDS)}; AMOUNT: a number, or a shape for "
                        "what that costs; several make a ladder")
    parser.add_argument("--chip", metavar="NAME", action=Once, help="estimate the time of a "
                        f"training step on one chip: {', '.join(CHIPS)}")
    parser.add_argument("--batch-size", metavar="N", action=Once,
                        help="of that step (default: 128)")


def _processes(parser: Parser) -> None:
    parser.add_argument("--coordinator", metavar="HOST:PORT", action=Once, help="where several "
                        "processes train together: the address of process 0 (default: "
                        "$JAX_COORDINATOR_ADDRESS), or auto on TPU pods, SLURM, Open MPI and "
                        "Kubernetes")
    parser.add_argument("--num-processes", metavar="N", action=Once,
                        help="how many there are (default: $JAX_NUM_PROCESSES)")
    parser.add_argument("--process-id", metavar="I", action=Once,
                        help="this one's number, 0 to N-1 (default: $JAX_PROCESS_ID)")


def _plan(parser: Parser) -> None:
    parser.add_argument("target", metavar="CONFIG|MODALITY",
                        help="a study's config (a Python file, which is run), or what the shapes "
                        "are of: deepnarrow list modalities")
    parser.add_argument("expressions", metavar="EXPR", nargs="*", default=[],
                        help="shapes, e.g. base-nl16-ff2k; none with a config")
    parser.add_argument("--chips", metavar="SLICE", action=Once, required=True,
                        help="a slice of TPUs: v3:4x4, v4:2x2x4, v5e:4x4, v5p:4x4x4, v6e:4x4, ...")
    _set(parser, "KEY=VALUE", "a model option, or what changes the config; several may be given")
    parser.add_argument("--batch-size", metavar="N", action=Once,
                        help="examples a step, over all chips (default: 128)")
    parser.add_argument("--steps", metavar="N", action=Once,
                        help="updates in all, for chip-hours; a config says it itself")
    parser.add_argument("--mesh", metavar="AXIS=N,...", action=Once,
                        help="only this mesh, e.g. data=2,fsdp=8")
    parser.add_argument("--remat", metavar="NAME", action=Once,
                        help="only this one: none, dots or full")
    parser.add_argument("--micro-batches", metavar="N", action=Once, help="only so many")
    parser.add_argument("--price-per-chip-hour", metavar="MONEY", action=Once,
                        help="what a chip costs an hour, in any currency")
    parser.add_argument("--compile", action=OnceFlag,
                        help="compile the train step for that slice (no TPU needed; extra [tpu])")


def _study(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a Python file with get_config(); it is "
                        "run")
    parser.add_argument("--workdir", metavar="DIR", action=Once, help="where everything goes; a "
                        "study that is there goes on")
    _set(parser, "KEY=VALUE", "changes the config, e.g. run.log_every=5; several may be given")
    parser.add_argument("--launcher", action=Once, default="inline",
                        help="what runs the trials: inline, in this process (default); local, a "
                        "process each; ray; slurm; or a plugin's")
    parser.add_argument("--dry-run", action=OnceFlag,
                        help="show cells, costs, time and disk; train nothing")
    _processes(parser)


def _train(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a Python file with get_config(), of one "
                        "modality, shape, architecture and seed; it is run")
    parser.add_argument("--workdir", metavar="DIR", action=Once, required=True,
                        help="where everything goes; a run that is there goes on")
    _set(parser, "KEY=VALUE", "changes the config; modalities.NAME=None leaves a modality out")
    parser.add_argument("--profile", action=OnceFlag, help="trace ten steps for Perfetto (the same "
                        "as --set run.profile=True) and show what the time went to")
    _processes(parser)


def _prepare(parser: Parser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="a Python file with get_config(); it is "
                        "run")
    parser.add_argument("--out", metavar="DIR", action=Once, help="a new folder; one that was "
                        "begun goes on")
    parser.add_argument("--modality", metavar="NAME", action=Once,
                        help="whose data, where several have data to prepare")
    _set(parser, "KEY=VALUE", "changes the config; several may be given")


def _status(parser: Parser) -> None:
    parser.add_argument("workdir", metavar="WORKDIR", help="of a study")


def _probe(parser: Parser) -> None:
    for split in ("train", "test"):
        parser.add_argument(f"--{split}", metavar="FILE.npz", action=Once, required=True,
                            help="arrays x [n, d] and y [n]")
    parser.add_argument("--shots", metavar="K,K,...", action=Once, default="1,5,10",
                        help="examples a class (default: 1,5,10)")
    parser.add_argument("--seeds", metavar="N", action=Once, default="3",
                        help="draws of the shots, seeds 0 ... N-1 (default: 3)")
    parser.add_argument("--l2", metavar="VALUE|auto", action=Once, default="1024",
                        help="strength of the ridge: a number (default: 1024, as big_vision's), or "
                        "auto: chosen from the shots, so that it suits every width of features")


def _tables(parser: Parser) -> None:
    parser.add_argument("sources", metavar="SOURCE", nargs="+", help="workdir of a study, its "
                        "archive NAME.jsonl.gz, or a CSV or Parquet file; rows that share `name` "
                        "are seeds of one shape")


def _pareto(parser: Parser) -> None:
    _tables(parser)
    parser.add_argument("--cost", metavar="NAME[:min]", action="append", default=[],
                        help="a cost column; several may be given (default: "
                        "params_non_embedding, flops_forward_per_example, step_time_s)")
    parser.add_argument("--quality", metavar="NAME[:min|max]", action="append", default=[],
                        help="a quality, e.g. upstream/loss; several may be given (default: all)")
    parser.add_argument("--chip", metavar="NAME", action=Once, help="also by a step's time as a "
                        "roofline predicts it on one v5e, h100, ... (of studies only)")
    parser.add_argument("--joint", action="store_true",
                        help="one front over all costs and qualities together")
    parser.add_argument("--claims", action="store_true", help="what the fronts say: matches, "
                        "savings at equal quality, gains of operators, where depth stops paying")
    parser.add_argument("--margin", metavar="VALUE", action=Once, default="0.01",
                        help="of --claims: what counts as equal quality (default: 0.01)")


def _fit(parser: Parser) -> None:
    _tables(parser)
    parser.add_argument("--form", metavar="NAME", action=Once, required=True,
                        help="power, power_floor, chinchilla, shape: deepnarrow list forms")
    parser.add_argument("--y", metavar="NAME[:min|max]", action=Once, required=True,
                        help="the column to predict, e.g. upstream/loss")
    parser.add_argument("--x", metavar="NAME", action=Once, help="column, e.g. flops")
    parser.add_argument("--n", metavar="NAME", action=Once,
                        help="column of parameters (chinchilla)")
    parser.add_argument("--d", metavar="NAME", action=Once, help="column of tokens (chinchilla)")
    parser.add_argument("--bootstrap", metavar="N", action=Once, default="1000",
                        help="resamples for the intervals (default: 1000)")
    parser.add_argument("--domain", metavar="NAME", action=Once,
                        help="which, where the sources have several")
    _by(parser)


def _by(parser: Parser) -> None:
    parser.add_argument("--by", metavar="COLUMN", action=Once, help="column of a file that says "
                        "the domain (default: domain, else modality)")


def _compare(parser: Parser) -> None:
    _tables(parser)
    _by(parser)
    parser.add_argument("--cost", metavar="NAME", action=Once, help="column at which shapes are "
                        "compared (default: params_non_embedding, with params_total beside)")
    parser.add_argument("--quality", metavar="[DOMAIN=]NAME[:min|max]", action="append", default=[],
                        help="column, for all domains or one (default: upstream/loss)")
    parser.add_argument("--margin", metavar="VALUE", action=Once, default="0.01",
                        help="what counts as equal, in units of the quality; set it beforehand "
                        "(default: 0.01)")
    parser.add_argument("--saving", metavar="SHARE", action=Once, default="0.2",
                        help="of the cost that a deep-narrow shape must save; set it beforehand "
                        "(default: 0.2)")
    parser.add_argument("--reference", metavar="PATTERN[,...]", action=Once,
                        help="shapes of the reference family (default: those without operators)")
    parser.add_argument("--deep", metavar="PATTERN[,...]", action=Once,
                        help="deep-narrow shapes (default: by depth / width)")


def _report(parser: Parser) -> None:
    _tables(parser)
    parser.add_argument("--out", metavar="PATH", action=Once, required=True,
                        help="the page, if it ends in .html, else a folder for report.html; its "
                             "figures (PNG, SVG) and tables (CSV) go beside the page")
    parser.add_argument("--cost", metavar="NAME[:min]", action="append", default=[],
                        help="a cost column of a file; several may be given")
    parser.add_argument("--quality", metavar="NAME[:min|max]", action="append", default=[],
                        help="a quality column of a file; several may be given")
    parser.add_argument("--reference", metavar="PATTERN[,...]", action=Once,
                        help="shapes of the reference family, for claims and comparisons "
                        "(default: those without operators)")
    _by(parser)


def _new_plugin(parser: Parser) -> None:
    parser.add_argument("name", metavar="NAME", help="of the modality")
    parser.add_argument("--out", metavar="DIR", action=Once,
                        help="a new folder (default: deepnarrow-NAME here)")


def _check(parser: Parser) -> None:
    parser.add_argument("modality", metavar="MODALITY", help="deepnarrow list modalities")
    parser.add_argument("--architecture", metavar="NAME", action=Once, default="transformer",
                        help="what fills its stacks (default: transformer)")
    parser.add_argument("--only", metavar="CHECK[,...]", action=Once,
                        help="run these checks and no others (default: all)")
    _set(parser, "OPTION=VALUE", "a data option, e.g. where its files are; several may be given")


def _merge(parser: Parser) -> None:
    parser.add_argument("sources", metavar="RECORDS", nargs="+", help="workdir of a study, its "
                        "records.sqlite, or an archive NAME.jsonl.gz")
    parser.add_argument("--workdir", metavar="DIR", action=Once, help="gets them: a study there "
                        "goes on from what has finished elsewhere")
    parser.add_argument("--out", metavar="FILE", action=Once, help="writes them all to an archive, "
                        "NAME.jsonl.gz, instead")


def _import(parser: Parser) -> None:
    parser.add_argument("modality", metavar="MODALITY", help="deepnarrow list modalities")
    parser.add_argument("format", metavar="FORMAT", help="the modality's checkpoint formats are in "
                        "deepnarrow list modalities")
    parser.add_argument("source", metavar="SRC", help="the foreign file or folder")
    parser.add_argument("run_dir", metavar="RUN_DIR", help="what is made; it must not exist")
    _set(parser, "OPTION=VALUE", "a model option that the checkpoint leaves open")


def _export(parser: Parser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="made by import, or a study's "
                        "WORKDIR/runs/KEY")
    parser.add_argument("format", metavar="FORMAT", help="one of the modality's checkpoint formats")
    parser.add_argument("target", metavar="DST", help="what is made; it must not exist")


def _transfer(parser: Parser) -> None:
    parser.add_argument("run_dir", metavar="RUN_DIR", help="made by import, or a study's "
                        "WORKDIR/runs/KEY")
    parser.add_argument("--tasks", metavar="NAME,NAME,...", action=Once,
                        help="deepnarrow list tasks; each in the stages that it serves")
    parser.add_argument("--config", metavar="CONFIG", action=Once, help="a study's config, whose "
                        "transfer stages and data are used; it is run (default: 1, 5, 10 shots; "
                        "fine-tuning as T5's, 20,000 examples)")
    _set(parser, "KEY=VALUE", "changes them, e.g. protocol.fine_tune.examples=5000 or "
         "data.source=NAME; several may be given")
    parser.add_argument("--workdir", metavar="DIR", action=Once, help="keeps the record; what has "
                        "been run there is not run again (default: nothing is kept)")


COMMANDS: dict[str, tuple[str, str, Callable[[Parser], None]]] = {
    "list": ("what is installed", "deepnarrow.cli.listing:run", _list),
    "shape": ("what shapes cost", "deepnarrow.cli.shape:run", _shape),
    "plan": ("will it fit on those TPUs, and how fast", "deepnarrow.cli.plan:run", _plan),
    "study": ("run a scaling study, or go on with one", "deepnarrow.cli.study:run", _study),
    "train": ("do one training run, or go on with it", "deepnarrow.cli.train:run", _train),
    "prepare": ("make a config's data ready, once", "deepnarrow.cli.prepare:run", _prepare),
    "status": ("how far a study is", "deepnarrow.cli.study:status", _status),
    "probe": ("few-shot probe of given features", "deepnarrow.cli.probe:run", _probe),
    "transfer": ("few-shot probe and fine-tuning of one trained model",
                 "deepnarrow.cli.transfer:run", _transfer),
    "import": ("make a run directory of a foreign checkpoint", "deepnarrow.cli.weights:import_",
               _import),
    "export": ("write a run's weights in a foreign layout", "deepnarrow.cli.weights:export",
               _export),
    "pareto": ("which shapes are worth their cost", "deepnarrow.cli.analysis:pareto", _pareto),
    "fit": ("scaling laws, with intervals or a refusal", "deepnarrow.cli.fit:run", _fit),
    "compare": ("does it hold in another domain?", "deepnarrow.cli.compare:run", _compare),
    "new-plugin": ("write a distribution that registers a modality",
                   "deepnarrow.cli.newplugin:run", _new_plugin),
    "check": ("does a modality keep its promises?", "deepnarrow.cli.check:run", _check),
    "merge": ("join records of studies that ran apart", "deepnarrow.cli.merge:run", _merge),
    "report": ("pictures and tables of studies, files", "deepnarrow.cli.analysis:report", _report),
}
