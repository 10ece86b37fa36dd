"""The request for an engine, and its key: one digest of all that the engine depends on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.values import (
    Axis,
    EngineArtifact,
    Library,
    OnnxArtifact,
    Precision,
    Target,
)
from mlflow_e2eai.engine import backends

_WITHOUT_EFFECT = ("time_limit_s", "timing_cache")
"""Settings that stop or shorten a build, and do not change the engine."""


def key_for(
    source: OnnxArtifact,
    target: Target,
    *,
    tf32: bool = False,
    libraries: Sequence[Library] = (),
    settings: BuildSettings = DEFAULT_BUILD,
) -> str:
    """The key of the engine that `compile` would build here.

    Args:
        source: The graph.
        target: What to build for.
        tf32: See `compile`.
        libraries: Libraries with plugins.
        settings: See `compile`.

    Returns:
        Hexadecimal sha256 of the graph with its weights, the settings, the target, and the backend
        with its exact version.

    Raises:
        MissingDependencyError: The target's TensorRT is not installed.
    """
    version = version_for(target)
    return _key(source.sha256, target, version, tf32, source.axes, libraries, settings)


def version_for(target: Target) -> str:
    """The exact version of a target's TensorRT here.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return str(backends.load(backends.BACKENDS[target.backend]).__version__)


def key_of(engine: EngineArtifact) -> str:
    """The key of an engine that was built."""
    return _key(
        engine.parent_sha256,
        engine.target,
        engine.backend_version,
        engine.tf32,
        engine.axes,
        engine.libraries,
        engine.settings,
    )


def _key(
    onnx_sha256: str,
    target: Target,
    backend_version: str,
    tf32: bool,  # noqa: FBT001 - private, with two callers
    axes: Sequence[Axis],
    libraries: Sequence[Library],
    settings: BuildSettings,
) -> str:
    request: dict[str, Any] = {
        "onnx": onnx_sha256,
        "target": dataclasses.asdict(target),
        "version": backend_version,
        "tf32": tf32,
        "axes": [dataclasses.asdict(axis) for axis in axes],
        # Neither the path of a library nor the order of several changes the engine.
        "libraries": sorted(library.sha256 for library in libraries),
    }
    request["settings"] = {
        name: value
        for name, value in dataclasses.asdict(settings).items()
        if name not in _WITHOUT_EFFECT
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineRequest:
    """An engine that is to be built.

    Attributes:
        graph: Digest of its graph.
        precision: The precision that it computes in.
        target: Its target, as text.
        plugin_libraries: Libraries with its plugins.
        build_settings: The settings of the build.
        rebuild: Whether it is built although there is one with its key.
    """

    graph: str
    precision: Precision
    target: str
    plugin_libraries: Sequence[Path] = ()
    build_settings: BuildSettings = DEFAULT_BUILD
    rebuild: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "plugin_libraries", tuple(self.plugin_libraries))
