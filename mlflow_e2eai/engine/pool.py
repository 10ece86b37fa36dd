"""Execution contexts for many callers at once."""

from __future__ import annotations

import threading
from collections.abc import Callable

from mlflow_e2eai.engine.contexts import Context
from mlflow_e2eai.errors import RunnerError


class Pool:
    """Contexts, made when they are first needed; who finds all in use waits for one.

    Args:
        make: Makes one for a profile.
        most: Contexts for one profile. There are fewer where the GPU's memory does not take them.
    """

    def __init__(self, make: Callable[[int], Context], most: int) -> None:
        self._make, self._most = make, most
        self._free: dict[int, list[Context]] = {}
        self._made: dict[int, int] = {}
        self._bounds: dict[int, int] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def take(self, profile: int) -> Context:
        """A context that nobody else uses, until it is given back.

        Raises:
            RunnerError: There is none yet, and none can be made; or they were all given back.
            CUDAError: None can be made.
        """
        with self._changed:
            if free := self._free.get(profile):  # what is usual takes no more than this
                return free.pop()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._is_closed or self._may_take(profile))
                if self._is_closed:
                    msg = "The model was closed; load it again."
                    raise RunnerError(msg)
                if free := self._free.get(profile):
                    return free.pop()
                self._made[profile] = self._made.get(profile, 0) + 1
            try:
                return self._make(profile)
            except BaseException as error:
                with self._changed:
                    self._made[profile] -= 1
                    self._changed.notify_all()
                    if not self._made[profile] or not isinstance(error, Exception):
                        raise
                    self._bounds[profile] = self._made[profile]

    def _may_take(self, profile: int) -> bool:
        made, most = self._made.get(profile, 0), self._bounds.get(profile, self._most)
        return bool(self._free.get(profile)) or made < most

    def give(self, profile: int, context: Context) -> None:
        """Give a context back."""
        with self._changed:
            if not self._is_closed:
                self._free.setdefault(profile, []).append(context)
            self._changed.notify_all()
        if self._is_closed:
            context.close()

    def close(self) -> None:
        """Give back the memory of all contexts; of those in use, when their calls are done."""
        with self._changed:
            self._is_closed = True
            free, self._free = self._free, {}
            self._changed.notify_all()
        for contexts in free.values():
            for context in contexts:
                context.close()
