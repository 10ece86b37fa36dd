"""Small manifests for tests of the report: a few variants, or something in every section."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.bundle.manifest import FORMAT_VERSION, Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.report import Latency, LatencyReport
from mlflow_e2eai.parity.report import Finding, OutputParity, ParityReport
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.surgery.report import SurgeryReport


def compared(error: float, *, passed: bool = True) -> ParityReport:
    output = OutputParity(
        name="y",
        max_abs_error=error,
        max_rel_error=error,
        mean_abs_error=error,
        rmse=error,
        cosine=1,
        nonfinite_count=0,
        elements=1,
    )
    findings = () if passed else (Finding(kind="tolerance", sentence="Too far off."),)
    return ParityReport(outputs=(output,), findings=findings, samples=1, repeats=1, tolerance=1)


def measured(times: Mapping[str, float], items: int = 8) -> LatencyReport:
    variants = (
        Latency(
            name=name,
            p50_ms=p50,
            p90_ms=p50,
            p95_ms=p50,
            p99_ms=p50,
            mean_ms=p50,
            std_ms=0,
            throughput_items_per_s=1e3 * items / p50,
            rounds_ms=(p50,),
        )
        for name, p50 in times.items()
    )
    return LatencyReport(items=items, warmup=0, variants=tuple(variants))


def manifest(*evidence: Evidence, latency: Mapping[str, LatencyReport] | None = None) -> Manifest:
    spec = TensorSpec(name="x", dtype="float32", shape=("N",))
    graph = OnnxArtifact(
        path=Path("model.onnx"),
        sha256="ab",
        parent_sha256=None,
        stage="clean",
        precision="fp32",
        opset=18,
        inputs=(spec,),
        outputs=(spec,),
        axes=(),
    )
    surgery = SurgeryReport(
        edits={},
        nodes_before=1,
        nodes_after=1,
        operators_before={},
        operators_after={},
        size_before_bytes=1,
        size_after_bytes=1,
        max_abs_error=None,
    )
    return Manifest(
        format_version=FORMAT_VERSION,
        package_version="0",
        source_model=None,
        graphs=(graph,),
        engines=(),
        surgery=surgery,
        evidence=evidence,
        latency=latency or {},
        environment={},
    )


TORCH = Evidence(
    variant="torch/fp32",
    sha256=None,
    measured=True,
    parity={"profile": compared(0.0)},
    task={"accuracy": 0.975},
)
CPU = Evidence(
    variant="onnxruntime-cpu/fp32",
    sha256="ab",
    measured=True,
    parity={"profile": compared(2.5e-7), "data": compared(1e-6)},
    task={"accuracy": 0.975},
)
HALF = Evidence(
    variant="onnxruntime-cpu/fp16",
    sha256="cd",
    measured=True,
    parity={"profile": compared(0.5, passed=False)},
    task={"accuracy": 0.1},
)
ENGINE = Evidence(
    variant="tensorrt_rtx-sm86/fp32", sha256="ef", measured=False, reason="There is no GPU."
)


def timed(times: Mapping[str, list[float]], items: int = 8) -> LatencyReport:
    report = measured({name: sorted(rounds)[len(rounds) // 2] for name, rounds in times.items()})
    variants = tuple(
        dataclasses.replace(entry, rounds_ms=tuple(times[entry.name])) for entry in report.variants
    )
    return dataclasses.replace(report, items=items, variants=variants)


def engine(found: Manifest) -> EngineArtifact:
    graph = found.graphs[0]
    return EngineArtifact(
        path=Path("engines/rtx.engine"),
        sha256="ef" * 32,
        parent_sha256=graph.sha256,
        target=Target(backend="tensorrt_rtx", compute_capability="sm86"),
        backend_version="1.6",
        precision="fp32",
        tf32=False,
        inputs=graph.inputs,
        outputs=graph.outputs,
        axes=(),
        build_s=1.5,
        size_bytes=4_200_000,
    )


def full() -> Manifest:
    """Something in every section."""
    names = [TORCH.variant, CPU.variant, HALF.variant]
    latency = {
        label: timed({name: [factor * at * items] * 20 for at, name in enumerate(names, 1)}, items)
        for label, items, factor in (("opt", 8, 0.5), ("min", 1, 1.0), ("max", 64, 0.25))
    }
    found = manifest(TORCH, CPU, HALF, ENGINE, latency=latency)
    graph = dataclasses.replace(
        found.graphs[0], parent_sha256="01" * 32, axes=(Axis("N", min=1, opt=8, max=64),)
    )
    surgery = dataclasses.replace(
        found.surgery,
        edits={"fold_constants": 3},
        nodes_before=10,
        nodes_after=7,
        operators_before={"Conv": 7, "Shape": 3},
        operators_after={"Conv": 7},
        max_abs_error=1e-6,
    )
    return dataclasses.replace(
        found,
        graphs=(graph,),
        engines=(engine(found),),
        surgery=surgery,
        source_model="m-source",
        environment={"python": "3.11", "gpu_name": "none"},
    )


REJECTED = Decision(
    verdicts=(
        Verdict(metric="task/drop", found=0.0, wanted="at most 0.01", passed=True),
        Verdict(metric="parity/failed", found=1.0, wanted="at most 0", passed=False),
        Verdict(metric="champion/latency_ratio", found=math.nan, wanted="at most 1", passed=False),
        Verdict(metric="parity/measured", found=None, wanted="at least 1", passed=False),
    )
)
PROMOTED = Decision(verdicts=REJECTED.verdicts[:1])
ORIGIN = Origin(
    name="digits",
    version="3",
    model_id="m-bundle",
    run_id="r1",
    experiment_id="7",
    model_ids={"ab": "m-graph", "ef" * 32: "m-engine"},
    tracking_uri="https://me:secret@mlflow.example.com/base/",
)
