"""State of a module and of the process: buffers, attributes, hooks, modes, random numbers.

A module that moves a buffer in forward, or that draws random numbers, is run here with inputs that
its owner never gave; all of it is put back.
"""

from __future__ import annotations

import itertools
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import torch

_ATTENTION = ("MultiheadAttention", "TransformerEncoder", "TransformerEncoderLayer")
"""Modules of PyTorch with another implementation in evaluation mode, `torch.backends.mha`."""


_MOST_COPIED = 16 << 20
"""Bytes of parameters, which are copied in about 20 ms, five times for a `log_model`. Of a larger
model a copy would be a share of its memory that is felt."""

_DEPTH = 4
"""Containers in each other, as the caches of layers in a list of mappings are."""


class ModuleState:
    """The state of a module at one moment, to be put back.

    Parameters are copied up to `_MOST_COPIED` bytes of them, as hardly a forward moves them. That
    one was moved is known by PyTorch's count of its changes.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        scripts = torch.jit.ScriptModule
        self._buffers = [
            (part, name, buffer, buffer.detach().clone())
            for part in module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]
        self._parameters = {
            name: (parameter, _version(parameter)) for name, parameter in module.named_parameters()
        }
        size = sum(parameter.nbytes for parameter, _ in self._parameters.values())
        self._copies = {
            name: parameter.detach().clone()
            for name, (parameter, _) in self._parameters.items()
            if size <= _MOST_COPIED
        }
        parts = [part for part in module.modules() if not isinstance(part, scripts)]
        own = vars(torch.nn.Module()).keys()
        # A part has its hooks, its mode and its counts in plain attributes.
        self._attributes = [
            (
                part,
                {
                    # Of its parameters, buffers and hooks only which they are.
                    name: (value, _copy(value, 0 if name in own else _DEPTH))
                    for name, value in vars(part).items()
                },
            )
            for part in parts
        ]
        self._names = {part: name for name, part in module.named_modules()}

    def moved_names(self) -> list[str]:
        """Names of the buffers, parameters and attributes that are not as they were."""
        import torch

        buffers = [
            self._path(part, name)
            for part, name, _, before in self._buffers
            if not _same(getattr(part, name, None), before)
        ]
        own = vars(torch.nn.Module()).keys()
        attributes = [
            self._path(part, name)
            for part, before in self._attributes
            for name in sorted((before.keys() | vars(part).keys()) - own)
            if not (name in before and _same(vars(part).get(name), before[name][1]))
        ]
        return buffers + self._moved_parameters() + attributes

    def lost_names(self) -> list[str]:
        """Names of the parameters that were moved and cannot be put back, as there is no copy."""
        return [name for name in self._moved_parameters() if name not in self._copies]

    def _moved_parameters(self) -> list[str]:
        return [
            name
            for name, (parameter, before) in self._parameters.items()
            if _version(parameter) != before
        ]

    def restore(self) -> None:
        """Put back all that was moved."""
        import torch

        for part, before in self._attributes:
            now = vars(part)
            for name in now.keys() - before.keys():
                del now[name]
            for name, (value, copy) in before.items():
                if now.get(name) is not value:
                    now[name] = value
                _refill(value, copy)
        with torch.no_grad():
            for name in self._moved_parameters():
                if name in self._copies:
                    parameter, _ = self._parameters[name]
                    parameter.copy_(self._copies[name])
                    self._parameters[name] = (parameter, _version(parameter))
            for part, name, buffer, was in self._buffers:
                if getattr(part, name, None) is not buffer and isinstance(
                    part, torch.jit.ScriptModule
                ):
                    setattr(part, name, buffer)
                if not _same(buffer, was):
                    buffer.copy_(was)

    def _path(self, part: torch.nn.Module, name: str) -> str:
        return ".".join(filter(None, (self._names[part], name)))


class _Container(NamedTuple):
    """A copy of a container.

    Attributes:
        content: The same items.
        inner: The items that a call may change in place, each with its copy.
    """

    content: Any
    inner: tuple[tuple[Any, Any], ...]


def _copy(value: Any, depth: int) -> Any:
    """A copy of what a call may change in place; the value itself where it may not.

    Args:
        value: An attribute of a module, or an item of one.
        depth: The number of containers, one inside the other, whose items are copied too.
    """
    import torch

    if isinstance(value, torch.nn.Parameter):
        return value
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict | list | set | deque | tuple):
        copies = [(item, _copy(item, depth - 1)) for item in _items(value) if depth]
        inner = tuple((item, copy) for item, copy in copies if copy is not item)
        if isinstance(value, tuple):
            return _Container(value, inner) if inner else value
        return _Container(value.copy(), inner)
    return value


def _version(tensor: torch.Tensor) -> int:
    """PyTorch's count of a tensor's changes in place; tensors of inference mode have none."""
    return 0 if tensor.is_inference() else tensor._version  # noqa: SLF001 - there is no public one


def _refill(value: Any, copy: Any) -> None:
    """Put the copied content back into a value."""
    import torch

    if value is copy or _same(value, copy):
        return
    if isinstance(value, torch.Tensor):
        with torch.no_grad():
            value.copy_(copy)
    elif isinstance(value, np.ndarray):
        value[...] = copy
    elif isinstance(copy, _Container):
        if isinstance(value, list | deque):
            value.clear()
            value.extend(copy.content)
        elif isinstance(value, dict | set):
            value.clear()
            value.update(copy.content)
        for item, before in copy.inner:
            _refill(item, before)


def _same(value: Any, copy: Any) -> bool:
    """Whether a value is as it was copied; containers by the identity of their items."""
    import torch

    if value is copy:
        return True
    if isinstance(value, torch.Tensor) and isinstance(copy, torch.Tensor):
        return value.is_meta or bool(value.dtype == copy.dtype and torch.equal(value, copy))
    if isinstance(copy, _Container):
        inner = all(_same(item, before) for item, before in copy.inner)
        return inner and _same_items(value, copy.content)
    if type(value) is not type(copy):
        return False
    try:
        return bool(np.array_equal(value, copy) if isinstance(value, np.ndarray) else value == copy)
    except Exception:  # noqa: BLE001 - an object of the user's may compare as it likes
        return False


def _same_items(value: Any, content: Any) -> bool:
    """Whether a container has the same items, by identity; a set, equal ones."""
    if type(value) is not type(content):
        return False
    if isinstance(value, set):
        return bool(value == content)
    return len(value) == len(content) and all(
        one is other for one, other in zip(_items(value), _items(content), strict=True)
    )


def _items(value: Any) -> list[Any]:
    return [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)


@contextmanager
def state_restored(module: torch.nn.Module) -> Iterator[ModuleState]:
    """Give a module's state, and that of the random number generators, back after the block.

    Yields:
        The state before the block.
    """
    state, restore_random = ModuleState(module), save_random(module)
    try:
        yield state
    finally:
        state.restore()
        restore_random()


def save_random(module: torch.nn.Module) -> Callable[[], None]:
    """Save the random states of Python, NumPy and PyTorch; the result puts them back."""
    import torch

    python, numbers, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002 - the caller's
    tensors_of = itertools.chain(module.parameters(), module.buffers())
    gpus = {tensor.device for tensor in tensors_of if tensor.is_cuda}
    on_gpus = {gpu: torch.cuda.get_rng_state(gpu) for gpu in gpus}

    def restore() -> None:
        random.setstate(python)
        np.random.set_state(numbers)  # noqa: NPY002 - the caller's
        torch.set_rng_state(tensors)
        for gpu, own in on_gpus.items():
            torch.cuda.set_rng_state(own, gpu)

    return restore


# Ways of running a module.


def unwrap_compiled(module: torch.nn.Module) -> torch.nn.Module:
    """The module inside `torch.compile`, which would compile it anew for every size."""
    import torch

    inner = getattr(module, "_orig_mod", None)
    return unwrap_compiled(inner) if isinstance(inner, torch.nn.Module) else module


@contextmanager
def eager(module: torch.nn.Module) -> Iterator[None]:
    """Run the parts that `torch.compile` compiled as they are written, in the block."""
    import torch

    compiled = "torch._dynamo" in sys.modules and any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in module.modules()
    )
    with ExitStack() as stack:
        if compiled:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def has_fast_path(module: torch.nn.Module) -> bool:
    """Whether a module has attention for which PyTorch has another path in evaluation mode."""
    return any(
        getattr(part, "original_name", type(part).__name__) in _ATTENTION
        for part in module.modules()
    )


@contextmanager
def fast_path(*, enabled: bool) -> Iterator[None]:
    """Turn PyTorch's fast path of attention on or off in the block.

    It computes other numbers where keys are padded: zeros for their queries. A model is trained
    without it. Where PyTorch is not loaded, nothing is done.
    """
    if "torch" not in sys.modules:
        yield
        return
    import torch

    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
