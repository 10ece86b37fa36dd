"""The ranges of a graph's values on samples, and the nodes that fp16 cannot hold them in."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import Array, Infer, Tensors
from mlflow_e2eai.isolation import isolated
from mlflow_e2eai.runners import onnxruntime_runner

if TYPE_CHECKING:
    import onnx

HEADROOM = 4.0
"""How far above what was seen a value may go before it is out of range: later inputs are not the
samples. A decision of ours: two of fp16's thirty binary orders of magnitude."""

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

_AVERAGES = frozenset({"AveragePool", "GlobalAveragePool", "ReduceMean"})
"""Operators that sum their first input and divide: the sum is `size in / size out` times larger."""

Reason: TypeAlias = Literal["asked for", "overflow", "underflow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A node that stays in fp32, and why.

    Attributes:
        node: Its name, as `graphs.node_names` gives it.
        operator: What it computes.
        reason: ``asked for`` by the caller; ``overflow`` where a number, `HEADROOM` times larger,
            would be beyond fp16's 65504; ``underflow`` where all of a value is below `SMALLEST`.
        value: The input, output or weight that says so; None where the caller asked.
        magnitude: Its largest magnitude, or that of its squares or sum inside the node.
    """

    node: str
    operator: str
    reason: Reason
    value: str | None = None
    magnitude: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """What was seen of a value: largest finite magnitude, and largest number of elements."""

    magnitude: float
    size: int


def guard(model: onnx.ModelProto, samples: Iterable[Tensors]) -> tuple[tuple[Kept, ...], int]:
    """The nodes whose inputs, outputs, weights or sums leave fp16's range on samples.

    Infinities do not count: fp16 has them too. A node with a subgraph is never named, as it cannot
    stay in fp32 by itself; the parity of the result tells whether it should have.

    Args:
        model: A graph in fp32.
        samples: Named arrays of its inputs' dtypes; read once, one at a time.

    Returns:
        The nodes in the graph's order, none without samples; and how many samples there were.

    Raises:
        RunnerError: ONNX Runtime cannot run the graph on a sample.
    """
    seen, count = _ranges(model, samples)
    kept: list[Kept] = []
    if not count:
        return (), 0
    for node, name in zip(model.graph.node, graphs.node_names(model), strict=True):
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            continue
        for value, magnitude in _magnitudes(node, seen):
            if reason := _reason(magnitude):
                operator = graphs.operator_name(node.domain, node.op_type)
                kept.append(
                    Kept(
                        node=name,
                        operator=operator,
                        reason=reason,
                        value=value,
                        magnitude=magnitude,
                    )
                )
                break
    return tuple(kept), count


def _reason(magnitude: float) -> Reason | None:
    if magnitude > LARGEST:
        return "overflow"
    return "underflow" if 0 < magnitude < SMALLEST else None


def _magnitudes(node: onnx.NodeProto, seen: Mapping[str, Range]) -> Iterator[tuple[str, float]]:
    """What a node computes with: its values, and what it has inside."""
    for name in (*node.input, *node.output):
        if name in seen:
            yield name, seen[name].magnitude
    first = seen.get(node.input[0]) if node.input else None
    last = seen.get(node.output[0])
    if first is None or last is None:
        return
    if node.op_type in _SQUARES:
        yield node.input[0], max(first.magnitude, first.magnitude**2)  # small squares are no loss
    if node.op_type in _AVERAGES:
        yield node.output[0], last.magnitude * first.size / max(last.size, 1)


def _ranges(model: onnx.ModelProto, samples: Iterable[Tensors]) -> tuple[dict[str, Range], int]:
    """The range of every floating value and weight of the main graph; how many samples."""
    import onnx

    rest = iter(samples)
    if (sample := next(rest, None)) is None:
        return {}, 0
    count = 0
    found = {
        weight.name: _range_of(onnx.numpy_helper.to_array(weight))
        for weight in model.graph.initializer
        if weight.data_type == onnx.TensorProto.FLOAT
    }
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    # Without a type: ONNX Runtime knows it, also where ONNX's own inference does not.
    exposed.graph.output.extend(
        onnx.ValueInfoProto(name=name)
        for node in model.graph.node
        for name in node.output
        if name and name not in known
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "exposed.onnx")
        path.write_bytes(exposed.SerializeToString())
        with isolated(partial(_ranges_runner, path)) as infer:
            for asked in chain([sample], rest):
                count += 1
                answers = {
                    name: Range(magnitude=float(magnitude), size=int(size))
                    for name, (magnitude, size) in infer(asked).items()
                }
                given = {name: _range_of(a) for name, a in asked.items() if a.dtype == np.float32}
                for name, one in (given | answers).items():
                    found[name] = _joined(found.get(name, one), one)
    return found, count


@contextmanager
def _ranges_runner(path: Path) -> Iterator[Infer]:
    """A graph that answers with the range of each float32 output: what crosses is small."""
    with onnxruntime_runner(path) as infer:

        def ranges(tensors: Tensors) -> Tensors:
            found = {
                name: _range_of(array)
                for name, array in infer(tensors).items()
                if isinstance(array, np.ndarray) and array.dtype == np.float32
            }
            return {name: np.array([one.magnitude, one.size]) for name, one in found.items()}

        yield ranges


def _range_of(array: Array) -> Range:
    magnitudes = np.abs(array, dtype=np.float32)
    largest = float(np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes)))
    return Range(magnitude=largest, size=int(math.prod(array.shape)))


def _joined(one: Range, other: Range) -> Range:
    return Range(magnitude=max(one.magnitude, other.magnitude), size=max(one.size, other.size))
