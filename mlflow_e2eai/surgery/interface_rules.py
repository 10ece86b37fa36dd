"""Rules that change names, types, layouts and sizes of inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts.names import FreshNames, names_of
from mlflow_e2eai.errors import SurgeryError, nearest
from mlflow_e2eai.surgery.interface import changes, converts_input, fixes_axis, numbers, renames
from mlflow_e2eai.surgery.mapping import along

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


_UNSCALED = ((1.0,), (0.0,))


@changes(renames)
def rename(
    graph: gs.Graph,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
) -> int:
    """Rename inputs, outputs and dynamic axes of the graph.

    Args:
        graph: The graph.
        inputs: New name by old. Names that the graph's inputs do not have are an error, unless
            they were renamed already.
        outputs: The same for outputs.
        axes: The same for the dynamic axes that inputs name.

    Raises:
        SurgeryError: There is no such input, output or axis, or the new name is taken.
    """
    taken = names_of(graph)
    return (
        _rename(graph.inputs, inputs or {}, taken, "input")
        + _rename(graph.outputs, outputs or {}, taken, "output")
        + sum(_rename_axis(graph, old, new) for old, new in (axes or {}).items())
    )


@changes(fixes_axis)
def fix_axis(graph: gs.Graph, *, name: str, size: int) -> int:
    """Fix a dynamic axis at one size.

    Args:
        graph: The graph.
        name: The axis, as inputs name it.
        size: Its size, at least 1 and within the profile.

    Raises:
        SurgeryError: The size is below 1, or outside the profile.
    """
    if size < 1:
        msg = f"Axis {name!r} cannot be fixed at {size!r}; give a positive integer."
        raise SurgeryError(msg)
    return _resize(graph, name, size)


@changes(converts_input)
def convert_input(
    graph: gs.Graph,
    *,
    name: str,
    to: str,
    dtype: str | None = None,
    perm: tuple[int, ...] | list[int] = (),
    scale: float | list[float] = 1.0,
    offset: float | list[float] = 0.0,
) -> int:
    """Take an input in another type or layout, and convert it inside the graph.

    The input ``name`` becomes ``transpose(cast(to), perm) * scale + offset``. A uint8 image of
    channels last for a model of float pixels between 0 and 1 with channels first is ``dtype:
    uint8``, ``perm: [0, 3, 1, 2]``, ``scale: 0.00392156862745098``.

    Args:
        graph: The graph.
        name: The input. One that is not there is an error, unless it was converted already.
        to: Name of the new input, which must be another, so that this is not done twice.
        dtype: NumPy name of its type; None keeps the type.
        perm: Position of each old axis in the new input, as ONNX Transpose takes it.
        scale: Factor, or one for each channel (axis 1 of the old input).
        offset: Summand, or one for each channel.

    Raises:
        SurgeryError: There is no such input, its new name is taken, or an argument does not fit it.
    """
    import onnx
    import onnx_graphsurgeon as gs

    by_name = {tensor.name: tensor for tensor in graph.inputs}
    if name not in by_name and to in by_name:
        return 0
    if name not in by_name:
        msg = f"There is no input {name!r} to convert; the inputs are {_known(name, by_name)}"
        raise SurgeryError(msg)
    if to in names_of(graph):
        msg = f"Input {name!r} cannot be converted to {to!r}: that name is taken; choose another."
        raise SurgeryError(msg)
    old = by_name[name]
    factors = numbers(scale), numbers(offset)
    _check_conversion(old, dtype, perm, factors)
    wanted = np.dtype(dtype or old.dtype)
    inverse = np.argsort(perm) if perm else range(len(old.shape))
    fresh = FreshNames.of_graph(graph)
    new = gs.Variable(to, dtype=wanted, shape=[old.shape[int(axis)] for axis in inverse])
    nodes = []
    if wanted != old.dtype:
        kind = int(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(old.dtype)))
        nodes.append(gs.Node("Cast", attrs={"to": kind}))
    if perm:
        nodes.append(gs.Node("Transpose", attrs={"perm": list(perm)}))
    if factors != _UNSCALED:
        for op, values in zip(("Mul", "Add"), factors, strict=True):
            constant = along(values, len(old.shape)).astype(old.dtype)
            nodes.append(gs.Node(op, inputs=[gs.Constant(fresh(f"{to}/{op}/by"), constant)]))
    _chain(graph, new, nodes or [gs.Node("Identity")], old, fresh)
    graph.inputs = [new if tensor is old else tensor for tensor in graph.inputs]
    return 1


def _chain(
    graph: gs.Graph, first: gs.Tensor, nodes: list[gs.Node], last: gs.Tensor, fresh: FreshNames
) -> None:
    """Put nodes in a row between two tensors, before all others."""
    import onnx_graphsurgeon as gs

    read = first
    for node in nodes:
        node.name = fresh(f"{first.name}/{node.op}")
        node.inputs.insert(0, read)
        read = last if node is nodes[-1] else gs.Variable(node.name, dtype=last.dtype)
        node.outputs = [read]
    graph.nodes[:0] = nodes


def _check_conversion(
    old: gs.Tensor,
    dtype: str | None,
    perm: tuple[int, ...] | list[int],
    factors: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    rank = len(old.shape)
    try:
        known = dtype is None or np.dtype(dtype).kind in "biuf"
    except TypeError:
        known = False
    if not known:
        msg = f"{dtype!r} is not a numeric type; give the name of a NumPy type, for example uint8."
        raise SurgeryError(msg)
    if perm and sorted(perm) != list(range(rank)):
        msg = f"perm {list(perm)} does not fit input {old.name!r}, which has {rank} axes."
        raise SurgeryError(msg)
    if factors == _UNSCALED:
        return
    if np.dtype(old.dtype).kind != "f" or 0.0 in factors[0]:
        msg = f"Input {old.name!r} is {np.dtype(old.dtype).name}; scale floats only, and not by 0."
        raise SurgeryError(msg)
    channels = old.shape[1] if rank > 1 else 1
    if any(len(values) not in (1, channels) for values in factors):
        msg = f"Input {old.name!r} has {channels} channels; give one number, or one for each."
        raise SurgeryError(msg)


def _rename(tensors: list[gs.Tensor], names: Mapping[str, str], taken: set[str], kind: str) -> int:
    by_name = {tensor.name: tensor for tensor in tensors}
    edits = 0
    for old, new in names.items():
        if old not in by_name and new in by_name:
            continue
        if old not in by_name:
            msg = f"There is no {kind} {old!r} to rename; the {kind}s are {_known(old, by_name)}"
            raise SurgeryError(msg)
        if new in taken:
            msg = f"{kind.capitalize()} {old!r} cannot be named {new!r}: that name is taken."
            raise SurgeryError(msg)
        by_name[old].name = new
        taken.add(new)
        edits += 1
    return edits


def _known(word: str, names: Collection[str]) -> str:
    """The end of a message about an unknown name: all names, and the nearest."""
    near = nearest(word, names)
    return f"{sorted(names)}.{f' Did you mean {near!r}?' if near else ''}"


def _rename_axis(graph: gs.Graph, old: str, new: str) -> int:
    axes = {size for tensor in graph.inputs for size in tensor.shape if isinstance(size, str)}
    if old not in axes and new in axes:
        return 0
    if old not in axes:
        msg = f"There is no axis {old!r} to rename; the axes are {_known(old, axes)}"
        raise SurgeryError(msg)
    named = {size for tensor in _tensors(graph) for size in tensor.shape or ()}
    if new in named:
        msg = f"Axis {old!r} cannot be named {new!r}: that name is taken."
        raise SurgeryError(msg)
    _resize(graph, old, new)
    return 1


def _resize(graph: gs.Graph, name: str, size: int | str) -> int:
    """Replace an axis by a size or another name; 1 when an input or output had it."""
    edits = 0
    for tensor in _tensors(graph):
        if name in (tensor.shape or ()):
            tensor.shape = [size if found == name else found for found in tensor.shape]
            edits = 1
    return edits


def _tensors(graph: gs.Graph) -> Iterator[gs.Tensor]:
    """Every variable of a graph and of its subgraphs; the graph's own inputs among them."""
    import onnx_graphsurgeon as gs

    by_id = {id(tensor): tensor for tensor in graph.tensors().values()}
    by_id |= {id(tensor): tensor for tensor in (*graph.inputs, *graph.outputs)}
    for tensor in by_id.values():
        if isinstance(tensor, gs.Variable):
            yield tensor
    for inner in graph.subgraphs():
        yield from _tensors(inner)
