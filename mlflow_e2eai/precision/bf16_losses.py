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
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.values import Infer, Library, Tensors
from mlflow_e2eai.parity.tolerances import NOISE_TO_SIGNAL
from mlflow_e2eai.precision.ranges import Fp32Node, Guarded
from mlflow_e2eai.precision.statistics import computes_in_fp32, floating_values, write
from mlflow_e2eai.runtime.isolation import isolated
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx

LARGEST_LOSS = NOISE_TO_SIGNAL["bf16"] / 2
"""Root mean square of a node's error, as a share of its output. A decision of ours: no node alone
may use up half of the tolerance of the whole graph. Rounding a sum's terms loses 0.17 %."""

_LIMIT = 1e15
"""From here on a number's square may be infinite; masks are often that large."""

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
    if (first := next(rest, None)) is None or not computes_in_fp32(model):
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

    def keep_makers(node: onnx.NodeProto, value: str, loss: float) -> None:
        """Keep what writes a node's inputs, back to where the numbers were computed."""
        pending, seen = [*node.input], set[str]()
        while pending:
            read = pending.pop()
            if read in seen or read not in makers:
                continue
            seen.add(read)
            maker, its_name = makers[read]
            reasons.setdefault(its_name, (value, loss))
            if maker.op_type in _EXACT:
                pending += maker.input

    for node, name in zip(model.graph.node, names, strict=True):
        lost = [(value, shares[value]) for value in node.output if value in shares]
        value, loss = max(lost, key=lambda one: one[1], default=("", 0.0))
        if loss > LARGEST_LOSS:
            reasons.setdefault(name, (value, loss))
            keep_makers(node, value, loss)
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
    computed = set(floating_values(model, path.with_name("exposed.onnx"), libraries))
    twins = _Twins(model, computed)
    twins.add_all()
    if not twins.sums:
        yield lambda _: {}
        return
    names = [name for pair in twins.sums.values() for name in pair]
    del model.graph.output[:]
    model.graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, []) for name in names
    )
    twinned = path.with_name("twinned.onnx")
    write(model, twinned)
    del model
    with onnxruntime_runner(twinned, optimized=False, libraries=libraries) as infer:

        def losses(tensors: Tensors) -> Tensors:
            sums = infer(tensors)
            return {
                value: np.array([sums[noise], sums[signal]])
                for value, (noise, signal) in twins.sums.items()
            }

        yield losses


class _Twins:
    """Adds to a graph the twins of its nodes, and the sums of squares that compare them.

    Attributes:
        sums: Names of the sum of the squares of the error, and of the value itself, by value.
    """

    def __init__(self, model: onnx.ModelProto, computed: set[str]) -> None:
        import onnx

        wide = onnx.TensorProto.FLOAT
        self.sums: dict[str, tuple[str, str]] = {}
        self._graph, self._computed = model.graph, computed
        self._fresh = FreshNames.of_model(model)
        self._floats = computed | {
            *(w.name for w in model.graph.initializer if w.data_type == wide),
            *(v.name for v in model.graph.input if v.type.tensor_type.elem_type == wide),
        }
        self._rounded: dict[str, str] = {}
        self._limit, self._zero = (self._constant(number) for number in (_LIMIT, 0.0))

    def add_all(self) -> None:
        """Add the twins, each behind its node: the time to load them is then about linear."""
        nodes = [*self._graph.node]
        del self._graph.node[:]
        for node in nodes:
            self._graph.node.append(node)
            if not any(graphs.subgraphs(node)):
                self._add(node)

    def _add(self, node: onnx.NodeProto) -> None:
        """Add the twin of a node that reads and writes numbers in fp32."""
        values = {*node.output} & self._computed
        if not values or not self._floats & {*node.input}:
            return
        twin = type(node)()
        twin.CopyFrom(node)
        twin.name = ""
        twin.input[:] = [self._round(n) if n in self._floats else n for n in node.input]
        twin.output[:] = [self._fresh(f"{name}_twin") if name else "" for name in node.output]
        self._graph.node.append(twin)
        for name, copy in zip(node.output, twin.output, strict=True):
            if name in values:
                self.sums[name] = self._compare(name, copy)

    def _compare(self, name: str, copy: str) -> tuple[str, str]:
        limited = [self._node("Less", self._node("Abs", one), self._limit) for one in (name, copy)]
        both = self._node("And", *limited)

        def sum_of_squares(what: str) -> str:
            selected = self._node("Where", both, what, self._zero)
            return self._node("ReduceSum", self._node("Mul", selected, selected), keepdims=0)

        return sum_of_squares(self._node("Sub", name, copy)), sum_of_squares(name)

    def _round(self, name: str) -> str:
        import onnx

        if name not in self._rounded:
            narrow = self._node("Cast", name, to=onnx.TensorProto.BFLOAT16)
            self._rounded[name] = self._node("Cast", narrow, to=onnx.TensorProto.FLOAT)
        return self._rounded[name]

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        """Add a node; returns the name of its output."""
        import onnx

        output = self._fresh(f"{inputs[0]}_{operator}")
        self._graph.node.append(onnx.helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _constant(self, number: float) -> str:
        import onnx

        name = self._fresh(f"{number:g}")
        tensor = onnx.numpy_helper.from_array(np.array(number, np.float32), name)
        self._graph.initializer.append(tensor)
        return name
