"""An ONNX file that somebody else exported, as the start of a chain."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai import jobs, tracking
from mlflow_e2eai.arrays import load_arrays
from mlflow_e2eai.imported import imported
from mlflow_e2eai.libraries import native_allowed
from mlflow_e2eai.modules import DynamicAxes
from mlflow_e2eai.surgery import DEFAULT_PLAN, Step


def clean_onnx(
    path: Path,
    *,
    example: Path | None = None,
    dynamic_axes: DynamicAxes | None = None,
    plan: Sequence[Step] = DEFAULT_PLAN,
    operator_libraries: Sequence[Path] = (),
) -> str:
    """Log an ONNX file as the raw graph of a chain without a PyTorch model, and clean it.

    Nothing is logged before the file has been run.

    Args:
        path: See `imported`.
        example: An npz file with an array for each input; by default see `imported`.
        dynamic_axes: See `imported`.
        plan: See `jobs.clean`.
        operator_libraries: See `imported`.

    Returns:
        Id of the cleaned ONNX LoggedModel.

    Raises:
        E2EAIError: See `imported`.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw, given = imported(
            path,
            out=Path(folder, "raw.onnx"),
            example=None if example is None else load_arrays(example),
            dynamic_axes=dynamic_axes,
            operator_libraries=operator_libraries,
        )
        recorder = tracking.MlflowRecorder(name=path.stem, source=None)
        with tracking.run("clean", nested=True, tags={tracking.STAGE: "clean"}):
            with recorder.stage("import", inputs=[]) as stage:
                stage.made(raw, example=given)
            with native_allowed([library.path.name for library in raw.libraries]):
                return jobs.clean(recorder.models[raw.sha256], plan=plan)
