"""The table for the terminal and for Markdown."""

import dataclasses
import math

import pytest
from small_manifest import CPU, ENGINE, HALF, TORCH, compared, manifest, measured

from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.latency.report import LatencyFinding
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.text import markdown, table


def rows(text: str) -> dict[str, str]:
    """The lines below the rule, by their first word."""
    return {line.split()[0]: line for line in text.splitlines()[2:]}


def test_a_table_says_for_each_variant_what_it_came_to():
    latency = {"opt": measured({"torch/fp32": 1.25, "onnxruntime-cpu/fp32": 0.5})}

    assert table(manifest(TORCH, CPU, HALF, ENGINE, latency=latency)) == (
        "variant                 max abs error  accuracy  p50 ms at 8  decision\n"
        "--------------------------------------------------------------------------------------\n"
        "torch/fp32                    0.0e+00    0.9750        1.250  reference\n"
        "onnxruntime-cpu/fp32          1.0e-06    0.9750        0.500  passed\n"
        "onnxruntime-cpu/fp16          5.0e-01    0.1000            -  failed\n"
        "tensorrt_rtx-sm86/fp32              -         -            -  built, not measured here"
    )


def test_a_time_of_a_busy_machine_is_not_quoted():
    report = measured({"torch/fp32": 188.0, "onnxruntime-cpu/fp32": 0.5})
    busy = LatencyFinding(kind="busy", variant="torch/fp32", sentence="It waited.")
    latency = {"opt": dataclasses.replace(report, findings=(busy,))}

    for text in (
        table(manifest(TORCH, CPU, latency=latency)),
        markdown(manifest(TORCH, CPU, latency=latency)),
    ):
        assert "too noisy to tell" in text
        assert "188" not in text
        assert "0.500" in text


def test_the_columns_are_aligned():
    lines = table(manifest(TORCH, CPU, HALF, ENGINE)).splitlines()

    starts = {line.index(line.split(maxsplit=4)[-1]) for line in lines[2:]}
    assert starts == {lines[0].index("decision")}
    assert set(lines[1]) == {"-"}
    assert len(lines[1]) == max(map(len, lines))
    assert all(line == line.rstrip() for line in lines)


def test_an_engine_that_was_not_measured_shows_no_numbers():
    line = rows(table(manifest(TORCH, ENGINE)))[ENGINE.variant]

    assert line.split(maxsplit=4)[1:] == ["-", "-", "-", "built, not measured here"]


def test_the_largest_error_is_that_of_the_worst_comparison():
    assert "1.0e-06" in rows(table(manifest(CPU)))[CPU.variant]


def test_what_was_measured_but_never_compared_has_failed():
    evidence = Evidence(variant="onnxruntime-cpu/fp32", sha256="ab", measured=True)

    assert rows(table(manifest(evidence)))[evidence.variant].endswith("failed")


def test_what_broke_down_has_failed():
    evidence = Evidence(
        variant="onnxruntime-cpu/fp32",
        sha256="ab",
        measured=True,
        reason="out of memory",
        parity={"profile": compared(0.0)},
    )

    assert rows(table(manifest(evidence)))[evidence.variant].endswith("failed")


def test_a_module_that_does_not_agree_with_itself_is_an_unsteady_reference():
    evidence = Evidence(
        variant="torch/fp32",
        sha256=None,
        measured=True,
        parity={"profile": compared(0.1, passed=False)},
    )

    assert rows(table(manifest(evidence)))["torch/fp32"].endswith("reference, unsteady")


def test_a_comparison_that_could_compare_nothing_is_not_hidden_by_one_that_could():
    nothing = ParityReport(outputs=(), findings=(), samples=1, repeats=1, tolerance=1)
    for parity in (
        {"profile": nothing, "data": compared(1e-6)},
        {"profile": compared(1e-6), "data": nothing},
    ):
        assert math.isnan(nothing.max_abs_error)
        evidence = Evidence(variant="a/fp32", sha256="ab", measured=True, parity=parity)
        assert rows(table(manifest(evidence)))["a/fp32"].split()[1] == "nan"


def test_each_task_metric_has_a_column_and_the_variants_that_lack_it_a_dash():
    one = Evidence(variant="a/fp32", sha256="ab", measured=True, task={"f1": 0.5})
    other = Evidence(variant="b/fp32", sha256="ab", measured=True, task={"accuracy": 0.25})
    text = table(manifest(one, other))

    assert (
        " ".join(text.splitlines()[0].split())
        == "variant max abs error accuracy f1 p50 ms decision"
    )
    assert rows(text)["a/fp32"].split()[2:4] == ["-", "0.5000"]
    assert rows(text)["b/fp32"].split()[2:4] == ["0.2500", "-"]


def test_without_task_metrics_there_is_no_column_for_them():
    text = table(manifest(ENGINE))

    assert " ".join(text.splitlines()[0].split()) == "variant max abs error p50 ms decision"


@pytest.mark.parametrize("corner", ["opt", "static"])
def test_the_time_is_that_of_the_size_that_engines_are_tuned_for(corner):
    latency = {
        "min": measured({"torch/fp32": 1.0}, items=1),
        corner: measured({"torch/fp32": 2.0}, items=8),
        "max": measured({"torch/fp32": 3.0}, items=64),
    }
    text = table(manifest(TORCH, latency=latency))

    assert "p50 ms at 8" in text
    assert "2.000" in rows(text)["torch/fp32"]


def test_a_bundle_without_evidence_is_a_heading():
    assert len(table(manifest()).splitlines()) == 2


def test_the_markdown_has_the_cells_of_the_table():
    latency = {"opt": measured({"torch/fp32": 1.25})}
    found = manifest(TORCH, CPU, ENGINE, latency=latency)
    head, _, *lines = markdown(found).splitlines()

    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    shown = [table(found).splitlines()[0], *table(found).splitlines()[2:]]
    measured_here = [line for line in shown if "not measured" not in line]
    assert [" ".join(row).split() for row in cells] == [line.split() for line in measured_here]


def test_the_markdown_has_its_numbers_to_the_right():
    rule = markdown(manifest(TORCH, CPU)).splitlines()[1]
    assert rule == "| --- | ---: | ---: | ---: | --- |"


def test_the_page_says_which_exporter_was_taken_and_why_others_were_not():
    exported = ExportReport(exporter="script", refused={"trace": "It froze <a branch>."})
    page = html(dataclasses.replace(manifest(TORCH, CPU), export=exported))
    assert "<dt>Exporter</dt><dd>script</dd>" in page
    assert "<dt>Refused: trace</dt><dd>It froze &lt;a branch&gt;.</dd>" in page
    assert "Refused:" not in html(manifest(TORCH, CPU))
