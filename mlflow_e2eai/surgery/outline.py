"""The graph before and after surgery -> one outline of both, small enough for a manifest."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlflow_e2eai.artifacts import graphs

if TYPE_CHECKING:
    import onnx

State: TypeAlias = Literal["kept", "changed", "added", "removed"]
Edge: TypeAlias = tuple[int, int]

MOST = 1000
"""Nodes that an outline lists at most: they take some 200 KB of a manifest, enough to read."""

_Key: TypeAlias = tuple[str, str]
"""Name and operator, which identify a node in both graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutlineNode:
    """One node of either graph.

    Attributes:
        name: Its name, which no other node of the same graph has.
        operator: Its operator, with the domain where that is not ONNX's own.
        state: ``removed`` is only in the graph before, ``added`` only in the graph after, and
            ``changed`` in both with other attributes. A name whose operator changed stands for
            two nodes, one removed and one added.
    """

    name: str
    operator: str
    state: State


@dataclass(frozen=True, slots=True, kw_only=True)
class Outline:
    """Both graphs in one: unchanged, removed and added nodes, and their edges.

    An edge is a pair of positions in `nodes`: the writer of a tensor, and a reader of it.

    Attributes:
        nodes: The first `MOST` nodes of both graphs, each after all that it reads. Two that a rule
            has swapped read each other; then the one that was first before is first.
        kept: Edges of both graphs.
        removed: Edges of the graph before only.
        added: Edges of the graph after only.
        beyond: Number of nodes after the listed ones, by state.
    """

    nodes: tuple[OutlineNode, ...]
    kept: tuple[Edge, ...]
    removed: tuple[Edge, ...]
    added: tuple[Edge, ...]
    beyond: Mapping[State, int]


def outline_of(before: onnx.ModelProto, after: onnx.ModelProto) -> Outline:
    """Lay two graphs over each other, by the names and operators of their nodes.

    Nodes inside the subgraphs of a node (the branches of an ``If``) are not listed; what they read
    from outside counts as read by that node.

    Args:
        before: The graph before surgery.
        after: The graph after it, with the names of its nodes before; see `graphs.node_names`.
    """
    old, new = _nodes(before), _nodes(after)
    edges_before, edges_after = _edges(old), _edges(new)
    order = _merged_order(old, new, edges_before | edges_after)
    states = {key: _state(old.get(key), new.get(key)) for key in order}
    positions = {key: at for at, key in enumerate(order[:MOST])}

    def by_position(edges: set[tuple[_Key, _Key]]) -> tuple[Edge, ...]:
        listed = (edge for edge in edges if edge[0] in positions and edge[1] in positions)
        return tuple(sorted((positions[writer], positions[reader]) for writer, reader in listed))

    return Outline(
        nodes=tuple(
            OutlineNode(name=name, operator=operator, state=states[name, operator])
            for name, operator in positions
        ),
        kept=by_position(edges_before & edges_after),
        removed=by_position(edges_before - edges_after),
        added=by_position(edges_after - edges_before),
        beyond=dict(sorted(Counter(states[key] for key in order[MOST:]).items())),
    )


def _nodes(model: onnx.ModelProto) -> dict[_Key, onnx.NodeProto]:
    named = zip(graphs.node_names(model), model.graph.node, strict=True)
    return {(name, graphs.operator_name(n.domain, n.op_type)): n for name, n in named}


def _edges(nodes: Mapping[_Key, onnx.NodeProto]) -> set[tuple[_Key, _Key]]:
    writers = {tensor: key for key, node in nodes.items() for tensor in node.output if tensor}
    return {
        (writers[tensor], key)
        for key, node in nodes.items()
        for tensor in _read(node)
        if tensor in writers
    }


def _read(node: onnx.NodeProto) -> Iterator[str]:
    """The tensors that a node or its subgraphs read."""
    yield from node.input
    for attribute in node.attribute:
        for inner in (attribute.g, *attribute.graphs):
            yield from (value.name for value in inner.output)
            for child in inner.node:
                yield from _read(child)


def _merged_order(
    old: Mapping[_Key, onnx.NodeProto],
    new: Mapping[_Key, onnx.NodeProto],
    edges: set[tuple[_Key, _Key]],
) -> list[_Key]:
    """All nodes, each after the writers of its inputs, else close to the order before."""
    ranks = _ranks(old, new)
    readers: dict[_Key, list[_Key]] = {key: [] for key in ranks}
    for writer, reader in edges:
        readers[writer].append(reader)
    waits = Counter(reader for _, reader in edges)
    ready = [(rank, key) for key, rank in ranks.items() if not waits[key]]
    heapq.heapify(ready)
    left = dict.fromkeys(sorted(ranks, key=lambda key: ranks[key]))
    order = []
    while left:
        # With none ready, swapped nodes wait for each other.
        key = heapq.heappop(ready)[1] if ready else next(iter(left))
        if key not in left:
            continue
        del left[key]
        order.append(key)
        for reader in readers[key]:
            waits[reader] -= 1
            if not waits[reader]:
                heapq.heappush(ready, (ranks[reader], reader))
    return order


def _ranks(
    old: Mapping[_Key, onnx.NodeProto], new: Mapping[_Key, onnx.NodeProto]
) -> dict[_Key, tuple[int, int]]:
    """Position of each node before; a new one comes after the one that it follows now."""
    ranks = {key: (at, 0) for at, key in enumerate(old)}
    last = -1
    for at, key in enumerate(new, start=1):
        if key in old:
            last = ranks[key][0]
        else:
            ranks[key] = (last, at)
    return ranks


def _state(before: onnx.NodeProto | None, after: onnx.NodeProto | None) -> State:
    if after is None:
        return "removed"
    if before is None:
        return "added"
    return "kept" if _attributes(before) == _attributes(after) else "changed"


def _attributes(node: onnx.NodeProto) -> dict[str, object]:
    """Attributes by name, in a comparable form; one subgraph equals another.

    The same tensor can be written in several ways, and a graph inside is named anew.
    """
    import onnx

    def comparable(attribute: onnx.AttributeProto) -> object:
        if attribute.HasField("g") or attribute.graphs:
            return len(attribute.graphs)
        value = onnx.helper.get_attribute_value(attribute)
        if isinstance(value, onnx.TensorProto):
            array = onnx.numpy_helper.to_array(value)
            return array.dtype.str, array.shape, array.tobytes()
        return list(value) if attribute.type >= onnx.AttributeProto.FLOATS else value

    return {attribute.name: comparable(attribute) for attribute in node.attribute}
