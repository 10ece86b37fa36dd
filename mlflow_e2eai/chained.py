"""Compile and evaluate on a chain, each in the active run: what many machines can share out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts import Precision, graph_precision
from mlflow_e2eai.chain import GRAPHS, graph_of, job_on, variants_in
from mlflow_e2eai.compiling import compile_on
from mlflow_e2eai.context import environment
from mlflow_e2eai.engine import resolve
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation import evaluate as judge
from mlflow_e2eai.evaluation.worth import quantized_gates, weighed
from mlflow_e2eai.evidence import MachineEvidence
from mlflow_e2eai.recording import Wanted, record

JUDGED = (*GRAPHS, "compile", "package")
"""Stages whose output can be judged."""


def compile(
    model_uri: str, *, targets: Sequence[str], precision: Precision | None = None, **how: Any
) -> list[str]:
    """Build engines of a graph of a chain, a run for each; see `jobs.compile`.

    Args:
        model_uri: See there.
        targets: The same.
        precision: The same.
        **how: The other fields of `Wanted`.
    """
    with job_on(model_uri, GRAPHS) as job:
        graph, example = graph_of(job.model, job.folder)
        precision = graph.precision if precision is None else precision
        if graph_precision(precision) != graph.precision:
            msg = f"The graph is in {graph.precision}, but an engine in {precision} is wanted; "
            msg += f"give the graph in {graph_precision(precision)}."
            raise InvalidInputError(msg)
        made = []
        for target in targets:
            wanted = Wanted(graph=graph.sha256, precision=precision, target=target, **how)
            with job.stage(f"compile {precision} {target}", graph) as stage:
                out = job.folder / f"{target}.engine"
                engine = compile_on(stage, graph, resolve(target), wanted, out=out, example=example)
            made.append(job.recorder.models[engine.sha256])
        return made


def evaluate(
    model_uri: str,
    *,
    beside: Sequence[str] = (),
    engines: Sequence[str] | None = None,
    batch_sizes: Sequence[int] = (),
) -> MachineEvidence:
    """Judge a graph, an engine or a bundle on this machine, a run for each variant.

    Args:
        model_uri: It.
        beside: More graphs and engines of its chain, by the ids of their models.
        engines: Digests of a bundle's engines that are asked; None for all.
        batch_sizes: See `mlflow_e2eai.log_model`.
    """
    with job_on(model_uri, JUDGED) as job:
        graphs, built, example = variants_in(job, beside)
        built = [one for one in built if engines is None or one.sha256 in engines]
        exported = tracking.ancestor(job.model, ("export",))
        raw, _ = graph_of(exported, job.folder / "raw")
        job.recorder.models[raw.sha256] = exported.model_id
        with job.reference(raw, graphs[0]) as reference:
            if reference is None:
                msg = "Nothing can be judged without the PyTorch model; see the warning above."
                raise TrackingError(msg)
            evaluation = job.evaluation
            if evaluation is not None:
                evaluation = evaluation.for_graph(raw, graphs[0])
            evidence, latency = judge(
                reference,
                graphs,
                built,
                example,
                name=job.reference_name,
                raw=raw,
                evaluation=evaluation,
                batch_sizes=batch_sizes,
                timed=job.timed,
            )
        evidence = weighed(evidence, latency, [*graphs, *built], quantized_gates())
        record(evidence, latency, job.recorder)
    return MachineEvidence(environment=environment(), evidence=tuple(evidence), latency=latency)
