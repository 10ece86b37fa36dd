"""Sizes at which an exported program may be wrong, by its own guards.

`torch.export` notes what it assumed of a size: bounds, and remainders of divisions. The ONNX graph
has none of these assumptions.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.axes import corners
from mlflow_e2eai.artifacts.values import Axis, TensorSpec

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

MOST_TELLING = 6
"""Sizes of an axis at most."""

_COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)


def telling_sizes(
    program: torch.export.ExportedProgram,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
) -> tuple[dict[str, int], ...]:
    """Sizes next to the bounds of a program and with every remainder that it asks for.

    Args:
        program: The program.
        specs: Its inputs, with their dynamic axes.
        axes: The dynamic axes.

    Returns:
        Sizes by axis name, one axis after the other changed, the others at opt.
    """
    try:
        wanted = list(_candidates(program, specs, axes))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        _log.debug("The guards of the program cannot be read: %r", error)
        return ()
    known = list(corners(axes).values())
    opt = {axis.name: axis.opt for axis in axes}
    telling: list[dict[str, int]] = []
    for name, size in wanted:
        sizes = {**opt, name: size}
        few = sum(each[name] != opt[name] for each in telling) < MOST_TELLING
        if few and sizes not in known and sizes not in telling:
            telling.append(sizes)
    return tuple(telling)


def _candidates(
    program: torch.export.ExportedProgram,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
) -> Iterator[tuple[str, int]]:
    by_name = {axis.name: axis for axis in axes}
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    symbols: dict[str, Axis] = {}
    for spec, user in zip(specs, program.graph_signature.user_inputs, strict=True):
        for size, real in zip(spec.shape, placeholders[str(user)].meta["val"].shape, strict=True):
            if isinstance(size, str) and hasattr(real, "node"):
                symbols[str(real.node.expr)] = by_name[size]
    for symbol, bounds in program.range_constraints.items():
        if (axis := symbols.get(str(symbol))) is not None:
            near = (bound + step for bound in _integers(bounds) for step in (-1, 0, 1))
            yield from ((axis.name, size) for size in near if axis.admits(size))
    for node in program.graph.nodes:
        if node.op == "call_function" and len(node.args) == 2 and isinstance(node.args[1], int):  # noqa: PLR2004
            for axis in _axes_in(node.args[0], symbols):
                yield from ((axis.name, size) for size in _sizes_near(node, axis))


def _integers(bounds: Any) -> Iterator[int]:
    for bound in (bounds.lower, bounds.upper):
        if getattr(bound, "is_Integer", False) or isinstance(bound, int):
            yield int(bound)


def _axes_in(argument: Any, symbols: dict[str, Axis]) -> list[Axis]:
    """The axes whose size is part of an integer of a program."""
    value: Any = getattr(argument, "meta", {}).get("val")
    if not hasattr(value, "node"):
        return []
    names = {str(symbol) for symbol in value.node.expr.free_symbols}
    return [axis for name, axis in symbols.items() if name in names]


def _sizes_near(node: Any, axis: Axis) -> Iterator[int]:
    """Sizes at which the result of a comparison or division with a constant changes."""
    constant = node.args[1]
    if node.target in _COMPARISONS:
        yield from (size for size in (constant - 1, constant, constant + 1) if axis.admits(size))
    elif node.target in (operator.mod, operator.floordiv) and constant > 1:
        sizes = range(axis.min, axis.max + 1, axis.multiple)
        for remainder in dict.fromkeys((1, constant - 1, 0)):
            yield from [size for size in sizes if size % constant == remainder][:1]
