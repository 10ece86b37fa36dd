"""The GPU of this machine as tags of each run."""

from __future__ import annotations

from mlflow_e2eai.artifacts.machine import driver_version, gpu_name


class GpuContext:
    """An MLflow run-context provider (entry-point group ``mlflow.run_context_provider``).

    MLflow asks only for these two methods; deriving from its class would import MLflow while
    MLflow is being imported.
    """

    def in_context(self) -> bool:
        """Whether there is anything to say."""
        return gpu_name() is not None or driver_version() is not None

    def tags(self) -> dict[str, str]:
        """``e2eai.gpu_name`` and ``e2eai.driver_version``, where they are known."""
        found = {"e2eai.gpu_name": gpu_name(), "e2eai.driver_version": driver_version()}
        return {key: value for key, value in found.items() if value is not None}
