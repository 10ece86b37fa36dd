"""Models in files that PyTorch wrote: TorchScript, ExportedProgram, or a pickled module.

ONNX files, safetensors and TorchScript are data to whoever loads them. A pickle runs the code that
it names, and a ``.pt2`` file can hold some; where one does, it is loaded if the caller allows it:
see `consent`.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError, brief
from mlflow_e2eai.pytorch.consent import Consent, require_consent
from mlflow_e2eai.pytorch.module import parameter_names

if TYPE_CHECKING:
    import torch

SUFFIXES = (".pt", ".pth", ".pt2", ".bin", ".ckpt")
"""Names of such files end in one of these."""

_WRITE_CALLABLE = (
    "write a callable that builds the model and loads them, and give it as file.py:callable"
)


class Archive(NamedTuple):
    """The content of such a file.

    Attributes:
        model: The module, ScriptModule or ExportedProgram.
        inputs: Names of its inputs.
        example: The input example that the file holds; None where it holds none.
        open_sizes: Input and position of each size that it leaves open.
    """

    model: Any
    inputs: tuple[str, ...]
    example: Any = None
    open_sizes: tuple[tuple[str, int], ...] = ()


def load_archive(path: Path, *, allow_pickle: Consent) -> Archive:
    """Load a model from a file, onto the CPU.

    Args:
        path: The file.
        allow_pickle: See `require_consent`.

    Raises:
        InvalidInputError: The file is broken, holds weights without a model, or code that is not
            allowed.
        MissingDependencyError: PyTorch is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependencyError(
            package="torch", extra="torch", purpose=f"Loading {path.name}"
        ) from error

    try:
        form = require_consent(path, allow_pickle=allow_pickle)
        if form == "a .pt2 file":
            return _load_program(path)
        if form == "TorchScript":
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
                module = torch.jit.load(str(path), map_location="cpu")
        else:
            module = _load_module(path, is_weights=form == "weights")
        return Archive(module, parameter_names(module))
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        msg = f"{path} is not a model that PyTorch can read: {brief(error)}; save it again."
        raise InvalidInputError(msg) from error


def _load_program(path: Path) -> Archive:
    import torch

    program = torch.export.load(path)
    names = tuple(map(str, program.graph_signature.user_inputs))
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    positional, keywords = program.example_inputs or ((), {})
    # Arguments by position come first among the inputs, unless they are nested.
    example = {**dict(zip(names, positional, strict=False)), **keywords} if keywords else positional
    return Archive(
        program,
        names,
        example or None,
        tuple(
            (name, at)
            for name in names
            for at, size in enumerate(getattr(values.get(name), "shape", ()))
            if not isinstance(size, int)
        ),
    )


def _load_module(path: Path, *, is_weights: bool) -> torch.nn.Module:
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=is_weights)
    except (AttributeError, ImportError) as error:
        msg = (
            f"{path} was pickled with a class that cannot be imported: {brief(error)}; set "
            f"PYTHONPATH to the folder of its module, or {_WRITE_CALLABLE}."
        )
        raise InvalidInputError(msg) from error
    if isinstance(value, torch.nn.Module):
        return value
    kind = f"a {type(value).__name__}"
    if isinstance(value, Mapping):
        names = ", ".join(list(map(str, value))[:3])
        kind = f"weights or other values ({names}{', …' if len(value) > 3 else ''})"  # noqa: PLR2004
    msg = f"{path} has {kind}, but no model to load them into; {_WRITE_CALLABLE}."
    raise InvalidInputError(msg)
