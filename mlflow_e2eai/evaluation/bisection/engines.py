"""Which nodes make an engine wrong? The graph is cut, and each piece is built by itself."""

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
"""What builds a graph and runs what it built; it is given the artifact for its axes, which an
engine's profile is made of."""

Outcome: TypeAlias = Literal["is right", "gives wrong answers", "cannot be built or run", "unknown"]


@contextmanager
def built_here(piece: OnnxArtifact, *, tf32: bool = False) -> Iterator[Infer]:
    """Compile a graph for the GPU in this machine, and run the engine.

    Args:
        piece: The graph.
        tf32: As `compile` takes it; give it by `functools.partial` for an engine that has it.

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

    Nodes that follow each other are cut out as a graph of its own, built by itself, and fed with
    what ONNX Runtime gives at its inputs for the whole graph; ONNX Runtime on the same piece says
    what is right. Values inside are marked as outputs in ONNX Runtime's graphs only: the engine of
    the whole graph is built as it is, and of a piece nothing is marked but where it ends.

    An engine that cannot be built or run at all is searched in the same way, for the smallest piece
    of which that is true. A piece of which the other is true, or that ONNX Runtime cannot run,
    counts as right: nothing is known about it.

    What is computed from constants and from shapes alone goes with the nodes that read it, and is
    no suspect. A fault that shows only where nodes are fused is found as the run of these nodes;
    one that shows only together with nodes on both sides, as a longer run.

    Args:
        source: The graph that the engine was built from, in its precision.
        samples: Named inputs on which the engine fails, with sizes that `source.axes` admits.
        build: What builds and runs a piece; by default the engine of this machine's GPU.
        tolerance: As `compare` takes it.
        repeats: How often each sample is run; see `mlflow_e2eai.compare`.
        max_evaluations: As `narrow` takes it. For one faulty node among n it takes at most
            2·⌈log2 n⌉ + 1.

    Returns:
        The run in `nodes`. See `narrow` for what is promised. `convert` keeps them in fp32 where
        the graph is one that it wrote; casts that it added are no nodes to keep.

    Raises:
        InvalidInputError: There are no samples, no nodes to cut out, or (by `built_here`) no GPU.
        RunnerError: ONNX Runtime cannot run the graph on the samples.
    """
    if not samples:
        msg = "There are no samples to fail on; give those on which the engine failed."
        raise InvalidInputError(msg)
    pieces = pieces_of(graphs.read(source.path))
    if not pieces.nodes:
        msg = "The graph has no node that works on its inputs, so none can explain a failure."
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
            whole = end - first == len(pieces.nodes)  # as it is, constants and all
            outcome = symptom if whole else trial.piece(pieces, first, end)
            return outcome == symptom != "is right"

        run = narrow(len(pieces.nodes), fails, max_evaluations=max_evaluations)
    return _bisection(pieces.nodes, run, symptom)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """Builds the graph, or a piece of it, and holds its answers against ONNX Runtime's."""

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
            return "is right"  # nobody needs what they make
        try:
            piece = self._cut(inputs, outputs, "piece.onnx")
            return self._outcome(piece, self._values_at(inputs))
        except (InvalidInputError, RunnerError):
            return "unknown"

    def _outcome(self, graph: OnnxArtifact, samples: Sequence[Tensors]) -> Outcome:
        with onnxruntime_runner(graph.path, libraries=graph.libraries) as right:
            for sample in samples:
                right(sample)  # from here on, what cannot run is the candidate
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
        return "is right" if report.passed else "gives wrong answers"

    def _values_at(self, inputs: Sequence[str]) -> list[Tensors]:
        """Values of ONNX Runtime at these tensors, for each sample."""
        given = [spec.name for spec in self.source.inputs]
        inner = [name for name in inputs if name not in given]
        if not inner:
            return [{name: sample[name] for name in inputs} for sample in self.samples]
        before = self._cut(given, inner, "before.onnx")
        with onnxruntime_runner(before.path, libraries=before.libraries) as run:
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


def _bisection(nodes: Sequence[str], run: Run, symptom: Outcome) -> Bisection:
    names = tuple(nodes[run.first : run.end])
    seen = f"Seen in {run.evaluations} evaluations."
    if not names:
        sentence = "The engine is right as it is: there is nothing to explain."
    elif not run.minimal:
        sentence = (
            f"The piece of {len(names)} of {len(nodes)} nodes from {names[0]!r} to {names[-1]!r} "
            f"{symptom}; a smaller one may, but the evaluations ran out. {seen}"
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
