"""Both graphs drawn as one, a row for each node and a line for each tensor."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlflow_e2eai.report.charts import shortened
from mlflow_e2eai.report.html import Markup, element, join
from mlflow_e2eai.surgery.outline import Edge, Outline, OutlineNode, State

_EdgeKind: TypeAlias = Literal["removed", "added", "kept"]

_KINDS: tuple[_EdgeKind, ...] = ("removed", "added", "kept")
"""Kinds of edges in the order in which they are drawn: the last one lies above the others."""

_ROW, _HALF = 24, 12
_LANE = 14
"""Sizes in pixels: a row's height, half of it, and what lies between two lanes."""

_MOST_LANES = 24
"""Lanes that have a place of their own; the lines beyond share the last one."""

_LONGEST_NAME = 72
_MOST_OPERATORS = 4

_CONTEXT, _LONG = 3, 12
"""Unchanged rows that stay in sight beside a change, and of how many in a row the rest is folded
away."""

_MARKS: Mapping[State, str] = {
    "kept": "M{x} 8a4 4 0 1 0 .1 0Z",
    "changed": "M{x} 6l6 6l-6 6l-6 -6Z",
    "added": "M{x} 6v12m-6 -6h12",
    "removed": "M{x} 12m-5 -5l10 10m0 -10l-10 10",
}


def graph(outline: Outline, *, named_by: str) -> Markup:
    """The graph before and after surgery, from the first node to the last.

    Each line is a tensor on its way from the node that writes it to those that read it. Long
    stretches of unchanged nodes are folded away.

    Args:
        outline: Both graphs.
        named_by: Id of the heading above.
    """
    drawing = _Drawing.of(outline)
    rows = [_row(at, drawing) for at in range(len(outline.nodes))]
    parts = [
        _fold(first, last, rows[first:last], drawing) if folded else join(rows[first:last])
        for first, last, folded in _stretches(outline.nodes)
    ]
    if outline.beyond:
        parts.append(element("li", _beyond(outline.beyond), class_="beyond"))
    return element(
        "div",
        element("ol", *parts, class_="graph"),
        class_="scroll",
        role="region",
        aria_labelledby=named_by,
        tabindex=0,
    )


@dataclass(frozen=True, slots=True)
class _Drawing:
    """Where everything goes.

    Attributes:
        nodes: The rows.
        lanes: The lane of each node, and of what it writes.
        strokes: What is drawn in each row, by kind of edge, as SVG paths.
        entering: The lanes of the lines that come into each row from above, and one entry more.
        reads: The rows that each row reads, before or after.
    """

    nodes: Sequence[OutlineNode]
    lanes: Sequence[int]
    strokes: Sequence[Mapping[_EdgeKind, list[str]]]
    entering: Sequence[Sequence[int]]
    reads: Sequence[Sequence[int]]

    @classmethod
    def of(cls, outline: Outline) -> _Drawing:
        count = len(outline.nodes)
        edges: dict[_EdgeKind, list[Edge]] = {
            "removed": _forward(outline.removed, count),
            "added": _forward(outline.added, count),
            "kept": _forward(outline.kept, count),
        }
        every = [edge for kind in _KINDS for edge in edges[kind]]
        lanes = _lanes(count, every)
        reads: list[set[int]] = [set() for _ in range(count)]
        for writer, reader in every:
            reads[reader].add(writer)
        entering: list[set[int]] = [set() for _ in range(count + 1)]
        for writer, end in _reaches(every).items():
            for at in range(writer + 1, end + 1):
                entering[at].add(lanes[writer])
        strokes: list[dict[_EdgeKind, list[str]]] = [defaultdict(list) for _ in range(count)]
        for kind in _KINDS:
            for at, path in _paths(edges[kind], lanes):
                strokes[at][kind].append(path)
        return cls(
            nodes=outline.nodes,
            lanes=lanes,
            strokes=strokes,
            entering=[sorted(found) for found in entering],
            reads=[sorted(found) for found in reads],
        )

    @property
    def width(self) -> int:
        """Pixels that the lanes take."""
        return _LANE * (1 + min(max(self.lanes, default=0), _MOST_LANES - 1))


def _forward(edges: Iterable[Edge], count: int) -> list[Edge]:
    """The edges that go down. One that goes up is of swapped nodes, and has no place here."""
    return [(writer, reader) for writer, reader in edges if 0 <= writer < reader < count]


def _reaches(edges: Iterable[Edge]) -> dict[int, int]:
    """The last reader of each writer."""
    found: dict[int, int] = {}
    for writer, reader in edges:
        found[writer] = max(found.get(writer, reader), reader)
    return found


def _lanes(count: int, edges: Sequence[Edge]) -> list[int]:
    """A lane for each node, which it holds until its last reader has read.

    A node takes over the lane of a tensor that it is the last to read, so that a chain of nodes is
    one straight line.
    """
    reaches = _reaches(edges)
    ending: list[list[int]] = [[] for _ in range(count + 1)]
    lanes: list[int] = []
    free: list[int] = []
    used = 0
    for at in range(count):
        for lane in ending[at]:
            heapq.heappush(free, lane)
        inherited = min(ending[at], default=None)
        if inherited is not None:
            free.remove(inherited)
            heapq.heapify(free)
            lane = inherited
        elif free:
            lane = heapq.heappop(free)
        else:
            lane, used = used, used + 1
        lanes.append(lane)
        # What nobody reads holds its lane for its own row.
        ending[reaches.get(at, at + 1)].append(lane)
    return lanes


def _paths(edges: Sequence[Edge], lanes: Sequence[int]) -> Iterator[tuple[int, str]]:
    """The row and the path of each piece of each line; no piece leaves its row."""
    for writer, end in _reaches(edges).items():
        x = _x(lanes[writer])
        yield writer, f"M{x} {_HALF}v{_HALF}"
        for at in range(writer + 1, end):
            yield at, f"M{x} 0v{_ROW}"
    for writer, reader in edges:
        x, to = _x(lanes[writer]), _x(lanes[reader])
        straight = f"M{x} 0v{_HALF}"
        yield reader, straight if x == to else f"M{x} 0C{x} {_HALF} {to} 0 {to} {_HALF}"


def _x(lane: int) -> int:
    return _LANE // 2 + _LANE * min(lane, _MOST_LANES - 1)


def _row(at: int, drawing: _Drawing) -> Markup:
    node, strokes = drawing.nodes[at], drawing.strokes[at]
    lines = (
        element("path", d="".join(strokes[kind]), class_=kind) for kind in _KINDS if strokes[kind]
    )
    mark = _MARKS[node.state].format(x=_x(drawing.lanes[at]))
    reads = ", ".join(str(other + 1) for other in drawing.reads[at])
    return element(
        "li",
        _svg(drawing.width, *lines, element("path", d=mark, class_=f"at {node.state}")),
        element("span", str(at + 1), class_="at"),
        element("code", node.operator),
        None if node.state == "kept" else element("strong", node.state),
        element("span", shortened(node.name, _LONGEST_NAME), class_="name", title=node.name),
        element("span", f"reads {reads}", class_="unseen") if reads else None,
        class_=node.state,
    )


def _svg(width: int, *parts: Markup) -> Markup:
    return element("svg", *parts, width=width, height=_ROW, aria_hidden="true")


def _stretches(nodes: Sequence[OutlineNode]) -> Iterator[tuple[int, int, bool]]:
    """First row, row behind the last, and whether they are folded away."""
    at = 0
    while at < len(nodes):
        last = at
        while last < len(nodes) and nodes[last].state == nodes[at].state == "kept":
            last += 1
        last = max(last, at + 1)
        before = _CONTEXT if at else 0
        behind = _CONTEXT if last < len(nodes) else 0
        if last - at <= _LONG:
            yield at, last, False
        else:
            yield at, at + before, False
            yield at + before, last - behind, True
            yield last - behind, last, False
        at = last


def _fold(first: int, last: int, rows: Sequence[Markup], drawing: _Drawing) -> Markup:
    """Rows that are shown when asked for."""
    above, below = drawing.entering[first], drawing.entering[last]
    stubs = (
        element("path", d=_stubs(above, 0), class_="kept"),
        element("path", d=_stubs(below, _HALF), class_="kept closed"),
        element("path", d=_stubs(above, _HALF), class_="kept open"),
    )
    summary = element(
        "summary",
        _svg(drawing.width, *stubs),
        element("span", f"{last - first} nodes unchanged"),
        element("span", _operators(drawing.nodes[first:last]), class_="name"),
    )
    return element("li", element("details", summary, element("ol", *rows)), class_="fold")


def _stubs(lanes: Iterable[int], top: int) -> str:
    places = dict.fromkeys(map(_x, lanes))
    return "".join(f"M{x} {top}v{_HALF}" for x in places)


def _operators(nodes: Sequence[OutlineNode]) -> str:
    counted = Counter(node.operator for node in nodes).most_common()
    said = [f"{count} {shortened(name)}" for name, count in counted[:_MOST_OPERATORS]]
    return ", ".join(said) + (" and others" if len(counted) > _MOST_OPERATORS else "")


def _beyond(beyond: Mapping[State, int]) -> str:
    said = ", ".join(f"{count:,} {state}" for state, count in beyond.items())
    return f"{sum(beyond.values()):,} nodes more that are not listed: {said}."
