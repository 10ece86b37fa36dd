"""Registered version + gates -> decision, and the alias on a yes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, overload

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.errors import (
    E2EAIError,
    InvalidInputError,
)
from mlflow_e2eai.evaluation.gates import Decision, Gate
from mlflow_e2eai.pipeline.publish import log_report, replace_report
from mlflow_e2eai.promotion.appraisal import appraise
from mlflow_e2eai.promotion.challengers import Contest, promote_best
from mlflow_e2eai.promotion.contenders import (
    as_challenger,
    as_champion,
    fetch_bundle,
    find_version,
    model_of,
    version_with_alias,
)
from mlflow_e2eai.promotion.gates_file import read_policy
from mlflow_e2eai.promotion.metrics import totals
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry import apply_decision
from mlflow_e2eai.promotion.remedies import with_remedies
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server

Gates: TypeAlias = Policy | Sequence[Gate] | Mapping[str, Any] | str | Path | None


@overload
def promote(
    name: str,
    version: int | str,
    *,
    alias: str = "champion",
    gates: Gates = None,
    remeasure: bool = False,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Decision: ...


@overload
def promote(
    name: str,
    version: Sequence[int | str],
    *,
    alias: str = "champion",
    gates: Gates = None,
    goal: str | Mapping[str, Any],
    remeasure: bool = False,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Contest: ...


def promote(
    name: str,
    version: int | str | Sequence[int | str],
    *,
    alias: str = "champion",
    gates: Gates = None,
    goal: str | Mapping[str, Any] | None = None,
    remeasure: bool = False,
    dry_run: bool = False,
    allow_native: Sequence[str] = (),
) -> Decision | Contest:
    """Decide whether a version of a registered model gets an alias, and set it if so.

    The gates read the version's own evidence, from its bundle, whose digest is checked: MLflow's
    metrics are for people. Where another version has the alias, and a gate compares with it, the
    evidence of both counts that is of one kind of machine. The decision is a run with both as
    inputs, FAILED where
    the version was rejected; the version's tags have its last decision, the alias that this was
    about, and the reason. A user who may change the registered model but not the experiment of its
    models gets the run in one of their own, ``promotions of <name>`` where the active one is not
    theirs; models that cannot be linked are in its tag ``e2eai.not_linked``.

    Args:
        name: Name of the registered model.
        version: Its version, the challenger; or several, of which the best that passes gets it.
        alias: The alias that it is to get.
        gates: Gates, or the path of a YAML file, or its parsed content; by default those of
            ``gates.yaml`` in this package.
        goal: What the best of several is best at: a metric, such as ``latency/p50_ms``; see
            `challengers.Goal.parse`.
        remeasure: Measure the latency of both versions here, in turns, in place of what evidence
            says of machines like this one.
        dry_run: Decide, and write nothing: no run, no tags, no alias. The remedies of the decision
            say what is missing.
        allow_native: Libraries in either version that may be loaded to measure it; see
            `mlflow_e2eai.load_model`.

    Returns:
        The decision; of several versions the decision on each.

    Raises:
        InvalidInputError: The gates, the goal or the alias are wrong.
        ArtifactError: The version, or the one that a gate compares it with, is no bundle of this
            package, or has changed since it was logged.
        TrackingError: There is no such version, the server cannot be reached, or the alias was
            moved meanwhile.
    """
    from mlflow import MlflowClient

    policy = read_policy(gates)
    _check_alias(alias)
    if isinstance(version, Sequence) and not isinstance(version, str):
        options = {"remeasure": remeasure, "dry_run": dry_run, "allow_native": allow_native}
        return promote_best(promote, name, version, goal, alias=alias, policy=policy, **options)
    if goal is not None:
        msg = f"The goal {goal!r} is to choose among several versions; give a list of them."
        raise InvalidInputError(msg)
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
            if policy.compares:
                models.append(model_of(champion, *about))
                paths.append(fetch_bundle(models[1], Path(folder, "champion"), *about))
            else:
                with contextlib.suppress(E2EAIError):  # no gate reads it
                    models.append(model_of(champion, *about))
        appraisal = appraise(
            policy,
            *paths,
            has_champion=champion is not None,
            remeasure=remeasure,
            allow_native=allow_native,
        )
        manifest, metrics = appraisal.manifest, totals(appraisal.values)
        decision = with_remedies(appraisal.decision, manifest, name, str(challenger.version))
        if dry_run:
            line.append(f"{name} {version} would be {_outcome(decision)}")
            return decision
        title = f"promote {name} {version}"
        with tracking.run(
            title,
            nested=True,
            tags={tracking.STAGE: "promote"},
            elsewhere=f"promotions of {name}",
        ) as run_id:
            linked = tracking.link_permitted_inputs(run_id, [model.model_id for model in models])
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
            apply_decision(decision, challenger, champion, alias=alias, run_id=run_id)
            replace_report(models[0], page)
            if not decision.promoted:
                tracking.fail_run(run_id, title, f"REJECTED: {title}")
        passed = sum(verdict.passed for verdict in decision.verdicts)
        line.append(f"{name} {version} {_outcome(decision)}")
        line.append(f"{passed} of {len(decision.verdicts)} gates passed")
        if decision.inapplicable:
            line.append(f"{len(decision.inapplicable)} did not apply")
    return decision


def _outcome(decision: Decision) -> str:
    return "promoted" if decision.promoted else "rejected"


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
