"""Registered version + gates -> decision, and the alias on a yes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import reading_error, to_json
from mlflow_e2eai.errors import (
    E2EAIError,
    InvalidInputError,
)
from mlflow_e2eai.evaluation.gates import (
    Decision,
    Gate,
    decide,
    gates_from,
)
from mlflow_e2eai.pipeline.publish import describe_version, log_report, replace_report
from mlflow_e2eai.promotion.contenders import (
    as_challenger,
    as_champion,
    fetch_bundle,
    find_version,
    model_of,
    version_with_alias,
)
from mlflow_e2eai.promotion.metrics import metrics_of
from mlflow_e2eai.promotion.registry import apply_decision
from mlflow_e2eai.runtime.progress import reported_on_stderr, timed_stage
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server


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
            apply_decision(decision, challenger, champion, alias=alias, run_id=run_id)
            describe_version(manifest, decision, name=name, version=challenger.version, alias=alias)
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
