"""What the page and the pictures say of each kind of evidence."""

import dataclasses

import pytest
from example_manifest import (
    CPU,
    ENGINE,
    HALF,
    RAW,
    REJECTED,
    TORCH,
    WRONG,
    compared,
    evidence,
    latency,
    shown,
    timed,
)
from parsed_page import Page

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.precision.calibration import Calibration
from mlflow_e2eai.precision.ranges import Fp32Node
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.report.facts import in_order, pareto_rows, rows_of
from mlflow_e2eai.report.page import html, precision_html, surgery_html
from mlflow_e2eai.report.text import markdown, table
from mlflow_e2eai.surgery.outline import Outline, OutlineNode

DASH, TIMES = "\N{EN DASH}", "\N{MULTIPLICATION SIGN}"


def said(manifest: Manifest) -> str:
    return Page(html(manifest, REJECTED)).text()


def section(manifest: Manifest, title: str) -> str:
    """What stands below a heading, up to the next one of its rank."""
    _, _, rest = html(manifest, REJECTED).partition(f">{title}</h2>")
    return Page(f"<h2>{rest.partition('<h2')[0].rpartition('</section>')[0]}</h2>").text()


def changed(variant: str, **fields: object) -> Manifest:
    """The manifest with other fields of one variant."""
    entries = tuple(
        dataclasses.replace(entry, **fields) if entry.variant == variant else entry
        for entry in evidence()
    )
    return dataclasses.replace(shown(), evidence=entries)


# Doubts


def test_what_is_doubtful_stands_above_the_numbers():
    text = said(shown())
    doubts = text[text.index("Caveats") : text.index("Largest error")]

    for line in (
        "1 variant was built and not measured on this machine.",
        "2 variants differ on numbers larger than those of the input example",
        "Latency of 1 variant: the warm-up ended before the calls were steady",
        "Latency of 1 variant: single calls stalled",
        "Latency of the whole run: the GPU throttled its clock",
    ):
        assert line in doubts


def test_without_doubts_there_is_no_such_heading():
    calm = [dataclasses.replace(r, findings=()) for r in shown().latency.values()]
    sound = tuple(entry for entry in evidence() if entry.variant in (TORCH, RAW, CPU))
    manifest = dataclasses.replace(
        shown(), latency=dict(zip(("min", "opt", "max"), calm, strict=True)), evidence=sound
    )

    assert "Caveats" not in said(manifest)


def test_a_graph_that_is_wrong_as_exported_is_a_doubt():
    wrong = changed(RAW, parity={"profile": compared(6.0, WRONG)})

    assert "differs from the PyTorch module as it was exported" in said(wrong)


def test_a_doubt_stands_beside_the_times_that_it_is_about():
    text = section(shown(), "Latency")
    rows = text[text.index("The variants took turns") :]
    half = rows[rows.index(HALF) : rows.index(ENGINE)]

    assert text.count("not steady") == half.count("not steady") == 3
    assert text.count("GPU throttled") == len(shown().latency["max"].variants)
    assert "stalls, GPU throttled" in text


def test_every_sentence_about_the_times_is_among_the_findings():
    text = section(shown(), "Findings")

    for report in shown().latency.values():
        assert all(finding.sentence in text for finding in report.findings)


# Parity


def test_what_is_advisory_is_shown_and_does_not_count():
    text = said(shown())

    assert "Of 4 variants, 2 passed and 1 failed; 1 built and not measured here." in text
    variants = section(shown(), "Variants")
    assert f"{ENGINE} passed 0.0857 0.190 {TIMES} 0.183 to 0.200 4.1e-04" in variants
    assert f"{HALF} failed lost at convert fp16 0.352 not steady" in variants
    assert "differs for information only" in section(shown(), "Parity")
    wrong, _, advisory = section(shown(), "Findings").partition("For information only")
    assert "not finite on numbers" not in wrong
    assert f"{HALF} {ENGINE} Output 'logits' has 4 elements that are not finite" in advisory


@pytest.mark.parametrize(
    "words",
    [
        f"corners of the profile 3 {TIMES} 10 runs 60 calls, 2 threads logits passed",
        "zeros and denormals",
        "large numbers",
        "evaluation data",
        "2.4e-06 mean 2.7e-07 6.0e-07 limit 1.0e-03 129 RMSE 3.4e-07",
        "2.13% of 7,300 91.00% top 5 100% 1.0e-08 reference 0",
        "First wrong element: sample 2, [0, 3] is -4.75; the reference has 1.25.",
    ],
)
def test_every_number_of_a_comparison_is_there(words):
    assert words in section(shown(), "Parity")


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0%"), (1.0, "100%"), (0.99999, "99.99%"), (1e-7, "1e-05%"), (0.5, "50.00%")],
)
def test_a_share_is_not_rounded_to_all_or_nothing(share, text):
    report = compared(1e-6)
    output = dataclasses.replace(report.outputs[0], outside_share=share, argmax_agreement=None)
    odd = changed(CPU, parity={"profile": dataclasses.replace(report, outputs=(output,))})

    assert f"{text} of 7,300 {DASH} top 5" in section(odd, "Parity")


def test_an_output_has_its_own_limit_and_else_that_of_the_comparison():
    report = compared(1e-6)
    own = dataclasses.replace(report.outputs[0], tolerance=0.25)
    none = dataclasses.replace(report.outputs[0], tolerance=float("nan"))
    for output, limit in ((own, "2.5e-01"), (none, "1.0e-03")):
        parity = {"profile": dataclasses.replace(report, outputs=(output,))}
        text = section(dataclasses.replace(changed(CPU, parity=parity)), "Parity")
        line = text[text.index(CPU) : text.index(HALF)]
        assert f"limit {limit}" in line


def test_the_values_that_were_compared_stand_in_the_row_and_those_left_out_above_it():
    parity = {"values": compared(1e-4)}
    manifest = changed(HALF, parity=parity, values=("mask: some False",))
    reference, *others = manifest.evidence
    refused = {"mask: all False": "the model fails on it: no row"}
    reference = dataclasses.replace(reference, left_out=refused)
    text = section(dataclasses.replace(manifest, evidence=(reference, *others)), "Parity")
    assert "other masks, integers and numbers: mask: some False" in text
    assert "Left out: mask: all False (the model fails on it: no row)." in text
    assert "Left out" not in section(manifest, "Parity")


# Step by step


def test_each_step_is_held_against_pytorch_and_against_the_step_before():
    text = section(shown(), "Step by step")

    assert f"PyTorch module {TORCH} passed 0 {DASH} {DASH} {DASH} {DASH}" in text
    assert f"export {RAW} passed 2.1e-06 {TORCH} passed 2.1e-06" in text
    assert f"clean {CPU} passed 2.4e-06 {RAW} passed 4.0e-07" in text
    assert f"compile fp16 tensorrt_rtx-sm90 {ENGINE} passed 4.1e-04 {HALF} failed" in text


def test_the_step_that_lost_the_accuracy_says_so():
    assert f"convert fp16 the accuracy was lost here {HALF} failed" in said(shown())
    assert "failed lost at convert fp16" in section(shown(), "Variants")


def test_the_ratio_of_a_step_is_that_to_the_step_before():
    report = shown().latency["opt"]
    ratio = report.ratio(CPU, RAW)

    assert ratio.high < 1
    assert f"{ratio.value:.3f} {TIMES} {ratio.low:.3f} to {ratio.high:.3f}" in section(
        shown(), "Step by step"
    )


def test_a_ratio_is_computed_once_for_a_page(monkeypatch):
    asked = []
    compute = LatencyReport.ratio
    monkeypatch.setattr(
        LatencyReport, "ratio", lambda self, *pair: asked.append(pair) or compute(self, *pair)
    )
    html(shown())

    assert len(set(asked)) == len(asked)
    assert set(asked) == {
        *((name, TORCH) for name in (RAW, CPU, HALF, ENGINE)),
        *((CPU, RAW), (HALF, CPU), (ENGINE, HALF)),
        (ENGINE, CPU),  # the fastest two that passed
    }


def test_steps_stand_behind_the_one_before_even_when_they_name_each_other():
    first, *rest = evidence()
    assert [e.variant for e in in_order([*rest[::-1], first])][1:] == [
        *(TORCH, RAW, CPU, HALF, ENGINE)
    ]

    circle = [dataclasses.replace(rest[0], before=CPU), dataclasses.replace(rest[1], before=RAW)]
    assert {e.variant for e in in_order(circle)} == {RAW, CPU}


def test_without_a_step_before_there_is_no_such_section():
    entries = tuple(dataclasses.replace(entry, before=None) for entry in evidence())

    assert ">Step by step<" not in html(dataclasses.replace(shown(), evidence=entries))


# The graph as it was exported


def test_the_raw_graph_is_shown_and_is_no_variant_of_the_bundle():
    fast = {TORCH: 0.42, RAW: 0.01, CPU: 0.21}
    manifest = dataclasses.replace(shown(), latency={"opt": timed(8, fast)})
    text = said(manifest)

    assert f"{RAW} as exported, not shipped passed" in text
    facts = text[text.index("Fastest that passed") : text.index("The gates")]
    assert CPU in facts
    assert RAW not in facts


def test_what_nobody_can_choose_is_not_on_the_front():
    rows = rows_of(shown())

    assert [row.variant for row in pareto_rows(rows)] == [ENGINE, CPU]
    raw = next(row for row in rows if row.variant == RAW)
    assert [row.variant for row in pareto_rows([dataclasses.replace(raw, in_bundle=True)])] == [RAW]


def test_the_table_says_that_the_raw_graph_is_not_in_the_bundle():
    assert "passed (not shipped)" in table(shown())
    assert "passed (not shipped) |" in markdown(shown())


def test_a_refused_precision_has_its_line_in_every_table_with_the_reason():
    report = PrecisionReport(precision="bf16", refused="Nothing that bf16 could hold.")
    manifest = dataclasses.replace(shown(), conversions=(report,))
    for text in (table(manifest), markdown(manifest)):
        (line,) = (one for one in text.splitlines() if one.strip("| ").endswith("refused"))
        assert line.strip("| ").startswith("bf16")
        assert "bf16 was refused: Nothing that bf16 could hold." in text
    variants = section(manifest, "Variants")
    assert "bf16 failed refused: Nothing that bf16 could hold." in variants
    assert "refused" not in table(shown())


# Latency, cold start, load


def test_host_and_device_time_stand_apart():
    text = section(shown(), "Latency")
    entry = latency(ENGINE, 0.08 * (0.4 + 8 / 12), 8, device=True)

    assert f"{entry.device_p50_ms:.4f}" in text
    assert "On the device" in text
    host = {TORCH: 1.0, CPU: 0.5}
    plain = dataclasses.replace(shown(), latency={"opt": timed(8, host)})
    assert "On the device" not in section(plain, "Latency")


def test_rounds_outliers_and_warm_up_are_counted():
    text = section(shown(), "Latency")

    assert "60 3 outliers 24 warm-up, steady" in text
    assert "60 3 outliers 24 warm-up opt, 8 items" in text  # of what was not steady


def test_the_gpu_says_what_it_did():
    text = section(shown(), "Latency")

    assert "opt, 8 items NVIDIA H100 80GB HBM3 1410 to 1980 312 58 nothing" in text
    assert "max, 64 items NVIDIA H100 80GB HBM3 1410 to 1980 312 58 SwPowerCap" in text


def test_a_gpu_that_says_nothing_is_no_gpu_that_was_not_held_down():
    nothing = dataclasses.replace(
        shown().latency["opt"].gpu,
        name=None,
        sm_clock_min_mhz=None,
        sm_clock_max_mhz=None,
        power_max_w=None,
        temperature_max_c=None,
        throttle_reasons=None,
    )
    report = dataclasses.replace(shown().latency["opt"], gpu=nothing)
    text = section(dataclasses.replace(shown(), latency={"opt": report}), "Latency")

    assert f"opt, 8 items {DASH} {DASH} {DASH} {DASH} not known" in text


def test_cold_start_and_load_have_their_numbers():
    text = section(shown(), "Serving")

    assert f"{ENGINE} 1.20 480 1,200 {TIMES} the second 0.400 412 MB +96 MB 1.25 GB" in text
    assert f"{TORCH} 8 19,000 20,364 1.07 {TIMES}" in text
    assert "1 caller 2 callers 4 callers 8 callers" in text


def test_an_engine_tells_what_each_profile_takes_of_the_gpu():
    def told(entry):
        if entry.variant != ENGINE:
            return entry
        sizes = (273_000_000, 44_000_000)
        cold_start = dataclasses.replace(entry.cold_start, profile_memory_bytes=sizes)
        return dataclasses.replace(entry, cold_start=cold_start)

    text = section(dataclasses.replace(shown(), evidence=tuple(map(told, evidence()))), "Serving")

    assert "1.25 GB 273 MB, 44 MB" in text


def test_without_cold_start_and_load_there_is_no_such_section():
    entries = tuple(dataclasses.replace(entry, cold_start=None, loads=None) for entry in evidence())

    assert ">Serving<" not in html(dataclasses.replace(shown(), evidence=entries))


# Precision


def test_a_conversion_says_which_nodes_stay_in_fp32_and_why():
    large = Fp32Node(node="/mul", operator="Mul", reason="overflow", value="h", magnitude=194118.0)
    named = Fp32Node(node="/last", operator="devtech::Foo", reason="asked for")
    report = PrecisionReport(
        precision="fp16", samples=12, nodes=1203, casts=4, kept=(large, named), saturated=("m",)
    )
    text = Page(html(dataclasses.replace(shown(), conversions=(report,)))).text()

    assert "To fp16" in text
    assert "2 of 1,203" in text
    assert "on 12 samples" in text
    assert "/mul Mul too large for fp16 h 1.9e+05" in text
    assert "/last devtech::Foo requested by name" in text
    assert "Refused" not in text


def test_int8_says_on_which_instructions_it_was_measured():
    calibration = Calibration(calibrator="mse", samples=12)
    report = PrecisionReport(precision="int8", quantized=3, pairs=6, calibration=calibration)
    manifest = dataclasses.replace(
        shown(),
        conversions=(report,),
        environment={**shown().environment, "int8_instructions": "avx2"},
    )

    assert "Instructions avx2 by ONNX Runtime's exact kernel" in Page(html(manifest)).text()


def test_a_refused_conversion_says_why():
    report = PrecisionReport(precision="fp16", nodes=3, refused="All 3 nodes must stay in fp32.")
    for page in (
        html(dataclasses.replace(shown(), conversions=(report,))),
        precision_html(report),
    ):
        assert "Refused: All 3 nodes must stay in fp32." in Page(page).text()


# The graph before and after


def chain(*states: str) -> Outline:
    nodes = tuple(
        OutlineNode(name=f"node{at}", operator="Relu", state=state)
        for at, state in enumerate(states, start=1)
    )
    edges = tuple((at, at + 1) for at in range(len(nodes) - 1))
    return Outline(nodes=nodes, kept=edges, removed=(), added=(), beyond={})


def drawn(outline: Outline) -> str:
    return surgery_html(dataclasses.replace(shown().surgery, outline=outline))


def test_every_node_has_its_row_with_its_state_and_what_it_reads():
    page = Page(drawn(shown().surgery.outline))
    text = page.text()

    assert "8 Add changed /stage.1/layer.3/Add reads 4, 7" in text
    assert "22 Relu removed /stage.5/layer.1/Relu reads 21" in text
    assert "24 Add added /stage.5/layer.3/Add reads 20, 21, 23" in text
    assert "1,203 nodes more that are not listed: 1,200 kept, 3 removed." in text
    assert len([a for a in page.all("li") if a.get("class") in ("kept", "removed")]) == 38


def test_a_long_stretch_of_unchanged_nodes_is_folded_but_for_three_on_either_side():
    page = Page(drawn(chain("removed", *["kept"] * 20, "added")))
    summary = [data for path, data in page.texts if "summary" in path]
    inside = " ".join(data for path, data in page.texts if "details" in path)

    assert summary == ["14 nodes unchanged", "14 Relu"]
    assert [f"node{at}" in inside.split() for at in (4, 5, 18, 19)] == [False, True, True, False]
    assert not Page(drawn(chain("removed", *["kept"] * 12, "added"))).all("details")


def test_edges_that_no_row_has_are_left_out():
    odd = dataclasses.replace(chain("kept", "kept"), kept=((0, 9), (1, 0), (-1, 1), (0, 1)))

    assert drawn(odd) == drawn(chain("kept", "kept"))


def test_a_report_without_an_outline_has_no_graph():
    text = Page(surgery_html(dataclasses.replace(shown().surgery, outline=None))).text()

    assert "The graph before and after" not in text
    assert "fold_constants 2" in text
