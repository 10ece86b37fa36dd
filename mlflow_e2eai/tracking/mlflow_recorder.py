"""Stages as child runs with LoggedModels in and out; the engines that they logged."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence, Span
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import precision_html, surgery_html
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.tracking.lineage import (
    MLMODEL_SHA256,
    PARENT,
    PARENT_RUN,
    SOURCE,
    STAGE,
    link_inputs,
    link_output,
)
from mlflow_e2eai.tracking.metrics import (
    export_tags,
    link_datasets,
    log_metrics,
    parity_metrics,
    run_tags,
    start_metrics,
    stepped_metrics,
)
from mlflow_e2eai.tracking.models import log_artifact, log_fp32_nodes, stage_of, suffix_of
from mlflow_e2eai.tracking.recorder import (
    Fp32Nodes,
    KernelTimings,
    Measurement,
    NotMeasured,
    NotReusable,
    Output,
    Reused,
)
from mlflow_e2eai.tracking.runs import run
from mlflow_e2eai.tracking.server import address
from mlflow_e2eai.tracking.store.artifact_store import (
    EXISTING,
    fetch_timings,
    find_engine,
    find_graph,
    log_timings,
)
from mlflow_e2eai.tracking.store.stage_results import (
    REUSED,
    REUSED_FROM,
    StageResult,
    find_result,
    log_result,
    time_text,
)
from mlflow_e2eai.tracking.summary import add_value, stage_line


class MlflowRecorder:
    """A recorder of child runs, and a cache of all engines that are logged.

    Attributes:
        name: Name of the model; those of the stages add to it.
        source: Id of the PyTorch LoggedModel; None where it is not logged.
        models: Ids of LoggedModels by the digests of their files.
        seconds: Seconds that stages took, by kind; stages of one kind that ran together count once.
        reused: Results of earlier runs, by the stage in whose place they are linked.
    """

    def __init__(self, *, name: str, source: str | None) -> None:
        self.name = name
        self.source = source
        # The PyTorch model has no digest: `inputs` has its id instead.
        self.models: dict[str, str] = {} if source is None else {source: source}
        self.seconds: dict[str, float] = {}
        self.reused: dict[str, Reused] = {}

    def origin(self, sha256: str) -> dict[str, str]:
        """Tags of the lineage of a model that is made from the artifact with this digest."""
        parent = self.models.get(sha256, self.source)
        tags = {PARENT: parent, SOURCE: self.source}
        return {key: value for key, value in tags.items() if value is not None}

    @contextmanager
    def stage(
        self,
        name: str,
        *,
        inputs: Sequence[str],
        span: Span | None = None,
        key: str | None = None,
    ) -> Iterator[MlflowStage]:
        """A child run; its inputs are the models with these digests; see `Recorder`."""
        with (
            run(name, nested=True, tags={STAGE: name}, span=span) as run_id,
            log_refused_graphs(run_id),
            stage_line(name) as line,
        ):
            known = [self.models[sha256] for sha256 in inputs if sha256 in self.models]
            ids = known or [self.source] if self.source is not None else known
            link_inputs(run_id, ids)
            began = time.time()
            stage = MlflowStage(self, name, run_id=run_id, parents=ids, line=line)
            yield stage
            if key is not None and name not in self.reused:
                log_result(run_id, key, stage.result)
            if not name.startswith("not measured"):
                self._count(name.partition(" ")[0], span, time.time() - began)

    def _count(self, kind: str, span: Span | None, seconds: float) -> None:
        before = self.seconds.get(kind, 0.0)
        if span is not None:
            self.seconds[kind] = max(before, span[1] - span[0])
        else:
            self.seconds[kind] = before + seconds

    def log_reused(self, run_id: str) -> None:
        """Name on a run what was reused for it."""
        from mlflow import MlflowClient

        if lines := [f"{stage}: {found.sentence}" for stage, found in self.reused.items()]:
            MlflowClient().set_tag(run_id, REUSED, "\n".join(lines))

    def find(self, key: str, report: type[Any], *, folder: Path) -> Reused | None:
        """Fetch the newest result with a key, verified; one that has changed is skipped."""
        found = find_result(key, report, folder)
        if found is not None and found.artifact is not None and found.model_id is not None:
            self.models[found.artifact.sha256] = found.model_id
        return found

    def get(self, key: str, *, folder: Path) -> Reused | None:
        """Fetch the newest logged engine with this key, verified."""
        logged = find_engine(key, folder)
        if logged is None:
            return None
        engine, model = logged
        self.models[engine.sha256] = str(model.model_id)
        return Reused(
            run_id=str(model.source_run_id),
            ended_at=time_text(model.creation_timestamp),
            artifact=engine,
            model_id=str(model.model_id),
        )

    def get_timings(self, key: str, *, folder: Path) -> tuple[str, ...]:
        """Fetch the timings of all earlier builds."""
        return fetch_timings(key, folder)


class MlflowStage:
    """One child run; calling it logs a value.

    Attributes:
        run_id: The run.
        line: The parts of its line on the terminal.
    """

    def __init__(
        self,
        recorder: MlflowRecorder,
        name: str,
        *,
        run_id: str,
        parents: Sequence[str],
        line: list[str],
    ) -> None:
        self._name = name
        self.run_id = run_id
        self.line = line
        self.result = StageResult()
        self._recorder = recorder
        self._parents = parents

    def __call__(self, value: Any) -> None:
        """Log a value of `tracking.recorder`, or a stage's report as JSON, HTML and tags."""
        add_value(self.line, value)
        match value:
            case Reused():
                self._link(value)
            case NotReusable(reason=reason):
                self._set_tags({"e2eai.not_reusable": reason})
            case Output():
                self._log_output(value)
            case Fp32Nodes(nodes=nodes):
                log_fp32_nodes(nodes, run_id=self.run_id)
            case Measurement():
                self._log_measurement(value)
            case NotMeasured(evidence=evidence):
                self._log_not_measured(evidence)
            case KernelTimings(key=key, folder=folder, fetched=fetched):
                log_timings(key, folder, run_id=self.run_id, fetched=fetched)
            case _:
                self._log_report(value)

    def _link(self, reused: Reused) -> None:
        """Link the result of an earlier run, and name that on this run."""
        self._recorder.reused[self._name] = reused
        tags = {REUSED_FROM: reused.sentence}
        if reused.model_id not in (None, self.result.model_id):
            link_output(self.run_id, str(reused.model_id))
            tags[EXISTING] = str(reused.model_id)
        self._set_tags(tags)

    def _log_report(self, report: Any) -> None:
        self.result = dataclasses.replace(self.result, report=to_json(report))
        match report:
            case MachineEvidence():
                pass
            case ExportReport():
                self._log_text("export.json", to_json(report))
                self._set_tags(export_tags(report))
            case SurgeryReport():
                self._log_text("surgery.json", to_json(report))
                self._log_text(
                    "surgery.html",
                    surgery_html(report, title=self._title("Surgery"), origin=self._origin()),
                )
                if report.plan is not None:
                    self._log_text("plan.yaml", report.plan)
            case PrecisionReport():
                self._log_text("precision.json", to_json(report))
                self._log_text(
                    "precision.html",
                    precision_html(
                        report, title=self._title(f"To {report.precision}"), origin=self._origin()
                    ),
                )
                if report.refused is not None:
                    self._set_tags({"e2eai.refused": report.refused})
            case _:
                msg = f"A {type(report).__name__} is not a value of a stage."
                raise TypeError(msg)

    def _title(self, text: str) -> str:
        return f"{self._recorder.name}: {text}"

    def _origin(self) -> Origin:
        """This run and the one above it, for a page to link to."""
        from mlflow import MlflowClient

        run = MlflowClient().get_run(self.run_id)
        return Origin(
            run_id=self.run_id,
            parent_run_id=run.data.tags.get(PARENT_RUN),
            experiment_id=str(run.info.experiment_id),
            tracking_uri=address(),
        )

    def _log_output(self, output: Output) -> None:
        """Log an artifact as a LoggedModel and this run's output; link one that is there already.

        A graph of another stage is another model even if it has the same digest: a plan that
        changes nothing is a stage too.
        """
        from mlflow import MlflowClient

        artifact, recorder = output.artifact, self._recorder
        name = f"{recorder.name}-{suffix_of(artifact)}"
        if isinstance(artifact, EngineArtifact):
            existing = recorder.models.get(artifact.sha256)
        else:
            existing = find_graph(artifact, output.example, name=name, run_id=self.run_id)
        tags: dict[str, str] = {}
        if existing is not None:
            tags[EXISTING] = recorder.models[artifact.sha256] = existing
            link_output(self.run_id, existing)
        else:
            recorder.models[artifact.sha256] = log_artifact(
                artifact,
                name=name,
                run_id=self.run_id,
                example=output.example,
                tags={
                    STAGE: stage_of(artifact),
                    **recorder.origin(artifact.parent_sha256 or ""),
                },
            )
        self._log_build(artifact, tags)
        model = MlflowClient().get_logged_model(recorder.models[artifact.sha256])
        self.result = dataclasses.replace(
            self.result, model_id=model.model_id, mlmodel_sha256=model.tags.get(MLMODEL_SHA256)
        )

    def _log_build(self, artifact: OnnxArtifact | EngineArtifact, tags: Mapping[str, str]) -> None:
        """Log tags, and the build settings of an engine that are not the default as parameters."""
        from mlflow import MlflowClient
        from mlflow.entities import Param

        engine = artifact if isinstance(artifact, EngineArtifact) else None
        chosen = () if engine is None else engine.settings.not_default.items()
        params = [Param(f"build/{name}", str(value)) for name, value in chosen]
        if params or tags:
            MlflowClient().log_batch(self.run_id, params=params, tags=run_tags(tags))

    def _log_measurement(self, measurement: Measurement) -> None:
        """Log the numbers on the run and on the model, batch sizes as steps."""
        evidence = measurement.evidence
        self._log_text("evidence.json", to_json(evidence))
        plain = dataclasses.replace(evidence, worth=None, lost_at=None)
        self.result = dataclasses.replace(self.result, report=to_json(plain))
        metrics = {**parity_metrics(evidence), **start_metrics(evidence)}
        if evidence.worth is not None:
            metrics |= evidence.worth.metrics
        on_data = "data" in evidence.parity or bool(evidence.task)
        model_id = self._parents[0] if self._parents else None
        log_metrics(
            metrics,
            run_id=self.run_id,
            model_id=model_id,
            steps=stepped_metrics(evidence, measurement.latency),
            tags=_verdict_tags(evidence),
            dataset=link_datasets(self.run_id) if on_data else None,
        )

    def _log_not_measured(self, evidence: Sequence[Evidence]) -> None:
        """Log a table, as MLflow's pages show it, of variants and the reasons."""
        from mlflow import MlflowClient

        rows = [[entry.variant, entry.reason] for entry in evidence]
        table = {"columns": ["variant", "not measured, as"], "data": rows}
        MlflowClient().log_dict(self.run_id, table, "not_measured.json")
        reasons = dict.fromkeys(str(entry.reason) for entry in evidence)
        self._set_tags({"e2eai.measured": "false", "e2eai.reason": "\n".join(reasons)})

    def _log_text(self, file: str, text: str) -> None:
        from mlflow import MlflowClient

        MlflowClient().log_text(self.run_id, text, file)

    def _set_tags(self, tags: Mapping[str, str]) -> None:
        from mlflow import MlflowClient

        MlflowClient().log_batch(self.run_id, tags=run_tags(tags))


def _verdict_tags(evidence: Evidence) -> dict[str, str]:
    tags = {
        "e2eai.variant": evidence.variant,
        "e2eai.measured": str(evidence.measured).lower(),
        "e2eai.passed": str(evidence.passed).lower(),
    }
    if reason := evidence.reason or evidence.untimed:
        tags["e2eai.reason"] = reason
    if evidence.lost_at is not None:
        tags["e2eai.lost_at"] = evidence.lost_at
    if evidence.findings:
        tags["e2eai.findings"] = "\n".join(evidence.findings)
    if evidence.worth is not None:
        tags["e2eai.worth"] = "; ".join(evidence.worth.decision.reasons) or "kept"
    return tags


@contextmanager
def log_refused_graphs(run_id: str) -> Iterator[None]:
    """Log the graphs that a surgery error of the block names, in the run's folder ``refused``."""
    from mlflow import MlflowClient

    try:
        yield
    except SurgeryError as error:
        for path in error.graphs:
            MlflowClient().log_artifact(run_id, str(path), "refused")
        raise
