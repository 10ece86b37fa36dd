"""The tracking server: checks that it responds, and cached lookups."""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, TypeVar

from mlflow_e2eai.errors import E2EAIError, TrackingError, brief
from mlflow_e2eai.runtime.storage import READ_ONLY, storage_error
from mlflow_e2eai.runtime.termination import causes, interruption_of, release_frames
from mlflow_e2eai.tracking.console import quiet_mlflow

if TYPE_CHECKING:
    from mlflow.exceptions import MlflowException

Result = TypeVar("Result")

_log = logging.getLogger(__name__)

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
    """Check that the tracking server responds, or that the store can be opened.

    MLflow itself retries for minutes, which is right within a run, but not where the address may be
    mistyped. Any response of the server is enough, also a refusal: permissions are checked by later
    requests.

    Raises:
        TrackingError: There is no response from its address.
    """
    import mlflow

    if not lookups_are_cached():
        with quiet_mlflow():  # it tells of the tables of a new database
            _check(address(), patient=mlflow.active_run() is not None)


def responds() -> bool:
    """Whether the tracking server responds now; see `check_server`."""
    try:
        _check(address(), patient=False)
    except TrackingError:
        return False
    return True


@contextmanager
def mlflow_errors(advice: str) -> Iterator[None]:
    """Turn errors of MLflow and of requests for files into one of this package.

    Args:
        advice: What to do next.

    Raises:
        TrackingError: The server refused a request, or failed at one.
    """
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    try:
        yield
    except (MlflowException, RequestException) as error:
        if (denied := read_only_error(error)) is not None:
            raise denied from error
        msg = f"MLflow at {address()} did not carry out a request: {failure_reason(error)}; "
        raise TrackingError(msg + advice + ".") from error


def read_only_error(error: BaseException) -> TrackingError | None:
    """One of this package for a write to a database that can only be read; else None."""
    if not any(READ_ONLY in str(each) for each in causes(error)):
        return None
    return TrackingError(
        f"The registry {address()} is read-only ({READ_ONLY}); set MLFLOW_TRACKING_URI to one that "
        f"your user may write to, and repeat the call."
    )


def as_mlflow_error(error: E2EAIError, like: BaseException | None = None) -> E2EAIError:
    """The same error as one of MLflow's too.

    Who loads models of all flavors catches MLflow's. Its scoring server returns the message of
    those, and for any other error that something unexpected happened; both have HTTP status 400.

    Args:
        error: The error.
        like: One of MLflow whose code it has; by default that of a bad request.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST, ErrorCode

    code = BAD_REQUEST
    if isinstance(like, MlflowException):
        code = ErrorCode.Value(like.error_code)
    bases: tuple[type, ...] = (type(error), MlflowException)
    # Its class cannot be imported by name, so it is pickled as the original error.
    kind: Any = type(type(error).__name__, bases, {"__reduce__": lambda _: error.__reduce__()})
    both: Any = kind.__new__(kind)
    MlflowException.__init__(both, str(error), error_code=code)
    both.__dict__.update(error.__dict__)
    error_of_both: E2EAIError = both
    return error_of_both


def is_denied(error: MlflowException) -> bool:
    """Whether a server refused a request because of the user's permissions."""
    return str(error.error_code) == "PERMISSION_DENIED"


def failed_request(error: BaseException) -> TrackingError | None:
    """One of this package for a request that failed as often as MLflow repeated it; else None."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException

    is_request = isinstance(error, MlflowException) and _FAILED.search(str(error))
    if not is_request and not isinstance(error, RequestException):
        return None
    return TrackingError(
        f"MLflow at {address()} did not carry out a request: {failure_reason(error)}; repeat the "
        f"call once it does: what is logged by then is not done again.",
        resumable=True,
    )


_FAILED = re.compile("failed with (timeout )?exception|failed with error code 5[0-9][0-9]")

_CUT = re.compile("Connection broken|IncompleteRead|Connection aborted|Read timed out")


def complete_download(download: Callable[[], Result]) -> Result:
    """Call a function that downloads, and again where a file ended in its middle.

    MLflow repeats requests, but not one whose response has begun.
    """
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES

    for _ in range(int(MLFLOW_HTTP_REQUEST_MAX_RETRIES.get())):
        try:
            return download()
        except Exception as error:
            if not any(_CUT.search(str(each)) for each in causes(error)):
                raise
            _log.warning("a download was cut (%s); trying again", brief(error).rpartition(": ")[2])
    return download()


def is_missing(error: MlflowException) -> bool:
    """Whether a server has no such thing as a request named."""
    return str(error.error_code) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


def failure_reason(error: BaseException) -> str:
    """The reason of a failed request, without the address and the attempts around it."""
    reason = _cause(error) if "failed with exception" in str(error) else brief(error)
    return reason.rstrip(".")


def _check(uri: str, *, patient: bool) -> None:
    if uri.startswith(("http://", "https://")):
        _check_server_at(uri, patient=patient)
    else:
        _check_store(uri)


def _check_server_at(uri: str, *, patient: bool) -> None:
    """Request the health of a server, as often as MLflow repeats a request, or once."""
    from mlflow.environment_variables import (
        MLFLOW_HTTP_REQUEST_MAX_RETRIES,
        MLFLOW_HTTP_REQUEST_TIMEOUT,
    )
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    retries = None if patient or MLFLOW_HTTP_REQUEST_MAX_RETRIES.is_set() else 0
    timeout_s = None if MLFLOW_HTTP_REQUEST_TIMEOUT.is_set() else _PING_S
    try:
        try:
            _mlflow.request_health(uri, retries=retries, timeout_s=timeout_s)
        except MlflowException as error:
            if "Connection aborted" not in str(error):
                raise
            # A server ends a kept connection after a while, perhaps just as it is used again.
            _mlflow.request_health(uri, retries=retries, timeout_s=timeout_s)
    except MlflowException as error:
        reason = _cause(error)
        advice = (
            "set MLFLOW_TRACKING_SERVER_CERT_PATH to the file of its certificate"
            if "CERTIFICATE_VERIFY_FAILED" in str(error)
            else "start it, or set MLFLOW_TRACKING_URI to a running server"
        )
        msg = f"The tracking server {uri} cannot be reached ({reason}); {advice}."
        raise TrackingError(msg, resumable=True) from error


def _cause(error: BaseException) -> str:
    """The innermost reason of a failed request: requests and urllib3 wrap it several times."""
    inner = error.__context__ or error
    while inner.args and isinstance(inner.args[0], BaseException):
        inner = inner.args[0]
    inner = getattr(inner, "reason", None) or inner
    return brief(inner).rpartition(": ")[2]


def _check_store(uri: str) -> None:
    """Open a store that is no server.

    SQLAlchemy's and urllib's words about a URI that they cannot read hold parts of it, perhaps of
    its password: they are left out.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        MlflowClient(uri)
    except MlflowException as error:
        msg = f"MLflow cannot use the tracking URI {uri}: {brief(error)}"
        raise TrackingError(msg) from error
    except Exception as error:
        # The database's driver has `orig`, and says which host or user is wrong.
        reason = getattr(error, "orig", None)
        found = type(error).__name__ if reason is None else brief(reason)
        msg = (
            f"MLflow cannot open the tracking URI {uri} ({found}); give one such as "
            f"http://host:5000 or postgresql://user:password@host/database, with each special "
            f"character of a password as %40."
        )
        raise TrackingError(msg) from error


@contextmanager
def failure_logged(run_id: str, log: Callable[[BaseException], None]) -> Iterator[None]:
    """Log why the block failed, unless the server has stopped responding meanwhile.

    Then nothing is written there: MLflow would retry each request for minutes.

    Args:
        run_id: The run of the block, for the message.
        log: Called with the error of the block, which goes on.

    Raises:
        TrackingError: The server has stopped responding.
        StorageError: The block could not write a file.
    """
    try:
        yield
    except BaseException as error:
        release_frames(error)
        if isinstance(error, TrackingError) and error.lost:
            raise
        _check_not_lost(run_id, error)
        failure = storage_error(error) or failed_request(error)
        try:
            log(failure or error)
        except Exception:  # noqa: BLE001 - the first error is the one to show
            _log.warning("Could not write the error on run %s.", run_id)
        if failure is not None:
            raise failure from error
        raise


def _check_not_lost(run_id: str, error: BaseException) -> None:
    from mlflow.exceptions import MlflowException

    # What failed as often as MLflow repeats it has waited already; and Ctrl-C waits for nothing.
    patient = failed_request(error) is None and interruption_of(error) is None
    try:
        _check(address(), patient=patient)
    except TrackingError as unreachable:
        # One of MLflow's is most likely of the same loss; one of ours may say what was half done.
        is_same = isinstance(error, MlflowException)
        first = "" if is_same else f" The call had already failed: {brief(error)}"
        msg = (
            f"{unreachable} It stopped responding during the call: run {run_id} still shows "
            "RUNNING there, with what was logged so far. Then repeat the call: what is logged is "
            f"not done again.{first}"
        )
        raise TrackingError(msg, lost=True) from error


def address() -> str:
    """The tracking URI of MLflow."""
    import mlflow

    return str(mlflow.get_tracking_uri())
