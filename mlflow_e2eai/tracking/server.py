"""The tracking server: a check that it responds, and cached lookups."""

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

_CACHED: ContextVar[bool] = ContextVar("_CACHED", default=False)


@contextmanager
def cached_lookups() -> Iterator[None]:
    """Cache lookups that a job need not repeat in the block."""
    token = _CACHED.set(True)
    try:
        yield
    finally:
        _CACHED.reset(token)


def lookups_are_cached() -> bool:
    """Whether this is a block of `cached_lookups`."""
    return _CACHED.get()


def experiments() -> tuple[str, ...]:
    """Ids of all experiments; where lookups are cached, no older than a minute."""
    if lookups_are_cached():
        return _experiments_of_minute(address(), time.monotonic() // 60)
    return _search_experiments()


@functools.lru_cache(maxsize=1)
def _experiments_of_minute(uri: str, minute: float) -> tuple[str, ...]:  # noqa: ARG001 - the key of the cache
    return _search_experiments()


def _search_experiments() -> tuple[str, ...]:
    from mlflow import MlflowClient

    return tuple(each.experiment_id for each in MlflowClient().search_experiments())


def check_server() -> None:
    """Check that the tracking server responds.

    MLflow itself would retry for minutes. Any response is enough, also a refusal: permissions are
    checked by later requests.

    Raises:
        TrackingError: There is no response from its address.
    """
    import mlflow

    if lookups_are_cached():
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
    """The tracking URI of MLflow."""
    import mlflow

    return str(mlflow.get_tracking_uri())
