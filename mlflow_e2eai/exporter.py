"""torch.nn.Module, ScriptModule or ExportedProgram -> ONNX.

PyTorch has two ways to ONNX. The dynamo exporter (``torch.export``, PyTorch's default) takes
modules and exported programs; the TorchScript exporter traces a module or takes a scripted one, and
is the only way to opsets below 18. Both keep quiet about some of what they could not do (an opset
that was not reached, a dynamic axis that became static), so that is held against what was asked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_e2eai import graphs
from mlflow_e2eai import operators as custom
from mlflow_e2eai.arrays import corners, resize
from mlflow_e2eai.artifacts import Axis, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.files import written
from mlflow_e2eai.modules import (
    DynamicAxes,
    answer,
    axes_of,
    brief,
    call,
    evaluation_mode,
    flatten,
    input_specs,
    module_of,
    named_inputs,
    parameter_names,
    tensors_for,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Exporter: TypeAlias = Literal["auto", "dynamo", "trace", "script"]
EXPORTERS: tuple[Exporter, ...] = ("auto", "dynamo", "trace", "script")

DEFAULT_OPSET = 18
"""The one opset that both exporters write natively: dynamo's translations start there, and ONNX
Runtime's CUDA provider lacks some of the later forms (Resize-19, ReduceMax-20)."""

_TORCHSCRIPT_MAX_OPSET = 20
"""Asked for more, the TorchScript exporter only stamps the number (torch 2.13)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """How a model was exported.

    Attributes:
        exporter: The one that wrote the graph.
        refused: Why those that were tried before it were not taken, by name, in order.
    """

    exporter: Exporter
    refused: Mapping[str, str] = field(default_factory=dict)


def export(
    model: Any,
    input_example: Any,
    *,
    out: Path,
    dynamic_axes: DynamicAxes | None = None,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
    operators: Sequence[custom.Operator] = (),
) -> tuple[OnnxArtifact, ExportReport]:
    """Write a PyTorch model as an ONNX file.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram. It is exported in evaluation
            mode and gets its mode back.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names; without names, those
            of ``forward``'s parameters do.
        out: The file to write.
        dynamic_axes: Axes whose size may vary, by input name and position.
        exporter: ``dynamo``, ``trace`` or ``script``; ``auto`` is ``script`` for a ScriptModule and
            ``dynamo`` for everything else.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order; by default ``output``, or ``output_0`` and so
            on for several, or the keys where ``forward`` returns a mapping.
        operators: What operators compute that are not ONNX's own, for model-local functions.

    Returns:
        The fp32 graph as the exporter wrote it, and how it came about.

    Raises:
        InvalidInputError: The model does not accept the example, returns something that is not
            tensors, or an argument is wrong.
        ExportError: PyTorch failed, or wrote something other than what was asked for.
    """
    module = module_of(model)
    chosen = _choose(exporter, module, opset)
    given = named_inputs(module, input_example)
    specs = input_specs(given, dynamic_axes or {})
    axes = axes_of(dynamic_axes or {})
    example = resize(given, specs, {axis.name: axis.opt for axis in axes})
    with evaluation_mode(module) as was_training:
        if was_training:
            warnings.warn(
                "The model is in training mode: it is exported in evaluation mode, and its mode is "
                "given back afterwards.",
                stacklevel=2,
            )
        names = _output_names(answer(module, given), output_names)
        for corner, sizes in corners(axes).items() if axes else ():
            what = f"the input example at the {corner} size of its dynamic axes"
            answer(module, resize(given, specs, sizes), what=what)
        with written(out) as temporary, _failures_as_export_errors(chosen):
            write = _with_dynamo if chosen == "dynamo" else _with_torchscript
            write(module, example, temporary, specs, axes, names, opset, chosen)
            custom.carry(temporary, operators)
            _hold_to_request(temporary, specs=specs, outputs=names, opset=opset, exporter=chosen)
    made = graphs.describe(out, stage="export", precision="fp32", axes=axes, parent_sha256=None)
    return made, ExportReport(exporter=chosen)


def _choose(exporter: Exporter, module: torch.nn.Module, opset: int) -> Exporter:
    import torch

    if exporter not in EXPORTERS:
        msg = f"The exporter is {exporter!r}, but one of {', '.join(EXPORTERS)} is wanted."
        raise InvalidInputError(msg)
    scripted = isinstance(module, torch.jit.ScriptModule)
    if exporter == "auto":
        exporter = "script" if scripted else "dynamo"
    if scripted and exporter == "dynamo":
        msg = "The dynamo exporter takes no ScriptModule; use exporter='script'."
        raise InvalidInputError(msg)
    if exporter == "dynamo" and opset < DEFAULT_OPSET:
        msg = (
            f"Opset {opset} was asked for, but the dynamo exporter starts at {DEFAULT_OPSET}; use "
            f"exporter='trace' or 'script', or a later opset."
        )
        raise InvalidInputError(msg)
    if exporter != "dynamo" and opset > _TORCHSCRIPT_MAX_OPSET:
        msg = (
            f"Opset {opset} was asked for, but the TorchScript exporter ends at "
            f"{_TORCHSCRIPT_MAX_OPSET}; use exporter='dynamo', or an earlier opset."
        )
        raise InvalidInputError(msg)
    return exporter


def _output_names(answer: Mapping[str, Any], wanted: Sequence[str] | None) -> tuple[str, ...]:
    names = tuple(answer) if wanted is None else tuple(wanted)
    if len(names) != len(answer) or len(set(names)) != len(names):
        msg = f"output_names is {list(names)}, but forward returns {len(answer)} outputs."
        raise InvalidInputError(msg)
    return names


def _with_dynamo(
    module: torch.nn.Module,
    example: Tensors,
    path: Path,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],  # noqa: ARG001 - dynamo reads them off the specs
    outputs: tuple[str, ...],
    opset: int,
    exporter: Exporter,  # noqa: ARG001 - one signature for both ways
) -> None:
    import torch

    shapes = tuple(
        {position: size for position, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in specs
    )
    with custom.kept("dynamo", path, opset=opset):
        program = torch.onnx.export(
            _positional(module, tuple(example)),
            tuple(tensors_for(module, example).values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=(shapes,),
            verbose=False,
        )
        if program is None:
            msg = "the exporter returned nothing"
            raise RuntimeError(msg)
        program.save(path, external_data=False)


def _with_torchscript(
    module: torch.nn.Module,
    example: Tensors,
    path: Path,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
    outputs: tuple[str, ...],
    opset: int,
    exporter: Exporter,
) -> None:
    import torch

    tensors = tensors_for(module, example)
    if exporter == "trace":
        source = _positional(module, tuple(example))
    else:
        source = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module)
        custom.refuse_scripted(source)
        names = [name for name in parameter_names(module) if name in tensors]
        tensors = {name: tensors[name] for name in names} or tensors
    dynamic = {spec.name: _named(spec.shape) for spec in specs}
    dynamic |= _dynamic_outputs(module, example, specs, axes, outputs)
    with custom.kept(exporter, path, opset=opset):
        torch.onnx.export(
            source,
            tuple(tensors.values()),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(tensors),
            output_names=list(outputs),
            dynamic_axes=dynamic,
        )


def _named(shape: Sequence[int | str]) -> dict[int, str]:
    return {position: size for position, size in enumerate(shape) if isinstance(size, str)}


def _dynamic_outputs(
    module: torch.nn.Module,
    example: Tensors,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
    outputs: tuple[str, ...],
) -> dict[str, dict[int, str]]:
    """Which output axes follow which dynamic axis, found by changing one size at a time.

    The TorchScript exporter wants to be told, and invents names for those it was not told of.
    """
    found: dict[str, dict[int, str]] = {name: {} for name in outputs}
    before = [tensor.shape for tensor in answer(module, example).values()]
    for axis in axes:
        other = axis.max if axis.max != axis.opt else axis.min
        if other == axis.opt:
            continue
        changed = answer(module, resize(example, specs, {axis.name: other})).values()
        for name, shape, tensor in zip(outputs, before, changed, strict=True):
            for position, (old, new) in enumerate(zip(shape, tensor.shape, strict=True)):
                if (old, new) == (axis.opt, other):
                    found[name][position] = axis.name
    return found


def _positional(module: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Module:
    """A module that takes tensors in the order of `names` and returns a flat tuple of tensors."""
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
            arguments = dict(zip(names, tensors, strict=True))
            return tuple(flatten(call(self.model, arguments)).values())

        def train(self, mode: bool = True) -> Positional:  # noqa: ARG002, FBT001, FBT002 - torch's
            # The mode is right already, and a graph that torch.export wrote refuses to be set.
            return self

    wrapper = Positional()
    wrapper.training = False
    return wrapper


@contextmanager
def _failures_as_export_errors(exporter: Exporter) -> Iterator[None]:
    import torch

    # The exporters warn of their own internals and of TorchScript's age; what matters of it is
    # checked on what they wrote.
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    except (ExportError, InvalidInputError):
        raise
    except Exception as error:  # PyTorch's exporters raise whatever happened inside
        msg = (
            f"The {exporter} exporter failed: {type(error).__name__}: {brief(_root(error))}; try "
            f"another exporter, or change the part of forward that it names."
        )
        raise ExportError(msg) from error
    finally:
        chatter.setLevel(level)


def _hold_to_request(
    path: Path,
    *,
    specs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    opset: int,
    exporter: Exporter,
) -> None:
    """Compare what was written with what was asked for."""
    model = graphs.read(path)
    inputs, found_outputs = graphs.interface(model)
    if (found := graphs.opset_of(model)) != opset:
        msg = f"Opset {opset} was asked for, but the {exporter} exporter wrote opset {found}."
        raise ExportError(msg)
    names = tuple(spec.name for spec in found_outputs)
    if names != outputs:
        msg = f"The outputs are named {list(names)}, but {list(outputs)} was asked for."
        raise ExportError(msg)
    by_name = {spec.name: spec for spec in inputs}
    for spec in specs:
        written_spec = by_name.get(spec.name)
        if written_spec is None:
            msg = (
                f"The {exporter} exporter dropped input {spec.name!r}: forward does not use it; "
                f"leave it out of the input example."
            )
            raise ExportError(msg)
        if written_spec.shape != spec.shape:
            msg = (
                f"Input {spec.name!r} has shape {list(written_spec.shape)} in the graph, but "
                f"{list(spec.shape)} was asked for: forward fixes a size (or the {exporter} "
                f"exporter did); make forward independent of it, or leave the axis static."
            )
            raise ExportError(msg)


def _root(error: BaseException) -> BaseException:
    """The innermost cause, which dynamo wraps in reports."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error
