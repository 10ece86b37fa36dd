"""What a report says where several machines measured: on which, and nothing across them."""

import dataclasses
import re

import pytest
from parsed_page import Page
from small_manifest import CPU, ENGINE, HALF, REJECTED, TORCH, compared, manifest, timed

from mlflow_e2eai.evaluation.evidence import MachineEvidence
from mlflow_e2eai.latency.report import LatencyFinding
from mlflow_e2eai.report.facts import Origin
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.text import markdown, table

HERE, THERE = "Xeon", "NVIDIA L4"
ENGINE_THERE = dataclasses.replace(
    ENGINE, measured=True, reason=None, parity={"profile": compared(0.25)}
)


def both(*there, launcher=(TORCH, CPU, HALF, ENGINE)):
    """Here PyTorch took 10 ms; on the other machine 4 ms, and the engine 1 ms."""
    found = manifest(
        *launcher, latency={"opt": timed({TORCH.variant: 20 * [10.0], CPU.variant: 20 * [20.0]})}
    )
    latency = timed({TORCH.variant: 20 * [4.0], ENGINE.variant: 20 * [1.0]})
    drift = LatencyFinding(kind="drift", variant=ENGINE.variant, sentence="It became slower.")
    return dataclasses.replace(
        found,
        environment={"processor": HERE},
        elsewhere=(
            MachineEvidence(
                environment={"gpu": THERE, "processor": "EPYC"},
                evidence=there or (TORCH, ENGINE_THERE),
                latency={"opt": dataclasses.replace(latency, findings=(drift,))},
            ),
        ),
    )


def tables_of(page):
    """The tables of variants by the machine that their caption names."""
    found = re.findall(r'<table class="variants sortable">.*?</table>', page, re.DOTALL)
    texts = [Page(text).text() for text in found]
    return {text.partition("Measured on ")[2].partition(".")[0]: text for text in texts}


def test_each_machine_has_its_table_and_its_ratios_to_its_own_reference():
    found = tables_of(html(both()))
    assert list(found) == [HERE, THERE]
    assert "tensorrt_rtx-sm86/fp32 built, not measured here" in found[HERE]
    assert " 2.00 to 2.00 " in found[HERE]
    assert "tensorrt_rtx-sm86/fp32 passed" in found[THERE]
    assert " 0.250 to 0.250" in found[THERE]  # and not 0.1, of the 10 ms here


def test_with_one_machine_no_table_names_it():
    (name,) = tables_of(html(manifest(TORCH, CPU)))
    assert name == ""


def test_the_fastest_of_each_machine_is_said_with_its_own_ratio():
    text = Page(html(both(), REJECTED)).text()
    assert f"Fastest that passed on {HERE} 20.0 ms onnxruntime-cpu/fp32" in text
    assert f"Fastest that passed on {THERE} 1.00 ms tensorrt_rtx-sm86/fp32" in text


def test_the_largest_error_says_where_it_was():
    assert (
        f"2.5e-01 tensorrt_rtx-sm86/fp32 on {THERE}"
        in Page(html(both(launcher=(TORCH, CPU)))).text()
    )


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (ENGINE_THERE, "Of 3 variants, 2 passed and 1 failed."),
        (
            dataclasses.replace(ENGINE_THERE, reason="It broke down."),
            "Of 3 variants, 1 passed and 2 failed.",
        ),
        (ENGINE, "Of 3 variants, 1 passed and 1 failed; 1 built and not measured here."),
        (
            dataclasses.replace(HALF, parity={"profile": compared(0.0)}),
            "Of 3 variants, 1 passed and 1 failed; 1 built and not measured here.",
        ),
    ],
)
def test_a_variant_counts_once_by_what_was_measured_anywhere(entry, said):
    assert said in Page(html(both(TORCH, CPU, entry))).text()


def test_findings_name_the_machine():
    broken = dataclasses.replace(ENGINE_THERE, reason="It broke down.")
    text = Page(html(both(TORCH, broken))).text()
    assert f"tensorrt_rtx-sm86/fp32 on {THERE} It broke down." in text
    assert f"tensorrt_rtx-sm86/fp32 on {THERE} It became slower." in text
    assert f"tensorrt_rtx-sm86/fp32 on {HERE} There is no GPU." in text


def test_the_table_in_text_has_a_column_for_the_machine():
    lines = table(both()).splitlines()
    assert lines[0].split()[:2] == ["variant", "machine"]
    engines = [line for line in lines if line.startswith(ENGINE.variant)]
    assert [HERE in engines[0], THERE in engines[1]] == [True, True]
    assert "1.000" in engines[1]
    assert "| torch/fp32 | NVIDIA L4 |" in markdown(both())
    assert "machine" not in table(manifest(TORCH, CPU))


def test_the_page_of_one_of_several_machines_says_which():
    assert Origin(name="net", version="3", machine=THERE).title == f"net version 3 on {THERE}"
    assert Origin(machine=THERE).title == f"Model report on {THERE}"
