"""A manifest with something of everything that a report can show."""

import dataclasses
import math
from pathlib import Path

import numpy as np
from small_manifest import manifest

from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, OnnxArtifact, Target
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.report import (
    ColdStart,
    GpuRecord,
    Latency,
    LatencyFinding,
    LatencyReport,
    Load,
    Throughput,
)
from mlflow_e2eai.parity.report import Element, Finding, OutputParity, ParityReport
from mlflow_e2eai.surgery.outline import Outline, OutlineNode

TORCH, RAW = "torch/fp32", "onnxruntime-cpu/raw"
CPU, HALF = "onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16"
ENGINE, OTHER = "tensorrt_rtx-sm90/fp16", "tensorrt_rtx-sm86/fp16"
RAW_SHA, CLEAN_SHA, HALF_SHA = "01" * 32, "02" * 32, "03" * 32
ENGINE_SHA, OTHER_SHA = "04" * 32, "05" * 32

WRONG = Finding(
    kind="tolerance",
    output="logits",
    sample=2,
    index=(0, 3),
    sentence="Output 'logits' of sample 2 is -4.75 at [0, 3], and 1.25 is right.",
)
TOO_LARGE = Finding(
    kind="nonfinite",
    output="logits",
    sentence="Output 'logits' has 4 elements that are not finite on numbers up to 1e+04.",
)


def compared(error: float, *findings: Finding, calls: int = 60) -> ParityReport:
    first = Element(sample=2, index=(0, 3), reference="1.25", candidate="-4.75")
    output = OutputParity(
        name="logits",
        max_abs_error=error,
        max_rel_error=error / 4,
        mean_abs_error=error / 9,
        rmse=error / 7,
        cosine=1 - error / 100,
        nonfinite_count=0,
        elements=7_300,
        tolerance=1e-3,
        snr_db=319.0 if error == 0 else -20 * math.log10(error / 7),
        outside_share=0.0213 if findings else 0.0,
        argmax_agreement=0.91 if findings else 1.0,
        top5_agreement=1.0,
        noise=1e-8,
        first_wrong=first if findings else None,
    )
    return ParityReport(
        outputs=(output,),
        findings=findings,
        samples=3,
        repeats=10,
        tolerance=1e-3,
        calls=calls,
        threads=2,
    )


def latency(name: str, typical_ms: float, items: int, *, device: bool) -> Latency:
    noise = np.random.default_rng(len(name) + items).normal(0, 0.04, 60)
    rounds = tuple(float(value) for value in typical_ms * np.exp(noise))
    ordered = sorted(rounds)
    return Latency(
        name=name,
        p50_ms=ordered[30],
        p90_ms=ordered[54],
        p95_ms=ordered[57],
        p99_ms=ordered[59],
        mean_ms=sum(rounds) / 60,
        std_ms=0.04 * typical_ms,
        throughput_items_per_s=1e3 * items / ordered[30],
        rounds_ms=rounds,
        outliers=3,
        warmup_calls=24,
        settled=name != HALF,
        device_p50_ms=0.8 * typical_ms if device else None,
        device_rounds_ms=(0.8 * typical_ms,) * 60 if device else (),
    )


TIMES = {TORCH: 0.42, RAW: 0.25, CPU: 0.21, HALF: 0.33, ENGINE: 0.08}


def timed(items: int, times: dict[str, float]) -> LatencyReport:
    variants = tuple(
        latency(name, one * (0.4 + items / 12), items, device=name == ENGINE)
        for name, one in times.items()
    )
    findings = [
        LatencyFinding(
            kind="unsettled",
            variant=HALF,
            sentence=f"'{HALF}' was not steady after 24 calls of warm-up: the medians of its last "
            "windows were 0.31, 0.35, 0.39 ms.",
        )
    ]
    if items == 64:
        findings += [
            LatencyFinding(
                kind="stall",
                variant=TORCH,
                sentence=f"A call of '{TORCH}' took 612 ms, 290 times its median.",
            ),
            LatencyFinding(
                kind="throttled", variant=None, sentence="The GPU throttled its clock: SwPowerCap."
            ),
        ]
    gpu = GpuRecord(
        name="NVIDIA H100 80GB HBM3",
        samples=12,
        sm_clock_min_mhz=1410.0,
        sm_clock_max_mhz=1980.0,
        power_max_w=312.4,
        temperature_max_c=58.0,
        throttle_reasons=("SwPowerCap",) if items == 64 else (),
    )
    return LatencyReport(
        items=items, warmup=50, variants=variants, findings=tuple(findings), gpu=gpu
    )


def started(load_s: float, first_ms: float, *, device: bool = False) -> ColdStart:
    return ColdStart(
        load_s=load_s,
        first_call_ms=first_ms,
        second_call_ms=0.4,
        peak_memory_bytes=412_000_000,
        peak_memory_growth_bytes=96_000_000,
        device_memory_bytes=1_250_000_000 if device else None,
    )


def loads(alone: float, gain: float) -> Throughput:
    found = tuple(
        Load(threads=count, calls=1000, seconds=0.5, items_per_s=alone * count**gain)
        for count in (1, 2, 4, 8)
    )
    return Throughput(items=8, loads=found)


def evidence() -> tuple[Evidence, ...]:
    task = {"accuracy": 0.9750}
    return (
        Evidence(
            variant=TORCH,
            sha256=None,
            measured=True,
            parity={"profile": compared(0.0, calls=6), "data": compared(0.0, calls=46)},
            cold_start=started(0.3, 22.0),
            loads=loads(19_000, 0.1),
            task=task,
        ),
        Evidence(
            variant=RAW,
            sha256=RAW_SHA,
            measured=True,
            parity={"profile": compared(2.1e-6)},
            before=TORCH,
            against_before=compared(2.1e-6),
        ),
        Evidence(
            variant=CPU,
            sha256=CLEAN_SHA,
            measured=True,
            parity={
                "profile": compared(2.4e-6),
                "edges": compared(1e-7),
                "large": compared(3.2e-4),
                "data": compared(3.1e-6, calls=46),
            },
            before=RAW,
            against_before=compared(4e-7),
            cold_start=started(0.04, 0.9),
            loads=loads(38_000, 0.9),
            task=task,
        ),
        Evidence(
            variant=HALF,
            sha256=HALF_SHA,
            measured=True,
            parity={
                "profile": compared(6.0, WRONG),
                "edges": compared(1e-4),
                "large": compared(math.inf, TOO_LARGE),
                "data": compared(5.2, WRONG, calls=46),
            },
            before=CPU,
            against_before=compared(6.0, WRONG),
            cold_start=started(0.05, 1.4),
            loads=loads(24_000, 0.7),
            task={"accuracy": 0.9127},
            lost_at="convert fp16",
        ),
        Evidence(
            variant=ENGINE,
            sha256=ENGINE_SHA,
            measured=True,
            parity={
                "profile": compared(4.1e-4),
                "large": compared(math.nan, TOO_LARGE),
                "data": compared(3.9e-4, calls=46),
            },
            before=HALF,
            against_before=compared(5.9, WRONG),
            cold_start=started(1.2, 480.0, device=True),
            loads=loads(99_000, 0.5),
            task=task,
        ),
        Evidence(
            variant=OTHER,
            sha256=OTHER_SHA,
            measured=False,
            reason="The engine is for sm86, and this machine has sm90; run it on such a GPU.",
        ),
    )


def outline() -> Outline:
    """A residual network of forty nodes, of which surgery took some and bypassed one."""
    operators = ["Conv", "Relu", "Conv", "Add"] * 10
    nodes = [
        OutlineNode(name=f"/stage.{at // 4}/layer.{at % 4}/{op}", operator=op, state="kept")
        for at, op in enumerate(operators)
    ]
    for at, state in ((7, "changed"), (21, "removed"), (22, "removed"), (23, "added")):
        nodes[at] = dataclasses.replace(nodes[at], state=state)
    chain = {(at, at + 1) for at in range(39)} | {(at, at + 4) for at in range(3, 36, 4)}
    cut = {(20, 21), (21, 22), (22, 23)}
    return Outline(
        nodes=tuple(nodes),
        kept=tuple(sorted(chain - cut)),
        removed=tuple(sorted(cut)),
        added=((20, 23),),
        beyond={"kept": 1200, "removed": 3},
    )


def shown(*, many: int = 0) -> Manifest:
    """All of it, and as many variants more as asked for."""
    base = manifest()
    axis = Axis("N", min=1, opt=8, max=64)
    clean = dataclasses.replace(
        base.graphs[0], sha256=CLEAN_SHA, parent_sha256=RAW_SHA, axes=(axis,)
    )
    more = {f"onnxruntime-cpu-{at:03d}/fp32": 0.2 + at / 1000 for at in range(many)}
    entries = evidence()
    extra = tuple(
        dataclasses.replace(entries[2 if at % 7 else 3], variant=name)
        for at, name in enumerate(more)
    )
    surgery = dataclasses.replace(
        base.surgery,
        edits={"bypass": 1, "drop_identities": 0, "fold_constants": 2, "drop_unused": 0},
        nodes_before=1243,
        nodes_after=1238,
        operators_before={"Conv": 21, "Relu": 11, "Add": 10},
        operators_after={"Conv": 20, "Relu": 10, "Add": 10},
        max_abs_error=4e-7,
        outline=outline(),
    )
    return dataclasses.replace(
        base,
        package_version="0.1.0",
        source_model="m-1f0c",
        graphs=(clean, converted(clean)),
        engines=(built(clean, "sm90", ENGINE_SHA), built(clean, "sm86", OTHER_SHA)),
        surgery=surgery,
        evidence=(*entries, *extra),
        latency={
            label: timed(items, TIMES | more)
            for label, items in (("min", 1), ("opt", 8), ("max", 64))
        },
        environment={"python": "3.11.9", "machine": "x86_64", "gpu": "NVIDIA H100 80GB HBM3"},
    )


def converted(clean: OnnxArtifact) -> OnnxArtifact:
    return dataclasses.replace(
        clean,
        path=Path("model-fp16.onnx"),
        sha256=HALF_SHA,
        parent_sha256=CLEAN_SHA,
        stage="convert",
        precision="fp16",
    )


def built(clean: OnnxArtifact, capability: str, sha256: str) -> EngineArtifact:
    return EngineArtifact(
        path=Path(f"engines/tensorrt_rtx-{capability}-fp16.engine"),
        sha256=sha256,
        parent_sha256=HALF_SHA,
        target=Target(backend="tensorrt_rtx", compute_capability=capability),
        backend_version="1.6.1.120",
        precision="fp16",
        tf32=False,
        inputs=clean.inputs,
        outputs=clean.outputs,
        axes=clean.axes,
        build_s=12.4,
        size_bytes=4_210_000,
    )


REJECTED = Decision(
    verdicts=(
        Verdict(metric="task/accuracy/drop", found=0.0, wanted="at most 0.01", passed=True),
        Verdict(metric="latency/ratio", found=0.53, wanted="at most 1", passed=True),
        Verdict(metric="parity/failed", found=1.0, wanted="at most 0", passed=False),
        Verdict(
            metric="latency/p99_ms",
            found=0.61,
            wanted="at most 0.5",
            passed=False,
            severity="warn",
            scope="fp16 at 8",
            source=f"{HALF} at 8 on NVIDIA H100 80GB HBM3",
        ),
        Verdict(
            metric="evidence/unmeasured",
            found=1.0,
            wanted="at most 0",
            passed=False,
            reason=f"nobody measured {OTHER} on a GPU of its target",
        ),
    ),
    excluded=(OTHER,),
)
