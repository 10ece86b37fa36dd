"""Error of each node that reads bf16, and the nodes with too large an error.

bf16 has the range of fp32 with 8 bits of precision. So ranges are not measured here: every node is
run together with a twin that reads the same values rounded, and the two are compared.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Infer, Library, Tensors
from mlflow_e2eai.parity.tolerances import NOISE_TO_SIGNAL
from mlflow_e2eai.precision.ranges import Fp32Node, Guarded
from mlflow_e2eai.precision.statistics import floating_values, write
from mlflow_e2eai.runtime.isolation import isolated
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx

LARGEST_LOSS = NOISE_TO_SIGNAL["bf16"] / 2
"""Root mean square of a node's error, as a share of its output. A decision of ours: no node alone
may use up half of the tolerance of the whole graph. Rounding a sum's terms loses 0.17 %."""

_LIMIT, _ZERO = "loss_limit", "loss_zero"
"""Constants of the graph with twins: from the one on, a number's square may be infinite; masks are
often that large."""

_EXACT = frozenset(
    {
        *("Abs", "Clip", "Concat", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Max"),
        *("MaxPool", "Min", "Neg", "Pad", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Tile"),
        *("Transpose", "Unsqueeze", "Where"),
    }
)
"""Operators that copy numbers: their outputs are as exact as their inputs."""


def guard_losses(
    model: onnx.ModelProto, samples: Iterable[Tensors], *, libraries: Sequence[Library] = ()
) -> Guarded:
    """The nodes that lose more than `LARGEST_LOSS` to bf16 on samples, and those that feed them.

    A node in fp32 does not become exact where its inputs were rounded before: so the nodes that
    write its inputs stay in fp32 too.

    Args:
        model: A graph in fp32.
        samples: Named arrays of its inputs' dtypes; read once, one at a time.
        libraries: Libraries with operators of it.

    Raises:
        RunnerError: ONNX Runtime cannot run the graph on a sample.
    """
    totals: dict[str, tuple[float, float]] = {}
    count = 0
    rest = iter(samples)
    if (first := next(rest, None)) is None:
        return Guarded()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "plain.onnx")
        own = type(model)()
        own.CopyFrom(model)  # writing moves large weights out of the model
        graphs.write(own, path)
        del own
        with isolated(partial(losses_runner, path, libraries)) as infer:
            for sample in chain([first], rest):
                totals = _accumulate(totals, infer(sample))
                count += 1
    shares = {
        name: float(np.sqrt(noise / signal)) if signal else 0.0
        for name, (noise, signal) in totals.items()
    }
    return Guarded(kept=_fp32_nodes(model, shares), samples=count)


def _accumulate(
    totals: Mapping[str, tuple[float, float]], outputs: Tensors
) -> dict[str, tuple[float, float]]:
    sums = {}
    for name, (noise, signal) in outputs.items():
        before = totals.get(name, (0.0, 0.0))
        sums[name] = (before[0] + float(noise), before[1] + float(signal))
    return sums


def _fp32_nodes(model: onnx.ModelProto, shares: Mapping[str, float]) -> tuple[Fp32Node, ...]:
    """The nodes that lose too much, with those that write their inputs, in graph order."""
    names = graphs.node_names(model)
    makers = {
        node_of: (node, name)
        for node, name in zip(model.graph.node, names, strict=True)
        for node_of in node.output
    }
    reasons: dict[str, tuple[str, float]] = {}

    def keep(node: onnx.NodeProto, name: str, value: str, loss: float) -> None:
        if name in reasons or _has_graph(node):
            return
        reasons[name] = (value, loss)

    def feed(node: onnx.NodeProto, value: str, loss: float) -> None:
        for read in node.input:
            if read in makers:
                maker, its_name = makers[read]
                keep(maker, its_name, value, loss)
                if maker.op_type in _EXACT:
                    feed(maker, value, loss)

    for node, name in zip(model.graph.node, names, strict=True):
        lost = [(value, shares[value]) for value in node.output if value in shares]
        value, loss = max(lost, key=lambda one: one[1], default=("", 0.0))
        if loss > LARGEST_LOSS:
            keep(node, name, value, loss)
            feed(node, value, loss)
    return tuple(
        Fp32Node(
            node=name,
            operator=graphs.operator_name(node.domain, node.op_type),
            reason="rounding",
            value=reasons[name][0],
            loss=reasons[name][1],
        )
        for node, name in zip(model.graph.node, names, strict=True)
        if name in reasons and node.op_type != "Constant"
    )


@contextmanager
def losses_runner(path: Path, libraries: Sequence[Library] = ()) -> Iterator[Infer]:
    """Run a graph whose nodes each have a twin that reads values rounded to bf16.

    Args:
        path: The graph, in a folder where another can be written.
        libraries: Libraries with operators of the graph.

    Yields:
        A callable from the graph's inputs to, by floating value that a node writes, the sum of the
        squares of its error, and of the value itself, where that is below 1e15.

    Raises:
        RunnerError: ONNX Runtime cannot load the graph.
    """
    import onnx

    model = graphs.read(path)
    floats = set(floating_values(model, path.with_name("exposed.onnx"), libraries))
    computed = set(floats)
    for constant, number in ((_LIMIT, 1e15), (_ZERO, 0.0)):
        tensor = onnx.numpy_helper.from_array(np.array(number, np.float32), constant)
        model.graph.initializer.append(tensor)
    wide = onnx.TensorProto.FLOAT
    floats |= {w.name for w in model.graph.initializer if w.data_type == wide}
    floats |= {v.name for v in model.graph.input if v.type.tensor_type.elem_type == wide}
    for node in [*model.graph.node]:
        if not _has_graph(node) and floats & {*node.input} and computed & {*node.output}:
            _add_twin(model.graph, node, floats)
    there = {out for node in model.graph.node for out in node.output}
    outputs = sorted(value for value in computed if f"{value}_noise" in there)
    del model.graph.output[:]
    for value in outputs:
        for kind in ("noise", "signal"):
            model.graph.output.append(
                onnx.helper.make_tensor_value_info(f"{value}_{kind}", wide, [])
            )
    twinned = path.with_name("twinned.onnx")
    write(model, twinned)
    del model
    with onnxruntime_runner(twinned, libraries=libraries) as infer:

        def losses(tensors: Tensors) -> Tensors:
            sums = infer(tensors)
            return {
                value: np.array([sums[f"{value}_noise"], sums[f"{value}_signal"]])
                for value in outputs
            }

        yield losses


def _has_graph(node: onnx.NodeProto) -> bool:
    return any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)


def _add_twin(graph: onnx.GraphProto, node: onnx.NodeProto, floats: set[str]) -> None:
    """Add a node's twin, and the nodes that sum the squares of the difference."""
    import onnx

    known = {out for one in graph.node for out in one.output}

    def add(operator: str, *inputs: str, to: str, **attributes: Any) -> str:
        graph.node.append(onnx.helper.make_node(operator, [*inputs], [to], **attributes))
        return to

    def cast(source: str, output: str, kind: int) -> str:
        if output not in known:
            graph.node.append(onnx.helper.make_node("Cast", [source], [output], to=kind))
            known.add(output)
        return output

    narrow, wide = onnx.TensorProto.BFLOAT16, onnx.TensorProto.FLOAT
    twin = onnx.NodeProto()
    twin.CopyFrom(node)
    twin.name = ""
    for index, name in enumerate(node.input):
        if name in floats:
            between = cast(name, f"{name}_narrow", narrow)
            twin.input[index] = cast(between, f"{name}_rounded", wide)
    twin.output[:] = [f"{name}_twin" if name else "" for name in node.output]
    graph.node.append(twin)
    for name in {*node.output} & floats:
        counted = [
            add("Less", add("Abs", one, to=f"{one}_size"), _LIMIT, to=f"{one}_counted")
            for one in (name, f"{name}_twin")
        ]
        both = add("And", *counted, to=f"{name}_both")
        lost = add("Sub", name, f"{name}_twin", to=f"{name}_lost")
        for what, kind in ((lost, "noise"), (name, "signal")):
            selected = add("Where", both, what, _ZERO, to=f"{name}_{kind}_kept")
            square = add("Mul", selected, selected, to=f"{name}_{kind}_square")
            add("ReduceSum", square, to=f"{name}_{kind}", keepdims=0)
