"""Reads the text of a compiled program (optimised HLO): its loops, matmuls and collectives.

XLA's own cost analysis counts the body of a loop once; here every instruction counts as often as
the loops around it run. No JAX: the text is all that is needed.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

ITEM_BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4,
    "f32": 4, "s64": 8, "u64": 8, "f64": 8,
}
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) (?:\(|=).*\{$|^(ENTRY )?%?([\w.\-]+) \{$")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_OPCODE = re.compile(r"\s*([a-z][a-z0-9\-]*)\(")
_WINDOWED = re.compile(r"windowed_dot_general_body_(ag|rs)")
_REFERENCE = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition|true_computation|false_computation)="
                     r"%?([\w.\-]+)|\bbranch_computations=\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Array:
    """Type and dimensions of one array."""

    dtype: str
    dims: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Without padding; 0 for tokens and other types that hold no numbers."""
        return math.prod(self.dims) * ITEM_BYTES.get(self.dtype, 0)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = outputs opcode(operands), attributes`."""

    name: str
    opcode: str
    outputs: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    is_root: bool = False

    def attribute(self, name: str) -> str | None:
        """The text of an attribute up to the next one, or None."""
        iota = r"\[[\d,]*\]<=\S*?(?=,?(?:\s|$))"
        found = re.search(rf"\b{name}=(\{{\{{.*?\}}\}}|\{{.*?\}}|{iota}|[^\s,]+)", self.attributes)
        return found.group(1) if found else None


@dataclasses.dataclass(frozen=True)
class Module:
    """A program: computations by name, the entry's name, and how often each runs."""

    computations: Mapping[str, tuple[Instruction, ...]]
    entry: str

    @functools.cached_property
    def runs(self) -> Mapping[str, int]:
        """Runs of each computation that is reached from the entry, loops multiplied out."""
        runs: dict[str, int] = defaultdict(int)
        pending = [(self.entry, 1)]
        while pending:
            name, times = pending.pop()
            runs[name] += times
            for instruction in self.computations[name]:
                trips = self.trips(instruction) if instruction.opcode == "while" else 1
                for called in self._called(instruction):
                    pending.append((called, times * trips))
        return dict(runs)

    def trips(self, loop: Instruction) -> int:
        """How often a loop's body runs: what the compiler says, or limit over step of its counter.

        A loop that counts from 0 compares a counter to a constant and adds a constant to it; 1
        where it is none of these.
        """
        known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
        if known:
            return int(known.group(1))
        condition = self._named(loop.attribute("condition"))
        test = next((one for one in condition.values() if one.opcode == "compare"), None)
        if test is None:
            return 1
        sides = [condition[name] for name in test.operands if name in condition]
        limit = next((number for one in sides if (number := _number(one)) is not None), None)
        counter = next((_index(one) for one in sides if one.opcode == "get-tuple-element"), None)
        if limit is None or counter is None:
            return 1
        return max(1, -(-limit // self._step(loop, counter)))

    def _step(self, loop: Instruction, counter: int) -> int:
        body = self._named(loop.attribute("body"))
        result = next((one for one in body.values() if one.is_root), None)
        if result is None or counter >= len(result.operands):
            return 1
        after = body.get(result.operands[counter])
        numbers = [_number(body[name]) for name in after.operands if name in body] if after else []
        steps = [number for number in numbers if number is not None]
        return steps[0] if after and after.opcode == "add" and len(steps) == 1 else 1

    def _named(self, computation: str | None) -> dict[str, Instruction]:
        found = self.computations.get((computation or "").lstrip("%"), ())
        return {one.name: one for one in found}

    def _called(self, instruction: Instruction) -> Iterator[str]:
        for one, several in _CALLED.findall(instruction.attributes):
            for name in [one] if one else _REFERENCE.findall(several):
                if name in self.computations:
                    yield name

    def walk(self) -> Iterator[tuple[Instruction, int, str]]:
        """Every instruction, how often it runs, and the computation that it stands in."""
        for name, times in self.runs.items():
            for instruction in self.computations[name]:
                yield instruction, times, name


def _number(instruction: Instruction) -> int | None:
    """The value of an integer constant."""
    found = re.match(r"(\d+)\)", instruction.attributes)
    return int(found.group(1)) if found and instruction.opcode == "constant" else None


def _index(instruction: Instruction) -> int:
    return int(instruction.attribute("index") or 0)


def parse_hlo(text: str) -> Module:
    """Reads the text that `compiled.as_text()` gives.

    Raises:
      ValueError: it has no entry computation.
    """
    computations: dict[str, tuple[Instruction, ...]] = {}
    entry, current, lines = None, None, []
    for line in text.splitlines():
        header = None if line.startswith(" ") else _HEADER.match(line)
        if header:
            current, lines = header.group(2) or header.group(4), []
            if line.startswith("ENTRY"):
                entry = current
        elif line.startswith("}") and current is not None:
            computations[current] = tuple(lines)
            current = None
        elif current is not None and " = " in line:
            lines.append(_instruction(line.strip()))
    if entry is None:
        raise ValueError("the program has no entry computation")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    name, _, rest = line.removeprefix("ROOT ").partition(" = ")
    outputs, rest = _split_type(rest)
    opcode = _OPCODE.match(rest)
    if opcode is None:
        raise ValueError(f"not an instruction of HLO: {line[:100]}")
    inside = rest[opcode.end():]
    end = _closing(inside, 1)
    return Instruction(name.lstrip("%"), opcode.group(1), _arrays(outputs),
                       tuple(_REFERENCE.findall(inside[:end])),
                       # A constant's value stands where others have operands.
                       inside if opcode.group(1) == "constant" else inside[end + 1:],
                       line.startswith("ROOT "))


def _split_type(text: str) -> tuple[str, str]:
    """Splits `TYPE opcode(...)`: a tuple's type is in brackets, an array's has no blanks."""
    if text.startswith("("):
        end = _closing(text[1:], 1) + 2
        return text[:end], text[end:]
    kind, _, rest = text.partition(" ")
    return kind, rest


def _closing(text: str, depth: int) -> int:
    """Where the bracket closes that is `depth` levels open."""
    for i, letter in enumerate(text):
        if letter in "({":
            depth += 1
        elif letter in ")}":
            depth -= 1
            if depth == 0:
                return i
    return len(text)


def _arrays(text: str) -> tuple[Array, ...]:
    return tuple(Array(dtype, tuple(int(size) for size in dims.split(",") if size))
                 for dtype, dims in _ARRAY.findall(text))


# --- matmuls --------------------------------------------------------------------------------------
def matmul_flops(module: Module) -> float:
    """FLOPs of all matrix products, 2 a multiply-add, each as often as it runs."""
    return sum(times * instruction_flops(instruction, module.computations[where])
               for instruction, times, where in module.walk())


def instruction_flops(instruction: Instruction, around: Sequence[Instruction]) -> float:
    """FLOPs of one `dot` or `convolution`; 0 of anything else."""
    if instruction.opcode not in ("dot", "convolution"):
        return 0.0
    shapes = {one.name: one.outputs[0].dims for one in around if one.outputs}
    left, right = (shapes[name] for name in instruction.operands[:2])
    output = instruction.outputs[0].dims
    if instruction.opcode == "dot":
        contracted = instruction.attribute("lhs_contracting_dims") or "{}"
        return 2.0 * math.prod(output) * math.prod(
            left[int(i)] for i in re.findall(r"\d+", contracted))
    return _convolution_flops(instruction, left, right, output)


def _convolution_flops(
    instruction: Instruction, left: Sequence[int], right: Sequence[int], output: Sequence[int]
) -> float:
    """As XLA counts: positions where the window meets padding or a hole cost nothing."""
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if labels is None:
        return 0.0
    of_left, of_right, of_output = labels.groups()
    groups = int(instruction.attribute("batch_group_count") or 1)
    window = _window(instruction.attribute("window") or "{}")
    flops = 2.0 * output[of_output.index("b")] * output[of_output.index("f")]
    flops *= right[of_right.index("i")] / groups
    for i, label in enumerate(sorted(set(of_output) & set("0123456789"))):
        side = {name: values[i] for name, values in window.items() if i < len(values)}
        flops *= _meetings(left[of_left.index(label)], right[of_right.index(label)],
                           output[of_output.index(label)], side)
    return flops


def _window(text: str) -> dict[str, list[int]]:
    """`{size=1x6 pad=0_0x5_5 lhs_dilate=1x6}`: numbers by name; of padding the lower one."""
    return {name: [int(part.split("_")[0]) for part in values.split("x")]
            for name, values in re.findall(r"(\w+)=(-?[0-9][0-9_x\-]*)", text)}


def _meetings(size: int, kernel: int, outputs: int, window: Mapping[str, int]) -> int:
    """Pairs of an output and a kernel position along one axis that meet a real input."""
    stride, low = window.get("stride", 1), window.get("pad", 0)
    dilate, spread = window.get("lhs_dilate", 1), window.get("rhs_dilate", 1)
    reach = (size - 1) * dilate
    count = 0
    for offset in range(kernel):
        first = offset * spread - low
        # Outputs o with first + o * stride in 0 ... reach and on no hole of the dilated input.
        for out in range(outputs):
            position = first + out * stride
            count += 0 <= position <= reach and position % dilate == 0
    return count


# --- collectives ----------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class Collective:
    """Collectives of one kind over the same axes of the mesh, of one step.

    Attributes:
      kind: `all-gather`, `all-reduce`, `reduce-scatter`, `all-to-all` or `collective-permute`.
      axes: names of mesh axes joined by `+`; `part of NAME` where a group is smaller than the axis.
      count: how many run in a step, loops multiplied out.
      result_bytes: of what they return on one device, in all; of a reduce-scatter what goes in.
      sent_bytes: what one device sends over its links by ring algorithms.
    """

    kind: str
    axes: str
    count: int
    result_bytes: float
    sent_bytes: float


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
    """Adds up a program's collectives by kind and axes of `mesh` (sizes in the order of devices).

    An asynchronous collective that the compiler spreads over several instructions counts once; a
    gather or scatter that it turns into a loop of products and permutations ("windowed") counts as
    what it does, each permutation by itself.
    """
    found: dict[tuple[str, str], list[float]] = defaultdict(lambda: [0, 0.0, 0.0])
    seen: set[str] = set()
    for instruction, times, where in module.walk():
        kind = instruction.opcode.removesuffix("-start")
        if kind not in COLLECTIVES:
            continue
        channel = instruction.attribute("channel_id")
        if channel is not None and f"{kind} {channel}" in seen:
            continue
        seen.add(f"{kind} {channel}")
        groups = replica_groups(instruction, math.prod(mesh.values()))
        size = max((len(group) for group in groups), default=1)
        if size < 2 and kind != "collective-permute":
            continue
        moved = _payload(instruction)
        if kind == "all-reduce" and where.startswith("all-reduce-scatter"):
            kind = "reduce-scatter"  # the TPU compiler's fusion of a reduction and its slice
        elif kind == "reduce-scatter":
            moved *= size
        sent = ring_bytes(kind, moved, size)
        windowed = _WINDOWED.search(where)
        if windowed and kind == "collective-permute":
            kind = "all-gather" if windowed.group(1) == "ag" else "reduce-scatter"
        axes = group_axes(groups, mesh, pairs=instruction.opcode.startswith("collective-permute"))
        entry = found[kind, axes]
        for i, value in enumerate((1, moved, sent)):
            entry[i] += times * value
    return [Collective(kind, axes, int(count), moved, sent)
            for (kind, axes), (count, moved, sent) in sorted(found.items())]


def ring_bytes(kind: str, payload: float, size: int) -> float:
    """Bytes that each of `size` devices sends for a collective of `payload` bytes.

    A ring all-gather or reduce-scatter passes on (n - 1) / n of the whole array, an all-reduce is
    both (Patarasuk and Yuan 2009); a permutation sends everything once.
    """
    if kind == "collective-permute":
        return payload
    return (2 if kind == "all-reduce" else 1) * payload * (size - 1) / size


def _payload(instruction: Instruction) -> float:
    outputs = instruction.outputs
    if instruction.opcode.endswith("-start") and instruction.opcode != "all-reduce-start":
        # (operand, result, context ...): the result is the larger of the first two.
        return max((array.num_bytes for array in outputs[:2]), default=0)
    return sum(array.num_bytes for array in outputs)


def replica_groups(instruction: Instruction, num_devices: int) -> list[tuple[int, ...]]:
    """The groups of devices that exchange data, of each of the four notations of XLA."""
    text = instruction.attribute("replica_groups")
    pairs = instruction.attribute("source_target_pairs")
    if text is None and pairs is not None:
        return [tuple(map(int, pair)) for pair in re.findall(r"\{(\d+),(\d+)\}", pairs)]
    if text is None or text == "{}":
        return [tuple(range(num_devices))]
    if text.startswith("{"):
        return [tuple(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", text)]
    if text.startswith("mesh"):
        return _mesh_groups(instruction.attributes)
    return _iota_groups(text)


def _iota_groups(text: str) -> list[tuple[int, ...]]:
    """`[groups,size]<=[dims]T(permutation)`: devices counted through `dims`, then transposed."""
    found = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found is None:
        raise ValueError(f"replica_groups in a notation that is not known: {text[:80]}")
    (count, size), dims = (list(map(int, part.split(","))) for part in found.groups()[:2])
    order = list(map(int, found.group(3).split(","))) if found.group(3) else list(range(len(dims)))
    devices = _transposed(dims, order)
    return [tuple(devices[i * size:(i + 1) * size]) for i in range(count)]


def _mesh_groups(attributes: str) -> list[tuple[int, ...]]:
    """`mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'b'}`: devices that differ along `b` only."""
    found = re.search(
        r"replica_groups=mesh\[([^\]]*)\]"
        r"(?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{([^}]*)\}", attributes)
    if found is None:
        raise ValueError(f"replica_groups in a notation that is not known: {attributes[:160]}")
    names, dims = zip(*[(name, int(size)) for name, size in
                        re.findall(r"'([^']+)'=(\d+)", found.group(1))], strict=True)
    wanted = re.findall(r"'([^']+)'", found.group(4))
    moved = [i for i, name in enumerate(names) if name in wanted]
    order = [i for i in range(len(dims)) if i not in moved] + moved
    devices = list(range(math.prod(dims)))
    if found.group(2):
        shape = list(map(int, found.group(2).split(",")))
        permutation = found.group(3) or ",".join(map(str, range(len(shape))))
        devices = _transposed(shape, list(map(int, permutation.split(","))))
    size = math.prod(dims[i] for i in moved)
    places = [devices[i] for i in _transposed(dims, order)]
    return [tuple(places[i:i + size]) for i in range(0, len(places), size)]


def _transposed(dims: Sequence[int], order: Sequence[int]) -> list[int]:
    """The numbers 0, 1, ... laid out in `dims`, read in the order of the transposed axes."""
    strides = [math.prod(dims[i + 1:]) for i in range(len(dims))]
    numbers = [0]
    for axis in order:
        numbers = [n + k * strides[axis] for n in numbers for k in range(dims[axis])]
    return numbers


def group_axes(
    groups: Sequence[Sequence[int]], mesh: Mapping[str, int], *, pairs: bool = False
) -> str:
    """Names the axes of `mesh` along which the devices of a group, or of `pairs`, differ.

    >>> group_axes([(0, 1), (2, 3)], {"fsdp": 2, "tensor": 2})
    'tensor'
    """
    sizes = list(mesh.values())
    strides = [math.prod(sizes[i + 1:]) for i in range(len(sizes))]
    names = []
    for name, size, stride in zip(mesh, sizes, strides, strict=True):
        places = [{device // stride % size for device in group} for group in groups]
        widest = max(map(len, places))
        if widest > 1:
            names.append(name if pairs or widest == size else f"part of {name}")
    return "+".join(names) or "none"
