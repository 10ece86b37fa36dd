"""PyTorch modules: type, mode, device, parameter names, lines of code."""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError
from mlflow_e2eai.pytorch.state import (
    ModuleState,
    eager,
    fast_path,
    state_restored,
    unwrap_compiled,
)

if TYPE_CHECKING:
    import torch


def module_of(model: Any) -> torch.nn.Module:
    """The module of a model that can be exported.

    Raises:
        InvalidInputError: It is not a module, ScriptModule or ExportedProgram, or its weights are
            not in fp32: a graph is exported in fp32, and converted afterwards.
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        purpose = "Taking a model from export to package"
        raise MissingDependencyError(package="torch", extra="torch", purpose=purpose) from error

    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, torch.nn.Module):
        model = unwrap_compiled(model)
    if not isinstance(model, torch.nn.Module):
        msg = (
            f"The model is a {type(model).__name__}, but a torch.nn.Module, ScriptModule or "
            "ExportedProgram is expected; pass the module itself."
        )
        raise InvalidInputError(msg)
    for name, weight in model.named_parameters():
        if weight.is_meta or torch.nn.parameter.is_lazy(weight):
            msg = (
                f"Parameter {name!r} has no values yet, but a model with weights is expected; load "
                "them, or run it once."
            )
            raise InvalidInputError(msg)
        if weight.is_floating_point() and weight.dtype != torch.float32:
            msg = (
                f"Parameter {name!r} is {weight.dtype}, but torch.float32 is expected; call "
                "model.float(), and request other precisions with precisions=."
            )
            raise InvalidInputError(msg)
    return model


class Opened(NamedTuple):
    """A module that is ready to run.

    Attributes:
        was_training: Whether it was in training mode.
        state: Its state, to put back between calls.
    """

    was_training: bool
    state: ModuleState


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[Opened]:
    """Put a module into evaluation mode in the block, and restore all that it had.

    That is the mode of each part, buffers, attributes, hooks and the random states. In the block
    parts of `torch.compile` run as they are written, and attention without PyTorch's fast path.

    Yields:
        The mode and state. A graph that `torch.export` wrote reports that it is training and
        refuses `eval`: its mode was fixed by the export, and is left alone.
    """
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        was_training = any(training for _, training in modes)
    except NotImplementedError:
        was_training = False
    try:
        with state_restored(model) as state, eager(model), fast_path(enabled=False):
            yield Opened(was_training, state)
    finally:
        for part, training in modes:
            if part.training != training:
                part.training = training


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for a module with neither."""
    import torch

    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def parameter_names(model: torch.nn.Module) -> tuple[str, ...]:
    """The names of ``forward``'s parameters, in order; empty where they are not known."""
    import torch

    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]  # not typed in torch
        return tuple(argument.name for argument in schema.arguments[1:])
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def keyword_names(model: torch.nn.Module) -> frozenset[str]:
    """The names of the keyword-only parameters of ``forward``.

    A graph that `torch.export` wrote takes by keyword the arguments that were keywords when it was
    exported, which its signature does not show.
    """
    import torch

    if isinstance(model, torch.jit.ScriptModule):
        return frozenset()  # TorchScript has no such parameters
    if (exported := getattr(model, "_in_spec", None)) is not None:
        return frozenset(exported.children()[1].context)
    parameters = inspect.signature(model.forward).parameters.values()
    return frozenset(each.name for each in parameters if each.kind is each.KEYWORD_ONLY)


def root(error: BaseException) -> BaseException:
    """The innermost cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def source_line(error: BaseException, model: torch.nn.Module) -> str | None:
    """The line of a module's own code that an error was raised from, as ``file:line``.

    None where no code of the module ran, as when a graph of it is translated.
    """
    own = {sys.modules.get(type(part).__module__) for part in model.modules()}
    files = {
        file
        for where in own
        if where is not None
        and (file := getattr(where, "__file__", None))
        and not where.__name__.startswith(("torch.", "mlflow_e2eai."))
    }
    location = None
    now: BaseException | None = error
    while now is not None:
        for frame in traceback.extract_tb(now.__traceback__):
            if frame.filename in files:
                location = (frame.filename, frame.lineno)
        now = now.__cause__
    return None if location is None else f"{Path(location[0]).name}:{location[1]}"
