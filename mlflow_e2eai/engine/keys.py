"""What an engine is known by before it is built: all that was asked for, in one digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from mlflow_e2eai.artifacts import Axis, EngineArtifact, Library, OnnxArtifact, Target
from mlflow_e2eai.building import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.engine import backends


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
    trt = backends.load(backends.BACKENDS[target.backend])
    return _key(source.sha256, target, str(trt.__version__), tf32, source.axes, libraries, settings)


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
    tf32: bool,  # noqa: FBT001 - both callers are above
    axes: Sequence[Axis],
    libraries: Sequence[Library],
    settings: BuildSettings,
) -> str:
    asked: dict[str, Any] = {
        "onnx": onnx_sha256,
        "target": dataclasses.asdict(target),
        "version": backend_version,
        "tf32": tf32,
        "axes": [dataclasses.asdict(axis) for axis in axes],
        # Where a library lies is not the engine's matter, nor in which order they are named.
        "libraries": sorted(library.sha256 for library in libraries),
    }
    asked["settings"] = dataclasses.asdict(settings)
    del asked["settings"]["time_limit_s"]  # it ends a build, and changes none
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
