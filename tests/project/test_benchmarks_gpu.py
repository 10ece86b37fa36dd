"""The benchmark on a GPU: its tables, goals and verdicts on made-up figures, and no GPU at all."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_models import AXES, features, net

from mlflow_e2eai import bundle, load_model, save_model
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.artifacts.machine import has_gpu
from mlflow_e2eai.evaluation.variants import TORCH
from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.latency.report import Latency, LatencyReport

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def pages(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("gpu_page")


@pytest.fixture
def program(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # which a run changes; it comes back after the test
    return importlib.import_module("gpu")


def ratio(value, spread=0.001):
    return Ratio(value=value, low=value - spread, high=value + spread)


def cell_of(pages, *, ratios=None, wrong=(), at_bucket=True):
    """All ways at 1 ms, but eager PyTorch at 3 and ONNX Runtime at 2."""
    times = {pages.EAGER: 3.0, pages.ORT: 2.0}
    ways = [
        pages.Way(
            name=name,
            first_ms=7.0,
            p50_ms=None if name in wrong else times.get(name, 1.0),
            asked=40,
            wrong=38 if name in wrong else 0,
            worst=1e21 if name in wrong else 1e-4,
        )
        for name in (*pages.DEVICE, *pages.HOST)
    ]
    pairs = [
        pages.Pair(way=way, against=against, ratio=found, extra_us=30.0)
        for (way, against), found in (ratios or {}).items()
    ]
    return pages.Cell(
        model="ResNet-50",
        precision="fp16",
        batch=8 if at_bucket else 20,
        at_bucket=at_bucket,
        ways=tuple(ways),
        pairs=tuple(pairs),
    )


def results_of(pages, *cells):
    return pages.Results(
        command="python benchmarks/gpu.py",
        machine="A GPU, driver 1.2",
        versions={"torch": "2.11"},
        seconds=90.0,
        cells=cells,
    )


def verdict_of(pages, number, cell):
    return pages.judged(pages.GOALS[number], cell)


def test_a_goal_holds_where_the_whole_interval_is_below_the_limit(pages):
    cell = cell_of(pages, ratios={(pages.OURS, pages.GRAPH): ratio(1.01)})
    assert verdict_of(pages, 0, cell).holds is True


def test_a_goal_that_is_not_reached_says_by_how_much(pages):
    cell = cell_of(pages, ratios={(pages.OURS, pages.GRAPH): ratio(1.122)})
    verdict = verdict_of(pages, 0, cell)
    assert verdict.holds is False
    assert "falls short by 10.0 %, +30 µs a call" in verdict.says


def test_a_goal_in_the_middle_of_the_interval_is_not_decided(pages):
    cell = cell_of(pages, ratios={(pages.OURS, pages.GRAPH): ratio(1.01, spread=0.05)})
    verdict = verdict_of(pages, 0, cell)
    assert verdict.holds is None
    assert "not decided" in verdict.says


def test_a_wrong_way_is_in_no_ratio(pages):
    ratios = {(pages.OURS, pages.GRAPH): ratio(1.0)}
    for wrong in (pages.OURS, pages.GRAPH):
        verdict = verdict_of(pages, 0, cell_of(pages, ratios=ratios, wrong=(wrong,)))
        assert verdict.holds is None
        assert verdict.says == f"{wrong}: 38 of 40 answers wrong"


def test_what_is_chosen_is_held_against_the_fastest_peer_that_is_right(pages):
    ratios = {(pages.CHOSEN, peer): ratio(1.0) for peer in pages.PEERS}
    assert verdict_of(pages, 2, cell_of(pages, ratios=ratios)).against == pages.COMPILED
    wrong = cell_of(pages, ratios=ratios, wrong=(pages.COMPILED,))
    assert verdict_of(pages, 2, wrong).against == pages.ORT


def test_torch_compile_is_to_be_beaten_at_a_bucket_and_met_between(pages):
    ratios = {(pages.OURS, pages.COMPILED): ratio(0.95)}
    at, between = pages.GOALS[3], pages.GOALS[4]
    bucket, other = (cell_of(pages, ratios=ratios, at_bucket=is_one) for is_one in (True, False))
    assert [at.is_about(bucket), at.is_about(other)] == [True, False]
    assert [between.is_about(bucket), between.is_about(other)] == [False, True]
    assert pages.judged(at, bucket).holds is False
    assert pages.judged(between, other).holds is True


def test_the_section_shows_times_wrong_answers_and_what_was_not_measured(pages):
    wrong = cell_of(pages, wrong=(pages.OURS,))
    late = dataclasses.replace(cell_of(pages), batch=32, reason="not measured, the time was up")
    text = pages.section(results_of(pages, wrong, late))
    assert "| way | batch 8 | batch 32 |" in text
    assert f"| {pages.EAGER} | 3.000 (7) | not measured, the time was up |" in text
    assert f"| {pages.OURS} | **wrong**, 38 of 40, by up to 1.0e+21 |" in text
    assert "holds in 0 of 1 cells, does not in 0." in text


def test_figures_come_back_from_their_file_as_they_were(pages):
    cell = cell_of(pages, ratios={(pages.OURS, pages.GRAPH): Ratio(value=1, low=0, high=np.inf)})
    results = results_of(pages, cell)
    assert from_json(pages.Results, to_json(results)) == results


def latency(name, ms):
    return Latency(
        name=name,
        p50_ms=ms,
        p90_ms=ms,
        p95_ms=ms,
        p99_ms=ms,
        mean_ms=ms,
        std_ms=0.0,
        throughput_items_per_s=1.0,
        rounds_ms=(ms,) * 40,
    )


def test_a_cell_gets_its_ratios_from_rounds_and_none_of_a_way_found_wrong_later(pages, program):
    names = (pages.OURS, pages.GRAPH, pages.COMPILED)
    report = LatencyReport(
        items=8,
        warmup=0,
        variants=tuple(latency(name, ms) for name, ms in zip(names, (3.0, 2.0, 6.0), strict=True)),
    )
    ways = {name: pages.Way(name=name, asked=80, first_ms=1.0) for name in names}
    empty = pages.Cell(model="m", precision="fp16", batch=8)
    cell = program.told(empty, ways, report)
    assert cell.pair(pages.OURS, pages.GRAPH).ratio.value == pytest.approx(1.5)
    assert cell.pair(pages.OURS, pages.GRAPH).extra_us == pytest.approx(1000)
    assert cell.way(pages.COMPILED).p50_ms == 6.0

    ways[pages.OURS] = dataclasses.replace(ways[pages.OURS], wrong=1)
    cell = program.told(empty, ways, report)
    assert cell.pairs == ()
    assert cell.way(pages.OURS).p50_ms is None


def test_when_the_time_is_up_the_cells_that_are_left_say_so(pages, program, tmp_path):
    results = program.run(program.CELLS, -1.0, tmp_path / "gpu.json")
    assert {cell.reason for cell in results.cells} == {"not measured, the time was up"}
    assert len(results.cells) == 14
    assert from_json(pages.Results, (tmp_path / "gpu.json").read_text()) == results


def test_what_fails_is_told_and_the_others_go_on(program, tmp_path, monkeypatch):
    tries = []

    def fails(model, *_):
        tries.append(model)
        return f"not saved, {model} is too large"

    monkeypatch.setattr(program, "saved", fails)
    results = program.run(program.CELLS, 1.0, tmp_path / "gpu.json")
    assert tries == list(program.MODELS)
    assert {cell.reason for cell in results.cells} == {
        "not saved, ResNet-50 is too large",
        "not saved, BERT-base is too large",
    }


def test_a_new_model_is_begun_only_where_the_time_for_its_saving_is_left(
    program, tmp_path, monkeypatch
):
    """It takes 100 s to save a model and 10 s for a cell, and of 250 s 10 are left for a cell."""
    now = [0.0]

    def takes(seconds, result):
        def run(*_):
            now[0] += seconds
            return result

        return run

    monkeypatch.setattr(program.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(program, "saved", takes(100, object()))
    monkeypatch.setattr(
        program, "measured", takes(10, program.Cell(model="", precision="", batch=1))
    )
    cells = [(name, "fp16", 1) for name in ("a", "a", "a", "b", "c", "b")]
    results = program.run(cells, 250 / 60, tmp_path / "gpu.json")
    assert [bool(cell.reason) for cell in results.cells] == [False] * 4 + [True, False]


def test_figures_taken_elsewhere_are_written_to_the_page(pages, program, tmp_path, monkeypatch):
    page = tmp_path / "BENCHMARKS.md"
    page.write_text("<!-- cpu.py -->\n\n## What it costs\n\nMuch.\n")
    monkeypatch.setattr(program.page, "PAGE", page)
    (tmp_path / "gpu.json").write_text(to_json(results_of(pages, cell_of(pages))))
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--write", str(tmp_path / "gpu.json")])
    program.main()
    text = page.read_text()
    assert "<!-- gpu.py -->\n\n## Engines on a GPU\n\nMachine: A GPU, driver 1.2.\n" in text
    assert "## What it costs\n\nMuch." in text


@pytest.mark.skipif(has_gpu(), reason="on a GPU there is more to judge")
def test_what_is_built_for_it_is_not_judged_on_the_cpu(program, tmp_path):
    made = importlib.import_module("gpu_made")
    with made.on_this_gpu():
        save_model(net(), tmp_path / "model", input_example=features(), dynamic_axes=AXES)
    manifest = bundle.read(bundle.find(tmp_path / "model"))
    assert [entry.variant for entry in manifest.evidence] == [TORCH]
    with load_model(str(tmp_path / "model"), variant="onnxruntime-cpu/fp16") as model:
        assert model(features())["output"].shape == (4, 3)


@pytest.mark.skipif(has_gpu(), reason="it would measure for minutes here")
def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path):
    command = [sys.executable, BENCHMARKS / "gpu.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "benchmarks/gpu.py needs an NVIDIA GPU, and there is none; run it where one is.\n"
    )
    assert list(tmp_path.iterdir()) == []
