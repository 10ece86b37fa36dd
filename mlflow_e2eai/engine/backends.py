"""What differs between TensorRT and TensorRT-RTX, in one table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from mlflow_e2eai.artifacts import Library, Target
from mlflow_e2eai.context import has_gpu
from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError, RunnerError
from mlflow_e2eai.libraries import loadable


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A library that builds and runs engines.

    Attributes:
        module: Its Python module.
        title: Its name, for people.
        extra: The extra of this package that brings it.
        requirement: The distribution that a serving environment needs.
        cross_compiles: Whether it builds for a GPU that is not in this machine. An engine of a
            backend that does not is bound to the GPU model that built it.
        takes_plugins: Whether its networks can hold plugins.
    """

    module: Literal["tensorrt", "tensorrt_rtx"]
    title: str
    extra: str
    requirement: str
    cross_compiles: bool
    takes_plugins: bool


BACKENDS: Mapping[str, Backend] = {
    "tensorrt": Backend(
        module="tensorrt",
        title="TensorRT",
        extra="tensorrt",
        requirement="tensorrt-cu13",
        cross_compiles=False,
        takes_plugins=True,
    ),
    "tensorrt_rtx": Backend(
        module="tensorrt_rtx",
        title="TensorRT-RTX",
        extra="rtx",
        requirement="tensorrt-rtx-cu13",
        cross_compiles=True,
        takes_plugins=False,
    ),
}


def local_compute_capability() -> str | None:
    """``sm90`` for the first GPU in this machine; None where PyTorch sees none."""
    if not has_gpu():
        return None  # without importing PyTorch, which takes seconds
    import torch

    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm{major}{minor}"


def load(backend: Backend) -> Any:
    """Import a backend.

    Raises:
        MissingDependencyError: It is not installed, or its libraries do not load.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return import_module(backend.module)
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            package=backend.module, extra=backend.extra, purpose=f"A {backend.title} engine"
        ) from error


def check_plugins(target: Target, libraries: Sequence[Library]) -> None:
    """Refuse plugins for a target whose networks cannot hold any.

    Raises:
        InvalidInputError: It is such a target, and there are libraries.
    """
    backend = BACKENDS[target.backend]
    if libraries and not backend.takes_plugins:
        msg = (
            f"{backend.title} takes no plugins, but {libraries[0].path.name} is named, and the "
            f"target {target}; say what the operator computes by a function "
            f"(operators=[Operator(...)]), or leave this target out."
        )
        raise InvalidInputError(msg)


def load_plugins(owner: Any, libraries: Sequence[Library]) -> None:
    """Load plugins into the registry of a builder or runtime, which must outlive what it makes.

    Raises:
        RunnerError: TensorRT cannot load a library, or the caller has not allowed it.
        ArtifactError: A library is missing, or has changed since it was recorded.
    """
    registry: Any = owner.get_plugin_registry() if libraries else None
    for path in loadable(libraries):
        if registry.load_library(str(path)) is None:
            msg = (
                f"TensorRT cannot load plugins from {path.name}: it is no library of plugins, or "
                f"one of its plugins is registered already."
            )
            raise RunnerError(msg)


def compute_capability(trt: Any, name: str) -> Any:
    """The enumeration member for ``sm86``, by name: versions number them differently.

    Returns:
        The member; None where this version of the backend does not list it.
    """
    return trt.ComputeCapability.__members__.get(name.upper())
