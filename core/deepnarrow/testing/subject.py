"""What a check looks at: a modality with a shape, its data and a model of them, made once."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.assemble import check_bound, check_operators, count_costs, make_model
from deepnarrow.config import resolve_options
from deepnarrow.errors import InputError, NotApplicable, ShapeError
from deepnarrow.modality import (
    EXAMPLE_MASK,
    AnyArchitecture,
    Batch,
    BoundArchitecture,
    Costs,
    Example,
    Modality,
    Model,
    Params,
    Source,
    Task,
    Upstream,
)
from deepnarrow.ops import NamedShape, resolve
from deepnarrow.plugins import Registry, registry

if TYPE_CHECKING:
    from ml_collections import ConfigDict

BATCH_SIZE = 8
# Float32 sums in another order differ by about a millionth; this is far from any wrong formula.
RTOL = 1e-4


class CheckFailed(AssertionError):
    """A promise that a modality does not keep; the message says what its author must change."""


@dataclasses.dataclass(frozen=True, eq=False)
class Subject:
    """A modality under check; everything that costs time is made at its first use, once.

    Attributes:
      modality: whose promises.
      architecture: what fills its stacks, or supplies its model whole.
      registry: for operators and shapes.
      data: changes to the data's defaults, where the defaults need files.
    """

    modality: Modality
    architecture: AnyArchitecture
    registry: Registry
    data: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def data_options(self) -> ConfigDict:
        """The data's options."""
        return resolve_options(self.modality.data_options, self.data, "data")

    @functools.cached_property
    def upstream(self) -> Upstream:
        """What the model is pre-trained on."""
        return self.modality.upstream(self.data_options, self.modality.options)

    @functools.cached_property
    def options(self) -> ConfigDict:
        """The model's options as modality and data decide them, without dropout."""
        named = self.shape("tiny")
        return resolve_options(self.modality.options, {
            **self.modality.check_options, **named.overrides, **self.upstream.options,
            "dropout_rate": 0.0}, "options")

    @functools.cached_property
    def tasks(self) -> Mapping[str, Task]:
        """The modality's own tasks whose data are here."""
        return {name: task for name, task in self._all_tasks.items() if name not in self.left_out}

    @functools.cached_property
    def left_out(self) -> Mapping[str, str]:
        """The tasks that cannot be checked, for their data cannot be opened: name -> reason."""
        found = {}
        for name, task in self._all_tasks.items():
            try:
                task.examples("train")
            except InputError as error:
                found[name] = str(error)
        return found

    @functools.cached_property
    def _all_tasks(self) -> Mapping[str, Task]:
        return self.modality.tasks(self.data_options, self.options)

    @functools.cached_property
    def model(self) -> Model:
        """The model of `tiny`."""
        return self.model_of("tiny")

    @functools.cached_property
    def params(self) -> Params:
        """Its fresh parameters, of key 0."""
        import jax

        return jax.jit(self.model.init)(jax.random.key(0))

    @functools.cached_property
    def batch(self) -> Batch:
        """Examples spread over upstream's training split: of several classes if it is sorted."""
        return make_batch(self.upstream.train, BATCH_SIZE)

    def shape(self, text: str) -> NamedShape:
        """Resolves a shape expression of this modality."""
        return resolve(text, self.registry.vocabulary(self.modality))

    def applies(self, text: str) -> bool:
        """Says whether the architecture has those operators and can build that shape here."""
        try:
            named = self.shape(text)
            check_operators(named, self.architecture)
            make_model(self.modality, self.architecture, named.shape, self.options)
        except (NotApplicable, ShapeError):
            return False
        return True

    def model_of(self, text: str, **options: Any) -> Model:
        """Returns the model of a shape, with options laid over."""
        return make_model(self.modality, self.architecture, self.shape(text).shape,
                          self.with_options(**options))

    def costs_of(self, text: str, **options: Any) -> Costs:
        """Returns the closed form of a shape."""
        return count_costs(self.modality, self.architecture, self.shape(text).shape,
                           self.with_options(**options))

    def with_options(self, **options: Any) -> ConfigDict:
        """The options with some laid over."""
        return resolve_options(self.options, options, "options")


def make_subject(
    modality: str | Modality, architecture: str = "transformer",
    data: Mapping[str, Any] | None = None,
) -> Subject:
    """Returns the subject of a registered modality, or of one that is given.

    Raises:
      InputError: no modality or architecture has that name.
      NotApplicable: the architecture is bound to another modality, or cannot be used here.
    """
    found = registry()
    one = found.modality(modality) if isinstance(modality, str) else modality
    if one.name not in found.modalities:
        found = dataclasses.replace(found, modalities={**found.modalities, one.name: one})
    filling = found.architecture(architecture)
    if isinstance(filling, BoundArchitecture):
        check_bound(one, filling)
    return Subject(one, filling, found, data or {})


def load(source: Source, index: int, seed: int = 0) -> Example:
    """Loads one example with a generator of its own."""
    return source.load(index, np.random.default_rng([seed, index]))


def make_batch(source: Source, size: int, seed: int = 0) -> Batch:
    """Returns examples spread over the source as a batch, some again if there are fewer."""
    examples = [load(source, i, seed) for i in spread(source, size)]
    batch = {name: np.stack([np.asarray(one[name]) for one in examples]) for name in examples[0]}
    return {**batch, EXAMPLE_MASK: np.ones(size, np.float32)}


def spread(source: Source, count: int) -> list[int]:
    """Returns `count` indices over the whole source, the first and the last among them."""
    return np.linspace(0, source.num_examples - 1, count).astype(int).tolist()


def leaves_by_path(tree: Any) -> dict[tuple[str, ...], Any]:
    """Returns the leaves of a nested dict by path."""
    if not isinstance(tree, Mapping):
        return {(): tree}
    return {(name, *path): leaf for name, sub in tree.items()
            for path, leaf in leaves_by_path(sub).items()}


def shapes_of(subject: Subject, text: str) -> Any:
    """Returns the abstract parameters of a shape."""
    import jax

    return jax.eval_shape(subject.model_of(text).init, jax.random.key(0))


def axes_of(subject: Subject, text: str) -> dict[tuple[str, ...], Any]:
    """Returns the axes of a shape's parameters by path."""
    return leaves_by_path(subject.model_of(text).param_axes)


def doubled(subject: Subject, symbol: str, field: str) -> str:
    """Returns `tiny` with an operator that doubles a field."""
    return f"tiny-{symbol}{2 * getattr(subject.shape('tiny').shape, field)}"


def name_of(path: tuple[str, ...]) -> str:
    """Returns a path as people read it."""
    return "/".join(path)


def first_of(paths: Any) -> str:
    """Returns the first of some paths, "" of none."""
    return name_of(min(paths)) if paths else ""


def expect(holds: bool, message: str) -> None:
    """Raises `CheckFailed` with the message unless `holds`."""
    if not holds:
        raise CheckFailed(message)
