"""Results of the verbs as lines on stdout, and as exit codes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mlflow_e2eai import bundle
from mlflow_e2eai.cli.main import DONE, REJECTED
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, machine_name
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.tracking.downloads import ModelFiles
from mlflow_e2eai.tracking.summary import outcome

Arguments = Mapping[str, Any]


def print_models(model_ids: str | Sequence[str], _: Arguments) -> int:
    """Print the URI of each logged model, for the next verb to take."""
    for model_id in [model_ids] if isinstance(model_ids, str) else model_ids:
        print(f"models:/{model_id}")
    return DONE


def print_bisection(result: tuple[Bisection, str], _: Arguments) -> int:
    """Print the sentence, and the file that ``keep_fp32`` takes."""
    bisection, uri = result
    print(bisection.sentence)
    if bisection.nodes:
        print(uri)
    return DONE


def print_evidence(machines: Iterable[MachineEvidence], arguments: Arguments) -> int:
    """Print a line for each variant, below its machine where an executor chose that."""
    for machine in machines:
        if arguments["executor"] is not None:
            print(f"{machine_name(machine.environment)}:")
        for entry in machine.evidence:
            print(_line(entry))
    return DONE


def _line(entry: Evidence) -> str:
    lost = entry.lost_at and f"lost at {entry.lost_at}"
    reasons = "; ".join(filter(None, [lost, entry.reason, *entry.findings, entry.untimed]))
    return f"{entry.variant}: {outcome(entry)}" + (f" ({reasons})" if reasons else "")


def print_bundle(info: Any, arguments: Arguments) -> int:
    """Print the table of the variants, the version and the model.

    Args:
        info: MLflow's ModelInfo of the logged bundle.
        arguments: The arguments of `mlflow_e2eai.flavor.repackage.package`.
    """
    from mlflow_e2eai.report.text import table

    with tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(info.model_uri, folder)
        files.fetch(f"{bundle.FOLDER}/{bundle.MANIFEST}")
        print(table(bundle.read(files.directory / bundle.FOLDER)))
    if info.registered_model_version is not None:
        print(f"models:/{arguments['registered_model_name']}/{info.registered_model_version}")
    print(info.model_uri)
    return DONE


def print_decision(decision: Decision, arguments: Arguments) -> int:
    """Print each gate, those that did not apply included, and the decision.

    Args:
        decision: The decision.
        arguments: The arguments of `mlflow_e2eai.promote`.

    Returns:
        `REJECTED` where the version was not promoted.
    """
    for verdict in decision.verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict}")
    for reason in decision.inapplicable:
        print(f"n/a     {reason}")
    if decision.promoted:
        print("promoted: {name} {version} is {alias}".format(**arguments))
        return DONE
    print(f"rejected: {'; '.join(decision.reasons)}")
    return REJECTED


def print_paths(paths: Iterable[Path], _: Arguments) -> int:
    """Print each path."""
    for path in paths:
        print(path)
    return DONE


def print_buckets(sizes: Iterable[int], _: Arguments) -> int:
    """Print sizes as ``dynamic_axes`` takes them after ``@``."""
    print("+".join(map(str, sizes)))
    return DONE


def print_nothing(_result: object, _: Arguments) -> int:
    """Print nothing: the step has printed its results."""
    return DONE
