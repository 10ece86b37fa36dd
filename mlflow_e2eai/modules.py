"""PyTorch modules as the rest of this package sees them: named tensors in, named tensors out."""

from __future__ import annotations

import inspect
import itertools
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import Array, Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError

if TYPE_CHECKING:
    import torch

DynamicAxes: TypeAlias = Mapping[str, Mapping[int, Axis]]
"""Dynamic axes by input name and position."""


def module_of(model: Any) -> torch.nn.Module:
    """The module of whatever can be exported.

    Raises:
        InvalidInputError: It is not a module, ScriptModule or ExportedProgram, or its weights are
            not in fp32: a graph is exported in fp32, and converted afterwards.
    """
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if not isinstance(model, torch.nn.Module):
        msg = (
            f"The model is a {type(model).__name__}, but a torch.nn.Module, ScriptModule or "
            f"ExportedProgram is wanted; pass the module itself."
        )
        raise InvalidInputError(msg)
    for name, weight in model.named_parameters():
        if weight.is_floating_point() and weight.dtype != torch.float32:
            msg = (
                f"Parameter {name!r} is {weight.dtype}, but torch.float32 is wanted; call "
                f"model.float(), and ask for another precision by precisions=."
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
    return as_arrays(named)


def as_arrays(named: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors and arrays by name as contiguous arrays.

    Raises:
        InvalidInputError: One is something else, or holds no numbers.
    """
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
            return flatten(call(model, tensors_for(model, example)))
    except InvalidInputError:
        raise
    except Exception as error:  # whatever the user's forward raises
        given = {name: f"{array.dtype}{list(array.shape)}" for name, array in example.items()}
        msg = (
            f"The model does not accept {what}, {given}: {type(error).__name__}: "
            f"{brief(error)}; give inputs of the dtypes and shapes that forward takes."
        )
        raise InvalidInputError(msg) from error


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[bool]:
    """Put a module into evaluation mode, and give each of its parts its own mode back.

    Yields:
        Whether the module was in training mode. A graph that `torch.export` wrote says that it is
        training and refuses `eval`: its mode was fixed when it was written, and is left alone.
    """
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
    except NotImplementedError:
        yield False
        return
    try:
        yield any(training for _, training in modes)
    finally:
        for part, training in modes:
            part.training = training


def device_of(model: torch.nn.Module) -> torch.device:
    """The device of a module's first parameter or buffer; the CPU for a module with neither."""
    import torch

    first = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def call(model: torch.nn.Module, arguments: Mapping[str, torch.Tensor]) -> Any:
    """Call a module with named tensors.

    Names that are all parameters of ``forward`` are bound to them; names of which none is one go
    in by position, in their order.

    Raises:
        InvalidInputError: Some of the names are parameters of ``forward`` and some are not.
    """
    parameters = parameter_names(model)
    known = [name for name in parameters if name in arguments]
    if not known:
        return model(*arguments.values())
    if len(known) < len(arguments):
        strange = [name for name in arguments if name not in parameters]
        msg = (
            f"The input example names {strange}, but forward takes {list(parameters)}; name all "
            f"inputs as forward does, or none."
        )
        raise InvalidInputError(msg)
    # By position where that says the same: an exported program insists on how it was called.
    if known == list(parameters[: len(known)]):
        return model(*(arguments[name] for name in known))
    return model(**arguments)


def parameter_names(model: torch.nn.Module) -> tuple[str, ...]:
    """The names of ``forward``'s parameters, in order; empty where it hides them."""
    import torch

    if isinstance(model, torch.jit.ScriptModule):
        schema: Any = model.forward.schema  # type: ignore[attr-defined]  # torch does not say
        return tuple(argument.name for argument in schema.arguments[1:])
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(model.forward).parameters.values()
    return tuple(parameter.name for parameter in parameters if parameter.kind in kinds)


def flatten(answer: Any) -> dict[str, torch.Tensor]:
    """Name the tensors that ``forward`` returned.

    Returns:
        ``output`` for a single tensor, ``output_0``, ``output_1``, … for a tuple or list, and the
        keys themselves for a mapping (which a Hugging Face ModelOutput is).

    Raises:
        InvalidInputError: Something in it is not a tensor.
    """
    import torch

    match answer:
        case torch.Tensor():
            named = {"output": answer}
        case Mapping():
            named = {str(key): value for key, value in answer.items()}
        case tuple() | list():
            named = {f"output_{index}": value for index, value in enumerate(answer)}
        case _:
            named = {"output": answer}
    for name, value in named.items():
        if not isinstance(value, torch.Tensor):
            msg = (
                f"forward returned {type(value).__name__} as {name!r}, but a tensor, or a tuple, "
                f"list or mapping of tensors is wanted; return tensors only."
            )
            raise InvalidInputError(msg)
    if not named:
        msg = "forward returned nothing, but at least one tensor is wanted; return a tensor."
        raise InvalidInputError(msg)
    return named


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


def tensors_for(model: torch.nn.Module, example: Tensors) -> dict[str, torch.Tensor]:
    """An example as tensors on a module's device."""
    import torch

    device = device_of(model)
    # A copy: a module that writes into its input must not change the caller's example.
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in example.items()}


def positional(module: torch.nn.Module, names: tuple[str, ...]) -> torch.nn.Module:
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


def brief(error: BaseException, limit: int = 300) -> str:
    """What an error says, on one line."""
    text = " ".join(str(error).split())
    return text if len(text) <= limit else f"{text[:limit]}…"


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
    found = None
    now: BaseException | None = error
    while now is not None:
        for frame in traceback.extract_tb(now.__traceback__):
            if frame.filename in files:
                found = (frame.filename, frame.lineno)
        now = now.__cause__
    return None if found is None else f"{Path(found[0]).name}:{found[1]}"
