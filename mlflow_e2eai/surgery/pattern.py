"""The rule that replaces a pattern of nodes, written in ONNX's text, by one node."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.graphs import operator_name
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.surgery.node_edits import is_output

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

Bound: TypeAlias = "dict[str, gs.Tensor]"

_COMMUTATIVE = frozenset(("Add", "And", "Equal", "Max", "Mean", "Min", "Mul", "Or", "Sum", "Xor"))


def replace(
    graph: gs.Graph,
    *,
    pattern: str,
    op_type: str,
    domain: str = "",
    attributes: Mapping[str, Any] | None = None,
    function: bool = False,
) -> int:
    """Replace every set of nodes that a pattern describes by one node.

    Nodes match when operators, attributes (defaults filled in) and edges do; operators such as Add
    take their inputs in any order. ``Constant`` in a pattern matches a constant of equal values.
    Inner values of the pattern, those that are no outputs, must have no other readers.

    Args:
        graph: The graph; its subgraphs are searched too.
        pattern: A function as ONNX writes it, less its name: ``(x) => (y) { s = Sigmoid(x) y =
            Mul(x, s) }``. Its inputs and outputs are those of the new node, in order.
        op_type: Operator of the new node.
        domain: Its domain.
        attributes: Its attributes.
        function: Add the pattern as a model-local function of the operator.

    Raises:
        SurgeryError: The pattern is not valid, would match its own replacement, or the operator
            has another function already.
    """
    wanted = _parse_nodes(graph, pattern, op_type, domain)
    edits = 0
    for each in (graph, *graph.subgraphs(recursive=True)):
        for node in list(each.nodes):
            match = _match(each, node, wanted)
            if match is not None:
                _put(each, match, wanted, op_type, domain, attributes or {})
                edits += 1
    if function and edits:
        _mean(graph, wanted.proto)
    return edits


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pattern:
    proto: onnx.FunctionProto
    makers: Mapping[str, onnx.NodeProto]

    @property
    def end(self) -> onnx.NodeProto:
        return self.makers[self.proto.output[0]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Match:
    tensors: Bound
    nodes: list[gs.Node]


def _parse_nodes(graph: gs.Graph, text: str, op_type: str, domain: str) -> _Pattern:
    import onnx

    head = f'<domain: "{domain}", opset_import: ["" : {graph.opset}]> {op_type} '
    try:
        proto = onnx.parser.parse_function(head + text)
    except onnx.parser.ParseError as error:
        reason = " ".join(str(error).split())
        msg = f"The pattern {text!r} is not ONNX's text of a function: {reason}"
        raise SurgeryError(msg) from error
    makers = {name: node for node in proto.node for name in node.output if name}
    if invalid := [name for name in proto.output if name not in makers]:
        msg = f"No node of the pattern makes its output {invalid[0]!r}."
        raise SurgeryError(msg)
    reached, left = set(), [proto.output[0]]
    while left:
        name = left.pop()
        if name in makers and name not in reached:
            reached.update(makers[name].output)
            left.extend(makers[name].input)
    if invalid := sorted(makers.keys() - reached - {""}):
        msg = f"{invalid[0]!r} of the pattern does not lead to its first output; leave it out."
        raise SurgeryError(msg)
    new = operator_name(domain, op_type)
    if any(operator_name(node.domain, node.op_type) == new for node in proto.node):
        msg = f"The pattern contains {new}, its own replacement, so replacing would never end."
        raise SurgeryError(msg)
    return _Pattern(proto=proto, makers=makers)


def _match(graph: gs.Graph, node: gs.Node, wanted: _Pattern) -> _Match | None:
    for tensors in _fits(graph, node, wanted.end, wanted, {}):
        nodes = {
            id(tensors[name].inputs[0]): tensors[name].inputs[0]
            for name, maker in wanted.makers.items()
            if maker.op_type != "Constant"
        }
        inner = [tensors[name] for name in tensors if _is_inner(name, wanted)]
        readers = (reader for tensor in inner for reader in tensor.outputs)
        is_free = all(id(reader) in nodes for reader in readers)
        if is_free and not any(is_output(graph, tensor) for tensor in inner):
            return _Match(tensors=tensors, nodes=[*nodes.values()])
    return None


def _is_inner(name: str, wanted: _Pattern) -> bool:
    maker = wanted.makers.get(name)
    is_computed = maker is not None and maker.op_type != "Constant"
    return is_computed and name not in wanted.proto.output


def _fits(
    graph: gs.Graph, node: gs.Node, like: onnx.NodeProto, wanted: _Pattern, bound: Bound
) -> Iterator[Bound]:
    """Every way in which a node and its inputs match the pattern."""
    is_same = operator_name(node.domain, node.op) == operator_name(like.domain, like.op_type)
    lengths = len(node.inputs) == len(like.input) and len(node.outputs) == len(like.output)
    is_here = any(node is each for each in graph.nodes)
    if not (is_same and lengths and is_here) or not _same_attributes(node, like):
        return
    outputs = dict(zip(like.output, node.outputs, strict=True))
    if any(bound.get(name, tensor) is not tensor for name, tensor in outputs.items()):
        return
    orders = itertools.permutations(node.inputs) if node.op in _COMMUTATIVE else [node.inputs]
    for order in orders:
        ways: list[Bound] = [{**bound, **outputs}]
        for name, tensor in zip(like.input, order, strict=True):
            ways = [way for old in ways for way in _bind(graph, name, tensor, wanted, old)]
        yield from ways


def _bind(
    graph: gs.Graph, name: str, tensor: gs.Tensor, wanted: _Pattern, bound: Bound
) -> Iterator[Bound]:
    if name in bound:
        if bound[name] is tensor:
            yield bound
        return
    if not name or name not in wanted.makers:
        if bool(name) != tensor.is_empty():
            yield {**bound, name: tensor} if name else bound
        return
    maker = wanted.makers[name]
    if maker.op_type == "Constant":
        if _is_constant(tensor, maker):
            yield {**bound, name: tensor}
        return
    if len(tensor.inputs) != 1:
        return
    for way in _fits(graph, tensor.inputs[0], maker, wanted, bound):
        if way.get(name) is tensor:
            yield way


def _is_constant(tensor: gs.Tensor, like: onnx.NodeProto) -> bool:
    import onnx
    import onnx_graphsurgeon as gs

    if not isinstance(tensor, gs.Constant):
        constants = [node for node in tensor.inputs if node.op == "Constant"]
        tensor = constants[0].attrs.get("value") if constants else None
    if not isinstance(tensor, gs.Constant):
        return False
    value = onnx.helper.get_attribute_value(like.attribute[0])
    is_tensor = isinstance(value, onnx.TensorProto)
    right = onnx.numpy_helper.to_array(value) if is_tensor else np.asarray(value)
    if not is_tensor:  # value_float and its like are 32 bits wide, or 64 of integers
        right = right.astype(np.float32 if right.dtype.kind == "f" else np.int64)
    values = tensor.values
    return values.dtype == right.dtype and np.array_equal(values, right)


def _same_attributes(node: gs.Node, like: onnx.NodeProto) -> bool:
    import onnx
    import onnx_graphsurgeon as gs

    defaults = {}
    if operator_name(like.domain, like.op_type) == like.op_type:
        known = onnx.defs.get_schema(like.op_type).attributes.items()
        defaults = {name: a.default_value for name, a in known if a.default_value.type}
    filled = {name: onnx.helper.get_attribute_value(a) for name, a in defaults.items()}
    right = {a.name: onnx.helper.get_attribute_value(a) for a in like.attribute}
    plain = {
        name: value.encode() if isinstance(value, str) else value
        for name, value in node.attrs.items()
    }
    if any(isinstance(value, gs.Tensor | gs.Graph) for value in plain.values()):
        return False
    return {**filled, **plain} == {**filled, **right}


def _put(
    graph: gs.Graph,
    match: _Match,
    wanted: _Pattern,
    op_type: str,
    domain: str,
    attributes: Mapping[str, Any],
) -> None:
    import onnx_graphsurgeon as gs

    inputs = [match.tensors[name] for name in wanted.proto.input]
    outputs = [match.tensors[name] for name in wanted.proto.output]
    last = match.tensors[wanted.proto.output[0]].inputs[0]
    at = next(index for index, node in enumerate(graph.nodes) if node is last)
    new = gs.Node(op_type, name=last.name, attrs=dict(attributes), domain=domain or None)
    for node in match.nodes:
        node.inputs.clear()
        node.outputs.clear()
    removed = {id(node) for node in match.nodes}
    new.inputs, new.outputs = inputs, outputs
    graph.nodes.insert(at, new)
    for node in [node for node in graph.nodes if id(node) in removed]:
        del graph.nodes[next(i for i, each in enumerate(graph.nodes) if each is node)]


def _mean(graph: gs.Graph, proto: onnx.FunctionProto) -> None:
    """Add a pattern as the model-local function of its operator."""
    from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
    from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

    for known in graph.functions:
        if (known.domain, known.name) == (proto.domain, proto.name):
            if [*OnnxExporter.export_function(known).node] != [*proto.node]:
                name = operator_name(proto.domain, proto.name)
                msg = f"{name} has another meaning in this graph already; take another name."
                raise SurgeryError(msg)
            return
    function = OnnxImporter.import_function(
        proto, model_opset=graph.opset, model_import_domains=graph.import_domains
    )
    graph.functions.append(function)
