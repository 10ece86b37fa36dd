"""ONNX -> ONNX in another precision, with the interface kept in fp32.

Precision is a property of the graph, not a flag of the builder: TensorRT 11 and TensorRT-RTX build
strongly typed networks only, and TensorRT 10 can be asked for the same.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import PRECISIONS, OnnxArtifact, Precision, Tensors, TensorSpec
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, PrecisionError, RunnerError
from mlflow_e2eai.files import written
from mlflow_e2eai.isolation import isolated_onnxruntime
from mlflow_e2eai.ranges import Kept, guard

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionReport:
    """What a conversion did.

    Attributes:
        precision: What the graph was brought to.
        samples: How many samples the ranges were seen on; 0 where nothing guarded the graph.
        nodes: Nodes in the main graph before.
        casts: Casts that came in.
        kept: The nodes that stay in fp32, in the graph's order.
    """

    precision: Precision
    samples: int = 0
    nodes: int = 0
    casts: int = 0
    kept: tuple[Kept, ...] = ()


def convert(
    source: OnnxArtifact,
    precision: Precision,
    *,
    out: Path,
    keep_fp32: Collection[str] = (),
    samples: Iterable[Tensors] = (),
) -> tuple[OnnxArtifact, PrecisionReport]:
    """Write a graph in another precision.

    The converter is ONNX Runtime's own (``onnxruntime.transformers.float16``). What it writes does
    not count until ONNX Runtime has loaded it: converters of this kind are known to write graphs
    that do not load when an output is also read inside the graph.

    Args:
        source: A graph in fp32; its file is not changed.
        precision: ``fp16``, or ``fp32``, which gives `source` back as it is.
        out: The file to write.
        keep_fp32: Nodes that stay in fp32, by the names that `graphs.node_names` gives them;
            `bisect` finds those that must. See `to_fp16` for what stays in fp32 with them.
        samples: Inputs on which the ranges of all values are seen; the nodes that fp16 cannot hold
            stay in fp32 too, see `ranges.guard`. Read once. None leave the graph unguarded.

    Returns:
        The graph in that precision, with inputs and outputs of the same names, types and shapes;
        and which nodes stayed in fp32, and why.

    Raises:
        InvalidInputError: The precision is unknown, `source` is not in fp32, or it has no such
            node to keep.
        PrecisionError: The converter failed, or wrote a graph that does not load, has another
            interface, or has nothing in the precision asked for; or `source` does not run on a
            sample.
    """
    check_precision(precision)
    if source.precision != "fp32":
        msg = f"The graph is in {source.precision}, but one in fp32 is wanted; convert that one."
        raise InvalidInputError(msg)
    if precision == "fp32":
        return source, PrecisionReport(precision=precision)
    before = graphs.read(source.path)
    kept, count = _kept(before, keep_fp32, samples)
    model = to_fp16(before, keep_fp32=[one.node for one in kept])
    if not _has_fp16(model):
        msg = (
            f"The graph has nothing that fp16 could hold, so it would say fp16 and not be it: "
            f"{len(kept)} of its {len(before.graph.node)} nodes must stay in fp32; keep it in fp32."
        )
        raise PrecisionError(msg)
    inputs, outputs = graphs.interface(model)
    if inputs != source.inputs or not _agree(outputs, source.outputs):
        msg = "The fp16 graph has other inputs or outputs than the fp32 graph; keep it in fp32."
        raise PrecisionError(msg)
    del model.graph.output[:]
    model.graph.output.extend(before.graph.output)  # sizes stay named as they are in the source
    with written(out) as temporary:
        try:
            graphs.write(model, temporary)
            with isolated_onnxruntime(temporary):
                pass
        except (ArtifactError, RunnerError) as error:
            msg = f"The fp16 graph does not load: {error} Keep this model in fp32."
            raise PrecisionError(msg) from error
    made = graphs.describe(
        out,
        stage="convert",
        precision=precision,
        axes=source.axes,
        parent_sha256=source.sha256,
    )
    report = PrecisionReport(
        precision=precision,
        samples=count,
        nodes=len(before.graph.node),
        casts=graphs.operators(model).get("Cast", 0) - graphs.operators(before).get("Cast", 0),
        kept=kept,
    )
    return made, report


def _kept(
    model: onnx.ModelProto, asked: Collection[str], samples: Iterable[Tensors]
) -> tuple[tuple[Kept, ...], int]:
    """The nodes that stay in fp32, in the graph's order, and how many samples said so."""
    operators = {
        name: graphs.operator_name(node.domain, node.op_type)
        for node, name in zip(model.graph.node, graphs.node_names(model), strict=True)
    }
    if strange := sorted(set(asked).difference(operators)):
        msg = f"The graph has no node {strange[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    try:
        seen, count = guard(model, samples)
    except RunnerError as error:
        msg = f"The ranges of the fp32 graph's values cannot be seen: {error}"
        raise PrecisionError(msg) from error
    found = {one.node: one for one in seen}
    kept = {
        name: found.get(name) or Kept(node=name, operator=operator, reason="asked for")
        for name, operator in operators.items()
        if name in found or name in asked
    }
    return tuple(kept.values()), count


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        InvalidInputError: It is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        msg = f"The precision is {precision!r}, but one of {', '.join(PRECISIONS)} is wanted."
        raise InvalidInputError(msg)


def to_fp16(model: onnx.ModelProto, *, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """A graph in fp16, but for the nodes that are to stay in fp32.

    What such a node computes with stays in fp32 too: its weights, which it gets for itself where
    nodes in fp16 use them as well, and the values that come to it from others of its kind or from
    the graph's inputs. With every node kept, nothing is rounded. The converter alone does not do
    this: it rounds every edge and every shared weight, and writes a graph that is not valid when
    two of the nodes read the same value.

    Args:
        model: A graph in fp32, which is not changed.
        keep_fp32: Names of nodes of the main graph, as `graphs.node_names` gives them. A node with
            a subgraph inside that reads values from outside cannot be kept: the result does not
            load.

    Raises:
        InvalidInputError: There is no node of that name.
        PrecisionError: The converter failed.
    """
    import onnx
    import onnx_graphsurgeon as gs

    kept = frozenset(keep_fp32)
    source = onnx.ModelProto()
    source.CopyFrom(model)
    names = graphs.node_names(source)
    if strange := sorted(kept.difference(names)):
        msg = f"The graph has no node {strange[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    for node, name in zip(source.graph.node, names, strict=True):
        node.name = name
    for node in _inner_nodes(source.graph):
        node.name = "" if node.name in kept else node.name  # the converter goes by names only
    _give_own_weights(source.graph, kept)
    converted = _converted(source, kept)
    _join(converted.graph, frozenset(names))
    # The converter appends its casts at the end, and nodes must stand in the order of their use.
    return graphs.to_onnx(gs.import_onnx(converted), like=model)


def _converted(model: onnx.ModelProto, kept: Collection[str]) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16

    chatter = logging.getLogger("onnxruntime.transformers.float16")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: onnx.ModelProto = convert_float_to_float16(
                model, keep_io_types=True, node_block_list=sorted(kept)
            )
    except Exception as error:  # the converter raises whatever happened inside
        msg = f"The fp16 converter failed: {type(error).__name__}: {error}; keep it in fp32."
        raise PrecisionError(msg) from error
    finally:
        chatter.setLevel(level)
    return converted


def _agree(outputs: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> bool:
    """Whether outputs have the same names, types and ranks, and no fixed size contradicts another.

    The converter infers shapes, and may know a size that the exporter only gave a name.
    """
    if [(o.name, o.dtype, len(o.shape)) for o in outputs] != [
        (w.name, w.dtype, len(w.shape)) for w in wanted
    ]:
        return False
    sizes = [
        pair
        for o, w in zip(outputs, wanted, strict=True)
        for pair in zip(o.shape, w.shape, strict=True)
    ]
    return all(
        one == other for one, other in sizes if isinstance(one, int) and isinstance(other, int)
    )


def _has_fp16(model: onnx.ModelProto) -> bool:
    import onnx

    half = onnx.TensorProto.FLOAT16
    return any(weight.data_type == half for weight in model.graph.initializer) or any(
        node.op_type == "Cast" and any(attribute.i == half for attribute in node.attribute)
        for node in model.graph.node
    )


def _give_own_weights(graph: onnx.GraphProto, kept: Collection[str]) -> None:
    """Give the kept nodes copies of the constants that the converter would round for others."""
    import onnx

    constants = {weight.name: weight for weight in graph.initializer}
    constants |= {
        node.output[0]: node.attribute[0].t
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    copies: dict[str, str] = {}
    for node in graph.node:
        for position, name in enumerate(node.input if node.name in kept else ()):
            if name in constants and constants[name].data_type == onnx.TensorProto.FLOAT:
                copies.setdefault(name, f"{name}_in_fp32")
                node.input[position] = copies[name]
    for name, copy in copies.items():
        weight = graph.initializer.add()
        weight.CopyFrom(constants[name])
        weight.name = copy


def _join(graph: onnx.GraphProto, own: Collection[str]) -> None:
    """Take out the converter's casts from fp32 to fp16 and back, and those that it wrote twice.

    Args:
        graph: What the converter wrote.
        own: Names of the nodes that were there before; all others are its casts.
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
