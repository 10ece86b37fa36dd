"""A bundle, loaded: the callable."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts.arrays import check_names, check_shape, exactly, feed, is_on_gpu
from mlflow_e2eai.artifacts.files import html_table
from mlflow_e2eai.artifacts.names import shape_text
from mlflow_e2eai.artifacts.values import Array, Infer, Tensors, TensorSpec, tensor_table
from mlflow_e2eai.bundle.choice import Choice
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import InvalidInputError, shown
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.pytree import Tree


class Model:
    """A bundle, loaded: named arrays or tensors in, named arrays or tensors out.

    Attributes:
        variant: The variant that runs, for example ``onnxruntime-cpu/fp32``.
        manifest: The bundle's manifest.
        sizes: Number of calls with each size, by the name of a dynamic axis, for
            `mlflow_e2eai.choose_buckets`.
    """

    def __init__(
        self,
        manifest: Manifest,
        variant: str,
        explain: Callable[[], Choice],
        infer: Infer,
        stack: ExitStack,
        *,
        on_device: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        self.manifest = manifest
        self.variant = variant
        self._explain = explain
        self._on_device = on_device
        self._stack = stack
        self._is_exact = exactly(manifest.inputs)
        self._names = [spec.name for spec in manifest.inputs]
        is_plain = manifest.export is None or _is_plain(manifest.export.inputs)
        self._only = manifest.inputs[0].name if len(manifest.inputs) == 1 and is_plain else None
        self.sizes: Sizes = {axis.name: {} for axis in manifest.axes}
        self._infer = count_sizes(infer, manifest.inputs, self.sizes)
        if on_device is not None:
            self._on_device = count_sizes(on_device, manifest.inputs, self.sizes)

    def __call__(self, inputs: Any = None, /, *others: Any, **named: Any) -> dict[str, Any]:
        """Run the model.

        Args:
            inputs: One array or tensor for the only input, or a mapping of names to them: NumPy
                arrays, torch tensors on any device, and other objects with DLPack's methods. On a
                GPU, tensors on it are used without a copy; on the CPU, those in the host's memory.
                Where the PyTorch module took nested arguments, these are accepted too.
            *others: Further inputs, where several are given by position, in the order of `inputs`;
                where the PyTorch module took nested arguments, in the order of these.
            **named: Inputs by keyword, where none is given by position.

        Returns:
            Outputs by name: torch tensors on the inputs' device when the inputs were tensors, for
            others on a GPU objects with DLPack's methods, else NumPy arrays. A torch tensor on a
            GPU is ready in the order of PyTorch's current stream, as PyTorch's own outputs are.

        Raises:
            InvalidInputError: A name, dtype or shape does not fit; the message has the right ones.
            RunnerError: The model could not be run.
        """
        if others:
            inputs = self._by_position((inputs, *others), named)
            named = {}
        if not named:
            # The fast path for inputs that fit; others are converted, or refused with a reason.
            if type(inputs) is dict:
                if self._is_exact(inputs):
                    return dict(self._infer(inputs))
            elif self._only is not None and self._is_exact(only := {self._only: inputs}):
                return dict(self._infer(only))
        given = self._name_inputs(inputs, named)
        if self._on_device is not None and any(map(is_on_gpu, given.values())):
            return dict(self._on_device(self._check_inputs(given)))
        device, arrays = _as_arrays(given)
        outputs = self._infer(feed(arrays, self.manifest.inputs))
        return dict(outputs) if device is None else _as_tensors(outputs, device)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of each input; a dynamic axis has its name as its size."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, dtype and shape of each output."""
        return self.manifest.outputs

    def explain(self) -> Choice:
        """The choice of the variant, and reasons against the others; as text, a line each."""
        return self._explain()

    def structured(self, outputs: Mapping[str, Any]) -> Any:
        """Outputs in the Python shape in which the PyTorch module returned them.

        A dataclass, named tuple or ModelOutput gets its class where the program has imported it,
        else it is a dict. An output that surgery removed is None, and one that it exposed is left
        out. Where an ONNX file was the source, outputs are returned unchanged.
        """
        if self.manifest.export is None or self.manifest.export.outputs is None:
            return dict(outputs)
        tree, origins = self.manifest.export.outputs, self.manifest.graphs[0].origins
        names = [spec.name for spec in self.manifest.outputs]
        if origins is None:
            return pytree.unflatten(_rename(tree, names), outputs)
        new = dict(zip(origins.outputs, names, strict=True))
        renamed = {name: new.get(name, "") for name in pytree.names(tree)}
        return pytree.unflatten(pytree.rename_leaves(tree, renamed), outputs)

    def __repr__(self) -> str:
        """The variant and its inputs, for a prompt."""
        return f"<mlflow_e2eai.Model {self.variant} ({self._signature()})>"

    def _signature(self) -> str:
        return ", ".join(f"{s.name}: {s.dtype}{shape_text(s.shape)}" for s in self.inputs)

    def _repr_html_(self) -> str:
        """The variant, why it runs, and the inputs and outputs, for a notebook."""
        line = f"Model: {self.variant}, {self.explain().reason}"
        return html_table(line, *tensor_table(self.inputs, self.outputs))

    def __enter__(self) -> Self:
        """Use the model in a with block, which frees its memory at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Free the resources of the runner."""
        self._stack.close()

    def _check_inputs(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Check inputs of which some are on a GPU; those on the host become arrays."""
        specs = self.manifest.inputs
        check_names(given, specs)
        on_host = [spec for spec in specs if not is_on_gpu(given[spec.name])]
        _, arrays = _as_arrays({spec.name: given[spec.name] for spec in on_host})
        inputs = {**given, **feed(arrays, on_host)}
        for spec in specs:
            check_shape(inputs[spec.name].shape, spec)
        return inputs

    def _name_inputs(self, inputs: Any, named: Mapping[str, Any]) -> dict[str, Any]:
        names = self._names
        if inputs is None and not named and names:
            msg = f"No input is given; the model expects {self._signature()}."
            raise InvalidInputError(msg)
        tree = None if self.manifest.export is None else self.manifest.export.inputs
        if tree is not None and not _is_plain(tree):
            given = {**(inputs if isinstance(inputs, Mapping) else {}), **named}
            if set(given) == set(names):
                return given
            is_only = len(tree.keys) == 1 and inputs is not None and tree.keys[0] not in given
            nested = {tree.keys[0]: inputs} if is_only else given
            return pytree.select(_rename(tree, names), nested)
        if isinstance(inputs, Mapping):
            return {**inputs, **named}
        return dict(named) if inputs is None else self._by_position((inputs,), named)

    def _by_position(self, given: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
        """Inputs that are given in their order, by name."""
        tree = None if self.manifest.export is None else self.manifest.export.inputs
        is_nested = tree is not None and not _is_plain(tree)
        names = list(map(str, tree.keys)) if tree is not None and is_nested else self._names
        if named or len(given) != len(names):
            found = f"{len(given)} given by position" + (
                f" and {', '.join(map(shown, named))} by name" if named else ""
            )
            msg = (
                f"The model has the inputs {names}, but {found}; give all of them by name, or all "
                "by position in this order."
            )
            raise InvalidInputError(msg)
        return dict(zip(names, given, strict=True))


def _is_plain(tree: Tree | None) -> bool:
    """Whether the PyTorch module takes named tensors only, as any ONNX file does."""
    return tree is None or tree.is_plain


def _rename(tree: Tree, names: Sequence[str]) -> Tree:
    """A tree under the names after surgery, in the same order."""
    old = pytree.names(tree)
    if len(old) != len(names):
        return tree
    return pytree.rename_leaves(tree, dict(zip(old, names, strict=True)))


def _as_arrays(given: Mapping[str, Any]) -> tuple[Any, dict[str, Array]]:
    """The device of the torch tensors among the inputs, if any, and the inputs as arrays."""
    torch = sys.modules.get("torch")
    device, arrays = None, {}
    for name, value in given.items():
        try:
            if torch is not None and isinstance(value, torch.Tensor):
                device = value.device
                arrays[name] = value.detach().cpu().numpy()
            elif hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
                arrays[name] = np.from_dlpack(value)
            else:
                arrays[name] = np.asarray(value)
        except (TypeError, ValueError, RuntimeError, BufferError) as error:
            msg = f"Input {name!r} is not an array of numbers: {error}; convert it to one."
            raise InvalidInputError(msg) from error
    return device, arrays


def _as_tensors(outputs: Tensors, device: Any) -> dict[str, Any]:
    import torch

    return {name: torch.from_numpy(np.asarray(value)).to(device) for name, value in outputs.items()}


# Number of calls of a loaded model for each size, from which buckets are chosen.


Sizes: TypeAlias = dict[str, dict[int, int]]
"""By the name of a dynamic axis: by size, the number of calls."""


def count_sizes(infer: Infer, inputs: Sequence[TensorSpec], sizes: Sizes) -> Infer:
    """Count the sizes of a callable's calls.

    It takes no lock: when threads call at the same moment with one size, a count may be lost.

    Args:
        infer: The callable.
        inputs: Its inputs.
        sizes: The counts, with the names of the axes; changed in place.

    Returns:
        The callable to call instead.
    """
    # An axis has one size in all inputs: the first is enough.
    positions = {
        size: (spec.name, at)
        for spec in reversed(inputs)
        for at, size in reversed([*enumerate(spec.shape)])
        if isinstance(size, str) and size in sizes
    }
    counters = [(*position, sizes[axis]) for axis, position in positions.items()]
    if not counters:
        return infer

    def run(tensors: Tensors) -> Tensors:
        for name, at, counts in counters:
            size = tensors[name].shape[at]
            counts[size] = counts.get(size, 0) + 1
        return infer(tensors)

    return run
