"""Discovery, loading and validation of plugins; closes pluggy's silent holes.

pluggy accepts a misspelt hook, ignores an undecorated function, checks no return value, drops the
second of two distributions that claim one entry-point name, and lets one broken plugin abort
discovery for all. Here each of these is an error that names the distribution, and a plugin that fails
to load is listed as unavailable without harming the others.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import sys
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import pluggy

from deepnarrow import hookspecs
from deepnarrow.errors import PluginError, suggest
from deepnarrow.modality import AnyArchitecture, Architecture, BoundArchitecture, Modality, Task
from deepnarrow.ops import ShapeOp, Vocabulary
from deepnarrow.shape import Preset, Shape

if TYPE_CHECKING:
    from deepnarrow.study import Unit

GROUP = "deepnarrow.plugins"
T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Strategy:
    """A way to spend a budget: `propose(base, cost_of, budget) -> shapes walked, the chosen last`."""

    name: str
    propose: Callable[[Shape, Callable[[Shape], float], float], Sequence[Shape]]
    source: str


@dataclasses.dataclass(frozen=True)
class LawForm:
    """A scaling law's form: parameter names and `predict(params, x) -> y` over numpy arrays."""

    name: str
    parameters: tuple[str, ...]
    predict: Callable[..., Any]
    source: str


@dataclasses.dataclass(frozen=True)
class Launcher:
    """Runs units: `run(units, run_unit)` calls `run_unit(unit) -> go on?` wherever it likes."""

    name: str
    run: Callable[[Sequence[Unit], Callable[[Unit], bool]], None]


@dataclasses.dataclass(frozen=True)
class PluginInfo:
    """One discovered plugin. `error` says why it is unavailable, None where it loaded."""

    name: str
    distribution: str
    version: str
    error: str | None = None


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

    def modality(self, name: str) -> Modality:
        """Returns a modality; the error lists what there is and why a plugin is unavailable."""
        return _get("modality", self.modalities, name, self.plugins)

    def architecture(self, name: str) -> AnyArchitecture:
        """Returns an architecture by name."""
        return _get("architecture", self.architectures, name, self.plugins)

    def vocabulary(self, modality: Modality) -> Vocabulary:
        """Returns the names a shape expression may use in `modality`."""
        return Vocabulary(
            owner=modality.name, presets=modality.presets, catalogue=modality.catalogue,
            ops=self.shape_ops, options=frozenset(modality.options.keys()),
            suffix_option=modality.suffix_option,
        )


@functools.cache
def registry() -> Registry:
    """The registry of the installed plugins, loaded once a process."""
    return load_plugins(importlib.metadata.entry_points(group=GROUP))


def load_plugins(
    entry_points: Iterable[importlib.metadata.EntryPoint],
    extra: Sequence[types.ModuleType] = (),
) -> Registry:
    """Loads the core's own plugin, each entry point by itself, and `extra` modules (tests).

    Raises:
      PluginError: two distributions claim one name, a hook is misspelt, or a hook returned something
        that breaks the contract.
    """
    from deepnarrow import builtin

    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    distributions = {"builtin": "deepnarrow"}
    manager.register(builtin, name="builtin")
    infos = [_load(manager, point, distributions) for point in _unique(entry_points)]
    for module in extra:
        name = module.__name__
        distributions[name] = name
        infos.append(_register(manager, module, PluginInfo(name, name, "")))
    return _collect(manager, distributions, tuple(infos))


def _unique(
    entry_points: Iterable[importlib.metadata.EntryPoint],
) -> list[importlib.metadata.EntryPoint]:
    by_name: dict[str, importlib.metadata.EntryPoint] = {}
    for point in sorted(entry_points, key=lambda p: (p.name, _dist(p)[0])):
        if point.name in by_name and by_name[point.name].value != point.value:
            raise PluginError(
                f"plugin {point.name!r}", "two distributions claim this entry-point name",
                got=f"{_dist(by_name[point.name])[0]} and {_dist(point)[0]}",
                hint="uninstall one of them",
            )
        by_name.setdefault(point.name, point)
    return list(by_name.values())


def _dist(point: importlib.metadata.EntryPoint) -> tuple[str, str]:
    dist = point.dist
    return (dist.name, dist.version) if dist else ("unknown distribution", "")


def _load(
    manager: pluggy.PluginManager,
    point: importlib.metadata.EntryPoint,
    distributions: dict[str, str],
) -> PluginInfo:
    name, version = _dist(point)
    info = PluginInfo(point.name, name, version)
    distributions[point.name] = name
    try:
        # A plugin that prints when imported must not spoil `--json` on stdout.
        with contextlib.redirect_stdout(sys.stderr):
            module = point.load()
    except (Exception, SystemExit) as error:  # one broken plugin never harms the others
        return dataclasses.replace(info, error=f"import failed: {type(error).__name__}: {error}")
    return _register(manager, module, info)


def _register(
    manager: pluggy.PluginManager, module: object, info: PluginInfo
) -> PluginInfo:
    if not isinstance(module, types.ModuleType):
        what = f"the entry point is a {type(module).__name__}, not a module"
        return dataclasses.replace(info, error=f"{what}: point it at the module with the hooks")
    try:
        manager.register(module, name=info.name)
        manager.check_pending()
    except (pluggy.PluginValidationError, ValueError) as error:
        if manager.has_plugin(info.name):
            manager.unregister(name=info.name)
        return dataclasses.replace(info, error=f"{error}".replace("\n", " "))
    if not manager.get_hookcallers(module):
        manager.unregister(name=info.name)
        return dataclasses.replace(
            info, error="registers no hooks: are its functions decorated with deepnarrow.hookimpl?")
    return info


def _collect(
    manager: pluggy.PluginManager, distributions: Mapping[str, str], infos: tuple[PluginInfo, ...]
) -> Registry:
    collector = _Collector(manager, distributions)
    modalities = collector.by_name("modalities", Modality, lambda m: m.name)
    for name, modality in modalities.items():
        _check_modality(modality, collector.owners["modalities", name])
    architectures = collector.by_name(
        "architectures", (Architecture, BoundArchitecture), lambda a: a.name)
    return Registry(
        modalities=modalities,
        architectures=architectures,
        tasks=collector.tasks(modalities),
        shape_ops=collector.by_name("shape_ops", ShapeOp, lambda o: o.symbol, in_order=True),
        strategies=collector.by_name("strategies", Strategy, lambda s: s.name),
        law_forms=collector.by_name("law_forms", LawForm, lambda f: f.name),
        launchers=collector.by_name("launchers", Launcher, lambda x: x.name),
        plugins=infos,
        hooks=manager.hook,
        owners=collector.owners,
    )


class _Collector:
    """Calls the registration hooks plugin by plugin, so that every error can name its owner."""

    def __init__(self, manager: pluggy.PluginManager, distributions: Mapping[str, str]):
        self.manager, self.distributions = manager, distributions
        self.owners: dict[tuple[str, str], str] = {}

    def results(self, kind: str) -> list[tuple[str, Any]]:
        """(distribution, returned value) of every implementation, in order of registration."""
        caller = getattr(self.manager.hook, f"deepnarrow_register_{kind}")
        found = []
        for implementation in reversed(caller.get_hookimpls()):
            owner = self.distributions[implementation.plugin_name]
            try:
                with contextlib.redirect_stdout(sys.stderr):
                    found.append((owner, implementation.function()))
            except Exception as error:
                raise PluginError(f"plugin of {owner}", f"deepnarrow_register_{kind} raised "
                                  f"{type(error).__name__}: {error}") from error
        return sorted(found, key=lambda pair: pair[0] != "deepnarrow")

    def by_name(
        self, kind: str, types_: type[T] | tuple[type, ...], name_of: Callable[[T], str],
        in_order: bool = False,
    ) -> dict[str, T]:
        """Validates what the hook returned and keys it by name; a name may be taken once."""
        found: dict[str, T] = {}
        for owner, returned in self.results(kind):
            for item in self._items(kind, owner, returned, types_):
                self._claim(kind, name_of(item), owner)
                found[name_of(item)] = item
        return found if in_order else dict(sorted(found.items()))

    def tasks(self, modalities: Mapping[str, Modality]) -> dict[str, dict[str, Task]]:
        """Tasks by modality and name."""
        found: dict[str, dict[str, Task]] = {}
        for owner, returned in self.results("tasks"):
            if not isinstance(returned, Mapping):
                raise PluginError(f"plugin of {owner}", "deepnarrow_register_tasks returned no mapping",
                                  got=type(returned).__name__, expected="{modality name: [Task, ...]}")
            for name, tasks in returned.items():
                if name not in modalities:
                    raise PluginError(f"plugin of {owner}", "registers tasks for an unknown modality",
                                      got=name, expected=f"one of {', '.join(modalities)}")
                for task in self._items("tasks", owner, tasks, Task):
                    self._claim("tasks", f"{name}/{task.name}", owner)
                    found.setdefault(name, {})[task.name] = task
        return found

    def _items(
        self, kind: str, owner: str, returned: Any, types_: type[T] | tuple[type, ...]
    ) -> list[T]:
        allowed = types_ if isinstance(types_, tuple) else (types_,)
        names = " or ".join(t.__name__ for t in allowed)
        if not isinstance(returned, list):
            raise PluginError(f"plugin of {owner}", f"deepnarrow_register_{kind} returned no list",
                              got=type(returned).__name__, expected=f"a list of {names}")
        for item in returned:
            if not isinstance(item, allowed):
                raise PluginError(f"plugin of {owner}",
                                  f"deepnarrow_register_{kind} returned a wrong type",
                                  got=type(item).__name__, expected=names)
        return returned

    def _claim(self, kind: str, name: str, owner: str) -> None:
        if (kind, name) in self.owners:
            raise PluginError(f"{kind} {name!r}", "registered twice", hint="rename one of them",
                              got=f"by {self.owners[kind, name]} and {owner}")
        self.owners[kind, name] = owner


def _check_modality(modality: Modality, owner: str) -> None:
    """Checks what dataclasses do not: member types and the names the core relies on."""
    from ml_collections import ConfigDict

    where = f"modality {modality.name!r} of {owner}"
    for field in ("options", "data_options"):
        if not isinstance(getattr(modality, field), ConfigDict):
            raise PluginError(where, f"{field} is not a ConfigDict",
                              got=type(getattr(modality, field)).__name__)
    for field in ("stack_specs", "assemble", "count_frame", "upstream", "tasks", "adapt"):
        if not callable(getattr(modality, field)):
            raise PluginError(where, f"{field} is not a function",
                              got=type(getattr(modality, field)).__name__)
    for kind, presets in (("preset", modality.presets), ("catalogue entry", modality.catalogue)):
        for name, preset in presets.items():
            if not isinstance(preset, Preset):
                raise PluginError(where, f"{kind} {name!r} is not a Preset",
                                  got=type(preset).__name__)
            for option in preset.overrides:
                if option not in modality.options:
                    raise PluginError(where, f"{kind} {name!r} overrides an unknown option",
                                      got=option)
    if "tiny" not in modality.presets:
        raise PluginError(where, "has no preset 'tiny'",
                          hint="every check runs on a preset of that name; add one")
    if modality.suffix_option is not None and modality.suffix_option not in modality.options:
        raise PluginError(where, "suffix_option is no option", got=modality.suffix_option)


def _get(kind: str, found: Mapping[str, T], name: str, plugins: Sequence[PluginInfo]) -> T:
    if name in found:
        return found[name]
    for plugin in plugins:
        if plugin.name == name and plugin.error:
            raise PluginError(f"plugin {name!r} of {plugin.distribution}", plugin.error)
    near = suggest(name, found)
    raise PluginError(f"{kind} {name!r}", f"no plugin registers this {kind}",
                      expected=f"one of {', '.join(found)}",
                      hint=f"did you mean {near}?" if near else "deepnarrow list shows what is there")
