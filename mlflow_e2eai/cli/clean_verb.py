"""`clean` for the command line: one step for a logged model and for an ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.surgery.plan import Step


def clean(
    model_uri: str | None = None,
    *,
    onnx: Path | None = None,
    input_example: Path | None = None,
    samples_at: Sequence[Path] = (),
    dynamic_axes: DynamicAxes | None = None,
    plan: Sequence[Step],
    operator_libraries: Sequence[Path] = (),
    allow_pickle: bool = False,
) -> str:
    """Apply a surgery plan to the raw graph of a chain, or to an ONNX file as a new root.

    Args:
        model_uri: Any model of the chain, from the raw graph on.
        onnx: The file, in place of a model.
        input_example: See `mlflow_e2eai.pipeline.jobs.clean_onnx`.
        samples_at: See `mlflow_e2eai.pipeline.jobs.clean_onnx`.
        dynamic_axes: Axes of the file; a model has its own.
        plan: The surgery plan.
        operator_libraries: Shared libraries that implement operators of the file.
        allow_pickle: See `mlflow_e2eai.pipeline.jobs.export`.

    Returns:
        Id of the cleaned ONNX LoggedModel.

    Raises:
        InvalidInputError: Neither a model nor a file is given, or both.
        E2EAIError: See `mlflow_e2eai.pipeline.jobs`.
    """
    if (model_uri is None) == (onnx is None):
        msg = "clean takes either model_uri or onnx; give the one to clean."
        raise InvalidInputError(msg)
    if onnx is None:
        return jobs.clean(str(model_uri), plan=plan, allow_pickle=allow_pickle)
    return jobs.clean_onnx(
        onnx,
        example=input_example,
        dynamic_axes=dynamic_axes,
        samples_at=samples_at,
        plan=plan,
        operator_libraries=operator_libraries,
    )
