"""Judging variants: what is measured, what is not, and which step lost the accuracy."""

from __future__ import annotations

import itertools
import os
import signal
from contextlib import contextmanager
from functools import partial

import numpy as np
import pytest
import torch
from small_models import AXES, N, RoundedAway, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Target, TensorSpec
from mlflow_e2eai.bundle.manifest import read
from mlflow_e2eai.evaluation import variants as evaluation_variants
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.stage import lost_at
from mlflow_e2eai.evaluation.variants import open_variant, variants_of
from mlflow_e2eai.parity.report import Finding, ParityReport


def saved(module, place, **options):
    mlflow_e2eai.save_model(
        module, place, input_example={"x": features()}, dynamic_axes=AXES, **options
    )
    return {entry.variant: entry for entry in read(place / "bundle").evidence}


def test_the_step_that_lost_the_accuracy_is_named(tmp_path):
    evidence = saved(RoundedAway().eval(), tmp_path / "model")
    assert evidence["onnxruntime-cpu/fp32"].passed
    assert evidence["onnxruntime-cpu/fp32"].lost_at is None
    assert not evidence["onnxruntime-cpu/fp16"].passed
    assert evidence["onnxruntime-cpu/fp16"].lost_at == "convert fp16"


def graph(stage, sha256, parent, precision="fp32"):
    return OnnxArtifact(
        path=None,
        sha256=sha256,
        parent_sha256=parent,
        stage=stage,
        precision=precision,
        opset=18,
        inputs=(TensorSpec(name="x", dtype="float32", shape=("N", 8)),),
        outputs=(),
        axes=(N,),
    )


def engine(parent, precision="fp32"):
    return EngineArtifact(
        path=None,
        sha256=f"engine of {parent}",
        parent_sha256=parent,
        target=Target(backend="tensorrt_rtx", compute_capability="sm90"),
        backend_version="1",
        precision=precision,
        tf32=False,
        inputs=(),
        outputs=(),
        axes=(),
        build_s=0,
        size_bytes=0,
    )


GRAPHS = [graph("clean", "clean", "raw"), graph("convert", "half", "clean", "fp16")]
RAW = graph("export", "raw", None)

TORCH, EXPORTED, CLEAN, HALF = (
    "torch/fp32",
    "onnxruntime-cpu/raw",
    "onnxruntime-cpu/fp32",
    "onnxruntime-cpu/fp16",
)
ENGINE, CUDA = "tensorrt_rtx-sm90/fp16", "onnxruntime-cuda/fp16"


@pytest.fixture
def both_devices(monkeypatch):
    monkeypatch.setattr(evaluation_variants, "onnxruntime_devices", lambda: ("cuda", "cpu"))


def report(*, passed):
    finding = Finding(kind="tolerance", sentence="It is wrong.")
    return ParityReport(
        outputs=(), findings=() if passed else (finding,), samples=1, repeats=1, tolerance=0.1
    )


def evidence_of(variants, passed, not_measured):
    return {
        name: Evidence(
            variant=name,
            sha256=name,
            measured=name not in not_measured,
            parity={"profile": report(passed=name in passed)},
        )
        for name in (TORCH, *variants)
    }


@pytest.mark.parametrize(
    ("failed", "passed", "not_measured", "step"),
    [
        (ENGINE, {HALF, CLEAN, EXPORTED}, {}, "compile fp16 tensorrt_rtx-sm90"),
        (ENGINE, {CLEAN, EXPORTED}, {}, "convert fp16"),
        (ENGINE, {EXPORTED}, {}, "clean"),
        (ENGINE, {}, {}, "export"),
        (ENGINE, {CLEAN, EXPORTED}, {HALF}, "convert fp16 or compile fp16 tensorrt_rtx-sm90"),
        (CUDA, {HALF, CLEAN, EXPORTED}, {}, "run on onnxruntime-cuda"),
        (CUDA, {CLEAN, EXPORTED}, {}, "convert fp16"),
        (CLEAN, {EXPORTED}, {}, "clean"),
        (CLEAN, {}, {}, "export"),
        (CLEAN, {}, {EXPORTED}, "export or clean"),
        (EXPORTED, {}, {}, "export"),
    ],
)
@pytest.mark.usefixtures("both_devices")
def test_blame_goes_back_to_the_first_step_whose_input_still_passed(
    failed, passed, not_measured, step
):
    variants = variants_of(GRAPHS, [engine("half", "fp16")], RAW)
    assert lost_at(failed, variants, evidence_of(variants, passed, not_measured)) == step


def test_without_the_exported_graph_export_and_clean_are_one_step():
    variants = variants_of(GRAPHS, [], None)
    assert lost_at(CLEAN, variants, evidence_of(variants, {}, {})) == "export or clean"


@pytest.mark.usefixtures("both_devices")
def test_each_variant_comes_after_the_one_that_it_was_made_of():
    variants = variants_of(GRAPHS, [engine("half", "fp16")], RAW)
    befores = {name: variant.before for name, variant in variants.items()}
    assert befores == {
        EXPORTED: TORCH,
        CLEAN: EXPORTED,
        HALF: CLEAN,
        "onnxruntime-cuda/fp32": CLEAN,
        CUDA: HALF,
        ENGINE: HALF,
    }
    seen = {TORCH}
    for name, before in befores.items():
        assert before in seen
        seen.add(name)


# A whole evaluation


@pytest.fixture(scope="module")
def whole(on_threads, tmp_path_factory):
    """The folder of a model, and what its evaluation found."""
    place = tmp_path_factory.mktemp("whole") / "model"
    return place, saved(net(), place)


def test_every_stage_is_held_against_the_one_before(whole):
    _, evidence = whole
    assert list(evidence) == [TORCH, EXPORTED, CLEAN, HALF]
    assert evidence[EXPORTED].before == TORCH
    for name, before in ((CLEAN, EXPORTED), (HALF, CLEAN)):
        assert evidence[name].before == before
        assert evidence[name].against_before.passed
    # Cleaning changes no number, rounding to fp16 does.
    assert evidence[CLEAN].against_before.max_abs_error == 0
    assert evidence[HALF].against_before.max_abs_error > 0


def test_what_export_and_clean_did_to_the_latency_can_be_told(whole):
    place, _ = whole
    for found in read(place / "bundle").latency.values():
        assert [entry.name for entry in found.variants] == [TORCH, EXPORTED, CLEAN, HALF]


def test_every_variant_says_what_its_start_costs_and_what_it_gives_to_many(whole):
    _, evidence = whole
    for name in (CLEAN, HALF):
        assert evidence[name].cold_start.first_call_ms > 0
        assert evidence[name].cold_start.peak_memory_bytes > 10e6
        assert [load.threads for load in evidence[name].loads.loads] == [1, 2, 4]
    assert evidence[EXPORTED].loads is None


# Native code that breaks down


_PLACES = itertools.count()
"""How many runners this process opened before: none, unless they are timed together."""


@contextmanager
def crashes(variant, graphs, engines, *, when):
    """The true runner, but fp16 ends its process where `when` says so."""
    calls, place = itertools.count(), next(_PLACES)
    with open_variant(variant, graphs, engines) as infer:

        def infer_or_crash(tensors):
            if variant == HALF and when(next(calls), len(tensors["x"]), place):
                os.kill(os.getpid(), signal.SIGSEGV)
            return infer(tensors)

        yield infer_or_crash


def at_the_largest_batch(call, items, place):
    return items == N.max


def while_it_is_timed(call, items, place):
    return place > 0 and call > 10


@pytest.mark.usefixtures("in_processes")
def test_a_crash_at_one_corner_is_a_result_that_says_where_and_another_variant_is_loaded(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(
        evaluation_variants, "open_variant", partial(crashes, when=at_the_largest_batch)
    )
    evidence = saved(net(), tmp_path / "model")
    assert evidence[HALF].measured
    assert not evidence[HALF].passed
    assert "crashed (SIGSEGV) on sample 4, x [16, 8]" in evidence[HALF].reason
    assert evidence[HALF].cold_start is not None
    assert evidence[CLEAN].passed
    assert mlflow_e2eai.load_model(tmp_path / "model").variant == CLEAN


@pytest.mark.usefixtures("in_processes")
def test_what_crashes_while_it_is_timed_is_left_out_and_the_others_are_timed(tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluation_variants, "open_variant", partial(crashes, when=while_it_is_timed)
    )
    evidence = saved(net(), tmp_path / "model")
    assert "crashed (SIGSEGV)" in evidence[HALF].reason
    assert evidence[HALF].parity["profile"].passed
    assert not evidence[HALF].passed
    last = list(read(tmp_path / "model" / "bundle").latency.values())[-1]
    assert [entry.name for entry in last.variants] == [TORCH, EXPORTED, CLEAN]


@contextmanager
def always_crashes(*_):
    def infer(_):
        os.kill(os.getpid(), signal.SIGSEGV)

    yield infer


@pytest.mark.slow
@pytest.mark.usefixtures("in_processes")
def test_where_everything_crashes_the_module_is_timed_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_variants, "open_variant", always_crashes)
    monkeypatch.setattr(evaluation_variants, "raw_runner", always_crashes)
    evidence = saved(net(), tmp_path / "model")
    assert all("SIGSEGV" in evidence[name].reason for name in (EXPORTED, CLEAN, HALF))
    for found in read(tmp_path / "model" / "bundle").latency.values():
        assert [entry.name for entry in found.variants] == [TORCH]


def test_a_last_call_below_the_profile_is_filled_up_and_the_filling_does_not_count(tmp_path):
    module = net()
    evidence = saved(
        module,
        tmp_path / "model",
        evaluation_data=labelled(module, items=17),
        precisions=("fp32",),
    )
    assert evidence["onnxruntime-cpu/fp32"].task["accuracy"] == 1


class Homogeneous(torch.nn.Module):
    """Of inputs at the end of float32's range it leaves next to nothing to be wrong about."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = torch.nn.Parameter(torch.randn(8, 3))

    def forward(self, x):
        return x @ self.weight


def test_an_answer_that_vanishes_with_its_input_is_no_failure_at_the_edge(tmp_path):
    evidence = saved(Homogeneous().eval(), tmp_path / "model")
    for name in (CLEAN, HALF):
        assert evidence[name].parity["edges"].samples == 2
        assert evidence[name].passed, evidence[name].findings


@contextmanager
def wrong_at_odd_sizes(variant, graphs, engines):
    """The true runner, but fp16 shifts what it gives for an odd number of items."""
    with open_variant(variant, graphs, engines) as infer:

        def infer_shifted(tensors):
            shift = variant == HALF and len(tensors["x"]) % 2 and len(tensors["x"]) > 1
            return {name: value + shift for name, value in infer(tensors).items()}

        yield infer_shifted


def test_what_is_wrong_only_between_the_corners_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_variants, "open_variant", wrong_at_odd_sizes)
    evidence = saved(net(), tmp_path / "model")
    half = evidence[HALF]
    assert "N=3" in half.sizes
    assert evidence[CLEAN].sizes == half.sizes
    assert half.parity["profile"].passed
    assert not half.parity["sizes"].passed
    assert any(sentence.endswith("(sizes between the corners)") for sentence in half.findings)


class MaskedMean(torch.nn.Module):
    """The mean of the rows that a mask has; it refuses a count above 4."""

    def forward(self, x, mask, count):
        torch._assert((count <= 4).all(), "the count is too large")
        weights = mask.to(x.dtype)[..., None]
        return (x * weights).sum(1) / weights.sum(1) * count


@contextmanager
def ignores_its_mask(variant, graphs, engines):
    """The true runner, but fp16 takes every row."""
    with open_variant(variant, graphs, engines) as infer:

        def infer_all(tensors):
            whole = np.ones_like(tensors["mask"])
            return infer({**tensors, "mask": whole} if variant == HALF else tensors)

        yield infer_all


def test_what_is_wrong_only_with_another_mask_has_failed_and_refused_values_are_listed(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation_variants, "open_variant", ignores_its_mask)
    example = {
        "x": features().reshape(2, 2, 8),
        "mask": np.ones((2, 2), bool),
        "count": np.full(2, 4)[:, None],
    }
    mlflow_e2eai.save_model(MaskedMean().eval(), tmp_path / "model", input_example=example)
    reference, *variants = read(tmp_path / "model" / "bundle").evidence
    evidence = {entry.variant: entry for entry in variants}
    assert "the count is too large" in reference.left_out["count: one more"]
    assert {"mask: some False", "count: one less", "fresh numbers"} <= set(evidence[HALF].values)
    assert evidence[CLEAN].values == evidence[HALF].values
    assert evidence[CLEAN].passed
    assert evidence[HALF].parity["profile"].passed
    assert not evidence[HALF].parity["values"].passed
    assert any("(other masks, integers and numbers)" in one for one in evidence[HALF].findings)


@contextmanager
def divides_by_zero(variant, graphs, engines):
    """The true runner, but fp32 answers nothing but zeros with NaN."""
    with open_variant(variant, graphs, engines) as infer:

        def infer_unguarded(tensors):
            answer = infer(tensors)
            if variant == CLEAN and not tensors["x"].any():
                answer = {name: np.full_like(value, np.nan) for name, value in answer.items()}
            return answer

        yield infer_unguarded


def test_what_is_wrong_only_at_an_edge_has_failed(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_variants, "open_variant", divides_by_zero)
    evidence = saved(net(), tmp_path / "model")
    assert evidence[CLEAN].parity["profile"].passed
    assert not evidence[CLEAN].parity["edges"].passed
    assert not evidence[CLEAN].passed
    assert evidence[CLEAN].lost_at == "clean"
    assert evidence[HALF].passed


class Overflows(torch.nn.Module):
    """Goes so far up between two steps, and down again; the largest feature is 2."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return torch.relu(x * self.factor) / self.factor


def test_an_overflow_that_the_cpu_hides_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.pipeline.stages.all_samples", lambda *_: ())  # nothing guards
    evidence = saved(Overflows(60000.0).eval(), tmp_path / "model")
    assert evidence[HALF].parity["profile"].passed
    assert not evidence[HALF].parity["rounded"].passed
    assert not evidence[HALF].passed
    assert evidence[CLEAN].passed
    assert "rounded" not in evidence[CLEAN].parity


def test_numbers_larger_than_any_known_are_shown_and_do_not_decide(tmp_path):
    evidence = saved(Overflows(5000.0).eval(), tmp_path / "model")
    assert not evidence[HALF].parity["large"].passed
    assert evidence[HALF].passed
    assert evidence[HALF].findings


@contextmanager
def answers_the_last_question(variant, graphs, engines):
    """The true runner, but fp16 gives what it gave before whenever it was asked before."""
    last = []
    with open_variant(variant, graphs, engines) as infer:

        def infer_late(tensors):
            answer = infer(tensors)
            last.append(answer)
            return last[-2] if variant == HALF and len(last) > 1 else answer

        yield infer_late


def test_an_answer_from_the_call_before_is_seen_even_where_there_is_only_one_shape(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(evaluation_variants, "open_variant", answers_the_last_question)
    mlflow_e2eai.save_model(net(), tmp_path / "model", input_example={"x": features()})
    evidence = {entry.variant: entry for entry in read(tmp_path / "model" / "bundle").evidence}
    assert evidence[CLEAN].passed
    assert "stale" in {finding.kind for finding in evidence[HALF].parity["profile"].findings}
