"""The tracking server, before anything is asked of it."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from mlflow_e2eai.errors import TrackingError

_PING_S = 10

_KNOWN: ContextVar[Known | None] = ContextVar("_KNOWN", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What a job need not ask the server, as whoever sent it has asked already.

    Attributes:
        experiments: Ids of the experiments that there were when the jobs began.
    """

    experiments: tuple[str, ...]


@contextmanager
def knowing(known: Known) -> Iterator[None]:
    """Ask the server for none of this in the block, nor whether it answers."""
    token = _KNOWN.set(known)
    try:
        yield
    finally:
        _KNOWN.reset(token)


def known() -> Known | None:
    """What is known in a block of `knowing`; None outside."""
    return _KNOWN.get()


def experiments() -> tuple[str, ...]:
    """Ids of all experiments."""
    from mlflow import MlflowClient

    if (here := known()) is not None:
        return here.experiments
    return tuple(each.experiment_id for each in MlflowClient().search_experiments())


def check_server() -> None:
    """Make sure that the tracking server answers.

    MLflow itself would go on trying for minutes. Any answer will do, a refusal too: whether the
    caller may write is the server's to say later.

    Raises:
        TrackingError: Nothing answers at its address.
    """
    import mlflow

    if known() is not None:
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
