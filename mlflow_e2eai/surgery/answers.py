"""What is right for a cleaned graph, where the model that was exported cannot tell all of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import Array, Infer, OnnxArtifact, Tensors
from mlflow_e2eai.errors import SurgeryError
from mlflow_e2eai.isolation import isolated_onnxruntime
from mlflow_e2eai.origins import begins_inside, bridge, fitted, origins_of
from mlflow_e2eai.surgery.cutting import extract

Run: TypeAlias = Callable[..., AbstractContextManager[Infer]]


@contextmanager
def answering(
    reference: Infer, raw: OnnxArtifact, cleaned: OnnxArtifact, *, run: Run = isolated_onnxruntime
) -> Iterator[Infer]:
    """What ran the graph before surgery, with the inputs and outputs that surgery left.

    It knows nothing of the tensors that surgery exposed: those come from ONNX Runtime on the graph
    before. Where the graph begins inside the one before, all do.

    Args:
        reference: What ran the graph before.
        raw: The graph before.
        cleaned: The graph after.
        run: Opens ONNX Runtime on a file, with ``libraries``.

    Raises:
        RunnerError: ONNX Runtime cannot run that part of the graph before.
        SurgeryError: The graph before has no such tensor.
    """
    origins = origins_of(cleaned, raw)
    known = set() if begins_inside(cleaned, raw) else {spec.name for spec in raw.outputs}
    if unknown := [name for name in origins.outputs if name not in known]:
        inputs = [origin.name for origin in origins.inputs]
        with _piece(raw, inputs, unknown, run) as inner:

            def infer(tensors: Tensors) -> Tensors:
                told = reference(tensors) if known else {}
                return {**told, **inner(tensors)}

            yield bridge(infer, raw, cleaned)
    else:
        yield bridge(reference, raw, cleaned)


@contextmanager
def entering(
    raw: OnnxArtifact, cleaned: OnnxArtifact
) -> Iterator[Callable[[Tensors], dict[str, Array]]]:
    """What makes inputs of the cleaned graph of those of the graph before; see `fitted`.

    Where the graph begins inside the one before, ONNX Runtime on that computes what comes there.
    """
    given = {spec.name for spec in raw.inputs}
    names = [origin.name for origin in origins_of(cleaned, raw).inputs]
    with ExitStack() as stack:
        inner: Infer = lambda _: {}  # noqa: E731 - nothing to compute
        if strange := [name for name in names if name not in given]:
            piece = _piece(raw, None, strange, isolated_onnxruntime)
            inner = stack.enter_context(piece)
        yield lambda tensors: fitted({**tensors, **inner(tensors)}, raw, cleaned)


@contextmanager
def _piece(
    raw: OnnxArtifact, inputs: Sequence[str] | None, outputs: Sequence[str], run: Run
) -> Iterator[Infer]:
    """The graph before surgery between some of its tensors."""
    model = graphs.read(raw.path)
    graph = graphs.to_graph(model)
    try:
        extract(graph, inputs=inputs, outputs=outputs)
    except SurgeryError as error:
        msg = (
            f"The graph before the plan does not tell what is right at {list(outputs)}: {error} "
            f"Expose or extract before the steps that make new tensors."
        )
        raise SurgeryError(msg) from error
    with TemporaryDirectory() as folder:
        path = Path(folder, "piece.onnx")
        graphs.write(graphs.to_onnx(graph, like=model), path)
        with run(path, libraries=raw.libraries) as infer:
            yield infer
