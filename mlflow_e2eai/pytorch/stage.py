"""torch.nn.Module, ScriptModule or ExportedProgram -> ONNX.

PyTorch has two ways to ONNX. The dynamo exporter (``torch.export``, PyTorch's default) takes
modules and exported programs; the TorchScript exporter traces a module or takes a scripted one, and
is the only way to opsets below 18. Both fail silently in some cases (an opset that was not reached,
a dynamic axis that became static), so the result is compared with the request.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of, input_specs
from mlflow_e2eai.artifacts.example import SizedExample, others_of
from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.artifacts.graphs import only_new_garbage
from mlflow_e2eai.artifacts.sampler import resample, with_samples
from mlflow_e2eai.artifacts.values import Axis, Library, OnnxArtifact, Tensors, TensorSpec
from mlflow_e2eai.artifacts.weight_files import is_large, staging_path
from mlflow_e2eai.errors import (
    ExportError,
    InvalidInputError,
    require_kind,
    require_path,
    require_several,
    suggestion,
    warn_caller,
)
from mlflow_e2eai.pytorch import operators as custom
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.exporters import (
    PLAIN_DYNAMO,
    failures_as_export_errors,
    no_exporter_error,
    with_dynamo,
    with_torchscript,
)
from mlflow_e2eai.pytorch.flat_module import (
    flatten_module,
    input_tree,
    named_samples,
    original,
    run_with_tree,
)
from mlflow_e2eai.pytorch.module import evaluation_mode
from mlflow_e2eai.pytorch.pytree import Tree
from mlflow_e2eai.pytorch.references import References, TriedSizes, check_repeatable
from mlflow_e2eai.pytorch.verification import check_interface, check_numbers, frozen_at
from mlflow_e2eai.runtime.ort import check_opset
from mlflow_e2eai.runtime.storage import storage_errors

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


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ExportReport(Summary):
    """Result of an export.

    Attributes:
        exporter: The exporter that wrote the graph.
        refused: Reasons why earlier exporters were not taken, by name, in order;
            ``dynamo`` is the exporter with its optimizer, ``dynamo_unoptimized`` without.
        unverified: Reason why the graph's numbers could not be compared with the module's; None
            where they are equal on `samples`.
        inputs: Positions of the graph's inputs in the arguments of ``forward``.
        outputs: Positions of its outputs in the value that ``forward`` returns.
        samples: Labels of the samples that the graph was compared on.
        left_out: Reasons why other samples were not compared, by label.
        sizes: The sizes that the module took and refused; None where that was not recorded.
        frozen: The lines where the exporter took a value for a constant, though the samples agree;
            None where it warned of none.
        fast_path: How PyTorch's fast path of attention changes the numbers; None where it does not.
        max_abs_error: Largest absolute error on `samples`; None where nothing was compared.
    """

    exporter: Exporter
    refused: Mapping[str, str] = field(default_factory=dict)
    unverified: str | None = None
    inputs: Tree | None = None
    outputs: Tree | None = None
    samples: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    sizes: TriedSizes | None = None
    frozen: str | None = None
    fast_path: str | None = None
    max_abs_error: Real | None = None

    def _line(self) -> str:
        if self.unverified is not None:
            return f"by {self.exporter}, not verified: {self.unverified}"
        error = "" if self.max_abs_error is None else f", largest error {self.max_abs_error:.2g}"
        return f"by {self.exporter}, compared on {len(self.samples)} samples{error}"

    def _table(self) -> Table:
        return _Attempt, [
            _Attempt(self.exporter, None),
            *(_Attempt(name, reason) for name, reason in self.refused.items()),
        ]


@dataclass(frozen=True, slots=True)
class _Attempt:
    """A row about one exporter: the one that was taken, or why it was not."""

    exporter: str
    refused: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """The arguments of every exporter."""

    module: torch.nn.Module
    example: Tensors
    specs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]
    outputs: tuple[str, ...]
    opset: int
    operators: Sequence[custom.Operator]
    deferred: Collection[str]
    libraries: tuple[Library, ...]


class _Written(NamedTuple):
    """A graph that computes the module's numbers, or that could not be compared."""

    exporter: Exporter
    artifact: OnnxArtifact
    unverified: str | None
    frozen: str | None
    max_abs_error: float | None


@only_new_garbage()
@storage_errors()
def export(
    model: Any,
    input_example: Any,
    *,
    out: Path,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Any] = (),
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
            mode; its mode, buffers, attributes and hooks are as before afterwards, and so are the
            random states. One of `torch.compile` is exported as it is written.
        input_example: Inputs that the model accepts: a mapping of names to tensors or arrays, a
            tuple of them, or a single one. The names become the ONNX names; without names, those
            of ``forward``'s parameters do.
        out: The file to write.
        dynamic_axes: Axes whose size may vary, by input name and position.
        samples_at: Further examples, each like `input_example` at other sizes of its dynamic axes:
            they are run in place of samples that would be made of it.
        exporter: ``dynamo``, ``trace`` or ``script``; ``auto`` takes the first of them, in this
            order, whose graph computes the module's numbers: on the example at every corner of its
            dynamic axes and at sizes between, and on other values. One that froze a value is taken
            where no other is left. For a ScriptModule it is ``script``.
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

    Examples:
        >>> batch = Axis("N", min=1, opt=8, max=64)
        >>> raw, report = mlflow_e2eai.export(
        ...     module, {"x": x}, out=folder / "raw.onnx", dynamic_axes={"x": {0: batch}}
        ... )
        >>> [spec.name for spec in raw.inputs]
        ['x']
    """
    check_opset(opset)
    out, operators = require_path("out", out), custom.check_operators(operators)
    deferred = require_several("deferred", deferred, str, "names of operators, as a list")
    dynamic_axes = {} if dynamic_axes is None else dynamic_axes
    module, arrays = flatten_module(model, input_example)
    attempts = _attempts(exporter, module, opset)
    libraries = custom.load_libraries(operator_libraries)
    specs = input_specs(arrays, dynamic_axes)
    axes = axes_of(dynamic_axes)
    others = named_samples(model, input_example, samples_at) or others_of(input_example)
    given = with_samples(arrays, others, specs, axes)
    opt = resample(given, specs, {axis.name: axis.opt for axis in axes})
    refused: dict[str, ExportError] = {}
    written: _Written | None = None
    with evaluation_mode(module) as opened:
        if opened.was_training:
            warn_caller(
                "The model is in training mode: it is exported in evaluation mode, and returned "
                "to training mode afterwards."
            )
        returned, _ = run_with_tree(module, given)
        opened.state.restore()
        check_repeatable(module, given, opened.state)
        returned = pytree.rename_leaves(returned, _output_names(returned, output_names, given))
        request = _Request(
            module=module,
            example=SizedExample(opt, others_of(given)),
            specs=specs,
            axes=axes,
            outputs=tuple(pytree.names(returned)),
            opset=opset,
            operators=operators,
            deferred=deferred,
            libraries=libraries,
        )
        references = References(
            module=module, example=given, specs=specs, axes=axes, state=opened.state
        )
        references.add_all()
        for at, attempt in enumerate(attempts):
            if attempt == PLAIN_DYNAMO and not references.compared:
                continue  # the optimizer was not the cause
            try:
                opened.state.restore()
                written = _write(attempt, request, references, out)
            except ExportError as error:
                if error.operator is not None:
                    raise  # no exporter can help that
                refused[attempt] = error
                continue
            if written.frozen is None or at == len(attempts) - 1:
                break
            refused[attempt] = _frozen_error(written)
        if written is None:
            raise no_exporter_error(refused)
        fast_path = references.fast_path_difference(request.outputs)
    if written.frozen is not None:
        refused.pop(written.exporter, None)
    return replace(written.artifact, path=out), ExportReport(
        exporter=written.exporter,
        refused={name: str(error) for name, error in refused.items()},
        unverified=written.unverified,
        inputs=input_tree(module, given),
        outputs=returned,
        samples=() if written.unverified else tuple(each.label for each in references.samples),
        left_out=references.left_out,
        sizes=references.tried,
        frozen=written.frozen,
        fast_path=fast_path,
        max_abs_error=written.max_abs_error,
    )


def _write(exporter: Any, request: _Request, references: References, out: Path) -> _Written:
    """Write a graph with one exporter, and compare it with the module.

    Raises:
        ExportError: PyTorch failed, or the graph is another one than the request.
    """
    module, outputs, opset = request.module, request.outputs, request.opset
    with (
        staging_path(out) as temporary,
        failures_as_export_errors(exporter, module) as warned,
    ):
        write = with_torchscript if exporter in ("trace", "script") else with_dynamo
        telling = write(
            module,
            request.example,
            temporary,
            request.specs,
            request.axes,
            outputs,
            opset,
            exporter,
            request.operators,
        )
        custom.carry(temporary, request.operators)
        if is_large(module):
            graphs.write(graphs.read(temporary), temporary)  # names weight files by content
        model = graphs.read(temporary)
        graphs.check(model)
        check_interface(model, specs=request.specs, outputs=outputs, opset=opset, exporter=exporter)
        references.state.restore()
        for sizes in telling:
            references.add_sizes(sizes)
        lacking = custom.unimplemented_operators(
            model, deferred=request.deferred, libraries=request.libraries
        )
        unverified = check_numbers(
            temporary,
            references,
            outputs,
            exporter,
            warned,
            lacking=lacking,
            libraries=request.libraries,
        )
        artifact = graphs.describe(
            temporary,
            stage="export",
            precision="fp32",
            axes=request.axes,
            parent_sha256=None,
            libraries=request.libraries,
            model=model,
        )
    name: Exporter = "dynamo" if exporter == PLAIN_DYNAMO else exporter
    return _Written(name, artifact, unverified, frozen_at(warned), references.max_abs_error)


def _frozen_error(written: _Written) -> ExportError:
    msg = (
        f"The {written.exporter} exporter froze a value at {written.frozen}; its graph matches on "
        "the samples, and is taken only if no other exporter succeeds."
    )
    return ExportError(msg)


def _attempts(exporter: Exporter, module: torch.nn.Module, opset: int) -> tuple[Any, ...]:
    """The exporters to try, in order."""
    import torch

    require_kind("exporter", exporter, str, f"one of {', '.join(EXPORTERS)}")
    if exporter not in EXPORTERS:
        msg = f"There is no exporter {exporter!r}; {suggestion(exporter, EXPORTERS)}"
        raise InvalidInputError(msg)
    scripted = isinstance(original(module), torch.jit.ScriptModule)
    if exporter == "auto" and not scripted:
        too_early = {"dynamo", PLAIN_DYNAMO} if opset < DEFAULT_OPSET else set()
        too_late = {"trace", "script"} if opset > _TORCHSCRIPT_MAX_OPSET else set()
        return tuple(name for name in AUTO if name not in too_early | too_late)
    if exporter == "auto":
        exporter = "script"
    if scripted and exporter != "script":
        msg = f"The {exporter} exporter takes no ScriptModule; use exporter='script'."
        raise InvalidInputError(msg)
    if exporter == "script" and isinstance(original(module), torch.fx.GraphModule):
        msg = "The script exporter takes no ExportedProgram; use exporter='dynamo'."
        raise InvalidInputError(msg)
    if exporter == "dynamo" and opset < DEFAULT_OPSET:
        msg = (
            f"Opset {opset} was requested, but the dynamo exporter starts at {DEFAULT_OPSET}; use "
            "exporter='trace' or 'script', or a later opset."
        )
        raise InvalidInputError(msg)
    if exporter != "dynamo" and opset > _TORCHSCRIPT_MAX_OPSET:
        msg = (
            f"Opset {opset} was requested, but the TorchScript exporter ends at "
            f"{_TORCHSCRIPT_MAX_OPSET}; use exporter='dynamo', or an earlier opset."
        )
        raise InvalidInputError(msg)
    return ("dynamo", PLAIN_DYNAMO) if exporter == "dynamo" else (exporter,)


def _output_names(
    returned: Tree, wanted: Sequence[str] | None, inputs: Collection[str]
) -> dict[str, str]:
    """Name of each output; one that equals an input's name gets a suffix."""
    own = pytree.names(returned)
    names = [f"output.{name}" if name in inputs else name for name in own]
    if wanted is not None:
        names = list(require_several("output_names", wanted, str, "a name for each output"))
    if len(names) != len(own) or len(set(names)) != len(names):
        msg = f"output_names is {list(names)}, but forward returns {len(own)} outputs."
        raise InvalidInputError(msg)
    if taken := set(names) & set(inputs):
        msg = f"output_names has {sorted(taken)}, which are names of inputs; choose other names."
        raise InvalidInputError(msg)
    return dict(zip(own, names, strict=True))
