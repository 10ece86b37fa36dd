"""ONNX -> ONNX in bf16, but for the nodes that are to stay in fp32.

ONNX Runtime's converter supports fp16 only. Which operators take bf16 is read from ONNX's own
definitions, so there is no list of operators here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data as weights
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import InvalidInputError, PrecisionError

if TYPE_CHECKING:
    import onnx

OPSET = 22
"""From here on Conv, pooling, InstanceNormalization and the recurrent operators take bf16; see
ONNX's changelog of operators."""

_IR_VERSION = 10
"""The IR version that came with opset 22; see ONNX's table of versions."""


def to_bf16(model: onnx.ModelProto, *, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """A graph in bf16, but for the nodes that are to stay in fp32.

    A node with a subgraph stays in fp32 with all that is inside, and so does one whose operator
    takes no bf16.

    Args:
        model: A graph in fp32 without functions, which is not changed.
        keep_fp32: Names of nodes of the main graph, as `graphs.node_names` gives them.

    Raises:
        InvalidInputError: There is no node of that name.
        PrecisionError: The graph cannot be brought to operator set `OPSET`.
    """
    import onnx

    names = graphs.node_names(model)
    if unknown := sorted(set(keep_fp32).difference(names)):
        msg = f"The graph has no node {unknown[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    raised = _with_opset(model)
    for node, name in zip(raised.graph.node, names, strict=True):
        node.name = name
    _move_constants(raised.graph)
    inferred = onnx.shape_inference.infer_shapes(raised).graph
    values = (*inferred.input, *inferred.value_info, *inferred.output)
    floats = {v.name for v in values if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    weighty = {w.name: w for w in raised.graph.initializer if w.data_type == onnx.TensorProto.FLOAT}
    _Retyping(raised, floats | weighty.keys(), weighty).run(frozenset(keep_fp32))
    return raised


def _with_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in operator set `OPSET` at least, with the same nodes in the same order."""
    import onnx

    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    if graphs.opset_of(model) >= OPSET:
        return raised
    try:
        raised = onnx.version_converter.convert_version(raised, OPSET)
    except Exception as error:  # the converter's errors share no base class
        reason = " ".join(str(error).split())[:200]
        msg = f"The graph cannot be brought to opset {OPSET}, which bf16 needs: {reason}"
        raise PrecisionError(msg) from error
    if [node.op_type for node in raised.graph.node] != [node.op_type for node in model.graph.node]:
        msg = f"Bringing the graph to opset {OPSET}, which bf16 needs, changes its nodes."
        raise PrecisionError(msg)
    raised.ir_version = max(model.ir_version, _IR_VERSION)
    return raised


def _move_constants(graph: onnx.GraphProto) -> None:
    """Make weights of the constants that are nodes, so that both come in the type of the reader."""
    import onnx

    nodes = []
    for node in graph.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" else None
        if tensor is None or tensor.data_type != onnx.TensorProto.FLOAT:
            nodes.append(node)
            continue
        weight = graph.initializer.add()
        weight.CopyFrom(tensor)
        weight.name = node.output[0]
    del graph.node[:]
    graph.node.extend(nodes)


@dataclass(slots=True)
class _Retyping:
    """A graph on its way to bf16.

    Attributes:
        model: The graph.
        floats: Its values in fp32.
        weights: Those of them that are weights.
        named: Name of a value in fp32 (False) and in bf16 (True), where that exists.
        nodes: The nodes so far, casts included.
    """

    model: onnx.ModelProto
    floats: set[str]
    weights: dict[str, onnx.TensorProto]
    named: dict[tuple[str, bool], str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def run(self, keep_fp32: frozenset[str]) -> None:
        """Retype every node; the interface stays in fp32."""
        graph = self.model.graph
        outputs = {value.name for value in graph.output}
        self.named = {(value.name, False): value.name for value in graph.input}
        for node in graph.node:
            narrow_in, narrow_out = (
                (set(), set()) if node.name in keep_fp32 else self._bf16_of(node)
            )
            if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
                narrow_in, narrow_out = set(), set()
                self._widen_inside(node)
            node.input[:] = [
                self._as(name, index in narrow_in) for index, name in enumerate(node.input)
            ]
            self.nodes.append(node)
            for index, name in enumerate(node.output):
                narrow = index in narrow_out
                if narrow and name in outputs:
                    node.output[index] = f"{name}_in_bf16"
                self.named[name, narrow] = node.output[index]
        for name in outputs & self.floats:
            self._as(name, narrow=False, output=name)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        self._drop_unread()

    def _bf16_of(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """Indices of the inputs and of the outputs of a node that are to be in bf16."""
        import onnx

        if node.domain not in ("", "ai.onnx"):
            return set(), set()
        to = next((one for one in node.attribute if one.name == "to"), None)
        if node.op_type == "Cast" and to is not None and to.i == onnx.TensorProto.FLOAT:
            if node.input[0] in self.floats:
                return {0}, {0}
            to.i = onnx.TensorProto.BFLOAT16
            return set(), {0}
        schema = onnx.defs.get_schema(node.op_type, graphs.opset_of(self.model))
        admits = {
            one.type_param_str: "tensor(bfloat16)" in one.allowed_type_strs
            for one in schema.type_constraints
        }
        kinds = [schema.inputs[min(at, len(schema.inputs) - 1)] for at in range(len(node.input))]
        read = {
            index
            for index, (name, kind) in enumerate(zip(node.input, kinds, strict=True))
            if name in self.floats and admits.get(kind.type_str)
        }
        types = {kinds[index].type_str for index in read}
        last = len(schema.outputs) - 1
        written = {
            index
            for index in range(len(node.output))
            if schema.outputs[min(index, last)].type_str in types
        }
        return read, written

    def _as(self, name: str, narrow: bool, output: str | None = None) -> str:  # noqa: FBT001
        """Name of a value in one of the two types, after a cast where one is needed."""
        import onnx

        if name not in self.floats:
            return name
        if (name, narrow) in self.named:
            return self.named[name, narrow]
        if name in self.weights:
            if narrow:
                self.model.graph.initializer.append(_round_weight(self.weights[name]))
            self.named[name, narrow] = f"{name}_in_bf16" if narrow else name
            return self.named[name, narrow]
        source = self.named.get((name, not narrow), name)
        output = output or f"{name}_in_{'bf16' if narrow else 'fp32'}"
        to = onnx.TensorProto.BFLOAT16 if narrow else onnx.TensorProto.FLOAT
        self.nodes.append(
            onnx.helper.make_node("Cast", [source], [output], f"{output}_cast", to=to)
        )
        self.named[name, narrow] = output
        return output

    def _widen_inside(self, node: onnx.NodeProto) -> None:
        """Make the subgraphs of a node read the values from outside in fp32."""
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                for each in inner.node:
                    self._widen_inside(each)
                    each.input[:] = [self._outside(name) for name in each.input]
                for value in inner.output:
                    value.name = self._outside(value.name)

    def _outside(self, name: str) -> str:
        return self._as(name, narrow=False) if (name, True) in self.named else name

    def _drop_unread(self) -> None:
        graph = self.model.graph
        read = {name for node in graphs.nodes(self.model) for name in node.input}
        read |= {value.name for value in graph.output}
        read |= {value.name for value in _inner_outputs(graph.node)}
        weights = [weight for weight in graph.initializer if weight.name in read]
        del graph.initializer[:]
        graph.initializer.extend(weights)


def _inner_outputs(nodes: Iterable[onnx.NodeProto]) -> list[onnx.ValueInfoProto]:
    names = []
    for node in nodes:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                names += [*inner.output, *_inner_outputs(inner.node)]
    return names


def _round_weight(weight: onnx.TensorProto) -> onnx.TensorProto:
    import ml_dtypes
    import onnx

    is_there = weights.is_reference(weight)
    array = weights.values(weight) if is_there else onnx.numpy_helper.to_array(weight)
    narrow = array.astype(ml_dtypes.bfloat16)
    return onnx.numpy_helper.from_array(narrow, f"{weight.name}_in_bf16")
