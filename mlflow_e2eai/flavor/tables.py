"""`variants`, `compare_versions` and `list_versions`: evidence and versions as DataFrames."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import frame
from mlflow_e2eai.bundle.rows import VariantRow, rows_of
from mlflow_e2eai.errors import InvalidInputError, require_several
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.downloads import ModelFiles
from mlflow_e2eai.tracking.server import mlflow_errors
from mlflow_e2eai.tracking.versions import all_versions, find_version, literal

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
        *versions: Versions or aliases, such as ``1, 2`` or ``"champion", 3``; one that is given
            twice is read once.

    Returns:
        The rows of `variants`, with the version as a text in the first column.

    Raises:
        TrackingError: There is no such version.
        ArtifactError: A version is of another flavor, has no manifest, or has changed.
        InvalidInputError: There is no version to compare, or one is no number and no alias.

    Examples:
        >>> frame = mlflow_e2eai.compare_versions("digits", 1, 2)
    """
    import pandas as pd

    if not versions:
        msg = "There is no version to compare; give two, as in compare_versions('digits', 1, 2)."
        raise InvalidInputError(msg)
    frames = []
    given = require_several("versions", versions, (int, str), "numbers or aliases")
    for version in {str(each).removeprefix("@"): each for each in given}.values():
        is_alias = not str(version).isdigit() and version != "latest"
        number = (
            find_version(name, f"@{str(version).removeprefix('@')}").version
            if is_alias
            else version
        )
        rows = variants(f"models:/{name}/{number}")
        rows.insert(0, "version", pd.Series([str(version)] * len(rows), dtype="string"))
        frames.append(rows)
    together: pd.DataFrame = pd.concat(frames, ignore_index=True)
    # A task metric that only one version has comes last otherwise.
    return together.astype(
        {name: "float64" for name in map(str, together) if name.startswith("task/")}
    )


_SUMMARY = {
    "passed": "variants/passed",
    "failed": "variants/failed",
    "not_measured": "variants/not_measured",
    "max_abs_error": "parity/max_abs_error",
    "fastest_p50_ms": "fastest/p50_ms",
}
"""Metric of the run that made a version, by the column that it is in."""

_COUNTS = ("passed", "failed", "not_measured")


def list_versions(name: str) -> pd.DataFrame:
    """List the versions of a registered model as a DataFrame, the newest first.

    Nothing is downloaded, and the number of requests does not grow with the versions.

    Args:
        name: The registered model.

    Returns:
        A row for each version: version, aliases (comma-separated), decision (``promoted``,
        ``rejected``, also by a person since, or ``withdrawn``; missing before the first), created
        (in UTC), the number of variants that passed, failed and were not measured, the largest
        absolute error, the median time of the fastest variant in ms, and the run that made it. What
        its run does not have, or what was too noisy to tell, is missing.

    Raises:
        TrackingError: There is no such model, or the server does not respond.

    Examples:
        >>> frame = mlflow_e2eai.list_versions("digits")
        >>> promoted = frame[frame.decision == "promoted"]
    """
    import pandas as pd

    from mlflow_e2eai.promotion.registry.approvals import rejections_of
    from mlflow_e2eai.promotion.registry.tags import DECISION
    from mlflow_e2eai.promotion.registry.timeline import registered_model

    with quiet_mlflow(), mlflow_errors("call this again later"):
        aliases = registered_model(name).aliases
        found = all_versions(name)
        runs = _metrics_by_run([version.run_id for version in found if version.run_id])
    rows = [
        {
            "version": int(version.version),
            "aliases": ", ".join(
                sorted(alias for alias in aliases if str(aliases[alias]) == str(version.version))
            ),
            "decision": "rejected" if rejections_of(version) else version.tags.get(DECISION),
            "created": pd.Timestamp(version.creation_timestamp, unit="ms", tz="UTC"),
            **{c: runs.get(str(version.run_id), {}).get(metric) for c, metric in _SUMMARY.items()},
            "run_id": version.run_id or None,
        }
        for version in found
    ]
    dtypes = {
        "version": "Int64",
        "aliases": "string",
        "decision": "string",
        "created": "datetime64[ms, UTC]",
        **{column: "Int64" if column in _COUNTS else "float64" for column in _SUMMARY},
        "run_id": "string",
    }
    return pd.DataFrame(rows, columns=list(dtypes)).astype(dtypes)


def _metrics_by_run(run_ids: Sequence[str]) -> dict[str, dict[str, float]]:
    """The last value of each metric of the runs that are there, in one search."""
    import mlflow

    if not run_ids:
        return {}
    listed = ", ".join(map(literal, run_ids))
    runs = mlflow.search_runs(
        search_all_experiments=True,
        filter_string=f"attributes.run_id IN ({listed})",
        output_format="list",
    )
    return {run.info.run_id: run.data.metrics for run in runs}
