"""What the HTML page says."""

import dataclasses
import math
import shlex
import subprocess
from pathlib import Path

import pytest
from parsed_page import Page
from small_manifest import (
    CPU,
    ENGINE,
    HALF,
    ORIGIN,
    PROMOTED,
    REJECTED,
    TORCH,
    compared,
    full,
    manifest,
    measured,
    timed,
)

from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.evaluation.gates import Decision
from mlflow_e2eai.latency.report import (
    ColdStart,
    LatencyFinding,
    LatencyReport,
    Load,
    Throughput,
)
from mlflow_e2eai.parity.report import Finding
from mlflow_e2eai.report.facts import median_interval
from mlflow_e2eai.report.formats import NONE, TIMES
from mlflow_e2eai.report.page import html, surgery_html

# What it says


@pytest.mark.parametrize(
    ("decision", "sentence"),
    [
        (None, "Not decided yet Not evaluated against any gates yet. Of 3 variants, 1 passed"),
        (PROMOTED, "Promoted The only gate passed."),
        (REJECTED, "Rejected 3 of 4 gates did not pass."),
        (Decision(verdicts=()), "Rejected There are no gates, and nothing is promoted without any"),
    ],
)
def test_the_decision_comes_first(decision, sentence):
    assert (
        Page(html(full(), decision))
        .text("title")
        .startswith(f"To the evidence Model report {sentence}")
    )


def test_each_gate_is_shown_and_those_that_did_not_pass_come_first():
    text = Page(html(full(), REJECTED)).text()

    for line in (
        "parity/failed failed 1 at most 0",
        "champion/latency_ratio failed NaN (not comparable) at most 1",
        "parity/measured failed not measured at least 1",
        "task/drop passed 0 at most 0.01",
    ):
        assert line in text
    assert text.index("parity/failed") < text.index("task/drop")


def test_each_variant_has_its_numbers_and_what_it_came_to():
    text = Page(html(full())).text()

    dash = "\N{EN DASH}"
    assert f"torch/fp32 reference 4.00 {dash} 0 0.9750" in text
    assert (
        "onnxruntime-cpu/fp32 passed 8.00 2.00 \N{MULTIPLICATION SIGN} 2.00 to 2.00 1.0e-06 0.9750"
        in text
    )
    assert "3.00 \N{MULTIPLICATION SIGN} 3.00 to 3.00 5.0e-01 0.1000" in text
    assert f"tensorrt_rtx-sm86/fp32 built, not measured here {dash} {dash} {dash} {dash}" in text


def test_a_ratio_whose_interval_holds_1_is_within_the_noise():
    rounds = [1.0, 1.2, 0.9, 1.1] * 10
    latency = {"opt": timed({"torch/fp32": rounds, CPU.variant: rounds[1:] + rounds[:1]})}

    assert ", within the noise" in Page(html(manifest(TORCH, CPU, latency=latency))).text()
    assert ", within the noise" not in Page(html(full())).text()


BUSY = "other processes used the processor: too noisy to tell"


def first_screen(page: Page) -> str:
    """All before the links to the sections, of which that of the variants is the first."""
    return page.text("title").partition(" Variants ")[0]


def busy_page(*names: str | None) -> Page:
    """The page of a bundle whose fp16 is the fastest, with these callables timed while busy."""
    half = dataclasses.replace(HALF, parity=CPU.parity)
    times = {TORCH.variant: 188.0, CPU.variant: 0.2, half.variant: 0.1}
    report = timed({name: [time, 1.1 * time] * 20 for name, time in times.items()})
    findings = tuple(
        LatencyFinding(kind="busy", variant=name, sentence="It got 12% of the processor.")
        for name in names
    )
    latency = {"opt": dataclasses.replace(report, findings=findings)}
    return Page(html(manifest(TORCH, CPU, half, latency=latency)))


def test_a_reference_on_a_busy_machine_is_a_doubt_on_the_first_screen_and_gives_no_ratio():
    page = busy_page(TORCH.variant)
    first, text = first_screen(page), page.text()

    assert f"Latency of 1 variant: {BUSY} ( findings )." in first
    assert "Speed against torch/fp32 too noisy to tell time: the machine was busy" in first
    assert "\N{MULTIPLICATION SIGN}" not in first
    assert text.count("too noisy to tell the machine was busy") >= 2  # in each line
    assert "207 machine busy" in text
    assert "It got 12% of the processor. (opt, 8 items)" in text


def test_a_start_and_a_rate_of_a_busy_machine_are_doubts_on_the_first_screen():
    start = ColdStart(
        load_s=0.5,
        first_call_ms=3.0,
        second_call_ms=2.0,
        peak_memory_bytes=200_000_000,
        peak_memory_growth_bytes=0,
        cpu_share=0.4,
        busy=True,
    )
    loads = tuple(
        Load(threads=n, calls=9, seconds=1.0, items_per_s=5.0 * n, cpu_share=0.3, busy=n == 2)
        for n in (1, 2)
    )
    served = dataclasses.replace(CPU, cold_start=start, loads=Throughput(items=8, loads=loads))
    page = Page(html(manifest(TORCH, served)))
    first, text = first_screen(page), page.text()

    for what in ("Cold start", "Throughput"):
        assert f"{what} of 1 variant: {BUSY} ( findings )." in first
    assert "Cold start: the variant got 40% of the processor time" in text
    assert "Throughput of 2 callers: the variant got 30% of the processor time" in text
    assert "0.500 machine busy 3.00 machine busy" in text
    assert "8 5.00 10.0 machine busy" in text


@pytest.mark.parametrize("name", [CPU.variant, HALF.variant, None])
def test_no_variant_is_called_the_fastest_of_those_that_a_busy_machine_timed(name):
    first = first_screen(busy_page(name))

    assert "Fastest that passed too noisy to tell" in first
    assert " ms " not in first
    assert BUSY in first


def test_the_fastest_is_said_to_be_within_the_noise_of_the_next_where_it_is():
    half = dataclasses.replace(HALF, parity=CPU.parity)
    rounds = [1.0, 1.2, 0.9, 1.1] * 10
    alike = {CPU.variant: rounds, half.variant: [0.98, *rounds[2:], 0.98]}
    apart = {CPU.variant: rounds, half.variant: [0.5 * one for one in rounds]}
    first, other = (
        first_screen(Page(html(manifest(TORCH, CPU, half, latency={"opt": timed(times)}))))
        for times in (alike, apart)
    )

    assert f"{half.variant}, within the noise of {CPU.variant}" in first
    assert "within the noise" not in other


def test_a_sentence_of_several_variants_is_said_once_with_all_of_them():
    other = dataclasses.replace(ENGINE, variant="tensorrt_rtx-sm86/fp16")
    text = Page(html(manifest(TORCH, HALF, ENGINE, other))).text()

    assert text.count("There is no GPU.") == 1
    assert "tensorrt_rtx-sm86/fp32 tensorrt_rtx-sm86/fp16 There is no GPU." in text
    assert "Failures onnxruntime-cpu/fp16 Too far off." in text


def test_every_kind_of_sample_and_output_has_its_line():
    text = Page(html(manifest(TORCH, CPU))).text()

    assert "corners of the profile 1 \N{MULTIPLICATION SIGN} 1 runs y passed 2.5e-07" in text
    assert "evaluation data 1 \N{MULTIPLICATION SIGN} 1 runs y passed 1.0e-06" in text


def test_a_comparison_that_compared_nothing_says_so():
    nothing = dataclasses.replace(compared(0.0), outputs=())
    entry = dataclasses.replace(CPU, parity={"profile": nothing})

    assert "nothing could be compared" in Page(html(manifest(entry))).text()


def test_errors_that_are_no_numbers_are_said():
    odd = [
        dataclasses.replace(CPU, variant=f"v{at}/fp32", parity={"data": compared(error)})
        for at, error in enumerate((math.nan, math.inf, 0.0, 5e-324, 1e308))
    ]
    times = {"torch/fp32": 1.0, **{entry.variant: 1.0 for entry in odd}}
    text = Page(html(manifest(TORCH, *odd, latency={"opt": measured(times)}))).text()

    dash = "\N{EN DASH}"
    assert f"v0/fp32 passed 1.00 {dash} NaN" in text
    assert f"v1/fp32 passed 1.00 {dash} infinite" in text


@pytest.mark.parametrize("p50", [0.0, math.inf, math.nan, 1e-300])
def test_a_latency_that_has_no_logarithm_breaks_nothing(p50):
    entries = tuple(
        dataclasses.replace(entry, p50_ms=p50, mean_ms=p50, rounds_ms=rounds)
        for entry, rounds in zip(
            measured({"torch/fp32": 1.0, CPU.variant: 1.0}).variants, ((p50,) * 3, ()), strict=True
        )
    )
    report = LatencyReport(items=0, warmup=0, variants=entries)

    assert (
        "onnxruntime-cpu/fp32" in Page(html(manifest(TORCH, CPU, latency={"opt": report}))).text()
    )


def test_without_evidence_the_page_says_so():
    page = Page(html(manifest()))

    assert "There is no evidence of any variant." in page.text()
    assert not page.all("input")


def test_the_surgery_is_counted():
    text = Page(html(full())).text()

    assert "10 \N{RIGHTWARDS ARROW} 7 \N{MINUS SIGN}30 %" in text
    assert "fold_constants 3" in text
    assert "Shape 3 0" in text


def test_lineage_goes_from_the_pytorch_model_to_every_file():
    text = Page(html(full(), origin=ORIGIN)).text()

    order = ["PyTorch module m-source", "raw graph", "model.onnx ONNX in fp32", "m-graph"]
    order += ["engines/rtx.engine engine in fp32 for tensorrt_rtx-sm86, 1.6", "m-engine"]
    at = [text.index(part) for part in order]
    assert at == sorted(at)
    assert "ef" * 32 in text
    assert "4.2 MB" in text


def test_how_an_engine_was_built_is_said_where_it_was_chosen_and_made_again_so():
    whole = full()
    chosen = BuildSettings(optimization_level=5, refit=True)
    engines = tuple(dataclasses.replace(one, settings=chosen) for one in whole.engines)
    said = "optimization_level=5,refit=yes"

    text = Page(html(dataclasses.replace(whole, engines=engines))).text()

    assert f"built with {said}" in text
    assert f"--build-settings {said}" in text
    assert "--build-settings" not in Page(html(whole)).text()


@pytest.mark.parametrize(
    ("checked", "said"),
    [
        (("inputs and outputs", "layers"), "checked after the build: inputs and outputs, layers"),
        ((), "checked after the build: only its network, because the builder has no such GPU"),
    ],
)
def test_what_was_checked_of_a_built_engine_is_said(checked, said):
    whole = full()
    engines = tuple(dataclasses.replace(one, checked=checked) for one in whole.engines)

    assert said in Page(html(dataclasses.replace(whole, engines=engines))).text()
    assert "checked after the build" not in Page(html(whole)).text()


def test_files_that_claim_to_descend_from_each_other_end():
    found = full()
    graph = dataclasses.replace(found.graphs[0], parent_sha256=found.graphs[0].sha256)
    twin = dataclasses.replace(graph, path=Path("twin.onnx"), sha256="t", parent_sha256="ab")
    graph = dataclasses.replace(graph, parent_sha256="t")
    odd = dataclasses.replace(found, graphs=(graph, twin))

    assert "twin.onnx" in Page(html(odd)).text()


def test_ids_are_linked_where_there_is_a_server_and_its_password_is_not_shown():
    text = html(full(), origin=ORIGIN)
    links = {link["href"] for link in Page(text).all("a") if not link["href"].startswith("#")}

    assert links == {
        f"https://mlflow.example.com/base/#/{path}"
        for path in (
            "models/digits/versions/3",
            "experiments/7/runs/r1",
            *(f"experiments/7/models/m-{name}" for name in ("bundle", "source", "graph", "engine")),
        )
    }
    assert "secret" not in text


@pytest.mark.parametrize(
    "address",
    [None, "", "sqlite:///mlflow.db", "javascript:alert(1)", "http://[", "https://", "file:///x"],
)
def test_only_a_web_server_is_linked(address):
    origin = dataclasses.replace(ORIGIN, tracking_uri=address)
    page = Page(html(full(), origin=origin))

    assert all(link["href"].startswith("#") for link in page.all("a"))
    assert "m-bundle" in page.text()


def test_a_gate_that_did_not_apply_has_its_row_with_the_reason():
    decision = dataclasses.replace(PROMOTED, inapplicable=("task/drop: not measured, no data",))
    text = Page(html(full(), decision)).text()
    assert "Promoted The only gate that applied passed." in text
    assert f"task/drop did not apply {NONE} not measured, no data" in text


def test_variants_without_numbers_share_a_row():
    other = dataclasses.replace(ENGINE, variant="tensorrt_rtx-sm89/fp32")
    text = Page(html(manifest(TORCH, CPU, ENGINE, other))).text()
    row = f"2 variants {ENGINE.variant} {other.variant} built, not measured here"
    assert row in text
    assert row not in Page(html(manifest(TORCH, CPU, ENGINE))).text()


def test_the_page_says_when_and_on_what_it_was_measured():
    known = {"measured": "2026-12-01 03:21 UTC", "host": "vm", "processor": "EPYC", "cores": "2"}
    known["omp_num_threads"] = "1"
    found = dataclasses.replace(manifest(TORCH, CPU), environment=known)
    sentence = "Measured 2026-12-01 03:21 UTC on vm (EPYC, 2 cores, OMP_NUM_THREADS=1)."
    assert sentence in first_screen(Page(html(found)))


@pytest.mark.parametrize(
    ("times", "speed"), [((8.0, 1.0), f"8.00 {TIMES} faster"), ((1.0, 4.0), f"4.00 {TIMES} slower")]
)
def test_the_fastest_says_how_much_faster_or_slower_than_the_reference_it_is(times, speed):
    reference, own = times
    rounds = {TORCH.variant: [reference] * 20, CPU.variant: [own] * 20}
    found = manifest(TORCH, CPU, latency={"opt": timed(rounds)})
    assert f"Speed against torch/fp32 {speed}" in first_screen(Page(html(found)))


def test_the_size_of_every_file_is_on_the_page():
    graph = dataclasses.replace(manifest().graphs[0], size_bytes=43_000)
    found = dataclasses.replace(manifest(TORCH, CPU), graphs=(graph,))
    assert "43 KB" in Page(html(found)).text()


def test_a_page_of_one_stage_links_its_run_and_the_one_above():
    origin = dataclasses.replace(ORIGIN, name=None, model_id=None, parent_run_id="r0")
    page = surgery_html(full().surgery, title="digits: Surgery", origin=origin)
    for run in ("r1", "r0"):
        assert f'href="https://mlflow.example.com/base/#/experiments/7/runs/{run}"' in page
    assert "digits: Surgery Run r1 · Parent run r0" in Page(page).text()
    assert "Nothing to clean" in Page(surgery_html(manifest().surgery)).text()


def test_the_commands_are_quoted_for_the_shell():
    name = "it's; rm -rf $(echo \n x)"
    found = dataclasses.replace(
        full(), package_version="1 && x", source_model="m'\nevil", graphs=full().graphs
    )
    page = Page(html(found, origin=dataclasses.replace(ORIGIN, name=name)))
    commands = "".join(data for path, data in page.texts if "pre" in path)

    shown = name.replace("\n", "\ufffd")
    assert shlex.join(["mlflow_e2eai", "promote", "--name", shown, "--version", "3"]) in commands
    assert "\nevil" not in commands
    uri = shlex.quote(f"models:/{shown}/3")
    assert f"mlflow artifacts download --artifact-uri {uri} --dst-path model" in commands
    assert "pip install -r model/requirements.txt" in commands


def test_the_digests_of_the_page_are_what_sha256sum_checks(tmp_path):
    found = full()
    (tmp_path / "engines").mkdir()
    (tmp_path / "engines" / "rtx.engine").write_bytes(b"engine")
    (tmp_path / "model.onnx").write_bytes(b"graph")
    digest = {
        path: subprocess.check_output(["sha256sum", tmp_path / path], text=True).split()[0]
        for path in ("model.onnx", "engines/rtx.engine")
    }
    found = dataclasses.replace(
        found,
        graphs=(dataclasses.replace(found.graphs[0], sha256=digest["model.onnx"]),),
        engines=(dataclasses.replace(found.engines[0], sha256=digest["engines/rtx.engine"]),),
    )
    blocks = [data for path, data in Page(html(found)).texts if "pre" in path]
    (check,) = [block for block in blocks if block.startswith("sha256sum")]

    done = subprocess.run(
        ["bash", "-c", check], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    assert done.stdout == "model.onnx: OK\nengines/rtx.engine: OK\n"


def test_the_folders_of_a_machine_are_not_in_the_page(tmp_path):
    said = (
        f"Cannot read {tmp_path}/deep/model.onnx, /home/someone/x.py or C:\\Users\\me\\y.py: gone"
    )
    broken = dataclasses.replace(CPU, reason=said)
    found = manifest(TORCH, broken)
    graph = dataclasses.replace(found.graphs[0], path=tmp_path / "model.onnx")
    text = html(dataclasses.replace(found, graphs=(graph,), environment={"home": str(tmp_path)}))

    assert str(tmp_path.parent) not in text
    assert "someone" not in text
    assert "Users" not in text
    assert "/model.onnx, …/x.py or …/y.py: gone" in Page(text).text()


def test_the_names_of_nodes_are_no_folders():
    finding = Finding(
        kind="tolerance", sentence="Output '/layer1/conv/Conv_output_0' of a/b is off."
    )
    report = dataclasses.replace(compared(1.0), findings=(finding,))
    entry = dataclasses.replace(CPU, parity={"data": report})

    assert finding.sentence in Page(html(manifest(entry))).text()


def test_the_same_evidence_gives_the_same_page():
    assert html(full(), REJECTED, origin=ORIGIN) == html(full(), REJECTED, origin=ORIGIN)


@pytest.mark.parametrize(
    ("count", "bounds"),
    [(1, (1, 1)), (7, (1, 7)), (8, (1, 8)), (11, (1, 11)), (12, (2, 11)), (100, (37, 64))],
)
def test_the_interval_of_the_median_is_the_one_of_the_binomial_table(count, bounds):
    """Conover, table A3, at 99 %: ranks from below and above."""
    assert median_interval([float(number) for number in range(count, 0, -1)]) == bounds
