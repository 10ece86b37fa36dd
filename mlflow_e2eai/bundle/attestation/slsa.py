"""Where a model is from: a statement of provenance, as SLSA v1 has it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.manifest import Manifest

_BUILDER = "pkg:pypi/mlflow-e2eai"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRun:
    """The run that made a model, as the tracking server has it; all empty for a plain folder.

    Attributes:
        run_id: Its id.
        parameters: Its parameters, which are the settings of the stages.
        stages: For each child run its stage, id, times and the run whose result it reused.
        datasets: Name and digest of each dataset that it used.
        started_at: When it began, in UTC.
        ended_at: When it ended.
        source: Name, URI and, where known, digest of the PyTorch model, as in-toto has it.
    """

    run_id: str | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    stages: Sequence[Mapping[str, str]] = ()
    datasets: Sequence[Mapping[str, str]] = ()
    started_at: str | None = None
    ended_at: str | None = None
    source: Mapping[str, Any] | None = None


def statement_of(manifest: Manifest, digests: Mapping[str, str], run: BuildRun) -> str:
    """The provenance of a model, an in-toto statement as JSON.

    Args:
        manifest: Its manifest.
        digests: The digests of its files by name.
        run: The run that made it.
    """
    builder = f"{_BUILDER}@{manifest.package_version}"
    metadata = {
        "invocationId": run.run_id,
        "startedOn": run.started_at,
        "finishedOn": run.ended_at,
    }
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())
        ],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": f"{builder}#log_model",
                "externalParameters": {
                    "source_model": manifest.source_model,
                    "settings": dict(run.parameters),
                },
                "internalParameters": {
                    "stages": list(run.stages),
                    "files": [_step(item) for item in manifest.files],
                    "reused": dict(manifest.reused),
                    "evidence_level": manifest.level,
                    "environment": dict(manifest.environment),
                },
                "resolvedDependencies": [
                    *([run.source] if run.source else ()),
                    *(
                        {"name": data["name"], "annotations": {"digest": data["digest"]}}
                        for data in run.datasets
                    ),
                ],
            },
            "runDetails": {
                "builder": {"id": builder, "version": {"mlflow_e2eai": manifest.package_version}},
                "metadata": {name: value for name, value in metadata.items() if value},
            },
        },
    }
    return json.dumps(statement, indent=2) + "\n"


def _step(item: OnnxArtifact | EngineArtifact) -> dict[str, str | None]:
    """A graph or engine, the file that it was made from, and how."""
    if isinstance(item, EngineArtifact):
        how = {"stage": "compile", "target": str(item.target), "tensorrt": item.backend_version}
    else:
        how = {"stage": item.stage, "opset": str(item.opset)}
    return {
        "path": item.path.as_posix(),
        "sha256": item.sha256,
        "made_from_sha256": item.parent_sha256,
        "precision": item.precision,
        **how,
    }
