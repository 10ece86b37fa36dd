"""`run` for the command line: the whole way in one call, from a file, a callable or a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai import tracking
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.flavor import api, repackage
from mlflow_e2eai.pipeline.model_source import open_model


def run(
    source: str,
    *,
    name: str | None = None,
    input_example: Path | None = None,
    samples_at: Sequence[Path] = (),
    allow_pickle: bool = False,
    **arguments: Any,
) -> Any:
    """Run all stages on a model, and log the result as one MLflow model.

    Args:
        source: The URI of a logged model, or what `open_model` opens.
        name: Name of the logged model; by default that of the source.
        input_example: See `open_model`.
        samples_at: See `open_model`.
        allow_pickle: See `open_model`.
        **arguments: Arguments of `mlflow_e2eai.log_model`.

    Returns:
        MLflow's description of the logged model.

    Raises:
        InvalidInputError: An input example is given for a logged model, which has its own.
        E2EAIError: See `open_model` and `mlflow_e2eai.log_model`.
    """
    if tracking.is_uri(source):
        if input_example is not None:
            msg = f"{source} is logged with its input_example; leave the file out."
            raise InvalidInputError(msg)
        name = name or tracking.resolve(source).name.removesuffix("-source")
        return repackage.package(
            source, name=name, samples_at=samples_at, allow_pickle=allow_pickle, **arguments
        )
    name = name or _name_of(source)
    tracking.check_names(name, arguments.get("registered_model_name"))
    opened = open_model(
        source,
        input_example=input_example,
        samples_at=samples_at,
        dynamic_axes=arguments.pop("dynamic_axes", None),
        allow_pickle=allow_pickle,
    )
    return api.log_model(name=name, **{**arguments, **opened})


def _name_of(source: str) -> str:
    """The name of a folder, of a file without its ending, or of a callable's module."""
    path = Path(source)
    if path.exists():
        return tracking.model_name(path.resolve().name if path.is_dir() else path.stem)
    module = source.rpartition(":")[0] or source
    is_file = module.endswith(".py")
    return tracking.model_name(Path(module).stem if is_file else module.rpartition(".")[2])
