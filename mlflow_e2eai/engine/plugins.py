"""Never run on its hardware yet: plugins of TensorRT 10 and 11 for operators of a graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.values import Library, Target
from mlflow_e2eai.engine.backends import BACKENDS
from mlflow_e2eai.errors import InvalidInputError, RunnerError


def check_plugins(target: Target, libraries: Sequence[Library]) -> None:
    """Refuse plugins for a target whose networks cannot hold any.

    Raises:
        InvalidInputError: There are libraries, and the target takes no plugins.
    """
    backend = BACKENDS[target.backend]
    if libraries and backend.plugins is None:
        msg = (
            f"{backend.title} takes no plugins, but {libraries[0].path.name} was given for the "
            f"target {target}; define the operator by a function (operators=[Operator(...)]), or "
            "leave this target out."
        )
        raise InvalidInputError(msg)


def load_plugins(owner: Any, libraries: Sequence[Library]) -> None:
    """Load plugins into the registry of a builder or runtime, which must outlive its engines.

    Raises:
        RunnerError: TensorRT cannot load a library, or the caller has not allowed it.
        ArtifactError: A library is missing, or has changed since it was recorded.
    """
    registry: Any = owner.get_plugin_registry() if libraries else None
    for path in loadable(libraries):
        if registry.load_library(str(path)) is None:
            msg = (
                f"TensorRT cannot load plugins from {path.name}: it is not a plugin library, or "
                "one of its plugins is already registered."
            )
            raise RunnerError(msg)
