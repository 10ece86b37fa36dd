"""Changes of a graph's interface that each rule may make, and the map from old to new."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from mlflow_e2eai.artifacts.values import Axis, InputOrigin, OnnxArtifact, Origins, TensorSpec
from mlflow_e2eai.errors import SurgeryError

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

Change: TypeAlias = "Callable[..., Interface]"
Marked = TypeVar("Marked", bound=Callable[..., int])


@dataclass(frozen=True, slots=True, kw_only=True)
class Interface:
    """Expected inputs and outputs after a plan.

    Attributes:
        inputs: The inputs, in order.
        input_origins: The input before the plan that each comes from.
        outputs: Each output's old name by its new one, in order.
        axes: The dynamic axes.
        may_lose_outputs: Whether any output may be removed.
        actual: Inputs and outputs of the graph after the rule, for a rule whose arguments do not
            determine them.
    """

    inputs: tuple[TensorSpec, ...]
    input_origins: tuple[InputOrigin, ...]
    outputs: Mapping[str, str]
    axes: tuple[Axis, ...]
    may_lose_outputs: bool = False
    actual: tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]] = ((), ())

    @classmethod
    def of(cls, graph: OnnxArtifact) -> Interface:
        """The interface of a graph before the first rule."""
        return cls(
            inputs=graph.inputs,
            input_origins=tuple(InputOrigin(name=s.name, dtype=s.dtype) for s in graph.inputs),
            outputs={spec.name: spec.name for spec in graph.outputs},
            axes=graph.axes,
        )

    def origins(self, specs: tuple[TensorSpec, ...]) -> Origins:
        """Origins of a graph that has these outputs."""
        outputs = tuple(self.outputs[spec.name] for spec in specs)
        return Origins(inputs=self.input_origins, outputs=outputs)


def changes(how: Change) -> Callable[[Marked], Marked]:
    """Declare how a rule changes the interface; a rule without this must not change it.

    Args:
        how: Takes the `Interface` before and the rule's keyword arguments, returns the one after:
            the same one where the rule finds nothing to do.
    """

    def mark(rule: Marked) -> Marked:
        rule.interface = how  # type: ignore[attr-defined]
        return rule

    return mark


def after(
    rule: Callable[..., int], before: Interface, arguments: Mapping[str, Any], graph: gs.Graph
) -> Interface:
    """The interface after a rule, whose result is this graph."""
    how: Change | None = getattr(rule, "interface", None)
    if how is None:
        return before
    left = (specs(graph.inputs), specs(graph.outputs))
    return how(replace(before, actual=left), **arguments)


def specs(tensors: Sequence[gs.Tensor]) -> tuple[TensorSpec, ...]:
    """Names, dtypes and shapes of inputs or outputs of a GraphSurgeon graph."""
    import onnx

    def dtype(tensor: gs.Tensor) -> str:
        if isinstance(tensor.dtype, int):  # a type of ONNX that numpy lacks
            return str(onnx.helper.tensor_dtype_to_np_dtype(tensor.dtype).name)
        return str(np.dtype(tensor.dtype).name)

    return tuple(
        TensorSpec(
            name=tensor.name,
            dtype=dtype(tensor),
            shape=tuple(size if isinstance(size, int) else size or "?" for size in tensor.shape),
        )
        for tensor in tensors
    )


def check(
    source: OnnxArtifact,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    wanted: Interface,
) -> None:
    """Refuse an interface other than the declared one.

    Raises:
        SurgeryError: An input or output is missing, unknown, or of another type or shape.
    """
    _names("input", {s.name for s in wanted.inputs}, {s.name for s in inputs}, may_lose=False)
    now = {spec.name: spec for spec in inputs}
    for spec in wanted.inputs:
        _same("input", spec, now[spec.name], exact=True)
    may_lose = wanted.may_lose_outputs
    _names("output", set(wanted.outputs), {s.name for s in outputs}, may_lose=may_lose)
    before = {spec.name: spec for spec in source.outputs}
    for spec in outputs:
        old = before.get(wanted.outputs[spec.name])  # None for a tensor that the plan exposed
        # An output's sizes may become better known; an input's are what callers rely on.
        if old is not None:
            _same("output", replace(old, name=spec.name), spec, exact=False)


def _names(kind: str, wanted: set[str], names: set[str], *, may_lose: bool) -> None:
    if unknown := names - wanted:
        msg = f"The plan made an {kind} {sorted(unknown)} that the graph did not have."
        raise SurgeryError(msg)
    if (lost := sorted(wanted - names)) and not may_lose:
        msg = (
            f"The plan removed the {kind} {lost[0]!r}; bypass the node that feeds it instead of "
            "removing it."
        )
        raise SurgeryError(msg)


def _same(kind: str, wanted: TensorSpec, actual: TensorSpec, *, exact: bool) -> None:
    fits = actual.shape == wanted.shape if exact else len(actual.shape) == len(wanted.shape)
    if actual.dtype != wanted.dtype or not fits:
        msg = (
            f"The plan changed {kind} {wanted.name!r} from {wanted.dtype}{list(wanted.shape)} to "
            f"{actual.dtype}{list(actual.shape)}; leave out the rule that did this."
        )
        raise SurgeryError(msg)


def loses_outputs(before: Interface, **_: Any) -> Interface:
    """Outputs may be removed."""
    return replace(before, may_lose_outputs=True)


def adds_outputs(before: Interface, **_: Any) -> Interface:
    """Inner tensors become outputs under their own names."""
    outputs = before.actual[1]
    new = {spec.name: spec.name for spec in outputs if spec.name not in before.outputs}
    return replace(before, outputs={**before.outputs, **new})


def extracts(before: Interface, **_: Any) -> Interface:
    """The graph begins and ends at other tensors."""
    inputs, outputs = before.actual
    known = dict(zip((s.name for s in before.inputs), before.input_origins, strict=True))
    new = {spec.name: InputOrigin(name=spec.name, dtype=spec.dtype) for spec in inputs}
    named = {size for spec in inputs for size in spec.shape if isinstance(size, str)}
    if unknown := sorted(named - {axis.name for axis in before.axes}):
        msg = (
            f"The graph cannot begin at {[spec.name for spec in inputs]}: the sizes of "
            f"{unknown[0]!r} are unknown; fix the axes that it comes from first."
        )
        raise SurgeryError(msg, rule="extract")
    return replace(
        before,
        inputs=inputs,
        input_origins=tuple(known.get(name, origin) for name, origin in new.items()),
        outputs={spec.name: before.outputs.get(spec.name, spec.name) for spec in outputs},
        axes=tuple(axis for axis in before.axes if axis.name in named),
    )


def renames(
    before: Interface,
    *,
    inputs: Mapping[str, str] | None = None,
    outputs: Mapping[str, str] | None = None,
    axes: Mapping[str, str] | None = None,
) -> Interface:
    """Inputs, outputs and axes get new names."""
    named, sizes = inputs or {}, axes or {}

    def renamed(spec: TensorSpec) -> TensorSpec:
        shape = tuple(
            sizes.get(size, size) if isinstance(size, str) else size for size in spec.shape
        )
        return replace(spec, name=named.get(spec.name, spec.name), shape=shape)

    return replace(
        before,
        inputs=tuple(renamed(spec) for spec in before.inputs),
        outputs={(outputs or {}).get(name, name): old for name, old in before.outputs.items()},
        axes=tuple(replace(axis, name=sizes.get(axis.name, axis.name)) for axis in before.axes),
    )


def fixes_axis(before: Interface, *, name: str, size: int) -> Interface:
    """An axis has one size from now on."""

    def fixed(spec: TensorSpec) -> TensorSpec:
        return replace(spec, shape=tuple(size if axis == name else axis for axis in spec.shape))

    for axis in before.axes:
        if axis.name == name and not axis.min <= size <= axis.max:
            msg = (
                f"Axis {name!r} cannot be fixed at {size}: its sizes are {axis.min} to {axis.max}; "
                f"take one of those, or export with a wider axis."
            )
            raise SurgeryError(msg, rule="fix_axis")
    return replace(
        before,
        inputs=tuple(fixed(spec) for spec in before.inputs),
        axes=tuple(axis for axis in before.axes if axis.name != name),
    )


def converts_input(
    before: Interface,
    *,
    name: str,
    to: str,
    dtype: str | None = None,
    perm: tuple[int, ...] | list[int] = (),
    scale: float | list[float] = 1.0,
    offset: float | list[float] = 0.0,
) -> Interface:
    """An input is of another type or layout; see the rule `convert_input`."""
    names = [spec.name for spec in before.inputs]
    if name not in names:
        return before
    at = names.index(name)
    spec, origin = before.inputs[at], before.input_origins[at]
    if origin.perm or origin.is_scaled or origin.dtype != spec.dtype:
        msg = f"Input {name!r} is already converted; put everything into one step."
        raise SurgeryError(msg, rule="convert_input")
    inverse = [list(perm).index(axis) for axis in range(len(perm))]
    shape = tuple(spec.shape[axis] for axis in inverse) if perm else spec.shape
    converted = TensorSpec(name=to, dtype=dtype or spec.dtype, shape=shape)
    converted_origin = replace(
        origin, perm=tuple(perm), scale=numbers(scale), offset=numbers(offset)
    )
    return replace(
        before,
        inputs=(*before.inputs[:at], converted, *before.inputs[at + 1 :]),
        input_origins=(
            *before.input_origins[:at],
            converted_origin,
            *before.input_origins[at + 1 :],
        ),
    )


def numbers(value: float | list[float] | tuple[float, ...]) -> tuple[float, ...]:
    """One number, or several, from a plan as a tuple."""
    given = value if isinstance(value, list | tuple) else [value]
    return tuple(float(number) for number in given)
