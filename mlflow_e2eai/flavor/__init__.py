"""The MLflow flavor. Saved models name this module as their loader.

MLflow imports `run_context`, `evaluator` and `artifact_repository` during `import mlflow`, so that
this file imports nothing; its names are resolved when they are first used.

api                  `save_model`, `log_model`
keywords             a misspelt argument of these, refused with the nearest one
logged_bundle        a bundle as a LoggedModel and a registered version
model_info           MLflow's description of it, as a line of text
native               `load_model`
follower             the version that has an alias, served as the alias moves
mlmodel              the MLmodel file
wheel                a wheel of this package, for a model that no index can serve
pyfunc               the model as MLflow's pyfunc
evaluator            `mlflow.models.evaluate` with our parity
run_context          the GPU as tags of each run
artifact_repository  ``e2eai:/`` URIs, which download only the loaded files
triton               `export_triton`
tables               `variants`, `compare_versions`, `list_versions`
repackage            all stages on a logged model
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_e2eai.flavor.api import log_model, save_model
    from mlflow_e2eai.flavor.mlmodel import (
        FLAVOR_NAME,
        get_default_conda_env,
        get_default_pip_requirements,
    )
    from mlflow_e2eai.flavor.native import load_model
    from mlflow_e2eai.flavor.pyfunc import _load_pyfunc

_HOMES = {
    "FLAVOR_NAME": "mlmodel",
    "_load_pyfunc": "pyfunc",
    "get_default_conda_env": "mlmodel",
    "get_default_pip_requirements": "mlmodel",
    "load_model": "native",
    "log_model": "api",
    "save_model": "api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
