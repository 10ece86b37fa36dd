"""Bundles -> the metrics that gates compare with their limits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import drop
from mlflow_e2eai.latency.measure import BUDGET_S, items_of
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.runtime.isolation import IsolatedRunners, isolated_together


def metrics_of(
    challenger: Path, champion: Path | None = None, *, allow_native: Sequence[str] = ()
) -> dict[str, float]:
    """Compute the metrics that the gates compare with their limits.

    Args:
        challenger: A bundle.
        champion: The bundle that it would replace.
        allow_native: Libraries in them that may be loaded.

    Returns:
        - ``parity/measured`` and ``parity/failed``: number of measured variants, and of those with
          wrong numbers or an error, on any machine.
        - ``parity/max_abs_error``: the largest error.
        - ``evidence/unverified``: 1 where the export could not be compared with the PyTorch module.
        - ``evidence/quick``: 1 where the evidence is of the level ``quick``.
        - ``evidence/assumptions``: number of assumptions about the inputs, such as an example that
          was generated.
        - ``task/<name>``: each task metric of the worst variant.
        - ``task/drop``: the largest drop of one against the PyTorch module on the same machine;
          missing where there are no task metrics.
        - ``champion/task_drop``: the largest drop of one from the champion's worst variant to
          the challenger's worst; missing where the champion has no task metrics.
        - ``champion/latency_ratio``: how many times as long as the champion it takes, the upper
          bound of the interval, at the worst of the corners that both admit; NaN on a busy machine.
    """
    new = bundle.read(challenger)
    measured = _measured_evidence(new)
    reports = [report for entry in measured for report in entry.deciding.values()]
    errors = [report.max_abs_error for report in reports]
    tasks = _worst_tasks(new)
    metrics = {
        "parity/measured": float(len({entry.variant for entry in measured})),
        "parity/failed": float(len({entry.variant for entry in measured if not entry.passed})),
        "parity/max_abs_error": _worst(errors),
        "evidence/unverified": float(new.export is not None and new.export.unverified is not None),
        "evidence/quick": float(new.level == "quick"),
        "evidence/assumptions": float(len(new.graphs[0].assumptions)),
        **{f"task/{name}": value for name, value in tasks.items()},
    }
    drops = [drop(_reference_tasks(there), _worst_tasks(there)) for there in new.by_machine]
    if known := [value for value in drops if value is not None]:
        metrics["task/drop"] = _worst(known)
    if champion is not None:
        before = _worst_tasks(bundle.read(champion))
        if before and (dropped := drop(before, tasks)) is not None:
            metrics["champion/task_drop"] = dropped
        metrics["champion/latency_ratio"] = _latency_ratio(
            challenger, champion, allow_native=allow_native
        )
    return metrics


def _worst(values: Sequence[float]) -> float:
    """The largest; NaN where one is, or where there is none."""
    return math.nan if any(map(math.isnan, values)) else max(values, default=math.nan)


def _measured_evidence(manifest: Manifest) -> list[Evidence]:
    """Measured evidence, of any machine, of the bundle's variants that are not rejected."""
    digests = {file.sha256 for file in manifest.files}
    return [
        entry
        for entry in manifest.all_evidence
        if entry.measured and entry.sha256 in digests and not entry.rejected
    ]


def _worst_tasks(manifest: Manifest) -> dict[str, float]:
    """The lowest value of each task metric over the variants; NaN where a variant lacks it."""
    measured = _measured_evidence(manifest)
    names = {name for entry in measured for name in entry.task}
    worst = {}
    for name in sorted(names):
        values = [entry.task.get(name, math.nan) for entry in measured]
        worst[name] = math.nan if any(map(math.isnan, values)) else min(values)
    return worst


def _reference_tasks(manifest: Manifest) -> Mapping[str, float]:
    for entry in manifest.evidence:
        if entry.sha256 is None:
            return entry.task
    return {}


def _latency_ratio(challenger: Path, champion: Path, *, allow_native: Sequence[str]) -> float:
    """Upper bound of the challenger's latency ratio; NaN when it cannot be measured.

    That is so too where the machine was busy with other work: a noisy number never passes.

    Each runs its own input example, resized to the corners that both profiles admit. Bundles of the
    same files are equal by construction: a measurement would only add the machine's noise.
    """
    paths = {"challenger": challenger, "champion": champion}
    manifests = {role: bundle.read(path) for role, path in paths.items()}
    files = [{file.sha256 for file in manifest.files} for manifest in manifests.values()]
    if files[0] == files[1]:
        return 1.0
    samples = {
        role: profile_samples(bundle.read_example(path), manifests[role].graphs[0])
        for role, path in paths.items()
    }
    shared = [
        label
        for label in samples["challenger"].keys() & samples["champion"].keys()
        if items_of(samples["challenger"][label]) == items_of(samples["champion"][label])
    ]
    if not shared:
        return math.nan
    openers = {role: partial(load, path, allow_native=allow_native) for role, path in paths.items()}
    try:
        # Both fall back alike to a variant that runs here: this compares models, not engines.
        with isolated_together(openers) as models:
            return _worst([_upper_bound(models, samples, label) for label in shared])
    except E2EAIError:
        return math.nan


def _upper_bound(
    models: IsolatedRunners, samples: Mapping[str, Mapping[str, Tensors]], label: str
) -> float:
    inputs = {role: samples[role][label] for role in ("challenger", "champion")}
    return models.benchmark(inputs, budget_s=BUDGET_S).ratio("challenger", "champion").high
