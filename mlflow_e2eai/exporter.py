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
from mlflow_e2eai.arrays import resize
from mlflow_e2eai.artifacts import Axis, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.files import written
from mlflow_e2eai.modules import (
    DynamicAxes,
    answer,
    axes_of,
    brief,
    evaluation_mode,
    input_specs,
    module_of,
    named_inputs,
    parameter_names,
    positional,
    root,
    source_line,
    tensors_for,
)
from mlflow_e2eai.verification import check_interface, check_numbers, questions

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

_PLAIN_DYNAMO = "dynamo_unoptimized"
"""The dynamo exporter without its optimizer, which drops a small constant such as ``+ 1e-9``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """How a model was exported.

    Attributes:
        exporter: The one that wrote the graph.
        refused: Why those that were tried before it were not taken, by name, in order;
            ``dynamo`` is the exporter with its optimizer, ``dynamo_unoptimized`` without.
        unverified: Why the graph's numbers could not be held against the module's; None where they
            are the module's on the samples of `questions`, or the report is older than the check.
    """

    exporter: Exporter
    refused: Mapping[str, str] = field(default_factory=dict)
    unverified: str | None = None


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
        exporter: ``dynamo``, ``trace`` or ``script``; ``auto`` takes the first of them, in this
            order, whose graph gives the module's numbers: on the example at every corner of its
            dynamic axes, and on other values. For a ScriptModule it is ``script``.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order; by default ``output``, or ``output_0`` and so
            on for several, or the keys where ``forward`` returns a mapping.
        operators: What operators compute that are not ONNX's own, for model-local functions.

    Returns:
        The fp32 graph as the exporter wrote it, and how it came about.

    Raises:
        InvalidInputError: The model does not accept the example, returns something that is not
            tensors, or an argument is wrong.
        ExportError: PyTorch failed, or wrote something other than what was asked for, or a graph
            with other numbers than the module's; with a reason for each exporter that was tried.
    """
    module = module_of(model)
    rungs = _rungs(exporter, module, opset)
    given = named_inputs(module, input_example)
    specs = input_specs(given, dynamic_axes or {})
    axes = axes_of(dynamic_axes or {})
    example = resize(given, specs, {axis.name: axis.opt for axis in axes})
    refused: dict[str, ExportError] = {}
    with evaluation_mode(module) as was_training:
        if was_training:
            warnings.warn(
                "The model is in training mode: it is exported in evaluation mode, and its mode is "
                "given back afterwards.",
                stacklevel=2,
            )
        names = _output_names(answer(module, given), output_names)
        asked = questions(module, given, specs, axes)
        wrote = False
        for rung in rungs:
            if rung == _PLAIN_DYNAMO and not wrote:
                continue  # it was not the optimizer that failed
            try:
                with written(out) as temporary, _failures_as_export_errors(rung, module) as warned:
                    write = _with_torchscript if rung in ("trace", "script") else _with_dynamo
                    write(module, example, temporary, specs, axes, names, opset, rung)
                    custom.carry(temporary, operators)
                    check_interface(
                        temporary, specs=specs, outputs=names, opset=opset, exporter=rung
                    )
                    wrote = True
                    unverified = check_numbers(temporary, asked, names, rung, warned)
                break
            except ExportError as error:
                refused[rung] = error
        else:
            raise _none_left(refused)
    made = graphs.describe(out, stage="export", precision="fp32", axes=axes, parent_sha256=None)
    return made, ExportReport(
        exporter="dynamo" if rung == _PLAIN_DYNAMO else rung,
        refused={name: str(error) for name, error in refused.items()},
        unverified=unverified,
    )


def _rungs(exporter: Exporter, module: torch.nn.Module, opset: int) -> tuple[Any, ...]:
    """What to try, in order."""
    import torch

    if exporter == "auto" and not isinstance(module, torch.jit.ScriptModule):
        if opset < DEFAULT_OPSET:
            return ("trace", "script")
        late = opset > _TORCHSCRIPT_MAX_OPSET
        return ("dynamo", _PLAIN_DYNAMO) if late else ("dynamo", _PLAIN_DYNAMO, "trace", "script")
    chosen = _choose(exporter, module, opset)
    return ("dynamo", _PLAIN_DYNAMO) if chosen == "dynamo" else (chosen,)


def _none_left(refused: Mapping[str, ExportError]) -> ExportError:
    first = next(iter(refused.values()))
    if len(refused) == 1:
        return first
    reasons = " ".join(f"{name}: {error}" for name, error in refused.items())
    error = ExportError(f"No exporter wrote the model. {reasons}")
    error.__cause__ = first
    return error


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
    exporter: str,
) -> None:
    import torch

    shapes = tuple(
        {position: size for position, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in specs
    )
    with custom.kept("dynamo", path, opset=opset):
        program = torch.onnx.export(
            positional(module, tuple(example)),
            tuple(tensors_for(module, example).values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=(shapes,),
            optimize=exporter != _PLAIN_DYNAMO,
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
    exporter: str,
) -> None:
    import torch

    tensors = tensors_for(module, example)
    if exporter == "trace":
        source = positional(module, tuple(example))
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


@contextmanager
def _failures_as_export_errors(
    exporter: str, module: torch.nn.Module
) -> Iterator[list[warnings.WarningMessage]]:
    import torch

    # The exporters warn of their own internals and of TorchScript's age; what matters of it is
    # checked on what they wrote.
    chatter = logging.getLogger("torch.onnx")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True) as warned, torch.no_grad():
            warnings.simplefilter("always")
            yield warned
    except (ExportError, InvalidInputError):
        raise
    except Exception as error:  # PyTorch's exporters raise whatever happened inside
        place = source_line(error, module)
        at = "" if place is None else f" at {place}"
        msg = (
            f"The {exporter} exporter failed{at}: {type(error).__name__}: {brief(root(error))}; "
            f"try another exporter, or change the part of forward that it names."
        )
        raise ExportError(msg) from error
    finally:
        chatter.setLevel(level)
