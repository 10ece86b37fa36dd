"""The GPU of this machine as tags of each run.

MLflow imports this module during `import mlflow`, and any error at its import would break
`import mlflow` for the whole environment: it imports the standard library only, through
artifacts/machine.py, which returns None where it is not sure.
"""

from __future__ import annotations

from mlflow_e2eai.artifacts import machine


class GpuContext:
    """An MLflow run-context provider (entry-point group ``mlflow.run_context_provider``).

    MLflow calls only these two methods; deriving from its class would import MLflow while
    MLflow is being imported.
    """

    def in_context(self) -> bool:
        """Whether the GPU or the driver is known."""
        return machine.gpu_name() is not None or machine.driver_version() is not None

    def tags(self) -> dict[str, str]:
        """``e2eai.gpu_name`` and ``e2eai.driver_version``, where they are known."""
        gpu, driver = machine.gpu_name(), machine.driver_version()
        tags = {"e2eai.gpu_name": gpu, "e2eai.driver_version": driver}
        return {key: value for key, value in tags.items() if value is not None}
