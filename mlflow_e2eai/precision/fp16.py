"""ONNX -> ONNX in fp16, but for the nodes that are to stay in fp32."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING
from unittest import mock

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import InvalidInputError, PrecisionError

if TYPE_CHECKING:
    import onnx

    from mlflow_e2eai.artifacts.values import Library


def to_fp16(model: onnx.ModelProto, *, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """A graph in fp16, but for the nodes that are to stay in fp32.

    The inputs of such a node stay in fp32 too: its weights, which are copied where nodes in fp16
    use them as well, and values from other such nodes or from the graph's inputs. With every node
    in fp32, nothing is rounded. The converter alone does not do
    this: it rounds every edge and every shared weight, and writes a graph that is not valid when
    two of the nodes read the same value.

    Args:
        model: A graph in fp32, which is not changed.
        keep_fp32: Names of nodes of the main graph, as `graphs.node_names` gives them. A node with
            a subgraph inside that reads values from outside cannot stay in fp32: the result
            does not load.

    Raises:
        InvalidInputError: There is no node of that name.
        PrecisionError: The converter failed.
    """
    import onnx
    import onnx_graphsurgeon as gs

    in_fp32 = frozenset(keep_fp32)
    source = onnx.ModelProto()
    source.CopyFrom(model)
    names = graphs.node_names(source)
    if unknown := sorted(in_fp32.difference(names)):
        msg = f"The graph has no node {unknown[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    for node, name in zip(source.graph.node, names, strict=True):
        node.name = name
    for node in _inner_nodes(source.graph):
        node.name = "" if node.name in in_fp32 else node.name  # the converter goes by names only
    _give_own_weights(source.graph, in_fp32)
    converted = _convert_nodes(source, in_fp32)
    _join(converted.graph, frozenset(names))
    # The converter appends its casts at the end, and nodes must stand in the order of their use.
    return graphs.to_onnx(gs.import_onnx(converted), like=model)


def of_libraries(model: onnx.ModelProto, libraries: Sequence[Library]) -> list[str]:
    """Names of the nodes that libraries may implement, which may have no fp16 kernels."""
    if not libraries:
        return []
    return [
        name
        for node, name in zip(model.graph.node, graphs.node_names(model), strict=True)
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
    ]


def _convert_nodes(model: onnx.ModelProto, keep_fp32: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.transformers import float16

    chatter = logging.getLogger("onnxruntime.transformers.float16")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            mock.patch.object(float16, "make_value_info_from_tensor", _value_info),
        ):
            warnings.simplefilter("ignore")
            converted: onnx.ModelProto = float16.convert_float_to_float16(
                model, keep_io_types=True, node_block_list=sorted(keep_fp32)
            )
    except Exception as error:  # the converter's errors share no base class
        msg = f"The fp16 converter failed: {type(error).__name__}: {error}; keep it in fp32."
        raise PrecisionError(msg) from error
    finally:
        chatter.setLevel(level)
    return converted


def _value_info(tensor: onnx.TensorProto) -> onnx.ValueInfoProto:
    """Type and shape of a weight; the converter would load one from its file to see the shape."""
    import onnx

    return onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))


def _give_own_weights(graph: onnx.GraphProto, keep_fp32: Collection[str]) -> None:
    """Give the fp32 nodes copies of the constants that the converter would round for others."""
    import onnx

    constants = {weight.name: weight for weight in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    copies: dict[str, str] = {}
    for node in graph.node:
        for position, name in enumerate(node.input if node.name in keep_fp32 else ()):
            if name in constants and constants[name].data_type == onnx.TensorProto.FLOAT:
                copies.setdefault(name, f"{name}_in_fp32")
                node.input[position] = copies[name]
    for name, copy in copies.items():
        weight = graph.initializer.add()
        weight.CopyFrom(constants[name])
        weight.name = copy


def _join(graph: onnx.GraphProto, own: Collection[str]) -> None:
    """Remove the converter's casts from fp32 to fp16 and back, and its duplicate casts.

    Args:
        graph: The converter's result.
        own: Names of the nodes before the conversion; all others are its casts.
    """
    import onnx

    half = onnx.TensorProto.FLOAT16
    casts = {node.output[0]: node for node in graph.node if node.name not in own}
    unrounded = {name: cast.input[0] for name, cast in casts.items() if cast.attribute[0].i == half}
    back = {
        name: unrounded[cast.input[0]]
        for name, cast in casts.items()
        if name not in unrounded and cast.input[0] in unrounded
    }
    for name in back.keys() & {value.name for value in graph.output}:
        # The output keeps its name.
        casts[name] = onnx.helper.make_node("Identity", [back.pop(name)], [name], casts[name].name)
    nodes = [node for node in graph.node if node.name in own]
    for node in nodes:
        node.input[:] = [back.get(name, name) for name in node.input]
    nodes += [cast for name, cast in casts.items() if name not in back]
    read = {name for node in [*nodes, *_inner_nodes(graph)] for name in node.input}
    read |= {value.name for each in [graph, *_inner_graphs(graph)] for value in each.output}
    used = [node for node in nodes if node.name in own or node.output[0] in read]
    del graph.node[:]
    graph.node.extend(used)


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """All graphs inside a graph's nodes, at any depth."""
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield inner
                yield from _inner_graphs(inner)


def _inner_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for inner in _inner_graphs(graph):
        yield from inner.node
