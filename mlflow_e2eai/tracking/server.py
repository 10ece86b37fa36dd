"""The tracking server, before anything is asked of it."""

from __future__ import annotations

import urllib.error
import urllib.request

from mlflow_e2eai.errors import TrackingError

_PING_S = 10


def check_server() -> None:
    """Make sure that the tracking server answers.

    MLflow itself would go on trying for minutes. Any answer will do, a refusal too: whether the
    caller may write is the server's to say later.

    Raises:
        TrackingError: Nothing answers at its address.
    """
    import mlflow

    uri = mlflow.get_tracking_uri()
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=_PING_S):  # noqa: S310 - http(s) only
            return
    except urllib.error.HTTPError:
        return
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", error)
        msg = (
            f"The tracking server {uri} cannot be reached ({reason}); start it, or set "
            f"MLFLOW_TRACKING_URI to one that runs."
        )
        raise TrackingError(msg) from error


def address() -> str:
    """Where MLflow keeps its records."""
    import mlflow

    return str(mlflow.get_tracking_uri())
