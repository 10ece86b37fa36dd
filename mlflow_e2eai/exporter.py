"""torch.nn.Module, ScriptModule or ExportedProgram -> ONNX.

PyTorch has two ways to ONNX. The dynamo exporter (``torch.export``, PyTorch's default) takes modules
and exported programs; the TorchScript exporter traces a module or takes a scripted one, and is the
only way to opsets below 18 and to a ``torch.autograd.Function`` with ``symbolic``. Both keep quiet
about some of what they could not do (an opset that was not reached, a dynamic axis that became
static), so what was written is read back and held against what was asked.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import Array, Axis, OnnxArtifact, Tensors, TensorSpec, resize, written
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.runners import call, device_of, evaluation_mode, flatten, parameter_names

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

Exporter: TypeAlias = Literal["auto", "dynamo", "trace", "script"]
EXPORTERS: tuple[Exporter, ...] = ("auto", "dynamo", "trace", "script")

DynamicAxes: TypeAlias = Mapping[str, Mapping[int, Axis]]
"""Dynamic axes by input name and position."""

DEFAULT_OPSET = 18
"""The one opset that both exporters write natively: dynamo's translations start there, and ONNX
Runtime's CUDA provider lacks some of the later forms (Resize-19, ReduceMax-20)."""

_TORCHSCRIPT_MAX_OPSET = 20
"""Asked for more, the TorchScript exporter only stamps the number (torch 2.13)."""


def export(
    model: Any,
    input_example: Any,
    *,
    out: Path,
    dynamic_axes: DynamicAxes | None = None,
    exporter: Exporter = "auto",
    opset: int = DEFAULT_OPSET,
    output_names: Sequence[str] | None = None,
) -> OnnxArtifact:
    """Write a PyTorch model as an ONNX file.

    Args:
        model: A ``torch.nn.Module``, ``torch.jit.ScriptModule`` or ``torch.export.ExportedProgram``.
            It is exported in evaluation mode and gets its mode back.
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

    Returns:
        The fp32 graph as the exporter wrote it.

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
        if axes:
            answer(module, example, what="the input example at the opt size of its dynamic axes")
        with written(out) as temporary, _failures_as_export_errors(chosen):
            write = _with_dynamo if chosen == "dynamo" else _with_torchscript
            write(module, example, temporary, specs, axes, names, opset, chosen)
            _hold_to_request(temporary, specs=specs, outputs=names, opset=opset, exporter=chosen)
    return graphs.describe(out, stage="export", precision="fp32", axes=axes, parent_sha256=None)


def module_of(model: Any) -> torch.nn.Module:
    """The module of whatever can be exported.

    Raises:
        InvalidInputError: It is not a module, ScriptModule or ExportedProgram.
    """
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return model.module()
    if not isinstance(model, torch.nn.Module):
        msg = (
            f"The model is a {type(model).__name__}, but a torch.nn.Module, ScriptModule or "
            f"ExportedProgram is wanted; pass the module itself."
        )
        raise InvalidInputError(msg)
    return model


def named_inputs(model: torch.nn.Module, input_example: Any) -> dict[str, Array]:
    """Name the arrays of an input example.

    Raises:
        InvalidInputError: It is empty, holds something other than tensors and arrays, or has more
            of them than ``forward`` has parameters.
    """
    if isinstance(input_example, Mapping):
        named = {str(name): value for name, value in input_example.items()}
    else:
        values = input_example if isinstance(input_example, tuple | list) else (input_example,)
        names = parameter_names(model) or tuple(f"input_{i}" for i in range(len(values)))
        if len(values) > len(names):
            msg = (
                f"The input example has {len(values)} inputs, but forward takes {list(names)}; "
                f"give one array for each parameter."
            )
            raise InvalidInputError(msg)
        named = dict(zip(names, values, strict=False))
    if not named:
        msg = "The input example is empty; give at least one tensor or array."
        raise InvalidInputError(msg)
    return {name: _array(name, value) for name, value in named.items()}


def input_specs(example: Tensors, dynamic_axes: DynamicAxes) -> tuple[TensorSpec, ...]:
    """The inputs of an example, with its dynamic axes named.

    Raises:
        InvalidInputError: `dynamic_axes` names an input or position that the example lacks, or one
            name stands for two different sets of sizes.
    """
    axes_of(dynamic_axes)
    if strange := set(dynamic_axes) - set(example):
        msg = (
            f"dynamic_axes names {sorted(strange)}, but the inputs are {list(example)}; use the "
            f"names of the input example."
        )
        raise InvalidInputError(msg)
    specs = []
    for name, array in example.items():
        shape: list[int | str] = list(array.shape)
        for position, axis in dynamic_axes.get(name, {}).items():
            if not 0 <= position < array.ndim:
                msg = (
                    f"dynamic_axes names axis {position} of {name!r}, which has {array.ndim} axes; "
                    f"count from 0."
                )
                raise InvalidInputError(msg)
            shape[position] = axis.name
        specs.append(TensorSpec(name=name, dtype=array.dtype.name, shape=tuple(shape)))
    return tuple(specs)


def axes_of(dynamic_axes: DynamicAxes) -> tuple[Axis, ...]:
    """The different axes of a request, in order.

    Raises:
        InvalidInputError: Something is not an Axis, or one name stands for two different sets of
            sizes.
    """
    found: dict[str, Axis] = {}
    for name, positions in dynamic_axes.items():
        for axis in positions.values():
            if not isinstance(axis, Axis):
                msg = f"dynamic_axes[{name!r}] holds {axis!r}; give an Axis('N', min=, opt=, max=)."
                raise InvalidInputError(msg)
            if found.setdefault(axis.name, axis) != axis:
                msg = f"Axis {axis.name!r} is given twice with different sizes; rename one of them."
                raise InvalidInputError(msg)
    return tuple(found.values())


def answer(
    model: torch.nn.Module, example: Tensors, *, what: str = "the input example"
) -> dict[str, torch.Tensor]:
    """Run a module once on an example, with no gradients.

    Raises:
        InvalidInputError: The module does not accept the example, or returns something that is not
            tensors.
    """
    import torch

    try:
        with torch.no_grad():
            return flatten(call(model, _tensors(model, example)))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the user's forward raises
        given = {name: f"{array.dtype}{list(array.shape)}" for name, array in example.items()}
        msg = (
            f"The model does not accept {what}, {given}: {type(error).__name__}: "
            f"{_brief(error)}; give inputs of the dtypes and shapes that forward takes."
        )
        raise InvalidInputError(msg) from error


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


def _array(name: str, value: Any) -> Array:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        msg = (
            f"Input {name!r} of the example is a {type(value).__name__}, but a tensor or a numeric "
            f"NumPy array is wanted; convert it."
        )
        raise InvalidInputError(msg)
    return np.ascontiguousarray(value) if value.ndim else value


def _tensors(model: torch.nn.Module, example: Tensors) -> dict[str, torch.Tensor]:
    import torch

    device = device_of(model)
    # A copy: a module that writes into its input must not change the caller's example.
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in example.items()}


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
    program = torch.onnx.export(
        _positional(module, tuple(example)),
        tuple(_tensors(module, example).values()),
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

    tensors = _tensors(module, example)
    if exporter == "trace":
        source = _positional(module, tuple(example))
    else:
        source = module if isinstance(module, torch.jit.ScriptModule) else torch.jit.script(module)
        names = [name for name in parameter_names(module) if name in tensors]
        tensors = {name: tensors[name] for name in names} or tensors
    torch.onnx.export(
        source,
        tuple(tensors.values()),
        path,
        dynamo=False,
        opset_version=opset,
        input_names=list(tensors),
        output_names=list(outputs),
        dynamic_axes={
            **{spec.name: _named(spec.shape) for spec in specs},
            **_dynamic_outputs(module, example, specs, axes, outputs),
        },
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
            # The exporters set the mode of what they get, which is right already; a graph that
            # torch.export wrote would refuse.
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
            f"The {exporter} exporter failed: {type(error).__name__}: {_brief(_root(error))}; try "
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


def _brief(error: BaseException, limit: int = 300) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}…"
