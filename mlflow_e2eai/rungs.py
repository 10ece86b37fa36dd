"""PyTorch's ways to ONNX, each a function that writes a file, and their failures in one form."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import operators as custom
from mlflow_e2eai.arrays import resize
from mlflow_e2eai.artifacts import Axis, Tensors, TensorSpec
from mlflow_e2eai.calling import (
    answer,
    input_tree,
    original,
    positional,
    structured_answer,
    tensors_for,
)
from mlflow_e2eai.errors import ExportError, InvalidInputError
from mlflow_e2eai.modules import brief, root, source_line
from mlflow_e2eai.scripting import flat_script
from mlflow_e2eai.weights import is_large

if TYPE_CHECKING:
    import torch

PLAIN_DYNAMO = "dynamo_unoptimized"
"""The dynamo exporter without its optimizer, which drops a small constant such as ``+ 1e-9``."""


def with_dynamo(
    module: torch.nn.Module,
    example: Tensors,
    path: Path,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],  # noqa: ARG001 - dynamo reads them off the specs
    outputs: tuple[str, ...],
    opset: int,
    exporter: str,
    operators: Sequence[custom.Operator] = (),
) -> None:
    """Write a module with ``torch.export``; arguments as `with_torchscript`."""
    import torch

    shapes = tuple(
        {position: size for position, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in specs
    )
    with (
        custom.kept("dynamo", path, opset=opset),
        custom.translated(operators, "dynamo", opset=opset) as table,
    ):
        program = torch.onnx.export(
            positional(module, tuple(example)),
            tuple(tensors_for(module, example).values()),
            dynamo=True,
            opset_version=opset,
            input_names=list(example),
            output_names=list(outputs),
            dynamic_shapes=shapes,
            optimize=exporter != PLAIN_DYNAMO,
            custom_translation_table=table,
            verbose=False,
        )
        if program is None:
            msg = "the exporter returned nothing"
            raise RuntimeError(msg)
        program.save(path, external_data=is_large(module))


def with_torchscript(
    module: torch.nn.Module,
    example: Tensors,
    path: Path,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
    outputs: tuple[str, ...],
    opset: int,
    exporter: str,
    operators: Sequence[custom.Operator] = (),
) -> None:
    """Write a module as it is traced, or as a script.

    Args:
        module: The module, in evaluation mode; what `flattened` gives.
        example: An array for each input, every dynamic axis at opt.
        path: The file.
        specs: The inputs, with their dynamic axes.
        axes: The dynamic axes.
        outputs: Names of the outputs, in order.
        opset: Version of the operator set.
        exporter: ``trace`` or ``script``.
        operators: Those of ``torch.library`` among them are written as nodes.
    """
    import torch

    tensors = tensors_for(module, example)
    if exporter == "trace":
        source = positional(module, tuple(example))
    else:
        own = original(module)
        scripted = own if isinstance(own, torch.jit.ScriptModule) else torch.jit.script(own)
        custom.refuse_scripted(scripted)
        returned, _ = structured_answer(module, example)
        source = flat_script(scripted, input_tree(module, example), returned)
    dynamic = {spec.name: _named(spec.shape) for spec in specs}
    dynamic |= _dynamic_outputs(module, example, specs, axes, outputs)
    with (
        custom.kept(exporter, path, opset=opset),
        custom.translated(operators, exporter, opset=opset),
    ):
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
def failures_as_export_errors(
    exporter: str, module: torch.nn.Module
) -> Iterator[list[warnings.WarningMessage]]:
    """Raise what PyTorch raises in the block as an `ExportError` with the line of the module.

    Yields:
        What was warned of meanwhile.
    """
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
