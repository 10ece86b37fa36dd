"""Manifests of versions with the evidence that a test of promotion is about, measured by nobody."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import small_manifest
from small_manifest import compared

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.latency.report import ColdStart, CpuRecord, Latency, LatencyFinding, LatencyReport

TORCH, CPU32, CPU16 = "torch/fp32", "onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16"
ENGINE = "tensorrt_rtx-sm89/fp16"
XEON = {
    "machine": "x86_64",
    "processor": "Xeon",
    "onnxruntime": "1.23.0",
    "torch": "2.9.0",
    "int8_instructions": "avx512_vnni",
}
L4 = {
    **XEON,
    "gpu": "NVIDIA L4",
    "driver": "570.1",
    "compute_capability": "sm89",
    "tensorrt-rtx-cu13": "1.6.1",
}
NOW, TODAY = "2026-11-30T12:00:00+00:00", "2026-11-30T00:00:00+00:00"


def moment(digest: str) -> dict[str, str]:
    """What two measurements on one kind of machine do not share."""
    at = ord(digest[0]) % 60
    return {"measured": f"2026-11-30 00:{at:02} UTC", "host": f"host-{digest}", "load": f"0.{at}"}


def graph(precision: str = "fp32", digest: str = "a") -> OnnxArtifact:
    base = small_manifest.manifest().graphs[0]
    name = "model.onnx" if precision == "fp32" else f"model-{precision}.onnx"
    return dataclasses.replace(
        base, path=Path(name), precision=precision, sha256=f"{digest}-{precision}"
    )


def engine(digest: str = "a", capability: str = "sm89", version: str = "1.6.1") -> EngineArtifact:
    clean = graph(digest=digest)
    return EngineArtifact(
        path=Path(f"engines/{capability}.engine"),
        sha256=f"{digest}-{capability}",
        parent_sha256=clean.sha256,
        target=Target(backend="tensorrt_rtx", compute_capability=capability),
        backend_version=version,
        precision="fp16",
        tf32=False,
        inputs=clean.inputs,
        outputs=clean.outputs,
        axes=(),
        build_s=1.5,
        size_bytes=4_000_000,
    )


def timed(
    times: Mapping[str, float],
    items: int = 8,
    *,
    busy: bool = False,
    rounds: int = 40,
    cpus: int | None = 2,
) -> LatencyReport:
    """Reports of calls that take so many milliseconds, give or take a hundredth.

    Args:
        times: The milliseconds by variant.
        items: Items of a call.
        busy: Whether the machine was.
        rounds: How often each was measured.
        cpus: Processors of the machine; None in reports that do not say.
    """
    noise = 1 + 0.01 * np.sin(np.arange(rounds))
    variants = tuple(
        Latency(
            name=name,
            p50_ms=one,
            p90_ms=1.1 * one,
            p95_ms=1.2 * one,
            p99_ms=1.5 * one,
            mean_ms=one,
            std_ms=0.0,
            throughput_items_per_s=1e3 * items / one,
            rounds_ms=tuple(one * noise),
        )
        for name, one in times.items()
    )
    findings = (LatencyFinding(kind="busy", variant=None, sentence="It waited."),) if busy else ()
    cpu = None if cpus is None else CpuRecord(cpus=cpus, load_average=0.5, others_share=0.01)
    return LatencyReport(items=items, warmup=0, variants=variants, findings=findings, cpu=cpu)


def measured(
    variant: str, sha256: str | None, *, passed: bool = True, accuracy: float | None = 0.9
) -> Evidence:
    return Evidence(
        variant=variant,
        sha256=sha256,
        measured=True,
        parity={"profile": compared(1e-4, passed=passed)},
        task={} if accuracy is None else {"accuracy": accuracy},
        cold_start=ColdStart(
            load_s=0.5,
            first_call_ms=3.0,
            second_call_ms=2.0,
            peak_memory_bytes=200_000_000,
            peak_memory_growth_bytes=0,
        ),
    )


def unmeasured(variant: str, sha256: str) -> Evidence:
    return Evidence(variant=variant, sha256=sha256, measured=False, reason="There is no GPU.")


def version(
    times: Mapping[str, float] | None = None,
    *,
    digest: str = "a",
    environment: Mapping[str, str] = XEON,
    engines: Sequence[EngineArtifact] = (),
    evidence: Sequence[Evidence] | None = None,
    elsewhere: Sequence[MachineEvidence] = (),
    latency: Mapping[str, LatencyReport] | None = None,
    measured_at: str | None = TODAY,
) -> Manifest:
    """A version with fp32 and fp16 on a CPU, and engines that nobody measured there.

    Args:
        times: Milliseconds of a call at opt, by variant.
        digest: Begins the digest of every file.
        environment: The machine that packaged it.
        engines: Its engines.
        evidence: In place of what that machine measured.
        elsewhere: Evidence of other machines.
        latency: In place of the times.
        measured_at: When that machine measured.
    """
    graphs = (graph(digest=digest), graph("fp16", digest))
    if evidence is None:
        evidence = (
            measured(TORCH, None),
            measured(CPU32, graphs[0].sha256),
            measured(CPU16, graphs[1].sha256),
            *(unmeasured(f"{each.target}/fp16", each.sha256) for each in engines),
        )
    times = {TORCH: 2.0, CPU32: 1.0, CPU16: 1.5} if times is None else times
    return dataclasses.replace(
        small_manifest.manifest(),
        graphs=graphs,
        engines=tuple(engines),
        evidence=tuple(evidence),
        latency={"opt": timed(times)} if latency is None else latency,
        environment={**moment(digest), **environment},
        elsewhere=tuple(elsewhere),
        level="standard",
        measured_at=measured_at,
    )


def on_l4(
    ms: float = 0.5,
    *,
    digest: str = "a",
    passed: bool = True,
    measured_at: str | None = TODAY,
    items: int = 8,
    **environment: str,
) -> MachineEvidence:
    """Evidence of an engine for sm89 that an L4 measured next to PyTorch."""
    return MachineEvidence(
        environment={**moment(digest), **L4, **environment},
        evidence=(
            measured(TORCH, None),
            measured(ENGINE, f"{digest}-sm89", passed=passed),
        ),
        latency={"opt": timed({TORCH: 2.0, ENGINE: ms}, items)},
        measured_at=measured_at,
    )


def with_engine(
    ms: float = 0.5, cpu_ms: float = 1.0, *, digest: str = "a", **options: object
) -> Manifest:
    """A version whose engine for sm89 was measured on an L4."""
    return version(
        {TORCH: 2.0, CPU32: cpu_ms, CPU16: 1.5 * cpu_ms},
        digest=digest,
        engines=[engine(digest)],
        elsewhere=[on_l4(ms, digest=digest, **options)],  # type: ignore[arg-type]
    )
