"""The ledger: parameters, FLOPs and bytes by component, under a named convention; no JAX.

    costs = count_costs(modality, architecture, shape, options)
    summary = summarize(costs)                       # every matmul
    convert(summary, "kaplan").flops_train_per_example

The literature counts FLOPs in several ways that differ by tens of per cent for small models, so a
number without its convention means nothing. `CONVENTIONS` names them; each is two functions of
`Costs` that return the forward and the training FLOPs of one example by component. In the
papers' conventions training is three times forward: a backward pass multiplies each matrix twice
(Kaplan et al. 2020, section 2.1; Hoffmann et al. 2022, appendix F). `matmul` and `hardware`, which
count what runs, leave out the product that nobody needs where a matmul's input is data
(`FlopTerm.backward`): they come out slightly below three.

A token is a position of a stack, and an example has those of all its stacks: T5's inputs and
targets (encoder and decoder), a ViT's patches and its class token, if any. Padding counts, for it
is computed too.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Literal

from deepnarrow.errors import InputError, ShapeError, suggest
from deepnarrow.modality import Costs, FlopTerm, ParamArray

EMBEDDING_COMPONENTS = frozenset({"embedding", "position"})
TRAIN_PER_FORWARD = 3
FLOAT_BYTES = 4  # of a parameter and of an optimiser's statistic
MAX_PARAMS = 10**13  # 10 trillion: a typing error, not a model
MIN_DIM_TO_FACTOR = 128  # optax's and T5's default: narrower matrices keep a full second moment

ByComponent = dict[str, float]


# --- conventions ---------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Convention:
    """A way to count FLOPs.

    Attributes:
      name: as it is stored with every number.
      forward: forward FLOPs of one example by component.
      train: FLOPs of forward and backward pass, likewise.
      source: where it is defined.
    """

    name: str
    forward: Callable[[Costs], ByComponent]
    train: Callable[[Costs], ByComponent]
    source: str


def matmul_forward(costs: Costs) -> ByComponent:
    """Every matrix multiplication of the forward pass, 2 FLOPs a multiply-add; lookups are free.

    Attention scores count for every pair of positions, masked or not: that is what runs.
    """
    return _sum_terms(costs, lambda term: 0.0 if term.kind == "embedding" else term.forward)


def matmul_train(costs: Costs) -> ByComponent:
    """Forward pass and the matmuls of the backward pass: `1 + FlopTerm.backward` times forward."""
    return _sum_terms(costs, lambda term: 0.0 if term.kind == "embedding"
                      else (1 + term.backward) * term.forward)


def kaplan_forward(costs: Costs) -> ByComponent:
    """2 N + 2 n_layer n_ctx d_attn a token (Kaplan et al. 2020, table 1), N without embeddings.

    N are the weights of linear maps outside embeddings: no biases, norms or position tables.
    The attention term is the scores alone, half of what `matmul` counts for attention.
    A parameter works on its stack's positions, outside the stacks on those of the last one, unless
    it says otherwise (`ParamArray.positions`): a classifier's head works on one, the keys and
    values of cross-attention on those of the encoder.
    """
    flops = _param_flops(costs, embeddings=False)
    for term in costs.flops:
        if term.kind == "attention":
            flops[term.component] += term.forward / 2
    return dict(flops)


def chinchilla_forward(costs: Costs) -> ByComponent:
    """Every matmul, embedding lookups as one-hot matmuls, softmax at 3 FLOPs a score.

    Hoffmann et al. 2022, appendix F. A lookup costs 2 x positions x vocabulary x d_model.
    """
    flops = defaultdict(float, matmul_forward(costs))
    positions = tokens_per_example(costs)
    looked_up = {term.component for term in costs.flops if term.kind == "embedding"}
    for array in costs.arrays:
        if array.component in looked_up and "vocab" in array.axes:
            flops[array.component] += 2.0 * array.size * positions
    for term in costs.flops:
        flops[term.component] += 3.0 * term.scores
    return dict(flops)


def palm_forward(costs: Costs) -> ByComponent:
    """A third of 6 N + 12 L H Q T a token (Chowdhery et al. 2022, appendix B), N with embeddings.

    Positions are those of `kaplan_forward`; attention counts scores and weighted sums for every
    pair of positions.
    """
    flops = _param_flops(costs, embeddings=True)
    for term in costs.flops:
        if term.kind == "attention":
            flops[term.component] += term.forward
    return dict(flops)


def hardware_train(costs: Costs) -> ByComponent:
    """As `matmul_train`, and what rematerialisation runs a second time in every layer.

    `full`: the whole forward pass of the layers once more (Korthikanti et al. 2022, section 4.4,
    "hardware FLOPs"). `dots` keeps the outputs of matmuls with parameters and repeats those of
    attention. XLA may drop a repeated matmul whose output nobody reads: this is the upper bound.
    """
    repeated = {"none": (), "dots": ("attention",), "full": ("weight", "attention")}[costs.remat]
    flops = matmul_train(costs)
    for term in costs.flops:
        if term.kind in repeated and term.component.split("/")[0] in costs.lengths:
            flops[term.component] += term.forward
    return flops


def three_times(forward: Callable[[Costs], ByComponent]) -> Callable[[Costs], ByComponent]:
    """Returns the training FLOPs that belong to `forward` where a backward pass is twice that."""
    return lambda costs: {name: TRAIN_PER_FORWARD * flops for name, flops in forward(costs).items()}


CONVENTIONS: Mapping[str, Convention] = {
    convention.name: convention for convention in (
        Convention("matmul", matmul_forward, matmul_train,
                   "every matrix multiplication, 2 FLOPs a multiply-add; XLA counts dots the same"),
        Convention("kaplan", kaplan_forward, three_times(kaplan_forward),
                   "Kaplan et al., Scaling Laws for Neural Language Models (2020), table 1"),
        Convention("chinchilla", chinchilla_forward, three_times(chinchilla_forward),
                   "Hoffmann et al., Training Compute-Optimal LLMs (2022), appendix F"),
        Convention("palm", palm_forward, three_times(palm_forward),
                   "Chowdhery et al., PaLM (2022), appendix B"),
        Convention("hardware", matmul_forward, hardware_train,
                   "matmul, and what remat repeats: Korthikanti et al., Reducing Activation "
                   "Recomputation (2022), section 4.4; PaLM (2022), appendix B"),
    )
}


def convention_named(name: str) -> Convention:
    """Returns a convention by name.

    Raises:
      InputError: there is none of that name.
    """
    if name in CONVENTIONS:
        return CONVENTIONS[name]
    near = suggest(name, CONVENTIONS)
    raise InputError("FLOP convention", "unknown", got=name,
                     expected=f"one of {', '.join(CONVENTIONS)}",
                     hint=f"did you mean {near}?" if near else None)


# --- summary -------------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class CostSummary:
    """What one model costs. FLOPs are of one example under `convention`; 1 multiply-add is 2 FLOPs.

    Attributes:
      convention: the name of the convention of every FLOP here.
      params_total: all parameters; shared ones once.
      params_embedding: those of the components `embedding` and `position`: what is around the
        stacks. A stack's own positions (T5's relative bias) are not among them.
      params_non_embedding: the others.
      params_active: those that one example uses (all, unless experts are chosen).
      params_by_component: as the name says.
      flops_forward_per_example: of the forward pass.
      flops_train_per_example: of forward and backward pass.
      flops_by_component: forward FLOPs per example.
      flops_train_by_component: training FLOPs per example.
      tokens_per_example: positions of all stacks together (encoder and decoder).
      activation_bytes_per_example: kept for the backward pass, under the model's remat.
      costs: what it was computed from, which `convert` reads.
    """

    convention: str
    params_total: int
    params_embedding: int
    params_non_embedding: int
    params_active: int
    params_by_component: Mapping[str, int]
    flops_forward_per_example: float
    flops_train_per_example: float
    flops_by_component: Mapping[str, float]
    flops_train_by_component: Mapping[str, float]
    tokens_per_example: int
    activation_bytes_per_example: float
    costs: Costs = dataclasses.field(repr=False, compare=False)

    @property
    def flops_forward_per_token(self) -> float:
        """Forward FLOPs divided by the positions of all stacks."""
        return self.flops_forward_per_example / max(1, self.tokens_per_example)

    @property
    def flops_train_per_token(self) -> float:
        """Training FLOPs divided by the positions of all stacks."""
        return self.flops_train_per_example / max(1, self.tokens_per_example)


def summarize(costs: Costs, convention: str = "matmul") -> CostSummary:
    """Adds up `costs` under `convention`.

    Args:
      costs: of a whole model, as `modality.count_costs` returns them.
      convention: a name in `CONVENTIONS`.

    Raises:
      InputError: the convention is unknown.
      ShapeError: the model is absurdly large, each field being legal.
    """
    rule = convention_named(convention)
    forward, train = rule.forward(costs), rule.train(costs)
    params: dict[str, int] = defaultdict(int)
    for array in costs.arrays:
        params[array.component] += array.size
    embedding = sum(size for name, size in params.items() if name in EMBEDDING_COMPONENTS)
    total = sum(params.values())
    if total > MAX_PARAMS:
        raise ShapeError("shape", "too many parameters", got=f"{total:.2g}",
                         expected=f"at most {MAX_PARAMS:.0e}")
    return CostSummary(
        convention=rule.name,
        params_total=total,
        params_embedding=embedding,
        params_non_embedding=total - embedding,
        params_active=round(sum(array.size * array.active for array in costs.arrays)),
        params_by_component=dict(params),
        flops_forward_per_example=sum(forward.values()),
        flops_train_per_example=sum(train.values()),
        flops_by_component=forward,
        flops_train_by_component=train,
        tokens_per_example=tokens_per_example(costs),
        activation_bytes_per_example=sum(_activation_bytes(costs).values()),
        costs=costs,
    )


def convert(summary: CostSummary, to: str) -> CostSummary:
    """Returns the same model's costs under another convention."""
    return summarize(summary.costs, to)


@dataclasses.dataclass(frozen=True)
class LedgerRow:
    """What one component costs; units and convention as in the summary it comes from."""

    component: str
    params: int
    flops_forward_per_example: float
    flops_train_per_example: float
    flops_forward_per_token: float
    flops_train_per_token: float
    activation_bytes_per_example: float
    optimizer_bytes: int


def ledger(
    summary: CostSummary, optimizer: Literal["adafactor", "adamw"] = "adafactor"
) -> tuple[LedgerRow, ...]:
    """Returns a row for each component; every column adds up to the model's total.

    What an architecture keeps without naming a component stands under `other`.
    """
    statistics = optimizer_bytes(summary.costs, optimizer)
    activations = _activation_bytes(summary.costs)
    tokens = max(1, summary.tokens_per_example)
    names = dict.fromkeys([*summary.params_by_component, *summary.flops_by_component, *activations])
    rows: list[LedgerRow] = []
    for name in names:
        forward = summary.flops_by_component.get(name, 0.0)
        train = summary.flops_train_by_component.get(name, 0.0)
        rows.append(LedgerRow(
            name, summary.params_by_component.get(name, 0), forward, train, forward / tokens,
            train / tokens, activations.get(name, 0.0), statistics.get(name, 0)))
    return tuple(rows)


def tokens_per_example(costs: Costs) -> int:
    """Positions of all stacks together (T5: inputs and targets; ViT: patches, class token)."""
    return sum(costs.lengths.values())


def _activation_bytes(costs: Costs) -> ByComponent:
    floats = _sum_terms(costs, lambda term: term.activation_floats)
    if costs.activation_floats:
        floats["other"] = floats.get("other", 0.0) + costs.activation_floats
    return {name: number * costs.float_bytes for name, number in floats.items()}


def _sum_terms(costs: Costs, flops_of: Callable[[FlopTerm], float]) -> ByComponent:
    flops: dict[str, float] = defaultdict(float)
    for term in costs.flops:
        flops[term.component] += flops_of(term)
    return dict(flops)


def _param_flops(costs: Costs, *, embeddings: bool) -> defaultdict[str, float]:
    """2 FLOPs for each active parameter at each position that it works on.

    Without `embeddings` only the weights of linear maps count.
    """
    if not costs.lengths:
        raise InputError("costs", "no stack lengths, which this convention needs",
                         hint="count with modality.count_costs, which fills them in")
    last = list(costs.lengths.values())[-1]
    flops: defaultdict[str, float] = defaultdict(float)
    for array in costs.arrays:
        if embeddings or (array.component not in EMBEDDING_COMPONENTS and array.is_kernel):
            stack = costs.lengths.get(array.component.split("/")[0], last)
            positions = stack if array.positions is None else array.positions
            flops[array.component] += 2.0 * array.size * array.active * positions
    return flops


# --- optimiser -----------------------------------------------------------------------------------
def optimizer_bytes(
    costs: Costs, optimizer: Literal["adafactor", "adamw"]
) -> dict[str, int]:
    """Bytes of the optimiser's statistics by component.

    AdamW keeps two float32 a parameter. Adafactor (without momentum) keeps a row and a column of
    each layer's matrix whose two sides are at least 128, and one float32 a parameter of everything
    else (Shazeer and Stern 2018, section 3; optax's `min_dim_size_to_factor`). Heads and their
    width are one side of a matrix, as in the unscanned model.
    """
    kept: dict[str, int] = defaultdict(int)
    for array in costs.arrays:
        floats = 2 * array.size if optimizer == "adamw" else _adafactor_floats(array)
        kept[array.component] += FLOAT_BYTES * floats
    return dict(kept)


def _adafactor_floats(array: ParamArray) -> int:
    layers, matrix = _matrix(array)
    if len(matrix) < 2 or sorted(matrix)[-2] < MIN_DIM_TO_FACTOR:
        return array.size
    size, (*_, second, first) = math.prod(matrix), sorted(matrix)
    return layers * (size // first + size // second)


def _matrix(array: ParamArray) -> tuple[int, list[int]]:
    """The number of layers and the sides of one layer's array, heads x kv joined."""
    layers = array.shape[0] if array.axes[:1] == ("layers",) else None
    sides: list[int] = []
    for i in range(0 if layers is None else 1, len(array.shape)):
        if i > 0 and array.axes[i - 1:i + 1] == ("heads", "kv"):
            sides[-1] *= array.shape[i]
        else:
            sides.append(array.shape[i])
    return layers or 1, sides
