"""Models in files that PyTorch wrote: TorchScript, ExportedProgram, or a pickled module.

ONNX files, safetensors and TorchScript are data to whoever loads them. A pickle runs the code that
it names; a ``.pt2`` file may hold pickles, expressions and shared libraries, all of which
`torch.export.load` runs. Both are loaded where the caller allows it.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError, brief
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


def load_archive(path: Path, *, allow_code: bool) -> Archive:
    """Load a model from a file, onto the CPU.

    Args:
        path: The file.
        allow_code: Also load a file that can run code as it is loaded: a pickle, or a ``.pt2``.

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

    members = _members(path)
    try:
        if any(name.endswith("/constants.pkl") for name in members):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "`torch.jit.load` is deprecated")
                script = torch.jit.load(str(path), map_location="cpu")
            return Archive(script, parameter_names(script))
        if any(name.rpartition("/")[2] == "archive_format" for name in members):
            _require_consent(path, "a .pt2 file", allow_code=allow_code)
            return _load_program(path)
        module = _load_module(path, allow_code=allow_code)
        return Archive(module, parameter_names(module))
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError, KeyError) as error:
        if isinstance(error, InvalidInputError):
            raise
        msg = f"{path} is not a model that PyTorch can read: {brief(error)}; save it again."
        raise InvalidInputError(msg) from error


def _members(path: Path) -> list[str]:
    """Names of the files in an archive; none where it is no archive, as pickles of old are not."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _require_consent(path: Path, kind: str, *, allow_code: bool) -> None:
    if not allow_code:
        msg = (
            f"{path} is {kind}, and loading one can run code on this machine; if you trust its "
            "author, add --allow-code, or give TorchScript, an ONNX file or file.py:callable."
        )
        raise InvalidInputError(msg)


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


def _load_module(path: Path, *, allow_code: bool) -> torch.nn.Module:
    import torch

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path) and path.read_bytes()[:1] != pickle.PROTO:
            raise  # it is no pickle
        _require_consent(path, "a pickle", allow_code=allow_code)
        try:
            value = torch.load(path, map_location="cpu", weights_only=False)
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
