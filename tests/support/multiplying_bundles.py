"""Bundles of graphs that multiply by one number each, so that an answer tells which one ran."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, Infer, OnnxArtifact, Target
from mlflow_e2eai.bundle import selection
from mlflow_e2eai.bundle.manifest import FORMAT_VERSION, Manifest
from mlflow_e2eai.errors import EngineMismatchError
from mlflow_e2eai.evaluation import variants as evaluation_variants
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.latency.report import Latency, LatencyReport
from mlflow_e2eai.parity.report import Finding, ParityReport
from mlflow_e2eai.surgery.report import SurgeryReport

N = Axis("N", min=1, opt=2, max=4)
X = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
CPU32, CPU16 = "onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16"
ENGINE32, ENGINE16 = "tensorrt_rtx-sm00/fp32", "tensorrt_rtx-sm00/fp16"

# Each graph multiplies by a number of its own, so that the answer tells which one ran.
TIMES = """
<ir_version: 8, opset_import: ["" : 18]>
times (float[N, 3] x) => (float[N, 3] y) <float factor = {{{factor}}}> {{ y = Mul(x, factor) }}
"""
TWO_INPUTS = """
<ir_version: 8, opset_import: ["" : 18]>
two (float[N, 3] x, int32 shift) => (float[N, 3] y, int32 z)
{ s = Cast<to = 1>(shift)  y = Add(x, s)  z = Identity(shift) }
"""

PASSED = ParityReport(outputs=(), findings=(), samples=1, repeats=1, tolerance=1)
FAILED = dataclasses.replace(PASSED, findings=(Finding(kind="tolerance", sentence="Too far off."),))
SURGERY = SurgeryReport(
    edits={"drop_unused": 0},
    nodes_before=1,
    nodes_after=1,
    operators_before={"Mul": 1},
    operators_after={"Mul": 1},
    size_before_bytes=1,
    size_after_bytes=1,
    max_abs_error=0.0,
)


def graph(
    folder: Path, text: str, precision: str = "fp32", axes: tuple[Axis, ...] = (N,)
) -> OnnxArtifact:
    path = folder / f"work-{precision}.onnx"
    graphs.write(onnx.parser.parse_model(text), path)
    return graphs.describe(path, stage="clean", precision=precision, axes=axes, parent_sha256=None)


def engine(folder: Path, precision: str = "fp32", name: str = "work") -> EngineArtifact:
    """An engine for a GPU that no machine has."""
    path = folder / f"{name}-{precision}.engine"
    path.write_bytes(name.encode())
    return EngineArtifact(
        path=path,
        sha256=sha256_of(path),
        parent_sha256="ab",
        target=Target(backend="tensorrt_rtx", compute_capability="sm00"),
        backend_version="1",
        precision=precision,
        tf32=False,
        inputs=(),
        outputs=(),
        axes=(N,),
        build_s=1.5,
        size_bytes=4,
    )


def manifest(
    graphs: Sequence[OnnxArtifact],
    engines: Sequence[EngineArtifact] = (),
    evidence: Mapping[str, ParityReport | None] | None = None,
    latency: Mapping[str, Sequence[float]] | None = None,
) -> Manifest:
    """A manifest; evidence by variant is a comparison, or None for one that was never compared."""
    reports = tuple(
        Evidence(
            variant=name,
            sha256="ab",
            measured=True,
            parity={} if report is None else {"profile": report},
        )
        for name, report in (evidence or {}).items()
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        package_version="0.1.0",
        source_model="m-1",
        graphs=tuple(graphs),
        engines=tuple(engines),
        surgery=SURGERY,
        evidence=reports,
        latency={"opt": timed(latency)} if latency else {},
        environment={"python": "3.11"},
    )


def timed(latency: Mapping[str, Sequence[float]]) -> LatencyReport:
    entries = (
        Latency(
            name=name,
            p50_ms=float(np.median(taken)),
            p90_ms=0,
            p95_ms=0,
            p99_ms=0,
            mean_ms=0,
            std_ms=0,
            throughput_items_per_s=0,
            rounds_ms=tuple(taken),
        )
        for name, taken in latency.items()
    )
    return LatencyReport(items=2, warmup=0, variants=tuple(entries))


def fitting(monkeypatch, precisions: Sequence[str] = ("fp32", "fp16")) -> None:
    """Make engines of these precisions run here: they multiply by a hundred."""

    @contextmanager
    def runner(_: EngineArtifact, **__: object) -> Iterator[Infer]:
        yield lambda tensors: {"y": 100 * tensors["x"]}

    mismatch = EngineMismatchError(wanted="a GPU of sm00", found="no GPU")
    monkeypatch.setattr(
        selection, "unsupported_here", lambda e, _: None if e.precision in precisions else mismatch
    )
    monkeypatch.setattr(evaluation_variants, "engine_runner", runner)
