"""The ranges of a graph's values on samples, and the nodes that exceed fp16's range."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import Real
from mlflow_e2eai.artifacts.values import Array, Library, Tensors
from mlflow_e2eai.precision.statistics import (
    STATISTICS,
    Masks,
    computes_in_fp32,
    masks,
    ranges_runner,
)
from mlflow_e2eai.runtime.isolation import isolated

if TYPE_CHECKING:
    import onnx

HEADROOM = 4.0
"""Factor by which later values may exceed the measured ones: later inputs are not the samples. A
decision of ours: two of fp16's thirty binary orders of magnitude."""

LARGEST = float(np.finfo(np.float16).max) / HEADROOM

SMALLEST = 2.0**-25 / 0.01
"""A largest magnitude below this loses more than 1 % in fp16, whose subnormal numbers lie 2^-24
apart."""

_SQUARES = frozenset(
    {
        *("GroupNormalization", "InstanceNormalization", "LayerNormalization"),
        *("LpNormalization", "ReduceL2", "ReduceSumSquare", "RMSNormalization"),
    }
)
"""Operators that square their first input inside."""

_STASHING = frozenset({"LayerNormalization", "RMSNormalization"})
"""Those of them that square in fp32, whatever comes in, unless their `stash_type` says otherwise;
by their definition in ONNX."""

_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
"""Operators that sum their first input and divide: the sum is `size in / size out` times larger."""

Reason: TypeAlias = Literal["asked for", "library", "overflow", "underflow", "rounding", "all zero"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fp32Node:
    """A node that stays in fp32, and the reason.

    Attributes:
        node: Its name, as `graphs.node_names` gives it.
        operator: Its operator.
        reason: ``asked for`` by the caller; ``library`` where a library has its operator, of
            which no fp16 form is known; ``overflow`` where a number, `HEADROOM` times larger,
            would be beyond fp16's 65504; ``underflow`` where all of a value is below `SMALLEST`;
            ``rounding`` where a value loses too much to bf16, see `bf16_losses.guard_losses`;
            ``all zero`` where no range could be found to quantise a value to.
        value: The input, output or weight with that range; None with ``asked for``.
        magnitude: Its largest magnitude, or that of its squares or sum inside the node.
        loss: The share of it that rounding to bf16 takes away, as a root mean square.
    """

    node: str
    operator: str
    reason: Reason
    value: str | None = None
    magnitude: Real | None = None
    loss: Real | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """Range of a value on samples; fields that were not measured hold the worst case.

    Attributes:
        magnitude: Largest finite magnitude.
        size: Largest number of elements.
        highest: Largest finite number.
        least: Smallest magnitude above zero.
        floor: Smallest of the largest numbers of its rows, along a Softmax's axis.
    """

    magnitude: Real
    size: int
    highest: Real = math.inf
    least: Real = 0.0
    floor: Real = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """Result of a guard.

    Attributes:
        kept: The nodes that stay in fp32, in the graph's order; none without samples.
        saturated: Values beyond fp16's range that may stop at its end, as they are masks; see
            `statistics.masks`.
        samples: Number of samples.
    """

    kept: tuple[Fp32Node, ...] = ()
    saturated: tuple[str, ...] = ()
    samples: int = 0


def guard(
    model: onnx.ModelProto, samples: Iterable[Tensors], *, libraries: Sequence[Library] = ()
) -> Guarded:
    """The nodes whose inputs, outputs, weights or sums leave fp16's range on samples.

    Infinities do not count: fp16 has them too. Nor do the large negative numbers that masks have,
    where a Softmax makes the same zeros of fp16's lowest number. Of a node with subgraphs, the
    values that it exchanges with the graph and its weights are seen, those inside are not; the
    parity of the result shows whether it should have stayed in fp32.

    Args:
        model: A graph in fp32.
        samples: Named arrays of its inputs' dtypes; read once, one at a time.
        libraries: Libraries with operators of it.

    Raises:
        RunnerError: ONNX Runtime cannot run the graph on a sample.
    """
    mask = masks(model)
    seen, count = _ranges(model, samples, mask, libraries)
    if not count:
        return Guarded()
    saturated = {name for name in mask.leads if _may_saturate(name, mask, seen)}
    in_fp32: list[Fp32Node] = []
    for node, name in zip(model.graph.node, graphs.node_names(model), strict=True):
        for value, magnitude in _magnitudes(node, seen):
            if value not in saturated and (reason := _reason(magnitude)):
                operator = graphs.operator_name(node.domain, node.op_type)
                in_fp32.append(
                    Fp32Node(
                        node=name,
                        operator=operator,
                        reason=reason,
                        value=value,
                        magnitude=magnitude,
                    )
                )
                break
    return Guarded(kept=tuple(in_fp32), saturated=tuple(sorted(saturated)), samples=count)


def _reason(magnitude: float) -> Reason | None:
    if magnitude > LARGEST:
        return "overflow"
    return "underflow" if 0 < magnitude < SMALLEST else None


def _may_saturate(name: str, mask: Masks, seen: Mapping[str, Range]) -> bool:
    """Whether a value is out of range only where each Softmax after it returns zero.

    Every row of such a Softmax has a number above -LARGEST, and fp16's lowest is -65504: the
    exponential of the difference is zero in fp32 and fp16 alike. A product that saturates must do
    so by at least half of it.
    """
    one = seen.get(name)
    if one is None or one.magnitude <= LARGEST or one.highest > LARGEST:
        return False
    return all(seen[row].floor >= -LARGEST for row in mask.leads[name]) and all(
        seen[product].least >= one.magnitude / 2 for product in mask.products.get(name, ())
    )


def _magnitudes(node: onnx.NodeProto, seen: Mapping[str, Range]) -> Iterator[tuple[str, float]]:
    """Magnitudes that a node computes with: of its inputs, outputs and constants."""
    for name in (*graphs.reads(node), *node.output):
        if name in seen:
            yield name, seen[name].magnitude
    for inner in graphs.subgraphs(node):
        own = _weight_ranges(inner)
        for each in inner.node:
            yield from _magnitudes(each, own)
    first = seen.get(node.input[0]) if node.input else None
    last = seen.get(node.output[0])
    if first is None or last is None:
        return
    if node.op_type in _SQUARES and not _squares_in_fp32(node):
        yield node.input[0], max(first.magnitude, first.magnitude**2)  # small squares are no loss
    if node.op_type in _AVERAGES:
        yield node.output[0], last.magnitude * first.size / max(last.size, 1)


def _squares_in_fp32(node: onnx.NodeProto) -> bool:
    stash = next((one.i for one in node.attribute if one.name == "stash_type"), 1)
    return node.op_type in _STASHING and stash == 1  # TensorProto.FLOAT


def _ranges(
    model: onnx.ModelProto, samples: Iterable[Tensors], mask: Masks, libraries: Sequence[Library]
) -> tuple[dict[str, Range], int]:
    """The range of every floating value and weight of the main graph, and the number of samples."""
    import onnx

    rest = iter(samples)
    if (sample := next(rest, None)) is None or not computes_in_fp32(model):
        return {}, 0
    count = 0
    ranges = _weight_ranges(model.graph)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plain.onnx")
        own = onnx.ModelProto()
        own.CopyFrom(model)  # writing moves large weights out of the model
        graphs.write(own, path)
        del own
        with isolated(partial(ranges_runner, path, mask, libraries)) as infer:
            for inputs in chain([sample], rest):
                count += 1
                outputs = {
                    name: Range(**dict(zip(STATISTICS, row.tolist(), strict=True)))
                    for name, row in infer(inputs).items()
                }
                given = {name: _range_of(a) for name, a in inputs.items() if a.dtype == np.float32}
                for name, one in (given | outputs).items():
                    ranges[name] = _union(ranges.get(name, one), one)
    return ranges, count


def _weight_ranges(graph: onnx.GraphProto) -> dict[str, Range]:
    import onnx

    return {
        weight.name: _range_of(
            weights.values(weight)
            if weights.is_reference(weight)
            else onnx.numpy_helper.to_array(weight)
        )
        for weight in graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT
    }


def _range_of(array: Array) -> Range:
    magnitudes = np.abs(array, dtype=np.float32)
    finite = np.isfinite(magnitudes)
    return Range(
        magnitude=float(np.max(magnitudes, initial=0.0, where=finite)),
        size=int(math.prod(array.shape)),
        highest=float(np.max(array, initial=-np.inf, where=finite)),
    )


def _union(one: Range, other: Range) -> Range:
    return Range(
        magnitude=max(one.magnitude, other.magnitude),
        size=max(one.size, other.size),
        highest=max(one.highest, other.highest),
        least=min(one.least, other.least),
        floor=min(one.floor, other.floor),
    )
