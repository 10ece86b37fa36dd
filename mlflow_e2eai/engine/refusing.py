"""What TensorRT or CUDA refused, in one sentence that says what to do."""

from __future__ import annotations

import re

from mlflow_e2eai.artifacts import EngineArtifact
from mlflow_e2eai.errors import RunnerError

_IS_FULL = re.compile(r"out.?of.?memory", re.IGNORECASE)
"""As CUDA (``CUDA_ERROR_OUT_OF_MEMORY``, ``out of memory``) and TensorRT (``OutOfMemory``) say."""

_STAYS = "terminated and relaunched"
"""So the CUDA driver API ends what it says of an error after which each call fails in this process:
see ``CUresult``, for example of CUDA_ERROR_ILLEGAL_ADDRESS. cuda.core quotes it."""


def is_full(why: str) -> bool:
    """Whether it was for want of memory on the GPU."""
    return _IS_FULL.search(why) is not None


def refused(engine: EngineArtifact, why: str) -> RunnerError:
    """The error for what TensorRT did not do, by what its log says."""
    if is_full(why):
        return RunnerError(
            f"TensorRT cannot run {engine.path.name}: the GPU's memory is full; end what else runs "
            f"on it, ask for fewer items at once, or compile for a smaller max."
        )
    return RunnerError(f"TensorRT cannot run {engine.path.name}: {why}")


def failed(engine: EngineArtifact, error: Exception) -> RunnerError:
    """The error for one of CUDA's."""
    said = str(error)
    if is_full(said):
        return refused(engine, said)
    if _STAYS in said:
        name = said.partition(":")[0]
        return RunnerError(
            f"The GPU failed while it ran {engine.path.name} ({name}), and does no more for this "
            f"process; start it again, and compile the engine again if that repeats."
        )
    return RunnerError(f"The GPU cannot run {engine.path.name}: {said}")
