"""A piece of a graph, as a graph of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import OnnxArtifact
from mlflow_e2eai.errors import ArtifactError, InvalidInputError
from mlflow_e2eai.evaluation.bisection.shapes import Observed, infer_values

if TYPE_CHECKING:
    import onnx


def cut(
    source: OnnxArtifact,
    *,
    inputs: Sequence[str],
    outputs: Sequence[str],
    out: Path,
    observed: Observed | None = None,
) -> OnnxArtifact:
    """Write the part of a graph between some of its values.

    An engine can be searched so without marking outputs inside it (see `bisect_engine`): each piece
    is built by itself, run on the values that ONNX Runtime computes at its inputs, and compared by
    its own outputs. Fusion across the cut is lost.

    Args:
        source: The graph; its file is not changed.
        inputs: Values that become its inputs; the outputs must depend on them and on weights only.
        outputs: Values that become its outputs.
        out: The file to write.
        observed: Types and shapes of the values from `observe`; by default those that ONNX infers.

    Returns:
        The piece, whose nodes have the names that `graphs.node_names` gives them in the source. Its
        axes are those of the source, and those observed, that its inputs name.

    Raises:
        InvalidInputError: There is no such value, its type or shape is not known, or the piece
            needs more inputs than these.
    """
    import onnx

    model = graphs.read(source.path)
    known = observed.values if observed is not None else infer_values(model)
    for name in (*inputs, *outputs):
        if name not in known:
            msg = (
                f"The graph has no value {name!r} of known type to cut at; look up the outputs of "
                "its nodes."
            )
            raise InvalidInputError(msg)
    for node, name in zip(model.graph.node, graphs.node_names(model), strict=True):
        node.name = name
    nodes = _nodes_between(model.graph, inputs, outputs)
    needed = {name for node in nodes for name in graphs.reads(node)}.difference(inputs)
    graph = onnx.helper.make_graph(
        nodes,
        model.graph.name,
        [known[name] for name in inputs],
        [known[name] for name in outputs],
        initializer=[weight for weight in model.graph.initializer if weight.name in needed],
    )
    piece = onnx.helper.make_model(
        graph,
        ir_version=model.ir_version,
        opset_imports=model.opset_import,
        functions=model.functions,
    )
    try:
        graphs.write(piece, out)
    except ArtifactError as error:
        msg = f"From {list(inputs)} alone {list(outputs)} cannot be computed: {error}"
        raise InvalidInputError(msg) from error
    named = {size for spec in graphs.interface(piece)[0] for size in spec.shape}
    axes = (*source.axes, *(observed.axes if observed is not None else ()))
    return graphs.describe(
        out,
        stage="clean",
        precision=source.precision,
        axes=tuple(axis for axis in axes if axis.name in named),
        parent_sha256=source.sha256,
        libraries=source.libraries,
    )


def _nodes_between(
    graph: onnx.GraphProto, inputs: Collection[str], outputs: Sequence[str]
) -> list[onnx.NodeProto]:
    """The nodes that the outputs need, back to the inputs, in the graph's order."""
    makers = {name: at for at, node in enumerate(graph.node) for name in node.output if name}
    positions: set[int] = set()
    wanted = list(outputs)
    while wanted:
        name = wanted.pop()
        if name in makers and name not in inputs and makers[name] not in positions:
            positions.add(makers[name])
            wanted.extend(graphs.reads(graph.node[makers[name]]))
    return [graph.node[at] for at in sorted(positions)]


# The nodes of a graph that can be cut out, with the inputs and outputs of a run of them.


@dataclass(frozen=True, slots=True, kw_only=True)
class Pieces:
    """The nodes of a graph that can be cut out, in topological order.

    Attributes:
        nodes: Their names, as `graphs.node_names` gives them.
        makes: The values that each writes.
        needs: The values that each reads, or that the constants and sizes that go with it read.
        results: The values that the graph's outputs need, in the same sense.
    """

    nodes: tuple[str, ...]
    makes: tuple[frozenset[str], ...]
    needs: tuple[frozenset[str], ...]
    results: frozenset[str]

    def edges(self, first: int, end: int) -> tuple[list[str], list[str]]:
        """The inputs and outputs of a run of nodes.

        Args:
            first: Position of its first node.
            end: Position behind its last node.

        Returns:
            The values from before the run, and those that are read after it.
        """
        produced = frozenset[str]().union(*self.makes[first:end])
        needed = frozenset[str]().union(*self.needs[first:end])
        later = self.results.union(*self.needs[end:])
        return sorted(needed - produced), sorted(produced & later)


def pieces_of(model: onnx.ModelProto) -> Pieces:
    """Find the nodes of a graph that can be cut out.

    A node that depends on constants and shapes alone goes with each node that reads it, and is not
    cut out: an engine must know its output when it is built, and takes no size for an input.
    """
    weights = {weight.name for weight in model.graph.initializer}
    behind: dict[str, frozenset[str]] = {name: frozenset() for name in weights}
    sizes = set(weights)

    def needed(names: Iterable[str]) -> frozenset[str]:
        return frozenset[str]().union(*(behind.get(name, frozenset([name])) for name in names))

    nodes, makes, needs = [], [], []
    for node, name in zip(model.graph.node, graphs.node_names(model), strict=True):
        produced = frozenset(filter(None, node.output))
        tells_size = node.op_type in ("Shape", "Size") and node.domain in ("", "ai.onnx")
        if tells_size or sizes.issuperset(graphs.reads(node)):
            sizes |= produced
            behind |= dict.fromkeys(produced, needed(graphs.reads(node)))
            continue
        nodes.append(name)
        makes.append(produced)
        needs.append(needed(graphs.reads(node)))
    return Pieces(
        nodes=tuple(nodes),
        makes=tuple(makes),
        needs=tuple(needs),
        results=needed(value.name for value in model.graph.output),
    )
