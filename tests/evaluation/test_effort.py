"""Levels of evidence: what each runs, and that none passes what another refuses."""

from __future__ import annotations

import dataclasses

import pytest
from small_manifest import full
from small_models import AXES, RoundedAway, features, net

import mlflow_e2eai
from mlflow_e2eai.bundle.manifest import read
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.effort import EFFORTS
from mlflow_e2eai.report.page import html

CPU, HALF, RAW = "onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16", "onnxruntime-cpu/raw"


def saved(module, place, level):
    mlflow_e2eai.save_model(
        module,
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        batch_sizes=[3],
        evidence=level,
    )
    return read(place / "bundle")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    place = tmp_path_factory.mktemp("levels")
    return {level: saved(net(), place / level, level) for level in EFFORTS}


@pytest.mark.parametrize(
    ("level", "sizes", "calls", "threads", "loads"),
    [
        ("quick", {"opt", "N=3"}, 2, 1, False),
        ("standard", {"opt", "min", "max", "N=3"}, 10, 2, True),
        ("thorough", {"opt", "min", "max", "N=3"}, 40, 4, True),
    ],
)
def test_each_level_runs_what_it_says(bundles, level, sizes, calls, threads, loads):
    manifest = bundles[level]
    evidence = {entry.variant: entry for entry in manifest.evidence}
    profile = evidence[CPU].parity["profile"]

    assert manifest.level == level
    assert set(manifest.latency) == sizes
    # Samples with other numbers stand next to the example, and share its calls.
    assert (profile.repeats, profile.threads) == (max(2, calls // 2), threads)
    assert (evidence[CPU].loads is not None) is loads
    assert (RAW in evidence) is (level != "quick")
    assert all(entry.passed for entry in evidence.values())


def test_the_kinds_of_comparison_are_the_same_at_every_level(bundles):
    kinds = [
        {entry.variant: set(entry.parity) for entry in bundles[level].evidence if entry.sha256}
        for level in EFFORTS
    ]
    quick, standard, thorough = kinds
    assert standard == thorough
    assert quick == {name: standard[name] for name in quick}
    assert {"profile", "sizes", "edges"} <= quick[CPU]


@pytest.mark.parametrize("level", EFFORTS)
def test_numbers_that_are_wrong_fail_at_every_level(level, tmp_path):
    evidence = {
        entry.variant: entry.passed
        for entry in saved(RoundedAway().eval(), tmp_path / "model", level).evidence
    }
    assert evidence[CPU]
    assert not evidence[HALF]


def test_a_level_that_does_not_exist_is_refused_before_anything_is_made(tmp_path):
    with pytest.raises(InvalidInputError) as caught:
        saved(net(), tmp_path / "model", "fast")
    assert str(caught.value) == "evidence: must be one of quick, standard, thorough, got 'fast'."
    assert list(tmp_path.iterdir()) == []


def test_quick_evidence_is_a_doubt_on_the_first_screen():
    sentence = "The evidence is quick: each variant ran a few times, from one caller"
    assert sentence in html(dataclasses.replace(full(), level="quick"))
    assert sentence not in html(dataclasses.replace(full(), level="standard"))
    assert sentence not in html(full())
