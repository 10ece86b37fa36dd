"""Generic simplification, by libraries that many keep well."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_e2eai import graphs, weights
from mlflow_e2eai.errors import SurgeryError

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

_MAY_GROW = 1.1
"""Folded constants may make the file this much larger, beyond `_MAY_GROW_BYTES`."""

_MAY_GROW_BYTES = 1 << 20


def simplify(graph: gs.Graph) -> int:
    """Simplify with onnxsim, then with onnxslim.

    Neither does all that the other does: onnxsim folds shapes and makes Gemm of MatMul and Add,
    onnxslim drops what only leads from a shape back to the same shape. Where both together make
    the graph much larger (a giant tensor of equal values was written out), it stays as it was.

    Args:
        graph: The graph.

    Raises:
        SurgeryError: They lost or renamed an output of the graph.
    """
    import onnx_graphsurgeon as gs

    before = gs.export_onnx(graph.toposort())
    weights.settle(before)
    after = _simplified(before)
    allowed = before.ByteSize() * _MAY_GROW + _MAY_GROW_BYTES
    saved = len(before.graph.node) - len(after.graph.node)
    if saved <= 0 or after.ByteSize() > allowed:
        return 0
    wanted = [value.name for value in before.graph.output]
    found = [value.name for value in after.graph.output]
    if wanted != found:
        msg = f"Simplification made the outputs {found} of {wanted}; leave out the rule."
        raise SurgeryError(msg)
    # onnxslim drops inputs that nothing reads, which callers go on giving.
    del after.graph.input[:]
    after.graph.input.extend(before.graph.input)
    made = graphs.to_graph(after)
    graph.nodes, graph.inputs, graph.outputs = made.nodes, made.inputs, made.outputs
    graph.functions, graph.opset, graph.import_domains = (
        made.functions,
        made.opset,
        made.import_domains,
    )
    names = graphs.unique_names((node.name or "", node.op) for node in graph.nodes)
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name
    return saved


def _simplified(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnxsim
    import onnxslim

    light, large = _without_files(model)
    made, _ = onnxsim.simplify(light)
    slim: onnx.ModelProto = onnxslim.slim(made)
    slim.graph.initializer.extend(large)
    return slim


def _without_files(
    model: onnx.ModelProto,
) -> tuple[onnx.ModelProto, list[onnx.TensorProto]]:
    """A model whose weights in other files are inputs, and those weights.

    The libraries would load them all, and fold what is read of them into the graph.
    """
    import onnx

    large = [weight for weight in model.graph.initializer if weights.is_reference(weight)]
    if not large:
        return model, large
    light = onnx.ModelProto()
    light.CopyFrom(model)
    names = {weight.name for weight in large}
    kept = [weight for weight in light.graph.initializer if weight.name not in names]
    del light.graph.initializer[:]
    light.graph.initializer.extend(kept)
    listed = {value.name for value in light.graph.input}
    light.graph.input.extend(
        onnx.helper.make_tensor_value_info(weight.name, weight.data_type, list(weight.dims))
        for weight in large
        if weight.name not in listed
    )
    return light, large
