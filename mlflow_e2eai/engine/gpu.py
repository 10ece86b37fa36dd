"""The GPU of an engine: made a thread's current one for a call, and given back after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mlflow_e2eai.errors import RunnerError


class Gpu:
    """The first GPU that the driver shows, as for all that is asked of it here.

    CUDA keeps a current GPU for each thread, which PyTorch goes by too. A caller's, where it is
    another, is current again after the block.

    Attributes:
        device: It.

    Raises:
        RunnerError: CUDA's driver cannot be used.
    """

    def __init__(self) -> None:
        from cuda.bindings import driver
        from cuda.core import Device

        try:
            self.device = Device(0)
        except Exception as error:
            what = str(error).strip().partition("\n")[0].rstrip(".")
            msg = f"CUDA cannot be used here: {what}; see what `nvidia-smi` says of the driver."
            raise RunnerError(msg) from error
        self._current, self._set_current = driver.cuCtxGetCurrent, driver.cuCtxSetCurrent
        self._trim = driver.cuMemPoolTrimTo
        self._own = 0

    def enter(self) -> Any:
        """Make it current.

        Returns:
            What was before, for `leave`.

        Raises:
            RunnerError: This process was forked from one that used the GPU.
        """
        error, before = self._current()
        if error.name == "CUDA_ERROR_NOT_INITIALIZED":  # which it was in the process before
            msg = (
                "This process was forked from one that uses the GPU, which CUDA does not allow; "
                "load the model after the fork, or start processes by spawn."
            )
            raise RunnerError(msg)
        if (found := int(before)) and found == self._own:
            return None
        self.device.set_current()
        self._own = int(self._current()[1])
        # A thread that had none may keep this one: nobody has chosen another there.
        return before if found not in (0, self._own) else None

    def leave(self, before: Any) -> None:
        """Make current again what was."""
        if before is not None:
            self._set_current(before)

    def trim(self) -> None:
        """Give back the memory that cuda.core keeps for allocations to come."""
        pool = getattr(self.device.memory_resource, "handle", None)
        if pool is not None:  # not every GPU has pools
            self._trim(pool, 0)

    @contextmanager
    def current(self) -> Iterator[None]:
        """It is current in the block."""
        before = self.enter()
        try:
            yield
        finally:
            self.leave(before)
