"""The GPUs that the engines of a bundle are for, and those that measured them."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.variants import engine_variant


def missing_gpus(manifest: Manifest) -> dict[str, tuple[str, ...]]:
    """Engines of the bundle that were not measured on each GPU that they are for.

    Returns:
        By variant, the compute capabilities where nobody measured it; none for an engine that is
        for every GPU and was measured on none.
    """
    lacking = {}
    for engine in manifest.engines:
        met = {
            capability_there(engine, there.environment)
            for there in manifest.by_machine
            for entry in there.evidence
            if entry.measured and entry.sha256 == engine.sha256
        }
        missing = tuple(each for each in engine.target.capabilities if each not in met)
        if missing or not met:
            lacking[engine_variant(engine)] = missing
    return lacking


def every_target(file: OnnxArtifact | EngineArtifact) -> tuple[str, ...]:
    """Names in gates of what an engine is for: its target, and each compute capability."""
    if not isinstance(file, EngineArtifact):
        return ()
    return (str(file.target), *file.target.capabilities)


def unmeasured_engines(manifest: Manifest) -> list[EngineArtifact]:
    """Engines of the bundle that were not measured on each GPU that they are for."""
    missing = missing_gpus(manifest)
    return [engine for engine in manifest.engines if engine_variant(engine) in missing]


def capability_there(engine: EngineArtifact, environment: Mapping[str, str]) -> str | None:
    """Compute capability of the machine that measured an engine; None where it is not known.

    An engine for one capability runs on no other, and so needs no record of it.
    """
    if len(engine.target.capabilities) == 1:
        return engine.target.capabilities[0]
    return environment.get("compute_capability")


def targets_of(
    file: OnnxArtifact | EngineArtifact | None, environment: Mapping[str, str]
) -> tuple[str, ...]:
    """Names in gates of what an engine was measured on: its target, and that capability.

    An engine for several GPUs says nothing of those that it was not measured on.
    """
    if not isinstance(file, EngineArtifact):
        return ()
    here = capability_there(file, environment)
    return (str(file.target),) if here is None else (str(file.target), here)
