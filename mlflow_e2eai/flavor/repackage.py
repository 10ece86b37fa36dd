"""All stages on a logged PyTorch model or ONNX file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import fleet, tracking
from mlflow_e2eai.flavor import api
from mlflow_e2eai.pipeline.job_inputs import root_arguments

if TYPE_CHECKING:
    from mlflow.models.model import ModelInfo


def package(
    model_uri: str,
    *,
    name: str | None = None,
    registered_model_name: str | None = None,
    samples_at: Sequence[Path] = (),
    allow_pickle: bool = False,
    executor: fleet.Executor | None = None,
    workers: int | None = None,
    **settings: Any,
) -> ModelInfo:
    """Run all stages on the PyTorch model or ONNX file at the root of a lineage.

    Args:
        model_uri: Any model of the chain.
        name: Name of the logged model; None for that of the registered one.
        registered_model_name: Also make a version of this registered model.
        samples_at: npz files with further examples, at other sizes of the dynamic axes.
        allow_pickle: Load the PyTorch model also where it runs code as it is loaded.
        executor: The workers that build the engines; see `mlflow_e2eai.log_model`.
        workers: Processes for ``local``; by default one for each core.
        **settings: Fields of `Settings`, but for those that were logged with the model;
            dynamic_axes replace those that it was logged with, unless None.

    Raises:
        E2EAIError: See `mlflow_e2eai.log_model`.
    """
    tracking.check_names(name, registered_model_name)
    name = name or tracking.model_name(registered_model_name or "model")
    with tracking.run(name), tempfile.TemporaryDirectory() as folder:
        axes = settings.get("dynamic_axes")
        inputs = tracking.resolve_source(model_uri), model_uri, Path(folder), axes, samples_at
        given = root_arguments(*inputs, allow_pickle=allow_pickle)
        arguments: dict[str, Any] = {**settings, "dynamic_axes": None, **given}
        return api.log_model(
            **arguments,
            name=name,
            executor=executor,
            workers=workers,
            registered_model_name=registered_model_name,
        )
