"""Results of the verbs as lines on stdout, and as exit codes."""

from __future__ import annotations

import dataclasses
import json
import shlex
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from logging import INFO
from pathlib import Path
from typing import Any

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.names import shape_text
from mlflow_e2eai.bundle.rows import rows_of
from mlflow_e2eai.cli.doctor import Diagnosis
from mlflow_e2eai.cli.main import DONE, NOT_PASSED
from mlflow_e2eai.cli.readers import Inspection, ListedGpu
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, machine_name
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.pipeline.publish import find_report
from mlflow_e2eai.promotion.challenge import Promotion
from mlflow_e2eai.promotion.challengers import Contest
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.redecision import Redecision
from mlflow_e2eai.promotion.registry.approvals import Statement
from mlflow_e2eai.promotion.registry.drift import GuardReport
from mlflow_e2eai.promotion.registry.record import DecisionRecord
from mlflow_e2eai.promotion.registry.timeline import History, Move
from mlflow_e2eai.runtime.progress import LOGGER
from mlflow_e2eai.tracking.downloads import ModelFiles
from mlflow_e2eai.tracking.store.leftovers import Tidied
from mlflow_e2eai.tracking.summary import outcome

Arguments = Mapping[str, Any]


_FOLLOWING = {
    "source": "export",
    "export": "clean",
    "clean": "convert",
    "convert": "evaluate",
    "compile": "evaluate",
}
"""The verb that usually follows, by the stage that made a model."""


def print_models(model_ids: str | Sequence[str], _: Arguments) -> int:
    """Print the URI of each logged model; on stderr the next command."""
    uris = [
        f"models:/{each}" for each in ([model_ids] if isinstance(model_ids, str) else model_ids)
    ]
    print(*uris, sep="\n", flush=True)
    if LOGGER.isEnabledFor(INFO):
        stage = tracking.resolve(uris[-1]).tags[tracking.STAGE]
        LOGGER.info("next    mlflow_e2eai %s %s", _FOLLOWING[stage], uris[-1])
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
            print(f"{_line(entry)}{_numbers(entry, machine)}")
    return DONE


def _numbers(entry: Evidence, machine: MachineEvidence) -> str:
    """The largest error, and the median latency at ``opt``; empty where neither was measured."""
    errors = [report.max_abs_error for report in entry.deciding.values()]
    numbers = [f"largest error {max(errors):.2g}"] if errors and entry.sha256 is not None else []
    report = machine.latency.get("opt")
    if report is not None and any(each.name == entry.variant for each in report.variants):
        busy = " (too noisy to tell)" if report.is_busy(entry.variant) else ""
        p50_ms = report[entry.variant].p50_ms
        numbers.append(f"p50 {p50_ms:.3g} ms at batch {report.items}{busy}")
    return f"; {', '.join(numbers)}" if numbers else ""


def _line(entry: Evidence) -> str:
    lost = entry.lost_at and f"lost at {entry.lost_at}"
    reasons = "; ".join(filter(None, [lost, entry.reason, *entry.findings, entry.untimed]))
    return f"{entry.variant}: {outcome(entry)}" + (f" ({reasons})" if reasons else "")


def print_bundle(info: Any, arguments: Arguments) -> int:
    """Print the table of the variants, the version and the model; on stderr where to go on.

    Args:
        info: MLflow's ModelInfo of the logged bundle.
        arguments: The arguments of `mlflow_e2eai.flavor.repackage.package`.
    """
    from mlflow_e2eai.report.text import table

    print(table(_manifest_of(info.model_uri)))
    if info.registered_model_version is not None:
        print(f"models:/{arguments['registered_model_name']}/{info.registered_model_version}")
    print(info.model_uri, flush=True)
    places = find_report(info.model_uri)
    LOGGER.info("report  %s", places.report)
    LOGGER.info("run     %s", places.run)
    LOGGER.info("next    %s", _next_command(info, arguments))
    return DONE


def _next_command(info: Any, arguments: Arguments) -> str:
    """The command that follows: the promotion of a version, or the service of a model."""
    if info.registered_model_version is None:
        return f"mlflow models serve --env-manager local --model-uri {info.model_uri}"
    version = arguments["registered_model_name"], str(info.registered_model_version)
    return shlex.join(["mlflow_e2eai", "promote", *version])


def _manifest_of(model_uri: str) -> bundle.Manifest:
    with tempfile.TemporaryDirectory() as folder:
        files = ModelFiles(model_uri, folder)
        files.fetch(f"{bundle.FOLDER}/{bundle.MANIFEST}")
        return bundle.read(files.directory / bundle.FOLDER)


def print_decision(decision: Promotion | Contest, arguments: Arguments) -> int:
    """Print each gate, those that did not apply included, and the decision.

    Args:
        decision: The decision, or those on several versions.
        arguments: The arguments of `mlflow_e2eai.promote`.

    Returns:
        `NOT_PASSED` where no version was promoted.
    """
    if isinstance(decision, Contest):
        for version, each in decision.decisions.items():
            print(f"version {version}:")
            print_decision(each, arguments)
        return exit_code(decision)
    for verdict in decision.verdicts:
        failed = "FAILED" if verdict.severity == "block" else "warning"
        print(f"{'passed' if verdict.passed else failed:7} {verdict}")
    for reason in decision.inapplicable:
        print(f"n/a     {reason}")
    for variant in decision.excluded:
        print(
            f"n/a     {variant}: excluded, because it was not measured; load_model takes it by name"
        )
    for remedy in decision.remedies:
        print(f"to pass: {remedy}")
    if decision.promoted:
        verb = "would become" if decision.run_id is None else "is"
        aliases = ", ".join(decision.aliases)
        print(f"promoted: {decision.name} {decision.version} {verb} {aliases}")
        return DONE
    print(f"rejected: {'; '.join(decision.reasons)}")
    return NOT_PASSED


def print_inspection(inspection: Inspection, _: Arguments) -> int:
    """Print a line for each input and output, the axes, and a bundle's table of variants."""
    from mlflow_e2eai.report.text import table

    for kind, specs in (("input", inspection.inputs), ("output", inspection.outputs)):
        for spec in specs:
            print(f"{kind:7} {spec.name}: {spec.dtype} {shape_text(spec.shape)}")
    for axis in inspection.axes:
        print(f"axis    {axis}")
    print(f"opset   {inspection.opset}")
    if inspection.manifest is not None:
        print(f"\n{table(inspection.manifest)}")
    return DONE


def print_paths(paths: Iterable[Path], _: Arguments) -> int:
    """Print each path."""
    for path in paths:
        print(path)
    return DONE


def print_buckets(sizes: Iterable[int], _: Arguments) -> int:
    """Print sizes as ``dynamic_axes`` takes them after ``@``."""
    print("+".join(map(str, sizes)))
    return DONE


def print_diagnosis(diagnosis: Diagnosis, _: Arguments) -> int:
    """Print a line for each thing that this machine has or lacks, and below it how to get it."""
    print(f"mlflow_e2eai {diagnosis.package} on {diagnosis.system}")
    width = max(len(check.name) for check in diagnosis.checks)
    for check in diagnosis.checks:
        lacking = "" if check.state == "ok" else f", for {check.purpose}"
        print(f"{check.state:8} {check.name:{width}}  {check.found}{lacking}")
        if check.command is not None:
            print(f"{'':9}{'':{width}}  {check.command}")
    return DONE


def print_tidied(tidied: Tidied, _: Arguments) -> int:
    """Print a line for each run that was ended, and the numbers of all that was done."""
    for run in tidied.runs:
        print(f"{run.run_id} {run.name}: {run.reason} (process {run.pid} on {run.host})")
    print(tidied.sentence)
    return DONE


def print_json(result: Any, arguments: Arguments) -> int:
    """Print the result of any verb as JSON; numbers that JSON lacks are null.

    Results that come one by one are a line each.

    Returns:
        See `exit_code`.
    """
    from pydantic_core import to_json

    if isinstance(result, Iterator):
        return print_until(result, arguments, _print_json_line)
    print(to_json(_data(result, arguments), indent=2, inf_nan_mode="null").decode())
    return exit_code(result)


def _print_json_line(result: Any, arguments: Arguments) -> int:
    from pydantic_core import to_json

    print(to_json(_data(result, arguments), inf_nan_mode="null").decode(), flush=True)
    return exit_code(result)


def print_until(
    reports: Iterator[GuardReport],
    arguments: Arguments,
    printer: Callable[[GuardReport, Arguments], int],
) -> int:
    """Print reports as they come, until an alias is not as decided and is not to be put back."""
    codes = (printer(report, arguments) for report in reports)
    return next(code for code in codes if code != DONE and not arguments["restore"])


def exit_code(result: Any) -> int:
    """`NOT_PASSED` for a rejection, a decision that would differ, and aliases not as decided.

    Those were moved or deleted by hand, their version was rejected, or their decision is gone.
    """
    match result:
        case Promotion() | Contest():
            passed = result.promoted
        case Redecision():
            passed = not result.differs
        case GuardReport():
            passed = not result.drifted
        case _:
            passed = True
    return DONE if passed else NOT_PASSED


def _data(  # noqa: C901, PLR0911, PLR0912 - one for each kind of result
    result: Any, arguments: Arguments
) -> dict[str, Any]:
    """The result as names and plain values."""
    match result:
        case Promotion():
            return {
                "name": result.name,
                "version": result.version,
                "aliases": result.aliases,
                **_gates(result),
                "before": result.before,
                "run_id": result.run_id,
            }
        case Contest():
            each = [_data(decision, arguments) for decision in result.decisions.values()]
            return {"goal": result.goal, "promoted": result.winner, "versions": each}
        case Redecision(record=record):
            return {
                "name": record.name,
                "version": record.challenger.version,
                "aliases": record.aliases,
                **_gates(result.now),
                "differs": result.differs,
                "then": {"at": record.at, "promoted": record.decision.promoted},
            }
        case (
            Diagnosis()
            | DecisionRecord()
            | History()
            | Statement()
            | GuardReport()
            | Move()
            | Policy()
            | Tidied()
        ):
            return dataclasses.asdict(result)
        case Inspection(manifest=manifest):
            bare = dataclasses.asdict(dataclasses.replace(result, manifest=None))
            del bare["manifest"]
            rows = [] if manifest is None else rows_of(manifest)
            return {**bare, "variants": [dataclasses.asdict(row) for row in rows]}
        case (Bisection() as bisection, str() as uri):
            return {**dataclasses.asdict(bisection), "uri": uri if bisection.nodes else None}
        case [MachineEvidence(), *_]:
            return {"machines": [_evidence_data(machine) for machine in result]}
        case str():
            return {"models": [f"models:/{result}"]}
        case [str(), *_]:
            return {"models": [f"models:/{model_id}" for model_id in result]}
        case [Path(), *_]:
            return {"paths": [str(path) for path in result]}
        case [Move(), *_]:
            return {"moves": [dataclasses.asdict(each) for each in result]}
        case [int(), *_]:
            return {"buckets": list(result)}
        case [ListedGpu(), *_]:
            return {"targets": [dataclasses.asdict(each) for each in result]}
    if hasattr(result, "to_json"):  # a DataFrame
        return {"rows": json.loads(result.to_json(orient="records", date_format="iso"))}
    manifest = _manifest_of(result.model_uri)  # MLflow's ModelInfo of a bundle
    return {
        "model_uri": result.model_uri,
        "name": arguments["registered_model_name"],
        "version": result.registered_model_version,
        **find_report(result.model_uri)._asdict(),
        "next": _next_command(result, arguments),
        "variants": [dataclasses.asdict(row) for row in rows_of(manifest)],
    }


def _gates(decision: Decision) -> dict[str, Any]:
    return {
        "promoted": decision.promoted,
        "reasons": decision.reasons,
        "gates": [dataclasses.asdict(verdict) for verdict in decision.verdicts],
        "inapplicable": decision.inapplicable,
        "excluded": decision.excluded,
    }


def _evidence_data(machine: MachineEvidence) -> dict[str, Any]:
    return {
        "machine": machine_name(machine.environment),
        "environment": dict(machine.environment),
        "variants": [
            {
                "variant": entry.variant,
                "outcome": entry.outcome,
                "reason": entry.reason,
                "findings": entry.findings,
                "lost_at": entry.lost_at,
                "max_abs_error": {k: each.max_abs_error for k, each in entry.parity.items()},
                "task": dict(entry.task),
            }
            for entry in machine.evidence
        ],
    }


def print_nothing(_result: object, _: Arguments) -> int:
    """Print nothing: the step has printed its results."""
    return DONE
