"""A decision -> advice about each gate that did not pass, as commands where there are any."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Sequence

from mlflow_e2eai.bundle.coverage import unmeasured_engines
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.targets import canonical
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.promotion.metrics import NOISY
from mlflow_e2eai.promotion.policy import GOAL, REQUIRED, UNMEASURED


def with_remedies(decision: Decision, manifest: Manifest, name: str, version: str) -> Decision:
    """The decision, with what to do about each gate that did not pass.

    Args:
        decision: The decision.
        manifest: The version's manifest.
        name: The registered model.
        version: Its version.
    """
    verdicts = tuple(
        verdict
        if verdict.passed or verdict.remedy is not None
        else dataclasses.replace(verdict, remedy=_remedy(verdict, manifest, name, version))
        for verdict in decision.verdicts
    )
    return dataclasses.replace(decision, verdicts=verdicts)


def _remedy(verdict: Verdict, manifest: Manifest, name: str, version: str) -> str | None:
    again = _command("pipeline", f"models:/{name}/{version}", "--registered-model-name", name)
    # Else the evidence that is there would be linked.
    anew = f"{again} --evidence-days 0"
    metric, reason = verdict.metric, verdict.reason or ""
    if metric == UNMEASURED:
        capabilities = {engine.target.compute_capability for engine in unmeasured_engines(manifest)}
        return _on_gpu(again, sorted(capabilities - {""}))
    if metric.startswith(REQUIRED):
        return _on_gpu(again, [metric.removeprefix(REQUIRED)])
    if metric.startswith(GOAL):
        # A version that is behind the best has nothing to do.
        return f"Measure all of them on one machine: {anew}" if reason else None
    if reason == NOISY:
        return f"Measure when the machine is quiet: {anew}"
    if reason.startswith("not comparable"):
        return (
            f"Measure both here, for this machine only: "
            f"{_command('promote', name, version, '--remeasure')}; "
            f"or where the champion was measured: {again}"
        )
    return {
        "evidence/quick": f"{again} --evidence standard",
        "evidence/age_days": anew,
        "evidence/assumptions": "Log the model with input_example= and dynamic_axes=.",
        "evidence/unverified": "Log the PyTorch model, not its ONNX file.",
        "task/drop": None if verdict.found is not None else "Log the model with evaluation_data=.",
    }.get(metric)


def _command(*words: str) -> str:
    return shlex.join(["mlflow_e2eai", *words])


def _on_gpu(again: str, targets: Sequence[str]) -> str:
    if not targets:
        return f"On a machine with a GPU, or with --executor ray: {again} --targets rtx"
    gpus = " or ".join(targets)
    return (
        f"On a machine with a GPU of {gpus}, or with --executor ray: {again} --targets "
        f"{','.join(map(_target, targets))}"
    )


def _target(name: str) -> str:
    """The target that a gate names; a compute capability is TensorRT's where RTX lacks it."""
    try:
        return canonical(name)
    except InvalidInputError:
        return f"trt:{name}"
