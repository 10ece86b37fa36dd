"""Decision -> alias and tags on a registered version."""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import reading_error, to_json
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.errors import (
    E2EAIError,
    InvalidInputError,
    TrackingError,
)
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import (
    Decision,
    Gate,
    decide,
    drop,
    gates_from,
)
from mlflow_e2eai.latency.measure import BUDGET_S, items_of
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.pipeline.publish import log_report, replace_report
from mlflow_e2eai.promotion.contenders import (
    as_challenger,
    as_champion,
    fetch_bundle,
    find_version,
    model_of,
    version_with_alias,
)
from mlflow_e2eai.runtime.isolation import IsolatedRunners, isolated_together
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

DECISION, ALIAS, REASON, DECIDED_BY, PREVIOUS = (
    "e2eai.decision",
    "e2eai.alias",
    "e2eai.reason",
    "e2eai.decision_run",
    "e2eai.previous",
)
"""Tags of a version: its last decision, the alias that this was about, the reason, the run, and the
version that had the alias before."""


def promote(
    name: str,
    version: int | str,
    *,
    alias: str = "champion",
    gates: Sequence[Gate] | Mapping[str, Any] | str | Path | None = None,
    allow_native: Sequence[str] = (),
) -> Decision:
    """Decide whether a version of a registered model gets an alias, and set it if so.

    The gates read the version's own evidence, from its bundle, whose digest is checked: MLflow's
    metrics are for people. Where another version has the alias, and a gate compares with it, both
    are loaded and measured here, in turns. The decision is a run with both as inputs, FAILED where
    the version was rejected; the version's tags have its last decision, the alias that this was
    about, and the reason. A user who may change the registered model but not the experiment of its
    models gets the run in one of their own, ``promotions of <name>`` where the active one is not
    theirs; models that cannot be linked are in its tag ``e2eai.not_linked``.

    Args:
        name: Name of the registered model.
        version: Its version, the challenger.
        alias: The alias that it is to get.
        gates: Gates, or the path of a YAML file, or its parsed content; by default those of
            ``gates.yaml`` in this package.
        allow_native: Libraries in either version that may be loaded to measure it; see
            `mlflow_e2eai.load_model`.

    Returns:
        The decision.

    Raises:
        InvalidInputError: The gates or the alias are wrong.
        ArtifactError: The version, or the one that a gate compares it with, is no bundle of this
            package, or has changed since it was logged.
        TrackingError: There is no such version, the server cannot be reached, or the alias was
            moved meanwhile.
    """
    from mlflow import MlflowClient

    wanted = read_gates(gates)
    _check_alias(alias)
    with (
        reported_on_stderr(),
        quiet_mlflow(),
        timed_stage("promote") as line,
        tempfile.TemporaryDirectory() as folder,
    ):
        check_server()
        challenger = find_version(name, version)
        champion = version_with_alias(name, alias)
        if champion is not None and str(champion.version) == str(challenger.version):
            champion = None  # it has the alias already, and is compared with none
        # Whatever cannot be read is refused before there is a run.
        about = as_challenger(challenger)
        models = [model_of(challenger, *about)]
        paths = [fetch_bundle(models[0], Path(folder, "challenger"), *about)]
        if champion is not None:
            about = as_champion(champion, alias)
            if any(gate.compares for gate in wanted):
                models.append(model_of(champion, *about))
                paths.append(fetch_bundle(models[1], Path(folder, "champion"), *about))
            else:
                with contextlib.suppress(E2EAIError):  # no gate reads it
                    models.append(model_of(champion, *about))
        title = f"promote {name} {version}"
        with tracking.run(
            title,
            nested=True,
            tags={tracking.STAGE: "promote"},
            elsewhere=f"promotions of {name}",
        ) as run_id:
            linked = tracking.link_permitted_inputs(run_id, [model.model_id for model in models])
            metrics = metrics_of(*paths, allow_native=allow_native)
            manifest = bundle.read(paths[0])
            decision = decide(wanted, metrics, has_champion=champion is not None)
            logged = {tracking.metric_name(key): value for key, value in metrics.items()}
            measured = models[0].model_id if models[0].model_id in linked else None
            tracking.log_metrics(logged, run_id=run_id, model_id=measured)
            MlflowClient().log_text(run_id, to_json(decision), "decision.json")
            page = log_report(
                manifest,
                decision,
                run_id=run_id,
                name=name,
                version=challenger.version,
                model_id=models[0].model_id,
            )
            _apply_decision(decision, challenger, champion, alias=alias, run_id=run_id)
            replace_report(models[0], page)
            if not decision.promoted:
                tracking.fail_run(run_id, title, f"REJECTED: {title}")
        passed = sum(verdict.passed for verdict in decision.verdicts)
        line.append(f"{name} {version} {'promoted' if decision.promoted else 'rejected'}")
        line.append(f"{passed} of {len(decision.verdicts)} gates passed")
        if decision.inapplicable:
            line.append(f"{len(decision.inapplicable)} did not apply")
    return decision


def read_gates(
    gates: Sequence[Gate] | Mapping[str, Any] | str | Path | None,
) -> tuple[Gate, ...]:
    """Read gates from values, parsed YAML or a file.

    Raises:
        InvalidInputError: The file cannot be read, or holds no gates.
    """
    import yaml

    if isinstance(gates, Sequence) and not isinstance(gates, str):
        for gate in gates:
            if not isinstance(gate, Gate):
                msg = (
                    f"{gate!r} in the list of gates is a {type(gate).__name__}; give Gate(...), or "
                    f"the whole list as {{'gates': [...]}}."
                )
                raise InvalidInputError(msg)
        return tuple(gates)
    if isinstance(gates, Mapping):
        return gates_from(gates)
    if not isinstance(gates, str | Path | None):
        msg = f"gates is a {type(gates).__name__}; give gates, a mapping, or the path of a file."
        raise InvalidInputError(msg)
    source = files("mlflow_e2eai.evaluation") / "gates.yaml" if gates is None else Path(gates)
    try:
        return gates_from(yaml.safe_load(source.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = reading_error(error)
        msg = f"Cannot read gates from {source}: {reason}; give a YAML file such as gates.yaml."
        raise InvalidInputError(msg) from error


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


def _apply_decision(
    decision: Decision,
    challenger: ModelVersion,
    champion: ModelVersion | None,
    *,
    alias: str,
    run_id: str,
) -> None:
    """Write the decision as tags of version and run; set the alias if it was promoted."""
    from mlflow import MlflowClient

    client = MlflowClient()
    name, version = challenger.name, str(challenger.version)
    tags = {
        DECISION: "promoted" if decision.promoted else "rejected",
        ALIAS: alias,
        REASON: "; ".join(decision.reasons) or _all_passed(decision),
        DECIDED_BY: run_id,
    }
    if champion is not None:
        tags[PREVIOUS] = str(champion.version)
    if decision.promoted:
        # MLflow has no compare-and-set: the alias is read once more, right before it is set.
        now = version_with_alias(name, alias)
        before = version if champion is None else str(champion.version)
        if now is not None and str(now.version) not in (version, before):
            msg = (
                f"Alias {alias!r} of {name!r} moved to version {now.version} while version "
                f"{version} was being evaluated; promote it again."
            )
            raise TrackingError(msg)
        client.set_registered_model_alias(name, alias, version)
    for key, value in tags.items():
        client.set_model_version_tag(name, version, key, value)
    if champion is None and PREVIOUS in challenger.tags:  # of an earlier decision
        client.delete_model_version_tag(name, version, PREVIOUS)
    for key in (DECISION, ALIAS, REASON):
        client.set_tag(run_id, key, tags[key])


def _all_passed(decision: Decision) -> str:
    if not decision.inapplicable:
        return "every gate passed"
    return f"every gate that applies passed; {'; '.join(decision.inapplicable)}"


def _check_alias(alias: str) -> None:
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    # MLflow admits a line break at the end, and fails on what is no text.
    if not isinstance(alias, str) or alias != alias.strip():
        msg = f"The alias {alias!r} is not a plain word; give one such as 'champion'."
        raise InvalidInputError(msg)
    try:
        _mlflow.validate_alias(alias)
        _mlflow.validate_alias_is_free(alias)
    except MlflowException as error:
        msg = f"MLflow does not take the alias {alias!r}: {error.message}"
        raise InvalidInputError(msg) from error
