"""Never run on its hardware yet: weights restored in an engine that was stripped of them."""

from __future__ import annotations

from typing import Any

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.errors import RunnerError


def refit(engine: EngineArtifact, loaded: Any, graph: OnnxArtifact, *, trt: Any, log: Any) -> None:
    """Load the weights of its graph into an engine.

    Args:
        engine: The engine.
        loaded: TensorRT's object of it.
        graph: The graph that it was built from; its digest is checked.
        trt: TensorRT.
        log: TensorRT's log; see `backends.logger`.

    Raises:
        ArtifactError: The graph has changed since it was recorded.
        RunnerError: TensorRT does not find every weight in the graph.
    """
    verify_graph(graph)
    refitter = trt.Refitter(loaded, log)
    reader = trt.OnnxParserRefitter(refitter, log)
    if not reader.refit_from_file(str(graph.path)) or not refitter.refit_cuda_engine():
        missing = [str(name) for name in refitter.get_missing_weights()]
        what = f"{len(missing)} are missing, {missing[0]!r} first" if missing else log.reason()
        msg = (
            f"TensorRT cannot refit {engine.path.name} with the weights of {graph.path.name}: "
            f"{what}; compile it again from this graph."
        )
        raise RunnerError(msg)
