"""The tracking server, before anything is asked of it."""

from __future__ import annotations

import functools
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from mlflow_e2eai.errors import TrackingError

_PING_S = 10

_AT_WORK: ContextVar[bool] = ContextVar("_AT_WORK", default=False)


@contextmanager
def at_work() -> Iterator[None]:
    """Ask the server for no more than a job must in the block, as whoever sent it has asked."""
    token = _AT_WORK.set(True)
    try:
        yield
    finally:
        _AT_WORK.reset(token)


def is_at_work() -> bool:
    """Whether this is a block of `at_work`."""
    return _AT_WORK.get()


def experiments() -> tuple[str, ...]:
    """Ids of all experiments; at work they are asked for once a minute."""
    if is_at_work():
        return _of_minute(address(), time.monotonic() // 60)
    return _asked()


@functools.lru_cache(maxsize=1)
def _of_minute(uri: str, minute: float) -> tuple[str, ...]:  # noqa: ARG001 - what they are known by
    return _asked()


def _asked() -> tuple[str, ...]:
    from mlflow import MlflowClient

    return tuple(each.experiment_id for each in MlflowClient().search_experiments())


def check_server() -> None:
    """Make sure that the tracking server answers.

    MLflow itself would go on trying for minutes. Any answer will do, a refusal too: whether the
    caller may write is the server's to say later.

    Raises:
        TrackingError: Nothing answers at its address.
    """
    import mlflow

    if is_at_work():
        return
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
