"""A module as one of named tensors, for any signature of its ``forward``.

A module whose arguments are nested, or are not all tensors, is wrapped once, by `flatten_module`,
into one that takes the tensors among them by name. All other code works with flat named arrays.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts.values import Array, Tensors
from mlflow_e2eai.errors import InvalidInputError, brief
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.module import device_of, keyword_names, module_of
from mlflow_e2eai.pytorch.module import parameter_names as declared_names
from mlflow_e2eai.pytorch.pytree import Tree

if TYPE_CHECKING:
    import torch


def flatten_module(model: Any, input_example: Any) -> tuple[torch.nn.Module, dict[str, Array]]:
    """A module and its example as a module that takes named tensors, and arrays by name.

    Args:
        model: A module, ScriptModule or ExportedProgram; or a result of this function.
        input_example: Arguments of it. A mapping is arguments by name, a tuple or list arguments by
            position, anything else the only argument; a mapping of several names that are no
            parameters is the only argument of a ``forward`` with one. Each may be an array, a
            tensor, a constant (None, bool, int, float, str), which is then fixed, or a mapping,
            list, tuple, dataclass, named tuple or ModelOutput of such. Names are those of `pytree`.

    Returns:
        The module itself where all its arguments are tensors, else a wrapper of it; and the arrays
        by name.

    Raises:
        InvalidInputError: It cannot be exported (see `module_of`); or the example has no arrays,
            holds something else, or has more arguments than ``forward`` has parameters.
    """
    module = module_of(model)
    tree, leaves = pytree.flatten(_arguments(module, input_example))
    arrays = as_arrays(leaves)
    if not arrays:
        msg = "The input example is empty; give input_example with at least one tensor or array."
        raise InvalidInputError(msg)
    if tree.is_plain:
        return module, arrays
    for part in pytree.objects(tree):
        if pytree.class_of(part) is None:
            msg = (
                f"The input example holds a {part.text.partition(':')[2]}, which cannot be "
                "imported by that name; define the class at the top level of a module."
            )
            raise InvalidInputError(msg)
    return _wrap(module, tree), arrays


def named_inputs(model: Any, input_example: Any) -> dict[str, Array]:
    """The arrays of an input example, by name; see `flatten_module`."""
    return flatten_module(model, input_example)[1]


def named_samples(
    model: Any, input_example: Any, samples: Sequence[Any]
) -> tuple[dict[str, Array], ...]:
    """The arrays of further examples, by the names of an input example.

    Args:
        model: See `flatten_module`.
        input_example: See `flatten_module`.
        samples: Examples of its structure, with the same constants.

    Raises:
        InvalidInputError: It is no list of examples, or one has another structure.
    """
    if not isinstance(samples, list | tuple):
        msg = (
            f"samples_at is a {type(samples).__name__}; give a list of examples, each like the "
            f"input example."
        )
        raise InvalidInputError(msg)
    module = module_of(model)
    tree, _ = pytree.flatten(_arguments(module, input_example))
    return tuple(
        as_arrays(pytree.select(tree, _arguments(module, sample), path=f"samples_at[{at}]"))
        for at, sample in enumerate(samples)
    )


def input_tree(module: torch.nn.Module, example: Tensors) -> Tree:
    """Positions of the inputs of a flattened module in the arguments of ``forward``."""
    tree = getattr(module, "tree", None)
    return tree if isinstance(tree, Tree) else pytree.plain(example)


def original(module: torch.nn.Module) -> torch.nn.Module:
    """The module that `flatten_module` wrapped, or else the module itself."""
    wrapped = isinstance(getattr(module, "tree", None), Tree)
    return module.get_submodule("model") if wrapped else module


def _arguments(module: torch.nn.Module, example: Any) -> dict[str, Any]:
    parameters = parameter_names(module)
    if isinstance(example, Mapping) and not pytree.is_object(example):
        named = {str(name): value for name, value in example.items()}
        if len(parameters) == 1 < len(named) and not _takes_keywords(module):
            return named if parameters[0] in named else {parameters[0]: named}
        return named
    is_several = isinstance(example, tuple | list) and not pytree.is_object(example)
    values = example if is_several else (example,)
    names = parameters or tuple(f"input_{i}" for i in range(len(values)))
    if len(values) > len(names):
        msg = (
            f"The input example has {len(values)} inputs, but forward takes {list(names)}; "
            f"give one for each parameter."
        )
        raise InvalidInputError(msg)
    return dict(zip(names, values, strict=False))


def parameter_names(module: torch.nn.Module) -> tuple[str, ...]:
    """The names of the parameters of a module; see `module.parameter_names`."""
    tree = getattr(module, "tree", None)
    return tuple(pytree.names(tree)) if isinstance(tree, Tree) else declared_names(module)


def _takes_keywords(module: torch.nn.Module) -> bool:
    """Whether ``forward`` takes keyword arguments of any name, and none by position."""
    kinds = {each.kind for each in inspect.signature(module.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds


def _wrap(module: torch.nn.Module, arguments: Tree) -> torch.nn.Module:
    """Wrap a module into one that takes the leaves of its arguments, by name or in order."""
    import torch

    class Structured(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module
            self.tree = arguments

        def forward(self, *tensors: torch.Tensor, **named: torch.Tensor) -> Any:
            leaves = dict(zip(pytree.names(arguments), tensors, strict=False)) | named
            return call(self.model, pytree.unflatten(arguments, leaves))

    wrapper = Structured()
    wrapper.training = module.training
    return wrapper


GIVE_SAMPLES = (
    "give an example at these sizes by samples_at, narrow the axes to the sizes that forward "
    "takes, or leave them static"
)
"""Advice where a module refuses a sample that was made of the example."""

FITTING = "give inputs of the dtypes and shapes that forward takes"
"""Advice where a module refuses the caller's own example."""


def run_module(
    model: torch.nn.Module,
    example: Tensors,
    *,
    what: str = "the input example",
    advice: str = FITTING,
) -> dict[str, torch.Tensor]:
    """Run a module once on an example, with no gradients; see `output_tensors`.

    Raises:
        InvalidInputError: The module does not accept the example, or returns something that is not
            tensors.
    """
    return run_with_tree(model, example, what=what, advice=advice)[1]


def run_with_tree(
    model: torch.nn.Module,
    example: Tensors,
    *,
    what: str = "the input example",
    advice: str = FITTING,
) -> tuple[Tree, dict[str, torch.Tensor]]:
    """Run a module as `run_module` does; return the tree of its outputs too."""
    import torch

    try:
        with torch.no_grad():
            return _outputs(call(model, tensors_for(model, example)))
    except InvalidInputError:
        raise
    except Exception as error:  # the user's forward may raise anything
        given = {name: f"{array.dtype}{list(array.shape)}" for name, array in example.items()}
        msg = (
            f"The model does not accept {what}, {given}: {type(error).__name__}: "
            f"{brief(error)}; {advice}."
        )
        raise InvalidInputError(msg) from error


def output_tensors(returned: Any) -> dict[str, torch.Tensor]:
    """Name the tensors in a value that ``forward`` returned.

    Returns:
        ``output`` for a single tensor, ``output_0``, ``output_1``, … for a tuple or list, the keys
        themselves for a mapping (which a Hugging Face ModelOutput is) and the fields for a
        dataclass; deeper values by their path, such as ``boxes.0``. None is left out.

    Raises:
        InvalidInputError: Something in it is neither a tensor nor None.
    """
    return _outputs(returned)[1]


def _outputs(returned: Any) -> tuple[Tree, dict[str, torch.Tensor]]:
    import torch

    tree, named = pytree.flatten(returned)
    # A number here may follow from the inputs, and would be fixed silently.
    odd = {name: value for name, value in named.items() if not isinstance(value, torch.Tensor)}
    odd |= {
        name: pytree.unflatten(part, {})
        for name, part in pytree.constants(tree)
        if part.kind != "None" or part is tree
    }
    if odd:
        name, value = next(iter(odd.items()))
        msg = (
            f"forward returned {type(value).__name__} as {name!r}, but tensors are expected, alone "
            "or in tuples, lists, mappings and dataclasses; return tensors only."
        )
        raise InvalidInputError(msg)
    if not named:
        msg = "forward returned nothing, but at least one tensor is expected; return a tensor."
        raise InvalidInputError(msg)
    return tree, named


def as_arrays(named: Mapping[str, Any]) -> dict[str, Array]:
    """Tensors and arrays by name as contiguous arrays.

    Raises:
        InvalidInputError: One is something else, or of a kind that NumPy or ONNX has no form for.
    """
    return {name: _array(f"Input {name!r} of the example", value) for name, value in named.items()}


def output_arrays(named: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    """The outputs of a module as arrays.

    Raises:
        InvalidInputError: One is of a kind that NumPy or ONNX has no form for.
    """
    return {name: _array(f"Output {name!r} of the model", value) for name, value in named.items()}


def call(model: torch.nn.Module, arguments: Mapping[str, Any]) -> Any:
    """Call a module with named arguments.

    Names that are all parameters of ``forward`` are bound to them; names of which none is one are
    passed by position, in their order.

    Raises:
        InvalidInputError: Some of the names are parameters of ``forward`` and some are not.
    """
    parameters = parameter_names(model)
    known = [name for name in parameters if name in arguments]
    if len(known) < len(arguments) and _takes_keywords(model):
        return model(**arguments)
    if not known:
        return model(*arguments.values())
    if len(known) < len(arguments):
        unknown = [name for name in arguments if name not in parameters]
        msg = (
            f"The input example names {unknown}, but forward takes {list(parameters)}; name all "
            f"inputs as forward does, or none."
        )
        raise InvalidInputError(msg)
    # By position where that is the same: an exported program must be called as it was exported.
    only_named = keyword_names(model)
    ordered = [name for name in parameters if name not in only_named]
    first = [name for name in ordered if name in arguments]
    if first == ordered[: len(first)]:
        named = {name: arguments[name] for name in known if name in only_named}
        return model(*(arguments[name] for name in first), **named)
    return model(**arguments)


def _array(what: str, value: Any) -> Array:
    # Where PyTorch is not imported, nothing is a tensor of it.
    if (torch := sys.modules.get("torch")) is not None and isinstance(value, torch.Tensor):
        value = _numpy(what, value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub" or value.itemsize > 8:  # noqa: PLR2004 - float128 is neither PyTorch's nor ONNX's
        kind = f" of {value.dtype}" if isinstance(value, np.ndarray) else ""
        msg = (
            f"{what} is a {type(value).__name__}{kind}, but a tensor or a numeric NumPy array is "
            "expected; convert it."
        )
        raise InvalidInputError(msg)
    if np.ma.is_masked(value):
        msg = f"{what} has masked values, but every value is expected; fill them, by .filled()."
        raise InvalidInputError(msg)
    native = np.asarray(value, value.dtype.newbyteorder("="))
    try:
        return np.ascontiguousarray(native) if native.ndim else native
    except MemoryError as error:  # it is a view that repeats a few numbers
        size = f"{native.nbytes / 1e9:.0f} GB"
        msg = f"{what} has {size}, which memory has no room for; give it in batches."
        raise InvalidInputError(msg) from error


def _numpy(what: str, tensor: torch.Tensor) -> Array:
    """A tensor as an array.

    Raises:
        InvalidInputError: NumPy or ONNX has no form for it.
    """
    import torch

    if tensor.is_meta:
        kind, advice = "a meta tensor, which has no values", "give a tensor with values"
    elif tensor.is_quantized:
        kind, advice = "quantised, but a plain tensor is expected", "call .dequantize()"
    elif tensor.is_nested:
        kind, advice = "nested, but a dense tensor is expected", "pad it to one size"
    elif tensor.layout != torch.strided:
        kind = f"in the layout {tensor.layout}, but a dense tensor is expected"
        advice = "call .to_dense()"
    elif tensor.is_complex():
        kind = f"{tensor.dtype}, which ONNX Runtime does not have"
        advice = "use torch.view_as_real() outside the model, and view_as_complex() inside"
    else:
        try:
            return tensor.detach().resolve_conj().resolve_neg().cpu().numpy()
        except (TypeError, RuntimeError, NotImplementedError):
            kind = f"a {type(tensor).__name__} of {tensor.dtype}, which NumPy does not have"
            advice = "convert it, for example by .float(), and back inside forward if it matters"
    msg = f"{what} is {kind}; {advice}."
    raise InvalidInputError(msg)


def tensors_for(model: torch.nn.Module, example: Tensors) -> dict[str, torch.Tensor]:
    """An example as tensors on a module's device."""
    import torch

    device = device_of(model)
    # A copy: a module that writes into its input must not change the caller's example.
    return {name: torch.from_numpy(array.copy()).to(device) for name, array in example.items()}


def positional(
    module: torch.nn.Module, names: tuple[str, ...], *, structured: bool = False
) -> torch.nn.Module:
    """A module that takes tensors in the order of `names` and returns a flat tuple of tensors.

    Args:
        module: The inner module.
        names: Names of the tensors as its arguments.
        structured: Return the value of the module as it is.
    """
    import torch

    class Positional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: torch.Tensor) -> Any:
            returned = call(self.model, dict(zip(names, tensors, strict=True)))
            return returned if structured else tuple(output_tensors(returned).values())

        def train(self, mode: bool = True) -> Positional:  # noqa: ARG002, FBT001, FBT002 - torch's
            # The exporters set the mode of their module, which is right already; a graph that
            # torch.export wrote would refuse.
            return self

    # torch.export counts inputs by the signature; of `*tensors` it makes a single one.
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signed = [
        inspect.Parameter(each, kind) for each in ("self", *(f"_{i}" for i in range(len(names))))
    ]
    Positional.forward.__signature__ = inspect.Signature(signed)  # type: ignore[attr-defined]
    wrapper = Positional()
    wrapper.training = False
    return wrapper
