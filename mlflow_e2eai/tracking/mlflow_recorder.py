"""What a pipeline tells of its stages, as child runs with LoggedModels in and out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.files import to_json
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Tensors
from mlflow_e2eai.engine.request import Planned, Wanted
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report.page import precision_html, surgery_html
from mlflow_e2eai.surgery.stage import SurgeryReport
from mlflow_e2eai.tracking.engine_store import FOUND, Claim, fetch_timings, log_timings
from mlflow_e2eai.tracking.lineage import PARENT, SOURCE, STAGE, link_inputs, link_output
from mlflow_e2eai.tracking.metrics import (
    export_tags,
    log_metrics,
    parity_metrics,
    start_metrics,
    stepped_metrics,
)
from mlflow_e2eai.tracking.models import (
    facts_of,
    log_artifact,
    log_kept,
    stage_of,
    suffix_of,
    tags_of,
)
from mlflow_e2eai.tracking.remote_jobs import Builder, Judge, built_by, judged_by
from mlflow_e2eai.tracking.runs import run


class MlflowRecorder:
    """A `recording.Recorder` that makes a child run of every stage, with LoggedModels in and out.

    Args:
        name: Name of the model; those of the stages add to it.
        source: Id of the PyTorch LoggedModel; None where it is not logged.
        builder: Has engines built elsewhere; see `elsewhere.Builder`. None has them all built here.
        judge: Has engines judged elsewhere; see `elsewhere.Judge`. None has them all judged here.
        away: Whether their machines are others.
    """

    def __init__(
        self,
        *,
        name: str,
        source: str | None,
        builder: Builder | None = None,
        judge: Judge | None = None,
        away: bool = False,
    ) -> None:
        self.name = name
        self.builder = builder
        self.judge = judge
        self.away = away
        self.source = source
        # The PyTorch model has no digest: its id stands for it in `inputs`.
        self.models: dict[str, str] = {} if source is None else {source: source}

    def origin(self, sha256: str) -> dict[str, str]:
        """Tags that say where a model made from the artifact with this digest comes from."""
        parent = self.models.get(sha256, self.source)
        tags = {PARENT: parent, SOURCE: self.source}
        return {key: value for key, value in tags.items() if value is not None}

    def elsewhere(
        self, wanted: Sequence[Wanted], *, folder: Path
    ) -> Mapping[Wanted, EngineArtifact | str]:
        """Engines that the builder had built, fetched and verified; or why one failed."""
        return {} if self.builder is None else built_by(self.builder, wanted, self.models, folder)

    def judged(
        self,
        graphs: Sequence[OnnxArtifact],
        engines: Sequence[EngineArtifact],
        *,
        batch_sizes: Sequence[int],
    ) -> tuple[list[MachineEvidence], Mapping[str, str]]:
        """What the judge's machines found; and why engines were judged nowhere, by digest."""
        if self.judge is None or not engines:
            return [], {}
        return judged_by(self.judge, graphs, engines, batch_sizes, self.models)

    @contextmanager
    def stage(self, name: str, *, inputs: Sequence[str]) -> Iterator[MlflowStage]:
        """A child run; its inputs are the models with these digests."""
        tags = {STAGE: name}
        with run(name, nested=True, tags=tags) as run_id, refused_graphs_are_logged(run_id):
            known = [self.models[sha256] for sha256 in inputs if sha256 in self.models]
            ids = known or [self.source] if self.source is not None else known
            link_inputs(run_id, ids)
            stage = MlflowStage(self, run_id=run_id, name=name, parents=ids)
            with stage.claiming():
                yield stage


class MlflowStage:
    """One child run, as a `recording.Stage`."""

    def __init__(
        self, recorder: MlflowRecorder, *, run_id: str, name: str, parents: Sequence[str]
    ) -> None:
        self.recorder = recorder
        self.run_id = run_id
        self.name = name
        self.parents = parents
        self._fetched: tuple[str, ...] = ()
        self._claim: Claim | None = None

    @contextmanager
    def claiming(self) -> Iterator[None]:
        """Give up what was claimed in the block and is not finished at its end."""
        try:
            yield
        except BaseException as error:
            if self._claim is not None:
                self._claim.failed(error)
            raise

    def made(self, artifact: OnnxArtifact | EngineArtifact, *, example: Tensors) -> None:
        """Log an artifact as a LoggedModel, and as this run's output."""
        origin = self.recorder.origin(artifact.parent_sha256 or "")
        tags = {STAGE: stage_of(artifact), **origin}
        model_id = log_artifact(
            artifact,
            name=f"{self.recorder.name}-{suffix_of(artifact)}",
            run_id=self.run_id,
            example=example,
            tags=tags,
            claim=self._claim,
        )
        if self._claim is not None:
            self._claim.close()
            self._claim = None
        self.recorder.models[artifact.sha256] = model_id
        if isinstance(artifact, EngineArtifact):
            self._built(artifact, {})

    def _built(self, engine: EngineArtifact, tags: Mapping[str, str]) -> None:
        """Put tags on the run, and what was chosen of how its engine was built as parameters."""
        from mlflow import MlflowClient
        from mlflow.entities import Param, RunTag

        chosen = engine.settings.chosen.items()
        params = [Param(f"build/{name}", str(value)) for name, value in chosen]
        if params or tags:
            said = [RunTag(key, value) for key, value in tags.items()]
            MlflowClient().log_batch(self.run_id, params=params, tags=said)

    def timings(self, key: str, *, folder: Path) -> None:
        """Fetch the timings of all earlier builds."""
        self._fetched = fetch_timings(key, folder)

    def timed(self, key: str, *, folder: Path) -> None:
        """Keep a build's timings with this run."""
        log_timings(key, folder, run_id=self.run_id, fetched=self._fetched)

    def found(self, planned: Planned, *, folder: Path) -> EngineArtifact | None:
        """The engine that anybody logged under this key, verified, as this run's output."""
        self._claim = self._claimed(planned)
        if (known := self._claim.settled(folder)) is None:
            return None
        self._claim = None
        engine, model_id = known
        link_output(self.run_id, model_id)
        self._built(engine, {FOUND: model_id})
        self.recorder.models[engine.sha256] = model_id
        return engine

    def _claimed(self, planned: Planned) -> Claim:
        facts = facts_of(planned)
        origin = self.recorder.origin(planned.parent_sha256)
        return Claim(
            planned.key,
            name=f"{self.recorder.name}-{suffix_of(planned)}",
            run_id=self.run_id,
            params=facts,
            tags={STAGE: "compile", **origin, **tags_of(facts)},
        )

    def noted(self, name: str, value: Any) -> None:
        """Keep a report as a JSON artifact of the run, of some a page and tags too."""
        from mlflow import MlflowClient

        client = MlflowClient()
        client.log_text(self.run_id, to_json(value), f"{name}.json")
        if isinstance(value, SurgeryReport):
            client.log_text(self.run_id, surgery_html(value), f"{name}.html")
            if value.plan is not None:
                client.log_text(self.run_id, value.plan, "plan.yaml")
        if isinstance(value, PrecisionReport):
            client.log_text(self.run_id, precision_html(value), f"{name}.html")
            if value.refused is not None:
                client.set_tag(self.run_id, "e2eai.refused", value.refused)
        if isinstance(value, ExportReport):
            for key, said in export_tags(value).items():
                client.set_tag(self.run_id, key, said)

    def kept(self, nodes: Sequence[str]) -> None:
        """Write on the run which nodes stay in fp32."""
        log_kept(nodes, run_id=self.run_id)

    def measured(self, evidence: Evidence, latency: Mapping[str, LatencyReport]) -> None:
        """Write what was measured on the run and on the model, batch sizes as steps."""
        from mlflow import MlflowClient

        self.noted("evidence", evidence)
        model_id = self.parents[0] if self.parents else None
        client = MlflowClient()
        verdict = {
            "e2eai.variant": evidence.variant,
            "e2eai.measured": str(evidence.measured).lower(),
            "e2eai.passed": str(evidence.passed).lower(),
        }
        if reason := evidence.reason or evidence.untimed:
            verdict["e2eai.reason"] = reason
        if evidence.lost_at is not None:
            verdict["e2eai.lost_at"] = evidence.lost_at
        if evidence.findings:
            verdict["e2eai.findings"] = "\n".join(evidence.findings)
        for key, value in verdict.items():
            client.set_tag(self.run_id, key, value)
        metrics = {**parity_metrics(evidence), **start_metrics(evidence)}
        if evidence.worth is not None:
            metrics |= evidence.worth.metrics
            said = "; ".join(evidence.worth.decision.reasons) or "kept"
            client.set_tag(self.run_id, "e2eai.worth", said)
        log_metrics(metrics, run_id=self.run_id, model_id=model_id)
        for step, found in stepped_metrics(evidence, latency):
            log_metrics(found, run_id=self.run_id, model_id=model_id, step=step)


@contextmanager
def refused_graphs_are_logged(run_id: str) -> Iterator[None]:
    """Keep what a surgery error of the block left to look at, in the run's folder ``refused``."""
    from mlflow import MlflowClient

    try:
        yield
    except SurgeryError as error:
        for path in error.graphs:
            MlflowClient().log_artifact(run_id, str(path), "refused")
        raise
