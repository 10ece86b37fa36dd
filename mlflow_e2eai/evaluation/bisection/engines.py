"""The smallest run of nodes that makes an engine wrong, by building pieces of the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, TypeAlias

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Infer, OnnxArtifact, Tensors
from mlflow_e2eai.engine.runner import engine_runner
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.errors import EngineBuildError, InvalidInputError, RunnerError
from mlflow_e2eai.evaluation.bisection.pieces import Pieces, cut, pieces_of
from mlflow_e2eai.evaluation.bisection.search import Bisection, Run, narrow
from mlflow_e2eai.evaluation.bisection.shapes import Observed, observe
from mlflow_e2eai.parity.comparison import REPEATS, compare
from mlflow_e2eai.runtime.ort import onnxruntime_runner

Build: TypeAlias = Callable[[OnnxArtifact], AbstractContextManager[Infer]]
"""Builds a graph and opens a runner of the result; takes the artifact, as its axes are the engine's
profile."""

Outcome: TypeAlias = Literal["is right", "gives wrong outputs", "cannot be built or run", "unknown"]


@contextmanager
def built_here(piece: OnnxArtifact, *, tf32: bool = False) -> Iterator[Infer]:
    """Compile a graph for the GPU in this machine, and run the engine.

    Args:
        piece: The graph.
        tf32: See `compile`; set it by `functools.partial` for an engine with TF32.

    Raises:
        InvalidInputError: There is no GPU in this machine.
        E2EAIError: See `compile` and `engine_runner`.
    """
    with TemporaryDirectory() as folder:
        engine = compile(piece, "local", out=Path(folder, "piece.engine"), tf32=tf32)
        with engine_runner(engine) as infer:
            yield infer


def bisect_engine(
    source: OnnxArtifact,
    *,
    samples: Sequence[Tensors],
    build: Build = built_here,
    tolerance: float | None = None,
    repeats: int = REPEATS,
    max_evaluations: int | None = None,
) -> Bisection:
    """Find the smallest run of nodes that makes an engine of a graph wrong.

    Consecutive nodes are cut out as a graph of their own, built by itself, and run on the values
    that ONNX Runtime computes at its inputs in the whole graph; the reference is ONNX Runtime on
    the same piece. Inner values are marked as outputs in ONNX Runtime's graphs only: the engine of
    the whole graph is built unchanged, and a piece has only its own outputs.

    An engine that cannot be built or run at all is searched in the same way, for the smallest piece
    with the same failure. A piece with the other kind of failure, or that ONNX Runtime cannot run,
    counts as right, as nothing is known about it.

    Nodes that depend on constants and shapes alone go with the nodes that read them, and are no
    suspects. A fault that shows only where nodes are fused is found as the run of these nodes;
    one that shows only together with nodes on both sides, as a longer run.

    Args:
        source: The graph that the engine was built from, in its precision.
        samples: Named inputs on which the engine fails, with sizes that `source.axes` admits.
        build: Builds and runs a piece; by default as an engine on this machine's GPU.
        tolerance: See `compare`.
        repeats: Number of runs of each sample; see `mlflow_e2eai.compare`.
        max_evaluations: See `narrow`. For one faulty node among n it takes at most
            2·⌈log2 n⌉ + 1.

    Returns:
        The run in `nodes`. See `narrow` for the guarantees. `convert` can leave them in fp32 where
        it wrote the graph, but not casts that it added.

    Raises:
        InvalidInputError: There are no samples, no nodes to cut out, or (by `built_here`) no GPU.
        RunnerError: ONNX Runtime cannot run the graph on the samples.
    """
    if not samples:
        msg = "There are no samples; give those on which the engine failed."
        raise InvalidInputError(msg)
    pieces = pieces_of(graphs.read(source.path))
    if not pieces.nodes:
        msg = "The graph has no node that depends on its inputs, so none can explain a failure."
        raise InvalidInputError(msg)
    with TemporaryDirectory() as folder:
        trial = _Trial(
            source=source,
            samples=samples,
            observed=observe(source, samples),
            build=build,
            tolerance=tolerance,
            repeats=repeats,
            folder=Path(folder),
        )
        symptom = trial.whole()

        def fails(first: int, end: int) -> bool:
            whole = end - first == len(pieces.nodes)  # unchanged, with its constants
            outcome = symptom if whole else trial.piece(pieces, first, end)
            return outcome == symptom != "is right"

        run = narrow(len(pieces.nodes), fails, max_evaluations=max_evaluations)
    return _bisection(pieces.nodes, run, symptom)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Builds the graph, or a piece of it, and compares its outputs with ONNX Runtime's."""

    source: OnnxArtifact
    samples: Sequence[Tensors]
    observed: Observed
    build: Build
    tolerance: float | None
    repeats: int
    folder: Path

    def whole(self) -> Outcome:
        return self._outcome(self.source, self.samples)

    def piece(self, pieces: Pieces, first: int, end: int) -> Outcome:
        inputs, outputs = pieces.edges(first, end)
        if not outputs:
            return "is right"  # no other node needs their outputs
        try:
            piece = self._cut(inputs, outputs, "piece.onnx")
            return self._outcome(piece, self._values_at(inputs))
        except (InvalidInputError, RunnerError):
            return "unknown"

    def _outcome(self, graph: OnnxArtifact, samples: Sequence[Tensors]) -> Outcome:
        with _open(graph) as right:
            for sample in samples:
                right(sample)  # from here on, a RunnerError is of the candidate
            try:
                with self.build(graph) as candidate:
                    report = compare(
                        right,
                        candidate,
                        samples,
                        precision=self.source.precision,
                        tolerance=self.tolerance,
                        repeats=self.repeats,
                        threads=1,
                    )
            except (EngineBuildError, RunnerError):
                return "cannot be built or run"
        return "is right" if report.passed else "gives wrong outputs"

    def _values_at(self, inputs: Sequence[str]) -> list[Tensors]:
        """Values of ONNX Runtime at these tensors, for each sample."""
        given = [spec.name for spec in self.source.inputs]
        inner = [name for name in inputs if name not in given]
        if not inner:
            return [{name: sample[name] for name in inputs} for sample in self.samples]
        before = self._cut(given, inner, "before.onnx")
        with _open(before) as run:
            values = [{**sample, **run(sample)} for sample in self.samples]
        return [{name: value[name] for name in inputs} for value in values]

    def _cut(self, inputs: Sequence[str], outputs: Sequence[str], file: str) -> OnnxArtifact:
        return cut(
            self.source,
            inputs=inputs,
            outputs=outputs,
            out=self.folder / file,
            observed=self.observed,
        )


def _open(graph: OnnxArtifact) -> AbstractContextManager[Infer]:
    return onnxruntime_runner(graph.path, precision=graph.precision, libraries=graph.libraries)


def _bisection(nodes: Sequence[str], run: Run, symptom: Outcome) -> Bisection:
    names = tuple(nodes[run.first : run.end])
    seen = f"Evaluations: {run.evaluations}."
    if not names:
        sentence = "The engine's outputs are right: there is nothing to bisect."
    elif not run.minimal:
        sentence = (
            f"The piece of {len(names)} of {len(nodes)} nodes from {names[0]!r} to {names[-1]!r} "
            f"{symptom}; a smaller piece may, but the limit of evaluations was reached. {seen}"
        )
    elif len(names) == 1:
        sentence = f"Node {names[0]!r}, built by itself, {symptom}. {seen}"
    else:
        sentence = (
            f"No node alone explains it: the smallest piece that {symptom} is the {len(names)} of "
            f"{len(nodes)} nodes from {names[0]!r} to {names[-1]!r}. {seen}"
        )
    return Bisection(
        nodes=names,
        minimal=run.minimal,
        suspects=len(nodes),
        evaluations=run.evaluations,
        sentence=sentence,
    )
