"""Registered versions that differ in their accuracy alone, and are cheap to promote."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path

import multiplying_bundles as made
from multiplying_bundles import CPU32, TIMES, X

from mlflow_e2eai import bundle
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.flavor import api

WORSE = 0.1
"""The loss of accuracy against the champion that the gates admit."""

GATES = {
    "gates": [
        {"metric": "parity/failed", "at_most": 0},
        {"metric": "champion/task_drop", "at_most": WORSE + 1e-6},
    ]
}


def save(accuracy: float, place: Path) -> None:
    """Write a bundle whose evidence says how accurate it is."""
    with tempfile.TemporaryDirectory() as folder:
        graph = made.graph(Path(folder), TIMES.format(factor=2))
        evidence = [
            Evidence(
                variant=variant,
                sha256=sha256,
                measured=True,
                parity={"profile": made.PASSED},
                task={"accuracy": task},
            )
            for variant, sha256, task in (
                ("torch/fp32", None, 1.0),
                (CPU32, graph.sha256, accuracy),
            )
        ]
        manifest = dataclasses.replace(
            made.manifest([graph]),
            evidence=tuple(evidence),
            level="standard",
            measured_at="2026-11-30T00:00:00+00:00",
        )
        bundle.write(place, manifest, {"x": X})


def register(accuracies: Sequence[float], name: str = "net") -> list[str]:
    """Register a version for each accuracy, in order."""
    versions = []
    with tempfile.TemporaryDirectory() as folder:
        for at, accuracy in enumerate(accuracies):
            place = Path(folder, str(at))
            save(accuracy, place)
            info = api.log_model(place, name, registered_model_name=name)
            versions.append(str(info.registered_model_version))
    return versions
