"""Models as a user names them: a file, a folder of weights, or a callable."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.arrays import load_arrays
from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.example import GeneratedExample
from mlflow_e2eai.errors import InvalidInputError, nearest
from mlflow_e2eai.pipeline import model_factory
from mlflow_e2eai.pytorch.archives import SUFFIXES, load_archive
from mlflow_e2eai.pytorch.hugging_face import CONFIG, load_pretrained

_KINDS = (
    "a model.pt (TorchScript, ExportedProgram or a pickled module), a model.onnx, a folder of "
    "Hugging Face weights, file.py:callable, or the URI of a logged model"
)


def open_model(
    source: str,
    *,
    input_example: Path | None = None,
    samples_at: Sequence[Path] = (),
    dynamic_axes: DynamicAxes | None = None,
    allow_pickle: bool = False,
) -> dict[str, Any]:
    """Open a model that is not logged yet.

    Args:
        source: A file of PyTorch's or ONNX, a folder of Hugging Face weights, ``file.py:callable``
            or ``package.module:callable``; see `model_factory.call`.
        input_example: An npz file with an array for each input.
        samples_at: Further ones, at other sizes.
        dynamic_axes: Axes whose size may vary; None for the callable's, or those that are assumed
            for a folder of weights.
        allow_pickle: See `load_archive`.

    Returns:
        Arguments of `mlflow_e2eai.log_model`.

    Raises:
        InvalidInputError: There is no such model, it is of no kind that can be read, or the example
            or axes are missing.
        MissingDependencyError: What reads it is not installed.
    """
    path = Path(source)
    if not path.exists() and ":" in source:
        if input_example is not None or samples_at:
            msg = f"{source} returns its own input_example and samples_at; leave the files out."
            raise InvalidInputError(msg)
        arguments = dict(model_factory.call(source))
        return arguments if dynamic_axes is None else {**arguments, "dynamic_axes": dynamic_axes}
    _require_kind(path)
    given: Any = None if input_example is None else load_arrays(input_example)
    if path.is_dir():
        arguments = _of_folder(path, given, dynamic_axes)
    elif path.suffix == ".onnx":
        arguments = {"model": path, "input_example": given, "dynamic_axes": dynamic_axes}
    else:
        arguments = _of_archive(path, given, dynamic_axes, allow_pickle=allow_pickle)
    return {**arguments, "samples_at": [load_arrays(each) for each in samples_at]}


def _require_kind(path: Path) -> None:
    if not path.exists():
        folder = path.parent
        near = nearest(
            path.name, [each.name for each in folder.iterdir()] if folder.exists() else []
        )
        hint = "check the path" if near is None else f"did you mean {folder / near}?"
        msg = f"There is no file {path}; {hint}{'.' if near is None else ''}"
    elif path.is_dir():
        if (path / CONFIG).is_file():
            return
        msg = f"{path} is a folder without {CONFIG}; give {_KINDS}."
    elif path.suffix == ".py":
        names = ", ".join(_callables(path)) or "none"
        msg = f"{path} needs the name of a callable in it, as {path}:build; there are: {names}."
    elif path.suffix in (".onnx", *SUFFIXES):
        return
    else:
        msg = f"{path} is not a model file; give {_KINDS}."
    raise InvalidInputError(msg)


def _callables(path: Path) -> list[str]:
    """Names of the functions at the top of a Python file."""
    try:
        tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return []
    return [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]


def _of_archive(
    path: Path, given: Any, dynamic_axes: DynamicAxes | None, *, allow_pickle: bool
) -> dict[str, Any]:
    archive = load_archive(path, allow_pickle=allow_pickle)
    example = archive.example if given is None else given
    if example is None:
        arrays = ", ".join(f"{name}=..." for name in archive.inputs) or "x=..."
        msg = (
            f"{path} has no input example; write one with numpy.savez('example.npz', {arrays}) and "
            "add --input-example example.npz."
        )
        raise InvalidInputError(msg)
    if dynamic_axes is None and archive.open_sizes:
        name, position = archive.open_sizes[0]
        msg = (
            f"{path} leaves size {position} of {name!r} open; give its range with --dynamic-axes "
            f"{name}:{position}=N:1:8:64."
        )
        raise InvalidInputError(msg)
    return {"model": archive.model, "input_example": example, "dynamic_axes": dynamic_axes}


def _of_folder(
    path: Path, given: Mapping[str, Any] | None, dynamic_axes: DynamicAxes | None
) -> dict[str, Any]:
    loaded = load_pretrained(path)
    assumptions = []
    example = loaded.example if given is None else given
    if not example:
        msg = (
            f"{path} has neither a tokenizer nor an image size to make an input example from; add "
            "--input-example example.npz, with an array for each input."
        )
        raise InvalidInputError(msg)
    if given is None:
        assumptions.append(f"No input example was given; used instead: {loaded.source}.")
    if dynamic_axes is None:
        dynamic_axes = {name: loaded.axes[name] for name in example if name in loaded.axes}
        assumptions += [
            f"No dynamic axes were given, so axis {at} of {name!r} is assumed to be {axis}."
            for name, positions in dynamic_axes.items()
            for at, axis in positions.items()
        ]
    return {
        "model": loaded.model,
        "input_example": GeneratedExample(dict(example), assumptions) if assumptions else example,
        "dynamic_axes": dynamic_axes,
    }
