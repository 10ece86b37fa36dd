"""Repairs of ONNX files that other tools wrote and that ONNX Runtime runs, or nearly so.

ONNX's checker wants sorted nodes, types and shapes of all outputs, and its old versions want every
weight among the inputs; GraphSurgeon, TensorRT and ONNX's own converter of versions want more.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import external_data, graphs, model_file
from mlflow_e2eai.artifacts.weight_files import subgraphs
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

REPAIRED = "mlflow_e2eai.repaired"
"""The key of a model's metadata under which its repairs are listed."""


def read_repaired(path: Path) -> onnx.ModelProto:
    """Read an ONNX file that may need repair, with its weights; see `graphs.read`.

    The IR version is raised to 4 and weights are no inputs; sparse weights become dense; weights
    that nothing reads are left out; nodes are sorted and get names of their own; sizes below zero
    are open; missing types and shapes of outputs are inferred. The model's metadata list what was
    done.

    Raises:
        ArtifactError: It is missing, is no ONNX file, or is one that these do not repair.
    """
    model = model_file.load(path)
    try:
        _repair(model, path)
    except ArtifactError:
        raise
    except Exception as error:  # a broken file may raise anything
        raise model_file.invalid(path, error) from error
    model_file.check_structure(model, path)
    return model


def _repair(model: onnx.ModelProto, path: Path) -> None:
    everywhere = [model.graph, *_inner_graphs(model.graph)]
    repairs = {
        "weights are not inputs": model_file.raise_ir_version(model),
        "sparse weights are dense": sum(_make_dense(each) for each in everywhere),
        "weights that nothing reads are left out": _drop_unread(model.graph),
        "nodes are sorted": sum(_sort(each, path) for each in everywhere),
        "nodes have names of their own": sum(_name(each) for each in everywhere),
        "sizes below zero become open": _open_sizes(model.graph),
        "types and shapes of outputs are inferred": _infer_outputs(model, path),
    }
    if done := [words for words, is_done in repairs.items() if is_done]:
        model.metadata_props.add(key=REPAIRED, value="; ".join(done))


def _inner_graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    for node in graph.node:
        for inner in subgraphs(node):
            yield inner
            yield from _inner_graphs(inner)


def _make_dense(graph: onnx.GraphProto) -> bool:
    import onnx

    changed = bool(graph.sparse_initializer)
    graph.initializer.extend(
        _dense(sparse, sparse.values.name) for sparse in graph.sparse_initializer
    )
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "sparse_value":
                value = _dense(attribute.sparse_tensor, "value")
                attribute.CopyFrom(onnx.helper.make_attribute("value", value))
                changed = True
    return changed


def _dense(sparse: onnx.SparseTensorProto, name: str) -> onnx.TensorProto:
    import onnx

    if (size := math.prod(sparse.dims) * 8) > external_data.EXTERNAL_BYTES:
        msg = f"the sparse weight {name!r} takes {size / 1e9:.4g} GB where it is dense"
        raise ValueError(msg)
    values = onnx.numpy_helper.to_array(sparse.values)
    at = onnx.numpy_helper.to_array(sparse.indices)
    array = np.zeros(tuple(sparse.dims), values.dtype)
    array.reshape(-1)[at if at.ndim == 1 else np.ravel_multi_index(tuple(at.T), array.shape)] = (
        values
    )
    return onnx.numpy_helper.from_array(array, name)


def _drop_unread(graph: onnx.GraphProto) -> bool:
    """Leave out what nothing reads: ONNX Runtime 1.31 drops each in time that grows with all."""
    read = {name for node in graph.node for name in graphs.reads(node)}
    read |= {value.name for value in (*graph.input, *graph.output)}
    unread = [at for at, weight in enumerate(graph.initializer) if weight.name not in read]
    for at in reversed(unread):
        del graph.initializer[at]  # the others, which may be large, are not copied
    return bool(unread)


def _sort(graph: onnx.GraphProto, path: Path) -> bool:
    """Put nodes after those that they read from; nodes that are free stay in their order."""
    nodes = [*graph.node]
    makers = {name: at for at, node in enumerate(nodes) for name in node.output if name}
    waits = [{makers[n] for n in graphs.reads(node) if n in makers} for node in nodes]
    if all(at > max(before, default=-1) for at, before in enumerate(waits)):
        return False
    readers: list[list[int]] = [[] for _ in nodes]
    for at, before in enumerate(waits):
        for maker in before:
            readers[maker].append(at)
    free = [at for at, before in enumerate(waits) if not before]
    order: list[int] = []
    while free:
        at = heapq.heappop(free)
        order.append(at)
        for reader in readers[at]:
            waits[reader].discard(at)
            if not waits[reader]:
                heapq.heappush(free, reader)
    if len(order) < len(nodes):
        stuck = next(at for at, before in enumerate(waits) if before)
        msg = (
            f"{path.name} is not a valid ONNX file: what node {nodes[stuck].name!r} "
            f"({nodes[stuck].op_type}) reads depends on its own output; export it again."
        )
        raise ArtifactError(msg)
    del graph.node[:]
    graph.node.extend(nodes[at] for at in order)
    return True


def _name(graph: onnx.GraphProto) -> bool:
    """Rename nodes whose name another one has; those without a name stay so."""
    names = graphs.unique_names((node.name, node.op_type) for node in graph.node)
    changed = False
    for node, name in zip(graph.node, names, strict=True):
        if node.name and node.name != name:
            node.name, changed = name, True
    if not graph.name:
        graph.name, changed = "graph", True
    return changed


def _open_sizes(graph: onnx.GraphProto) -> bool:
    changed = False
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.HasField("dim_value") and dim.dim_value < 0:
                dim.Clear()
                changed = True
    return changed


def _infer_outputs(model: onnx.ModelProto, path: Path) -> bool:
    """Infer the types and shapes of outputs that have none."""
    import onnx

    if not model.graph.output:
        msg = f"{path.name} has no outputs, so there is nothing to compute; export it again."
        raise ArtifactError(msg)
    for value in model.graph.input:
        kind = value.type.tensor_type
        if value.type.WhichOneof("value") == "tensor_type" and not kind.HasField("shape"):
            msg = (
                f"Input {value.name!r} of {path.name} has no shape; write it into the file, with a "
                "name for each open size."
            )
            raise ArtifactError(msg)

    def is_unknown(value: onnx.ValueInfoProto) -> bool:
        kind = value.type.tensor_type
        is_tensor = value.type.WhichOneof("value") in (None, "tensor_type")
        return is_tensor and not (kind.elem_type and kind.HasField("shape"))

    unknown = [value for value in model.graph.output if is_unknown(value)]
    if not unknown:
        return False
    bare = external_data.skeleton(model)
    del bare.graph.output[:]
    bare.graph.output.extend(value for value in model.graph.output if not is_unknown(value))
    try:
        inferred = onnx.shape_inference.infer_shapes(bare, data_prop=True).graph
    except onnx.shape_inference.InferenceError:
        inferred = bare.graph
    known = {value.name: value for value in (*inferred.input, *inferred.value_info)}
    for value in unknown:
        found = known.get(value.name)
        if found is None or is_unknown(found):
            msg = (
                f"Output {value.name!r} of {path.name} has no type and shape, and ONNX cannot "
                "infer them; write them into the file, with a name for each open size."
            )
            raise ArtifactError(msg)
        value.type.CopyFrom(found.type)
    return True
