"""The process that builds engines: one for each, or one for many where a worker builds many."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from math import inf

from mlflow_e2eai.engine import backends
from mlflow_e2eai.errors import MissingDependencyError, RunnerError
from mlflow_e2eai.isolation import Process


class _Kept:
    """The idle builder of a process that keeps one.

    Attributes:
        keeps: Whether it does.
        idle: The builder, which may still be importing.
    """

    keeps = False
    idle: Process | None = None


def keep_builder() -> None:
    """Have the builder of this process kept for its next engine, and the first one started now.

    It takes half a second to import what it needs, of which a small engine takes less to build.
    """
    _Kept.keeps = True
    if _Kept.idle is None or _Kept.idle.ended:
        _Kept.idle = Process(patience_s=inf)
        _Kept.idle.begin("call", function=_import)


@contextmanager
def builder(limit_s: float, *, anew: bool) -> Iterator[Process]:
    """A process to build an engine in, for the block.

    Args:
        limit_s: Seconds after which it is killed.
        anew: Whether only a new one will do, as it is to load libraries.
    """
    there = None if anew else _taken()
    if there is None:
        with closing(Process(patience_s=inf, limit_s=limit_s)) as fresh:
            yield fresh
        return
    try:
        there.limit(limit_s)
        yield there
        there.begin("call", function=_import)
    except BaseException:  # who knows in what state it is
        there.close()
        keep_builder()
        raise
    _Kept.idle = there


def _taken() -> Process | None:
    """The builder that is kept, once it has imported; another where it died meanwhile."""
    there, _Kept.idle = _Kept.idle, None
    if there is None:
        return None
    with suppress(RunnerError):
        there.finish({})  # what was begun when it was put there
        if not there.ended:
            return there
    there.close()
    return Process(patience_s=inf)


def _import() -> None:
    import onnx  # noqa: F401

    for backend in backends.BACKENDS.values():
        with suppress(MissingDependencyError):
            backends.load(backend)
