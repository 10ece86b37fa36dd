"""Texts that a run kept, or that lie on disk."""

from __future__ import annotations

from pathlib import Path

from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.files import why_unread
from mlflow_e2eai.tracking.server import address


def fetch_text(uri: str) -> str:
    """Read a text.

    Args:
        uri: A path, or what MLflow takes for the URI of an artifact, as
            ``runs:/run_id/bisection.json``.

    Raises:
        TrackingError: There is no such file.
        UnicodeDecodeError: It is no text.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    if ":/" not in uri:
        try:
            return Path(uri).read_text(encoding="utf-8")
        except OSError as error:
            msg = f"Cannot read {uri}: {why_unread(error)}; check the path."
            raise TrackingError(msg) from error
    try:
        return str(mlflow.artifacts.load_text(uri))
    except (MlflowException, OSError) as error:
        msg = f"{uri} cannot be had, with MLflow at {address()}: {error}; check the path."
        raise TrackingError(msg) from error
