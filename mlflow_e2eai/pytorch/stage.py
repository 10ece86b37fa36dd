"""torch.nn.Module, ScriptModule or ExportedProgram -> ONNX.

PyTorch has two ways to ONNX. The dynamo exporter (``torch.export``, PyTorch's default) takes
modules and exported programs; the TorchScript exporter traces a module or takes a scripted one, and
is the only way to opsets below 18. Both fail silently in some cases (an opset that was not reached,
a dynamic axis that became static), so the result is compared with the request.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of, input_specs, resize
from mlflow_e2eai.artifacts.graphs import only_new_garbage
from mlflow_e2eai.artifacts.values import OnnxArtifact
from mlflow_e2eai.artifacts.weight_files import is_large, staging_path
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.pytorch import operators as custom
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.exporters import (
    PLAIN_DYNAMO,
    failures_as_export_errors,
    with_dynamo,
    with_torchscript,
)
from mlflow_e2eai.pytorch.flat_module import flatten_module, input_tree, original, run_with_tree
from mlflow_e2eai.pytorch.module import evaluation_mode
from mlflow_e2eai.pytorch.pytree import Tree
from mlflow_e2eai.pytorch.verify import check_interface, check_numbers, reference_samples

if TYPE_CHECKING:
    import torch

Exporter: TypeAlias = Literal["auto", "dynamo", "trace", "script"]
EXPORTERS: tuple[Exporter, ...] = ("auto", "dynamo", "trace", "script")

DEFAULT_OPSET = 18
"""The one opset that both exporters write natively: dynamo's translations start there, and ONNX
Runtime's CUDA provider lacks some of the later forms (Resize-19, ReduceMax-20)."""

_TORCHSCRIPT_MAX_OPSET = 20
"""Above this the TorchScript exporter only changes the number (torch 2.13)."""

AUTO = ("dynamo", PLAIN_DYNAMO, "trace", "script")
"""The order in which ``auto`` tries the exporters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """Result of an export.

    Attributes:
        exporter: The exporter that wrote the graph.
        refused: Reasons why earlier exporters were not taken, by name, in order;
            ``dynamo`` is the exporter with its optimizer, ``dynamo_unoptimized`` without.
        unverified: Reason why the graph's numbers could not be compared with the module's; None
            where they are equal on the samples of `reference_samples`.
        inputs: Positions of the graph's inputs in the arguments of ``forward``.
        outputs: Positions of its outputs in the value that ``forward`` returns.
    """

    exporter: Exporter
    refused: Mapping[str, str] = field(default_factory=dict)
    unverified: str | None = None
    inputs: Tree | None = None
    outputs: Tree | None = None


@only_new_garbage()
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
    deferred: Collection[str] = (),
    operator_libraries: Sequence[Path] = (),
) -> tuple[OnnxArtifact, ExportReport]:
    """Write a PyTorch model as an ONNX file.

    Args:
        model: A ``torch.nn.Module``, ScriptModule or ExportedProgram. It is exported in evaluation
            mode, and its mode is restored.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names; without names, those
            of ``forward``'s parameters do.
        out: The file to write.
        dynamic_axes: Axes whose size may vary, by input name and position.
        exporter: ``dynamo``, ``trace`` or ``script``; ``auto`` takes the first of them, in this
            order, whose graph computes the module's numbers: on the example at every corner of its
            dynamic axes, and on other values. For a ScriptModule it is ``script``.
        opset: Version of the ONNX operator set.
        output_names: Names for the outputs, in order; by default ``output``, or ``output_0`` and so
            on for several, or the keys where ``forward`` returns a mapping.
        operators: Definitions of operators that are not ONNX's own, as model-local functions.
        deferred: Operators that need no implementation yet, as ``devtech::FooOp`` or ``FooOp``: a
            surgery plan takes them out later, or a TensorRT plugin has them.
        operator_libraries: Shared libraries that implement operators of the graph for ONNX Runtime.
            They are native code; naming them here allows loading them.

    Returns:
        The fp32 graph as the exporter wrote it, and the report.

    Raises:
        InvalidInputError: The model does not accept the example, returns something that is not
            tensors, or an argument is wrong.
        ExportError: PyTorch failed, or wrote something other than the request, or a graph
            with other numbers than the module's; with a reason for each exporter that was tried.
            Or nothing implements an operator of the graph; it names the node.
    """
    module, given = flatten_module(model, input_example)
    attempts = _attempts(exporter, module, opset)
    libraries = custom.load_libraries(operator_libraries)
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
        returned, _ = run_with_tree(module, given)
        returned = pytree.rename_leaves(returned, _output_names(returned, output_names, given))
        names = tuple(pytree.names(returned))
        samples = reference_samples(module, given, specs, axes)
        wrote = False
        for attempt in attempts:
            if attempt == PLAIN_DYNAMO and not wrote:
                continue  # the optimizer was not the cause
            try:
                with (
                    staging_path(out) as temporary,
                    failures_as_export_errors(attempt, module) as warned,
                ):
                    write = with_torchscript if attempt in ("trace", "script") else with_dynamo
                    write(module, example, temporary, specs, axes, names, opset, attempt, operators)
                    custom.carry(temporary, operators)
                    if is_large(module):
                        graphs.write(
                            graphs.read(temporary), temporary
                        )  # names weight files by content
                    model = graphs.read(temporary)
                    graphs.check(model)
                    check_interface(
                        model, specs=specs, outputs=names, opset=opset, exporter=attempt
                    )
                    wrote = True
                    lacking = custom.unimplemented_operators(
                        model, deferred=deferred, libraries=libraries
                    )
                    unverified = check_numbers(
                        temporary,
                        samples,
                        names,
                        attempt,
                        warned,
                        lacking=lacking,
                        libraries=libraries,
                    )
                    artifact = graphs.describe(
                        temporary,
                        stage="export",
                        precision="fp32",
                        axes=axes,
                        parent_sha256=None,
                        libraries=libraries,
                        model=model,
                    )
                break
            except ExportError as error:
                if error.operator is not None:
                    raise  # no exporter can help that
                refused[attempt] = error
        else:
            raise _no_exporter_error(refused)
    return replace(artifact, path=out), ExportReport(
        exporter="dynamo" if attempt == PLAIN_DYNAMO else attempt,
        refused={name: str(error) for name, error in refused.items()},
        unverified=unverified,
        inputs=input_tree(module, given),
        outputs=returned,
    )


def _attempts(exporter: Exporter, module: torch.nn.Module, opset: int) -> tuple[Any, ...]:
    """The exporters to try, in order."""
    import torch

    if exporter == "auto" and not isinstance(original(module), torch.jit.ScriptModule):
        too_early = {"dynamo", PLAIN_DYNAMO} if opset < DEFAULT_OPSET else set()
        too_late = {"trace", "script"} if opset > _TORCHSCRIPT_MAX_OPSET else set()
        return tuple(name for name in AUTO if name not in too_early | too_late)
    chosen = _choose(exporter, module, opset)
    return ("dynamo", PLAIN_DYNAMO) if chosen == "dynamo" else (chosen,)


def _no_exporter_error(refused: Mapping[str, ExportError]) -> ExportError:
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
    scripted = isinstance(original(module), torch.jit.ScriptModule)
    if exporter == "auto":
        exporter = "script" if scripted else "dynamo"
    if scripted and exporter != "script":
        msg = f"The {exporter} exporter takes no ScriptModule; use exporter='script'."
        raise InvalidInputError(msg)
    if exporter == "script" and isinstance(original(module), torch.fx.GraphModule):
        msg = "The script exporter takes no ExportedProgram; use exporter='dynamo'."
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


def _output_names(
    returned: Tree, wanted: Sequence[str] | None, inputs: Collection[str]
) -> dict[str, str]:
    """Name of each output; one that equals an input's name gets a suffix."""
    own = pytree.names(returned)
    names = [f"output.{name}" if name in inputs else name for name in own]
    names = names if wanted is None else list(wanted)
    if len(names) != len(own) or len(set(names)) != len(names):
        msg = f"output_names is {list(names)}, but forward returns {len(own)} outputs."
        raise InvalidInputError(msg)
    if taken := set(names) & set(inputs):
        msg = f"output_names has {sorted(taken)}, which inputs are named; choose other names."
        raise InvalidInputError(msg)
    return dict(zip(own, names, strict=True))
