"""The smallest set of nodes that must stay in fp32 for a converted graph to pass.

No inner value of the suspect graph is marked as an output; see `mlflow_e2eai.evaluation.bisection`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Infer, OnnxArtifact, Precision, Tensors, require_graph
from mlflow_e2eai.errors import (
    ArtifactError,
    EngineBuildError,
    InvalidInputError,
    PrecisionError,
    RunnerError,
    require_function,
    require_kind,
    require_samples,
)
from mlflow_e2eai.evaluation.bisection.engines import bisect_engine, built_here
from mlflow_e2eai.evaluation.bisection.pieces import cut
from mlflow_e2eai.evaluation.bisection.plans import bisect_plan
from mlflow_e2eai.evaluation.bisection.search import Bisection, narrow, search
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.precision.half import of_libraries
from mlflow_e2eai.precision.stage import CONVERTERS, graph_precision_of
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.storage import storage_errors

if TYPE_CHECKING:
    import onnx

__all__ = [
    "Bisection",
    "bisect",
    "bisect_engine",
    "bisect_plan",
    "built_here",
    "cut",
    "narrow",
    "search",
]


@storage_errors()
def bisect(
    source: OnnxArtifact,
    precision: Precision = "fp16",
    *,
    samples: Sequence[Tensors],
    reference: Infer | None = None,
    run: Callable[[Path], AbstractContextManager[Infer]] | None = None,
    tolerance: float | None = None,
    repeats: int = 1,
    max_evaluations: int | None = None,
) -> Bisection:
    """Find the nodes that must stay in fp32 for a graph to pass in another precision.

    Args:
        source: The graph in fp32.
        precision: The precision in which it fails.
        samples: Named inputs on which it fails.
        reference: Computes the expected outputs; by default ONNX Runtime on `source`.
        run: Opens an ONNX file; by default ONNX Runtime on the CPU, in a process of its own.
            With ``functools.partial(isolated_onnxruntime, rounded=True)`` it rounds every value as
            a GPU does. A function that compiles the file and runs the engine searches for faults on
            a GPU: the engine is then built anew for each evaluation.
        tolerance: As `compare` takes it.
        repeats: As `compare` takes it; give more where outputs differ from call to call.
        max_evaluations: Evaluations at most. One node among n takes about log2(n) + 4.

    Returns:
        The nodes, as `convert` takes them for `keep_fp32`. See `search` for the guarantees.

    Raises:
        InvalidInputError: There are no samples, or the graph fails with every node in fp32 too:
            then the fault is not in the precision.
        RunnerError: The reference cannot run the samples.

    Examples:
        >>> found = mlflow_e2eai.bisect(cleaned, "fp16", samples=[{"x": x}])
        >>> found.nodes
        ()
    """
    source, samples = require_graph(source), tuple(require_samples(samples))
    if reference is not None:
        require_function("reference", reference)
    if run is not None:
        require_function("run", run, "a function that opens an ONNX file")
    if max_evaluations is not None:
        require_kind("max_evaluations", max_evaluations, int, "a number of evaluations")
    precision = graph_precision_of(precision)
    if precision not in CONVERTERS or source.precision != "fp32":
        converters = " and ".join(CONVERTERS)
        msg = (
            f"From {source.precision} to {precision}; nodes are searched from fp32 to "
            f"{converters} only."
        )
        raise InvalidInputError(msg)
    if not samples:
        msg = "There are no samples; give those on which the variant failed."
        raise InvalidInputError(msg)
    model = graphs.inline_functions(graphs.read(source.path))  # as `convert` does
    to = CONVERTERS[precision]
    fixed = frozenset(of_libraries(model, source.libraries))
    suspects = [name for name in _suspects(model) if name not in fixed]
    is_emulated = precision == "bf16"  # the CPU cannot run it otherwise
    run = run or partial(
        isolated_onnxruntime,
        precision=precision,
        rounded=is_emulated,
        libraries=source.libraries,
    )
    with ExitStack() as stack:
        right = reference or stack.enter_context(
            isolated_onnxruntime(source.path, libraries=source.libraries)
        )
        for sample in samples:
            right(sample)  # from here on, a RunnerError is of the candidate
        path = Path(stack.enter_context(TemporaryDirectory()), "candidate.onnx")

        def fails(keep: frozenset[str]) -> bool:
            try:
                graphs.write(to(model, keep_fp32=keep | fixed), path)
                with run(path) as candidate:
                    report = compare(
                        right,
                        candidate,
                        samples,
                        precision=precision,
                        tolerance=tolerance,
                        repeats=repeats,
                        threads=1,  # as a worker process takes one call at a time
                    )
            except (PrecisionError, ArtifactError, EngineBuildError, RunnerError):
                return True  # a graph that does not load, build or run fails
            return not report.passed

        return search(suspects, fails, max_evaluations=max_evaluations)


def _suspects(model: onnx.ModelProto) -> list[str]:
    """Nodes of the main graph that can stay in fp32 one by one, in topological order.

    A constant goes with the nodes that read it, and of a node with subgraphs no part is known.
    """
    return [
        name
        for node, name in zip(model.graph.node, graphs.node_names(model), strict=True)
        if node.op_type != "Constant" and not any(graphs.subgraphs(node))
    ]
