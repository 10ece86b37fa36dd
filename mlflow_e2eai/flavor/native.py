"""`load_model`: a logged model as the best variant that this machine can run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai import tracking
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.flavor.mlmodel import FLAVOR_NAME
from mlflow_e2eai.tracking.console import quiet_mlflow


def load_model(
    model_uri: str,
    dst_path: str | None = None,
    *,
    variant: str | None = None,
    goal: str = "latency",
    split: bool = False,
    fallback: bool = True,
    allow_native: Sequence[str] = (),
) -> Model:
    """Load a model with the best variant that this machine can run.

    Of a model that is not on this machine, only the files of that variant are downloaded. Its
    `explain` returns the choice, and the reasons against the other variants.

    Args:
        model_uri: A local path or any URI of a model that MLflow knows.
        dst_path: An existing directory to download to.
        variant: The variant to run, for example ``onnxruntime-cpu/fp16``; by default the best.
        goal: The criterion: ``latency``, ``latency@8`` for calls of 8 items,
            ``throughput`` or ``memory``; see `bundle.load`, also for models without measurements.
        split: Cut batches that are too large for the profile, and fill those that are too small.
        fallback: Take the next variant when a better one cannot run; if False, that is an error.
        allow_native: Libraries in the model that may be loaded, by file name, for example
            ``libortextensions.so``: they are native code.

    Returns:
        A callable on named NumPy arrays or torch tensors; its attribute ``variant`` names
        the variant.

    Raises:
        mlflow.exceptions.MlflowException: There is no such model, or it is of another flavor.
        E2EAIError: See `bundle.load`.
    """
    with quiet_mlflow():
        files = tracking.ModelFiles(model_uri, dst_path)
        data = files.configuration(FLAVOR_NAME).get("data", ".")
        return load(
            files.directory / data,
            variant=variant,
            goal=goal,
            split=split,
            fallback=fallback,
            allow_native=allow_native,
            fetch=lambda path: files.fetch(Path(data, path).as_posix()),
        )
