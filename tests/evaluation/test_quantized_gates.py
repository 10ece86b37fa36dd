"""A quantised variant goes into the bundle only where it was measured to be worth it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import mlflow
import numpy as np
import pytest
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.evaluation.quantized_gates import QUANTIZED_GATES, decide_quantized, is_retained
from mlflow_e2eai.latency.report import Latency, LatencyFinding, LatencyReport
from mlflow_e2eai.parity.comparison import compare
from mlflow_e2eai.pipeline import variant_stages
from mlflow_e2eai.report.page import html

pytestmark = pytest.mark.usefixtures("on_threads")

RIGHT = {"y": np.ones((2, 3), np.float32)}


def parity(error=0.0):
    wrong = {"y": RIGHT["y"] + np.float32(error)}
    return compare(lambda _: RIGHT, lambda _: wrong, [{}], repeats=1, precision="int8")


def graph(precision, size, folder):
    path = folder / f"{precision}.onnx"
    path.write_bytes(b"x" * size)
    return OnnxArtifact(
        path=path,
        sha256=precision,
        parent_sha256=None if precision == "fp32" else "fp32",
        stage="convert",
        precision=precision,
        opset=18,
        inputs=(),
        outputs=(),
        axes=(),
    )


def engine(precision, size):
    return EngineArtifact(
        path=Path(f"{precision}.engine"),
        sha256=f"{precision}-engine",
        parent_sha256=precision,
        target=Target(backend="tensorrt_rtx", compute_capability="sm86"),
        backend_version="1",
        precision=precision,
        tf32=False,
        inputs=(),
        outputs=(),
        axes=(),
        build_s=1.0,
        size_bytes=size,
    )


def measured(variant, sha256, *, error=0.0, accuracy=1.0):
    return Evidence(
        variant=variant,
        sha256=sha256,
        measured=True,
        parity={"profile": parity(error)},
        task={"accuracy": accuracy},
    )


def latency(**times_ms):
    rng = np.random.default_rng(0)
    names = {"fp32": "cpu/fp32", "fp16": "cpu/fp16", "int8": "cpu/int8"}
    figures = ("p50_ms", "p90_ms", "p95_ms", "p99_ms", "mean_ms", "std_ms")
    variants = tuple(
        Latency(
            name=names[name],
            throughput_items_per_s=1e3 / time,
            rounds_ms=tuple(time * (1 + 0.01 * rng.standard_normal(40))),
            **dict.fromkeys(figures, time),
        )
        for name, time in times_ms.items()
    )
    return {"opt": LatencyReport(items=1, warmup=1, variants=variants)}


def entry_of(folder, *, sizes=(100, 100), times=(1.0, 1.0), **found):
    graphs = [graph("fp32", sizes[0], folder), graph("int8", sizes[1], folder)]
    evidence = [
        measured("torch/fp32", None),
        measured("cpu/fp32", "fp32"),
        measured("cpu/int8", "int8", **found),
    ]
    report = latency(fp32=times[0], int8=times[1])
    return decide_quantized(evidence, report, graphs, QUANTIZED_GATES)[-1]


def test_a_time_of_a_busy_machine_is_no_gain(tmp_path):
    quick = latency(fp32=1.0, int8=0.1)
    busy = LatencyFinding(kind="busy", variant="cpu/fp32", sentence="It waited.")
    noisy = {"opt": dataclasses.replace(quick["opt"], findings=(busy,))}
    graphs = [graph("fp32", 100, tmp_path), graph("int8", 100, tmp_path)]
    evidence = [
        measured("torch/fp32", None),
        measured("cpu/fp32", "fp32"),
        measured("cpu/int8", "int8"),
    ]

    for report, kept in ((quick, True), (noisy, False)):
        worth = decide_quantized(evidence, report, graphs, QUANTIZED_GATES)[-1].worth
        assert worth.retained is kept
        assert ("quantized/latency_ratio" in worth.metrics) is kept


@pytest.mark.parametrize(
    ("found", "kept"),
    [
        ({}, False),
        ({"sizes": (100, 90)}, True),
        ({"sizes": (100, 91)}, False),
        ({"times": (1.0, 0.5)}, True),
        ({"times": (1.0, 0.97)}, False),
        ({"sizes": (100, 30), "times": (1.0, 5.0)}, True),
        ({"sizes": (100, 30), "accuracy": 0.985}, False),
        ({"sizes": (100, 30), "accuracy": 0.995}, True),
        ({"sizes": (100, 30), "error": 0.5}, False),
    ],
)
def test_it_must_be_smaller_or_faster_by_the_margin_and_accurate(found, kept, tmp_path):
    entry = entry_of(tmp_path, **found)
    assert entry.worth.retained is kept
    assert entry.rejected is not kept
    assert bool(entry.worth.decision.reasons) is not kept


def test_it_is_held_against_the_best_of_the_others(tmp_path):
    graphs = [graph(name, size, tmp_path) for name, size in (("fp32", 100), ("fp16", 50))]
    graphs.append(graph("int8", 48, tmp_path))
    evidence = [measured("torch/fp32", None)]
    evidence += [measured(f"cpu/{one.precision}", one.sha256) for one in graphs]
    found = decide_quantized(evidence, {}, graphs, QUANTIZED_GATES)
    assert [entry.worth is None for entry in found] == [True, True, True, False]
    assert found[-1].worth.metrics["quantized/size_ratio"] == 0.96
    assert "quantized/latency_ratio" not in found[-1].worth.metrics
    assert not found[-1].worth.retained


def test_its_time_is_at_best_what_the_interval_admits_against_the_best_of_the_others(tmp_path):
    graphs = [graph(name, 100, tmp_path) for name in ("fp32", "fp16", "int8")]
    evidence = [measured("torch/fp32", None)]
    evidence += [measured(f"cpu/{one.precision}", one.sha256) for one in graphs]
    report = latency(fp32=2.0, fp16=1.0, int8=0.9)
    found = decide_quantized(evidence, report, graphs, QUANTIZED_GATES)[-1].worth.metrics

    ratio = report["opt"].ratio("cpu/int8", "cpu/fp16")
    assert ratio.low < ratio.value < ratio.high
    assert found["quantized/latency_ratio"] == found["quantized/gain_ratio"] == ratio.high


def test_its_accuracy_is_compared_with_the_modules(tmp_path):
    found = entry_of(tmp_path, sizes=(100, 30), accuracy=0.995).worth.metrics

    assert found["quantized/task_drop"] == pytest.approx(0.005)


@pytest.mark.parametrize(("error", "kept"), [(0.0, True), (0.5, False)])
def test_an_engine_that_cannot_run_here_is_as_accurate_as_its_graph(error, kept, tmp_path):
    files = [graph("fp32", 100, tmp_path), graph("int8", 99, tmp_path)]
    files += [engine("fp32", 100), engine("int8", 40)]
    away = {"measured": False, "reason": "no GPU"}
    evidence = [
        measured("torch/fp32", None),
        measured("cpu/fp32", "fp32"),
        measured("cpu/int8", "int8", error=error),
        Evidence(variant="rtx-sm86/fp32", sha256="fp32-engine", **away),
        Evidence(variant="rtx-sm86/int8", sha256="int8-engine", **away),
    ]
    found = decide_quantized(evidence, {}, files, QUANTIZED_GATES)
    assert found[-1].worth.retained is kept
    assert [is_retained(file, found) for file in files] == [True, False, True, kept]


def test_a_variant_with_nothing_beside_it_is_not_decided_on(tmp_path):
    alone = [measured("torch/fp32", None), measured("cpu/int8", "int8")]
    found = decide_quantized(alone, {}, [graph("int8", 10, tmp_path)], QUANTIZED_GATES)
    assert found == alone
    assert is_retained(graph("int8", 10, tmp_path), found)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_without_evaluation_data_it_is_refused_before_anything_is_made(precision, tmp_path):
    with pytest.raises(InvalidInputError, match=f"{precision} is calibrated on evaluation data"):
        mlflow_e2eai.save_model(
            net(), tmp_path / "m", input_example={"x": features()}, precisions=("fp32", precision)
        )
    assert not (tmp_path / "m").exists()


def test_a_rejected_variant_is_not_in_the_bundle_and_its_evidence_is(tmp_path, monkeypatch):
    strict = [Gate(metric="quantized/gain_ratio", bound="at_most", limit=0.0)]
    monkeypatch.setattr(variant_stages, "QUANTIZED_GATES", strict)
    module = net()
    mlflow_e2eai.save_model(
        module,
        tmp_path / "m",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32", "int8"),
        evaluation_data=labelled(module),
    )
    manifest = bundle.read(tmp_path / "m" / "bundle")
    assert [one.precision for one in manifest.graphs] == ["fp32"]
    (entry,) = [one for one in manifest.evidence if one.variant == "onnxruntime-cpu/int8"]
    assert entry.measured
    assert entry.rejected
    assert entry.worth.metrics["quantized/gain_ratio"] > 0
    (report,) = [one for one in manifest.conversions if one.precision == "int8"]
    assert (report.calibration.calibrator, report.calibration.samples) == ("mse", 4)
    with pytest.raises(InvalidInputError, match="no variant 'onnxruntime-cpu/int8'"):
        mlflow_e2eai.load_model(tmp_path / "m", variant="onnxruntime-cpu/int8")
    page = html(manifest)
    assert "Rejected: quantized/gain_ratio" in page


def test_what_tensorrt_cannot_build_is_said_and_the_rest_is_made(tmp_path):
    pytest.importorskip("tensorrt_rtx")
    module = net()
    mlflow_e2eai.save_model(
        module,
        tmp_path / "m",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32", "fp8"),
        targets=("sm86", "sm89"),
        evaluation_data=labelled(module),
    )
    manifest = bundle.read(tmp_path / "m" / "bundle")
    found = {entry.variant: entry for entry in manifest.evidence}
    assert found["tensorrt_rtx-sm86/fp8"].reason.startswith("sm86 does not support fp8")
    assert not found["tensorrt_rtx-sm86/fp8"].measured
    assert found["tensorrt_rtx-sm89/fp8"].worth is not None
    held = [(e.precision, e.target.compute_capability) for e in manifest.engines]
    assert ("fp32", "sm86") in held
    assert ("fp8", "sm86") not in held
    assert "sm86 does not support fp8" in html(manifest)


def test_digits_in_int8_are_logged_kept_and_as_accurate(store, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))
    digits = pytest.importorskip("digits")
    made = digits.build(epochs=4)
    info = mlflow_e2eai.log_model(
        made.pop("model"), "digits", precisions=("fp32", "fp16", "int8"), **made
    )
    images, labels = made["evaluation_data"]
    with mlflow_e2eai.load_model(info.model_uri, variant="onnxruntime-cpu/int8") as model:
        (logits,) = model(images["x"][:64]).values()
        (entry,) = [one for one in model.manifest.evidence if one.variant == model.variant]
    accuracy = float(np.mean(logits.argmax(1) == labels[:64]))
    assert accuracy > 0.9
    assert entry.worth.metrics["quantized/size_ratio"] < 0.7
    assert entry.worth.metrics["quantized/task_drop"] <= 0.01
    runs = mlflow.search_runs(
        filter_string="tags.`e2eai.variant` = 'onnxruntime-cpu/int8'", output_format="list"
    )
    (run,) = runs
    assert run.data.tags["e2eai.worth"] == "kept"
    assert run.data.metrics["quantized/size_ratio"] == entry.worth.metrics["quantized/size_ratio"]
