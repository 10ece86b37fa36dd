"""`variants` and `compare_versions`: the evidence of logged models as DataFrames."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import frame
from mlflow_e2eai.bundle.rows import VariantRow, rows_of
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.downloads import ModelFiles

if TYPE_CHECKING:
    import pandas as pd


def variants(model_uri: str) -> pd.DataFrame:
    """Read the evidence of a model as a DataFrame, a row for each variant and batch size.

    Only the manifest is downloaded. Where several machines measured, each has rows of its own.

    Args:
        model_uri: A local path or any URI of a model that MLflow knows, such as
            ``models:/digits/2``.

    Returns:
        A DataFrame of the columns of `bundle.rows.VariantRow`: variant, precision, target, machine,
        outcome, items, errors, times, the ratio to the reference with its bounds, ``task/<name>``
        for each task metric, size and memory in bytes. Texts are of the dtype ``string``, counts
        ``Int64``, other numbers ``float64``.

    Raises:
        TrackingError: There is no such model.
        ArtifactError: The model is of another flavor, has no manifest, or has changed.

    Examples:
        >>> frame = mlflow_e2eai.variants("models:/digits/2")
        >>> fastest = frame[frame.outcome == "passed"].sort_values("p50_ms")
    """
    with quiet_mlflow(), tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(model_uri, folder)
        data, sha256 = files.bundle()
        files.fetch(f"{data}/{bundle.MANIFEST}")
        manifest = bundle.audit(files.directory / data, sha256=sha256, whole=False)
        return frame(VariantRow, rows_of(manifest))


def compare_versions(name: str, *versions: int | str) -> pd.DataFrame:
    """Read the evidence of versions of a registered model as one DataFrame.

    Each was measured by itself: compare ``ratio``, which is to the reference of the same run, and
    not the times; `promote` with ``remeasure`` measures two versions in turns.

    Args:
        name: The registered model.
        *versions: Versions or aliases, such as ``1, 2`` or ``"champion", 3``.

    Returns:
        The rows of `variants`, with the version as a text in the first column.

    Raises:
        TrackingError: There is no such version.
        ArtifactError: A version is of another flavor, has no manifest, or has changed.
        InvalidInputError: There is no version to compare.

    Examples:
        >>> frame = mlflow_e2eai.compare_versions("digits", 1, 2)
    """
    import pandas as pd

    if not versions:
        msg = "There is no version to compare; give two, as in compare_versions('digits', 1, 2)."
        raise InvalidInputError(msg)
    frames = []
    for version in versions:
        mark = "/" if str(version).isdigit() or version == "latest" else "@"
        rows = variants(f"models:/{name}{mark}{version}")
        rows.insert(0, "version", pd.Series([str(version)] * len(rows), dtype="string"))
        frames.append(rows)
    together: pd.DataFrame = pd.concat(frames, ignore_index=True)
    # A task metric that only one version has comes last otherwise.
    return together.astype(
        {name: "float64" for name in map(str, together) if name.startswith("task/")}
    )
