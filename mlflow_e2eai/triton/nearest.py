"""Which of an engine's profiles Triton takes for a request.

It takes the one whose opt is nearest, and of several that are as near the first in the engine,
whatever order its configuration names them in: GetMostOptimizedProfile and EvaluateTensorRTContext
of its TensorRT backend (src/instance_state.cc at e2ef6d7, July 2026). In a batch it holds the axes
after the first against those of the request one place too early, so that it can pass a static
profile by for one that is nearer by mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mlflow_e2eai.artifacts import Axis, TensorSpec
from mlflow_e2eai.engine.profiles import Profile, admits, dynamic_of


def passed_by(
    inputs: Sequence[TensorSpec], every: Sequence[Profile], batch: Axis | None
) -> list[str]:
    """The buckets whose static profiles Triton never takes, as ``N=8``.

    Args:
        inputs: The engine's inputs.
        every: Its profiles, in its order.
        batch: The axis along which Triton puts requests together.
    """
    dynamic = dynamic_of(every)
    found = []
    for at, profile in enumerate(every):
        sizes = {name: opt for name, (_, opt, _) in profile.items()}
        fitting = [other for other, bounds in enumerate(every) if admits(bounds, sizes)]
        nearest = min(fitting, key=lambda each: _distance(inputs, every[each], sizes, batch))
        if at not in (nearest, dynamic):
            fixed = [name for name in sizes if profile[name] != every[dynamic][name]]
            found.append(", ".join(f"{name}={sizes[name]}" for name in fixed))
    return found


def _distance(
    inputs: Sequence[TensorSpec], profile: Profile, sizes: Mapping[str, int], batch: Axis | None
) -> int:
    """Triton's distance between a profile's opt and a request."""
    total, items = 0, sizes[batch.name] if batch else 1
    for spec in inputs:
        asked = [sizes[size] if isinstance(size, str) else size for size in spec.shape]
        opt = [profile[size][1] if isinstance(size, str) else size for size in spec.shape]
        shifted = [items, *asked[:-1]]
        total += sum(abs(best - size) for best, size in zip(opt, shifted, strict=False))
    return total
