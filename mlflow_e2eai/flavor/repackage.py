"""A logged PyTorch model or ONNX file, taken the whole way."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.flavor import api
from mlflow_e2eai.pipeline.job_inputs import (
    root_arguments,
)
from mlflow_e2eai.pipeline.settings import SettingsArguments

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


def package(
    model_uri: str,
    *,
    name: str,
    registered_model_name: str | None = None,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
    **settings: Unpack[SettingsArguments],
) -> ModelInfo:
    """Take a logged PyTorch model, or an ONNX file that a chain began with, the whole way.

    Args:
        model_uri: Any model of the chain.
        name: See `mlflow_e2eai.log_model`.
        registered_model_name: The same.
        executor: The same.
        workers: The same.
        **settings: The same, but for what was logged with the model; dynamic_axes stand in for
            those that it was logged with, unless None.
    """
    with tracking.run(name), tempfile.TemporaryDirectory() as folder:
        axes = settings.get("dynamic_axes")
        given = root_arguments(tracking.resolve(model_uri), Path(folder), axes)
        arguments: dict[str, Any] = {**settings, "dynamic_axes": None, **given}
        return api.log_model(
            **arguments,
            name=name,
            executor=executor,
            workers=workers,
            registered_model_name=registered_model_name,
        )
