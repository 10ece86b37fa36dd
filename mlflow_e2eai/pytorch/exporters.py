"""PyTorch's exporters, each a function that writes a file, with one form of failure."""

from __future__ import annotations

import io
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.artifacts.sampler import resample
from mlflow_e2eai.artifacts.values import Axis, Tensors, TensorSpec
from mlflow_e2eai.artifacts.weight_files import is_large
from mlflow_e2eai.errors import ExportError, InvalidInputError, brief
from mlflow_e2eai.pytorch import operators as custom
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.flat_module import (
    input_tree,
    original,
    positional,
    run_module,
    run_with_tree,
    tensors_for,
)
from mlflow_e2eai.pytorch.guards import telling_sizes
from mlflow_e2eai.pytorch.module import root, source_line
from mlflow_e2eai.pytorch.pytree import Tree
from mlflow_e2eai.pytorch.sequences import drop_padded_sequences, padded_sequences
from mlflow_e2eai.runtime.descriptors import stderr_lines_logged

if TYPE_CHECKING:
    import torch


PLAIN_DYNAMO = "dynamo_unoptimized"
"""The dynamo exporter without its optimizer, which drops a small constant such as ``+ 1e-9``."""


def with_dynamo(
    module: torch.nn.Module,
    example: Tensors,
    path: Path,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
    outputs: tuple[str, ...],
    opset: int,
    exporter: str,
    operators: Sequence[custom.Operator] = (),
) -> tuple[dict[str, int], ...]:
    """Write a module with ``torch.export``; arguments as `with_torchscript`.

    Returns:
        Sizes at which the program may be wrong by its own guards; see `telling_sizes`.
    """
    import torch

    shapes = tuple(
        {position: size for position, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in specs
    )
    with (
        custom.keep_symbolic("dynamo", path, opset=opset),
        custom.translate_operators(operators, "dynamo", opset=opset) as table,
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
    exported = program.exported_program
    return () if exported is None else telling_sizes(exported, specs, axes)


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
) -> tuple[dict[str, int], ...]:
    """Write a module as it is traced, or as a script.

    Args:
        module: The module of `flatten_module`, in evaluation mode.
        example: An array for each input, every dynamic axis at opt.
        path: The file.
        specs: The inputs, with their dynamic axes.
        axes: The dynamic axes.
        outputs: Names of the outputs, in order.
        opset: Version of the operator set.
        exporter: ``trace`` or ``script``.
        operators: Operators; those of ``torch.library`` are written as nodes.

    Returns:
        None of the sizes that `with_dynamo` returns: TorchScript has no guards.
    """
    import torch

    tensors = tensors_for(module, example)
    if exporter == "trace":
        source: torch.nn.Module = positional(module, tuple(example))
    else:
        own = original(module)
        scripted = own if isinstance(own, torch.jit.ScriptModule) else torch.jit.script(own)
        custom.check_no_python(scripted)
        returned, _ = run_with_tree(module, example)
        source = flat_script(scripted, input_tree(module, example), returned)
    dynamic = {spec.name: _dimension_names(spec.shape) for spec in specs}
    dynamic |= _dynamic_outputs(module, example, specs, axes, outputs)
    with (
        custom.keep_symbolic(exporter, path, opset=opset),
        custom.translate_operators(operators, exporter, opset=opset),
        stderr_lines_logged(_NATIVE_LINE, partial(_log.debug, "PyTorch: %s")),
        padded_sequences(source) as padded,
    ):
        torch.onnx.export(
            padded,
            tuple(tensors.values()),
            path,
            dynamo=False,
            opset_version=opset,
            input_names=list(tensors),
            output_names=list(outputs),
            dynamic_axes=dynamic,
        )
    if padded is not source:
        drop_padded_sequences(path, outputs)
    return ()


def _dimension_names(shape: Sequence[int | str]) -> dict[int, str]:
    return {position: size for position, size in enumerate(shape) if isinstance(size, str)}


def _dynamic_outputs(
    module: torch.nn.Module,
    example: Tensors,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
    outputs: tuple[str, ...],
) -> dict[str, dict[int, str]]:
    """Names of the output axes that follow a dynamic axis, found by changing one size at a time.

    The TorchScript exporter takes them as an argument, and invents names for all others, such as
    those of an axis of which the module takes no other size alone.
    """
    axes_by_output: dict[str, dict[int, str]] = {name: {} for name in outputs}
    before = [tensor.shape for tensor in run_module(module, example).values()]
    for axis in axes:
        for other in [size for size in (axis.max, axis.min) if size != axis.opt]:
            try:
                changed = run_module(module, resample(example, specs, {axis.name: other}))
            except InvalidInputError:
                continue
            for name, shape, tensor in zip(outputs, before, changed.values(), strict=True):
                for position, (old, new) in enumerate(zip(shape, tensor.shape, strict=True)):
                    if (old, new) == (axis.opt, other):
                        axes_by_output[name][position] = axis.name
            break
    return axes_by_output


@contextmanager
def failures_as_export_errors(
    exporter: str, module: torch.nn.Module
) -> Iterator[list[warnings.WarningMessage]]:
    """Raise what PyTorch raises in the block as an `ExportError` with the line of the module.

    Yields:
        The warnings so far.
    """
    import torch

    try:
        with warnings.catch_warnings(record=True) as warned, torch.no_grad(), prints_logged():
            warnings.simplefilter("always")
            yield warned
    except (ExportError, InvalidInputError):
        raise
    except Exception as error:  # PyTorch's exporters raise errors of any kind
        line = source_line(error, module)
        at = "" if line is None else f" at {line}"
        msg = (
            f"The {exporter} exporter failed{at}: {type(error).__name__}: {brief(root(error))}; "
            f"{_ADVICE}"
        )
        raise ExportError(msg) from error


_ADVICE = "try another exporter, or change the part of forward that it names."

_log = logging.getLogger(__name__)


_NATIVE_LINE = re.compile(rb"(?:\[rank\d+\]:)?\[[IWEF][\d :.]*[\w./-]+\.\w+:\d+\] ")
"""The beginning of a line that PyTorch logs from C++, as ``[W1201 00:17:30.7 file.cpp:1] Warning``.
The passes of the TorchScript exporter write some; of the dynamo exporter none was seen."""


@contextmanager
def prints_logged() -> Iterator[None]:
    """Log what PyTorch prints in the block at level DEBUG, its own log with it.

    The exporters print graphs, and warn of their own internals; the written file is checked for
    what matters.
    """
    import torch

    def log_graph(*parts: object) -> None:
        _log.debug("PyTorch: %s", "".join(map(str, parts)))

    # The TorchScript exporter prints from C++, and leaves that turned on after its first call.
    native: Any = torch._C  # noqa: SLF001 - there is no public way
    print_graph, was_enabled = native._jit_onnx_log, native._jit_is_onnx_log_enabled()  # noqa: SLF001
    logs = logging.root.manager.loggerDict
    torchs = [logs[name] for name in list(logs) if name.partition(".")[0] == "torch"]
    loggers = [each for each in torchs if isinstance(each, logging.Logger) and each.handlers]
    handlers = [list(logger.handlers) for logger in loggers]
    forward = _Forwarder()
    printed = io.StringIO()
    for logger in loggers:
        logger.handlers[:] = [forward]
    native._jit_onnx_log = log_graph  # noqa: SLF001
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            yield
    finally:
        native._jit_onnx_log = print_graph  # noqa: SLF001
        native._jit_set_onnx_log_enabled(was_enabled)  # noqa: SLF001
        for logger, own in zip(loggers, handlers, strict=True):
            logger.handlers[:] = own
        if text := printed.getvalue().strip():
            _log.debug("PyTorch printed: %s", text)


class _Forwarder(logging.Handler):
    """Passes the records of PyTorch's loggers on as DEBUG."""

    def emit(self, record: logging.LogRecord) -> None:
        _log.debug("PyTorch: %s", record.getMessage())


def no_exporter_error(refused: Mapping[str, ExportError]) -> ExportError:
    """One error for several: each cause once, with the exporters that have it, a line each."""
    first = next(iter(refused.values()))
    if len(refused) == 1:
        return first
    exporters: dict[str, list[str]] = {}
    for name, error in refused.items():
        text = str(error).removesuffix(f"; {_ADVICE}")
        text = text.replace(f"The {name} exporter failed: ", "")
        text = text.replace(f"The {name} exporter failed at", "failed at")
        text = text.replace(f"The graph of the {name} exporter", "its graph")
        exporters.setdefault(text, []).append(name)
    if len(exporters) == 1:
        (cause,) = exporters
        msg = f"No exporter could export the model: {', '.join(refused)} alike: {cause}"
    else:
        lines = (f"\n  {', '.join(names)}: {cause}" for cause, names in exporters.items())
        msg = (
            "No exporter could export the model; change forward at the places that they "
            f"name.{''.join(lines)}"
        )
    error = ExportError(msg)
    error.__cause__ = first
    return error


# TorchScript of a module that takes and returns tensors by position, as ONNX does.
#
# The TorchScript exporter supports no mapping of a scripted module, and chooses the names of nested
# inputs itself. So a script around the module is compiled from source, made of the trees of its
# inputs and outputs.
#


def flat_script(
    module: torch.jit.ScriptModule, inputs: Tree, outputs: Tree
) -> torch.jit.ScriptModule:
    """A scripted module around another, from tensors in order to a tensor or a tuple of them.

    Args:
        module: The inner module.
        inputs: The tree of its arguments by name; unknown names are passed by position.
        outputs: The tree of its outputs.

    Raises:
        ExportError: The inputs contain an object with fields.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

    leaves = {name: f"tensor_{i}" for i, name in enumerate(pytree.names(inputs))}
    schema: Any = module.forward.schema  # type: ignore[attr-defined]  # not typed in torch
    types = {argument.name: argument.type for argument in schema.arguments[1:]}
    arguments = []
    for name, part in zip(inputs.keys, inputs.parts, strict=True):
        value = _expression(part, leaves)
        if name in types:
            annotation = types[name].annotation_str
            if part.parts and "__torch__" not in annotation:  # such a class has no name in source
                value = f"torch.jit.annotate({annotation}, {value})"
            value = f"{name}={value}"
        arguments.append(value)
    taken = [
        f"torch.jit._unwrap_optional({leaf})" for leaf in _leaf_expressions(outputs, "returned")
    ]
    lines = (
        f"def forward(self, {', '.join(f'{leaf}: Tensor' for leaf in leaves.values())}):",
        f"    returned = self.model.forward({', '.join(arguments)})",
        f"    return {', '.join(taken)}\n",
    )
    script: torch.jit.ScriptModule = torch.jit.script(Flat().eval())
    script.define("\n".join(lines))
    return script


def _expression(tree: Tree, leaves: dict[str, str]) -> str:
    """A value as TorchScript writes it."""
    if tree.kind == "leaf":
        return leaves[tree.text]
    inner = [_expression(part, leaves) for part in tree.parts]
    if tree.kind == "mapping":
        items = (f"{key!r}: {part}" for key, part in zip(tree.keys, inner, strict=True))
        return f"{{{', '.join(items)}}}"
    if tree.kind == "list":
        return f"[{', '.join(inner)}]"
    if tree.kind == "tuple":
        return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
    if tree.kind == "object":
        msg = (
            "The script exporter takes tensors in mappings, lists and tuples, but the input "
            f"example holds a {tree.text.partition(':')[2]}; pass its fields to forward instead."
        )
        raise ExportError(msg)
    value = pytree.unflatten(tree, {})
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({tree.text!r})"
    return repr(value)


def _leaf_expressions(tree: Tree, at: str) -> list[str]:
    """Expressions of the leaves inside the value of an expression, in order."""
    if tree.kind == "leaf":
        return [at]
    keys = tree.keys or tuple(range(len(tree.parts)))
    steps = [f".{key}" if tree.kind == "object" else f"[{key!r}]" for key in keys]
    inner = zip(steps, tree.parts, strict=True)
    return [leaf for step, part in inner for leaf in _leaf_expressions(part, f"{at}{step}")]
