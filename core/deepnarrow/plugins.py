"""Discovery, loading and validation of plugins; closes pluggy's silent holes.

pluggy accepts a misspelt hook, ignores an undecorated function, checks no return value, drops the
second of two distributions that claim one entry-point name, and lets one broken plugin abort
discovery for all. Here each of these makes that plugin unavailable, with a reason that names its
distribution; the others work on, and the reason is raised where its modality is asked for.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from deepnarrow import hookspecs
from deepnarrow.containment import contained, patiently
from deepnarrow.contract import (
    Contract,
    check_architecture,
    check_modality,
    check_shape_op,
    check_task,
    checked_name,
)
from deepnarrow.errors import PluginError, shorten, suggest
from deepnarrow.modality import AnyArchitecture, Architecture, BoundArchitecture, Modality, Task
from deepnarrow.ops import ShapeOp, Vocabulary
from deepnarrow.shape import Shape

if TYPE_CHECKING:
    from deepnarrow.launch.session import Session
    from deepnarrow.trials import Unit

GROUP = "deepnarrow.plugins"
CORE = "deepnarrow"  # the distribution whose own names nobody can take away
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Walk:
    """What a strategy walked through.

    Attributes:
      shapes: from the base to the chosen shape, which comes last; none costs more than the budget.
      stopped_because: why it went no further, in words; "" where `next_cost` says it.
      next_cost: what the next shape would have cost, if that is more than the budget.
    """

    shapes: tuple[Shape, ...]
    stopped_because: str
    next_cost: float | None = None


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to spend a budget.

    Attributes:
      name: e.g. `deepnarrow`.
      propose: `propose(base, cost_of, budget) -> Walk`. `cost_of(shape)` is in the budget's unit
        and raises `InputError` for a shape that cannot be; the base costs at most `budget`.
      source: where the rule comes from.
    """

    name: str
    propose: Callable[[Shape, Callable[[Shape], float], float], Walk]
    source: str


@dataclasses.dataclass(frozen=True)
class LawForm:
    """A form of scaling law, fitted by least squares on log y.

    Attributes:
      name: for `deepnarrow fit --form`.
      parameters: their names.
      predict: `predict(params, x) -> y [points]`: `params` are numbers in the order of
        `parameters`, `x` is [points] with one input, [inputs, points] with several; y is positive.
      source: where the form comes from.
      inputs: what it needs: `x`, `n` and `d` are named on the command line; any other is the column
        of that name.
      starts: parameters to start fits from, beside random ones.
    """

    name: str
    parameters: tuple[str, ...]
    predict: Callable[..., Any]
    source: str
    inputs: tuple[str, ...] = ("x",)
    starts: tuple[tuple[float, ...], ...] = ()


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Runs the units of a study: `run(units, session)` sees to it that each has its records."""

    name: str
    run: Callable[[Sequence[Unit], Session], None]


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """One discovered plugin.

    Attributes:
      name: of its entry point.
      distribution: the installed package that it comes from.
      version: of that distribution.
      error: why it is unavailable, None where it loaded.
      module: where its hooks are.
      names: what it registers, or would, by kind: `{"modalities": ("text",), ...}`; tasks are named
        `modality/task`.
      cause: what the plugin raised, with its traceback, for `--debug`.
    """

    name: str
    distribution: str
    version: str
    error: str | None = None
    module: str = ""
    names: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    cause: BaseException | None = dataclasses.field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True)
class Registry:
    """Everything the loaded plugins registered, by name; validated."""

    modalities: Mapping[str, Modality]
    architectures: Mapping[str, AnyArchitecture]
    tasks: Mapping[str, Mapping[str, Task]]
    shape_ops: Mapping[str, ShapeOp]
    strategies: Mapping[str, Strategy]
    law_forms: Mapping[str, LawForm]
    launchers: Mapping[str, Launcher]
    plugins: tuple[PluginInfo, ...]
    hooks: Any  # pluggy's relay, for the observers
    owners: Mapping[tuple[str, str], str]  # (kind, name) -> distribution
    # (plugin, hook) of the observers whose failure `notify` has reported.
    reported: set[tuple[str, str]] = dataclasses.field(
        default_factory=set, init=False, compare=False, repr=False)

    def modality(self, name: str) -> Modality:
        """Returns a modality; the error lists what there is and why a plugin is unavailable."""
        return _get("modality", self.modalities, name, self.plugins)

    def architecture(self, name: str) -> AnyArchitecture:
        """Returns an architecture by name."""
        return _get("architecture", self.architectures, name, self.plugins)

    def strategy(self, name: str) -> Strategy:
        """Returns a scaling strategy by name."""
        return _get("strategy", self.strategies, name, self.plugins)

    def vocabulary(self, modality: Modality) -> Vocabulary:
        """Returns the names a shape expression may use in `modality`."""
        return Vocabulary(
            owner=modality.name, presets=modality.presets, catalogue=modality.catalogue,
            ops=self.shape_ops, options=frozenset(modality.options.keys()),
            suffix_option=modality.suffix_option, open_name=modality.open_name,
        )


def notify(registry: Registry, hook_name: str, **arguments: Any) -> None:
    """Calls an observer hook of every plugin, each by itself: what one does harms nobody else.

    What an observer prints goes to stderr. What it raises ends neither the run nor the others; the
    first time a plugin's hook does so stderr says whose it is. Ctrl-C still gets through.

    Args:
      registry: of the loaded plugins.
      hook_name: `deepnarrow_step_end` or `deepnarrow_run_end`.
      **arguments: all that the hook's specification names.
    """
    for implementation in reversed(getattr(registry.hooks, hook_name).get_hookimpls()):
        values = [arguments[name] for name in implementation.argnames]
        try:
            with contained(f"{hook_name} raised "):
                implementation.function(*values)
        except Exception as error:
            where = (implementation.plugin_name, hook_name)
            if where not in registry.reported:
                registry.reported.add(where)
                _warn(registry, implementation.plugin_name, error)


def _warn(registry: Registry, plugin_name: str, error: Exception) -> None:
    """Says on one line of stderr whose observer failed; a stderr that is gone is no error."""
    info = next(p for p in registry.plugins if p.name == plugin_name and p.error is None)
    text = shorten(f"warning: {_where(info)}: {str(error).removeprefix(': ')}", 500)
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


@functools.cache
def registry() -> Registry:
    """The registry of the installed plugins, loaded once a process."""
    return load_plugins(importlib.metadata.entry_points(group=GROUP))


def load_plugins(
    entry_points: Iterable[importlib.metadata.EntryPoint],
    extra: Sequence[types.ModuleType] = (),
    *,
    strict: bool = False,
) -> Registry:
    """Loads the core's own plugin, each entry point by itself, and `extra` modules (tests).

    Args:
      entry_points: of the group `deepnarrow.plugins`.
      extra: modules with hooks that are not installed.
      strict: raise the first plugin's error instead of listing that plugin as unavailable.

    Raises:
      PluginError: the core's own registrations are broken, or any plugin's where `strict`.
    """
    from deepnarrow import __version__, builtin

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    core = PluginInfo("builtin", CORE, __version__)
    loaded = [_register(manager, builtin, core)]
    points, taken = _split_by_name(entry_points, core)
    loaded += [*taken, *(_load(manager, point) for point in points)]
    loaded += [_register(manager, module, PluginInfo(
        module.__name__, module.__name__, "", module=module.__name__))
               for module in extra]
    plugins = _settle([_collect(manager, p) if p.info.error is None else p for p in loaded])
    for plugin in (p for p in plugins if p.info.error):
        info = plugin.info
        if strict or (info.name, info.distribution) == (core.name, core.distribution):
            raise PluginError(_where(info), str(info.error))
        if plugin.module is not None:  # its observers stay silent too
            manager.unregister(plugin.module)
    return _registry(plugins, manager)


@dataclasses.dataclass(frozen=True)
class _Plugin:
    """A plugin while it is loaded: what it registers, by kind and name, and its module where pluggy
    has it. A refused plugin may share its name, or even its module, with one that is fine."""

    info: PluginInfo
    items: Mapping[tuple[str, str], Any] = dataclasses.field(default_factory=dict)
    module: types.ModuleType | None = None

    def refused(self, error: Exception | str) -> _Plugin:
        """This plugin as unavailable, with the reason on one line."""
        text = " ".join(str(error).removeprefix(": ").split())
        cause = error.__cause__ if isinstance(error, Exception) else None
        return dataclasses.replace(self, info=dataclasses.replace(
            self.info, error=text, cause=cause))


def _where(info: PluginInfo) -> str:
    return f"plugin {info.name!r} of {info.distribution}"


# --- discovery --------------------------------------------------------------------------------
def _split_by_name(
    entry_points: Iterable[importlib.metadata.EntryPoint], core: PluginInfo
) -> tuple[list[importlib.metadata.EntryPoint], list[_Plugin]]:
    """Returns entry points to load, and those whose name several distributions claim; `core` has
    its name without an entry point."""
    claims: dict[str, dict[tuple[str, str], importlib.metadata.EntryPoint]] = {}
    for point in sorted(entry_points, key=lambda p: (p.name, _info(p).distribution, p.value)):
        one = (_info(point).distribution, point.value)  # a path that is searched twice gives two
        claims.setdefault(point.name, {}).setdefault(one, point)
    load, taken = [], []
    for name, points in claims.items():
        infos = {one: _info(point) for one, point in points.items()}
        claimants = [*infos.values(), *([core] if name == core.name else [])]
        owners = " and ".join(sorted(info.distribution for info in claimants))
        for one, info in infos.items():
            if len(claimants) == 1 or _keeps(info, claimants):
                load.append(points[one])
            else:
                taken.append(_Plugin(info).refused(
                    f"two distributions claim the entry-point name {name!r}: {owners}; "
                    "uninstall one of them"))
    return load, taken


def _keeps(info: PluginInfo, claimants: Iterable[PluginInfo]) -> bool:
    """Of several that claim a name the core keeps its own; strangers both lose it, so that it never
    depends on chance whose it is."""
    return info.distribution == CORE and sum(c.distribution == CORE for c in claimants) == 1


def _info(point: importlib.metadata.EntryPoint) -> PluginInfo:
    dist = point.dist
    if dist is None:
        return PluginInfo(point.name, "unknown distribution", "", module=point.value)
    return PluginInfo(point.name, dist.name, dist.version, module=point.value)


def _load(manager: pluggy.PluginManager, point: importlib.metadata.EntryPoint) -> _Plugin:
    plugin = _Plugin(_info(point))
    try:
        with patiently(_where(plugin.info), plugin.info.distribution), contained("import failed: "):
            module = point.load()
    except PluginError as error:
        return plugin.refused(error)
    return _register(manager, module, plugin.info)


def _register(manager: pluggy.PluginManager, module: object, info: PluginInfo) -> _Plugin:
    plugin = _Plugin(info)
    if not isinstance(module, types.ModuleType):
        return plugin.refused(f"the entry point is a {type(module).__name__}, not a module: point "
                              "it at the module with the hooks")
    bare = [name for name, value in vars(module).items() if name.startswith("deepnarrow_")
            and isinstance(value, types.FunctionType)
            and not hasattr(value, f"{hookspecs.PROJECT}_impl")]
    if bare:
        return plugin.refused(f"{bare[0]} is not decorated with deepnarrow.hookimpl")
    wrappers = [name for name, value in vars(module).items() if isinstance(
        value, types.FunctionType) and _is_wrapper(value)]
    if wrappers:
        return plugin.refused(f"{wrappers[0]} is a hook wrapper: no hook here can be wrapped")
    if manager.is_registered(module):
        return plugin.refused(f"its module is already registered, as {manager.get_name(module)!r}")
    try:
        manager.register(module, name=info.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        _forget(manager, module, info.name)
        return plugin.refused(_misspelt(module) or error)
    if not manager.get_hookcallers(module):
        _forget(manager, module, info.name)
        return plugin.refused("registers no hooks: are they decorated with deepnarrow.hookimpl?")
    return dataclasses.replace(plugin, module=module)


def _misspelt(module: types.ModuleType) -> str | None:
    """Says which decorated function of `module` is no hook, and what it may have meant."""
    hooks = [name for name in vars(hookspecs) if name.startswith("deepnarrow_")]
    for name, value in vars(module).items():
        if (isinstance(value, types.FunctionType) and hasattr(value, f"{hookspecs.PROJECT}_impl")
                and name not in hooks):
            near = suggest(name, hooks)
            return f"{shorten(name)} is no hook" + (f": did you mean {near}?" if near else "")
    return None


def _is_wrapper(function: types.FunctionType) -> bool:
    """True where pluggy would run `function` around the other implementations of its hook."""
    options = getattr(function, f"{hookspecs.PROJECT}_impl", None) or {}
    return bool(options.get("wrapper") or options.get("hookwrapper"))


def _forget(manager: pluggy.PluginManager, module: types.ModuleType, name: str) -> None:
    """Unregisters, unless the name is another plugin's that was registered before."""
    if manager.get_plugin(name) is module:
        manager.unregister(name=name)


# --- collecting -------------------------------------------------------------------------------
def _collect(manager: pluggy.PluginManager, plugin: _Plugin) -> _Plugin:
    """Calls one plugin's registration hooks and validates what they return."""
    items: dict[tuple[str, str], Any] = {}
    problem: PluginError | None = None
    for kind, contract in _CONTRACTS.items():
        try:
            with contained(f"deepnarrow_register_{kind}: "):
                for name, item in _returned(manager, plugin, kind, contract):
                    if (kind, name) in items:
                        raise PluginError("", f"registers {contract.noun} {name!r} twice")
                    items[kind, name] = item
        except PluginError as error:
            problem = problem or error
    names = {kind: tuple(n for k, n in items if k == kind) for kind in _CONTRACTS}
    info = dataclasses.replace(plugin.info, names={k: v for k, v in names.items() if v})
    collected = dataclasses.replace(plugin, info=info, items=items)
    return collected.refused(problem) if problem else collected


def _returned(
    manager: pluggy.PluginManager, plugin: _Plugin, kind: str, contract: Contract
) -> Iterator[tuple[str, Any]]:
    """The (name, item) pairs that a plugin's hook of this kind returned, each checked."""
    hook = f"deepnarrow_register_{kind}"
    for implementation in getattr(manager.hook, hook).get_hookimpls():
        if implementation.plugin is not plugin.module:
            continue
        with patiently(_where(plugin.info), plugin.info.distribution), contained(f"{hook} raised "):
            returned = implementation.function()
        if kind != "tasks":
            groups = {"": returned}
        elif isinstance(returned, Mapping):
            groups = {f"{modality}/": tasks for modality, tasks in returned.items()}
        else:
            raise PluginError("", f"{hook} returned no mapping", got=type(returned).__name__,
                              expected="{modality name: [Task, ...]}")
        for prefix, group in groups.items():
            expected = " or ".join(t.__name__ for t in contract.types)
            if not isinstance(group, list):
                raise PluginError("", f"{hook} returned no list", got=type(group).__name__,
                                  expected=f"a list of {expected}")
            for item in group:
                if not isinstance(item, contract.types):
                    raise PluginError("", f"{hook} returned a wrong type",
                                      got=type(item).__name__, expected=expected)
                yield prefix + checked_name(contract, item), item


# --- conflicts between plugins ----------------------------------------------------------------
def _settle(plugins: list[_Plugin]) -> list[_Plugin]:
    """Refuses plugins that claim one name, and those that extend a modality that is not there."""
    while True:
        available = [p for p in plugins if p.info.error is None]
        problems = {**_missing_modalities(available), **_double_claims(available)}
        if not problems:
            return plugins
        plugins = [p.refused(problems[p.info.name])
                   if p.info.error is None and p.info.name in problems else p for p in plugins]


def _double_claims(plugins: Sequence[_Plugin]) -> dict[str, str]:
    claims: dict[tuple[str, str], list[PluginInfo]] = {}
    for plugin in plugins:
        for claim in plugin.items:
            claims.setdefault(claim, []).append(plugin.info)
    problems: dict[str, str] = {}
    for (kind, name), infos in claims.items():
        owners = " and ".join(info.distribution for info in infos)
        for info in infos if len(infos) > 1 else ():
            if not _keeps(info, infos):
                problems.setdefault(info.name, f"{_CONTRACTS[kind].noun} {name!r} is registered "
                                    f"twice, by {owners}; rename one of them")
    return problems


def _missing_modalities(plugins: Sequence[_Plugin]) -> dict[str, str]:
    known = {name for p in plugins for kind, name in p.items if kind == "modalities"}
    problems: dict[str, str] = {}
    for plugin in plugins:
        for (kind, name), item in plugin.items.items():
            modality = name.split("/")[0] if kind == "tasks" else getattr(item, "modality", None)
            if isinstance(modality, str) and modality not in known:
                problems.setdefault(plugin.info.name, f"{_CONTRACTS[kind].noun} {name!r} is for an "
                                    f"unknown modality, {modality!r}")
    return problems


def _registry(plugins: Sequence[_Plugin], manager: pluggy.PluginManager) -> Registry:
    found: dict[str, dict[str, Any]] = {kind: {} for kind in _CONTRACTS}
    owners: dict[tuple[str, str], str] = {}
    for plugin in plugins:
        for (kind, name), item in plugin.items.items() if plugin.info.error is None else ():
            found[kind][name], owners[kind, name] = item, plugin.info.distribution
    tasks: dict[str, dict[str, Task]] = {}
    for name, task in found.pop("tasks").items():
        tasks.setdefault(name.split("/")[0], {})[task.name] = task
    ops = found.pop("shape_ops")  # in the order of registration, which is that of canonical names
    by_name = {kind: dict(sorted(items.items())) for kind, items in found.items()}
    return Registry(**by_name, shape_ops=ops, tasks=tasks, hooks=manager.hook, owners=owners,
                    plugins=tuple(p.info for p in plugins))


def _get(kind: str, found: Mapping[str, T], name: str, plugins: Sequence[PluginInfo]) -> T:
    if name in found:
        return found[name]
    kinds = {"modality": "modalities", "architecture": "architectures", "strategy": "strategies"}
    broken = [p for p in plugins if p.error]
    for plugin in broken:
        if name in (plugin.name, *plugin.names.get(kinds[kind], ())):
            raise PluginError(_where(plugin), f"is unavailable: {plugin.error}") from plugin.cause
    near = suggest(name, found)
    hint = f"did you mean {near}?" if near else "deepnarrow list shows what is there"
    if broken and not near:
        hint += f"; unavailable: {', '.join(p.name for p in broken)}"
    raise PluginError(f"{kind} {shorten(name)!r}", f"no plugin registers this {kind}",
                      expected=f"one of {', '.join(found) or '(none)'}", hint=hint)


# --- the contract, by kind of registration -----------------------------------------------------
_CONTRACTS: Mapping[str, Contract] = {
    "modalities": Contract("modality", (Modality,), (
        "stack_specs", "assemble", "count_frame", "upstream", "tasks", "adapt"), check_modality),
    "architectures": Contract("architecture", (Architecture, BoundArchitecture), (
        "make_stack", "make_model", "count_costs"), check_architecture),
    "tasks": Contract("task", (Task,), ("examples", "score"), check_task),
    "shape_ops": Contract("operator", (ShapeOp,), (), check_shape_op, name_field="symbol"),
    "strategies": Contract("strategy", (Strategy,), ("propose",)),
    "law_forms": Contract("law form", (LawForm,), ("predict",)),
    "launchers": Contract("launcher", (Launcher,), ("run",)),
}
