"""Values at a prompt, in a notebook and as DataFrames, for every kind of result."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from example_manifest import CPU, ENGINE, HALF, REJECTED, TORCH, shown
from hypothesis import given
from parsed_page import Page
from small_manifest import compared, manifest
from test_values import KINDS, values_of

from mlflow_e2eai.artifacts.files import Summary
from mlflow_e2eai.bundle.choice import Choice, Goal, PassedOver
from mlflow_e2eai.evaluation.bisection.search import Bisection
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.promotion.challengers import Contest
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.redecision import Redecision
from mlflow_e2eai.promotion.registry.approvals import Statement
from mlflow_e2eai.promotion.registry.drift import GuardedAlias, GuardReport
from mlflow_e2eai.promotion.registry.record import Contender, DecisionRecord
from mlflow_e2eai.promotion.registry.timeline import History, Move
from mlflow_e2eai.pytorch.stage import ExportReport

MANIFEST = shown()
AT, AT_TEXT = "2026-11-30T12:00:00.000+00:00", "2026-11-30 12:00:00 UTC"
PASSED = Decision(verdicts=(Verdict(metric="m", found=1.0, wanted="at most 2", passed=True),))
MOVE = Move(
    at=AT,
    alias="champion",
    before="6",
    after="7",
    kind="rollback",
    by="ann",
    reason="slow",
    run_id="r1",
)
RECORD = DecisionRecord(
    format_version=1,
    package_version="0",
    name="digits",
    aliases=("champion",),
    challenger=Contender(
        version="7", model_id="m-1", sha256="ab", evidence_sha256="cd", environments={}
    ),
    incumbents=(),
    policy=Policy(gates=()),
    policy_sha256="ef",
    values=(),
    decision=PASSED,
    by="ann",
    host="here",
    at=AT,
)
RESULTS = {
    "a graph": (
        MANIFEST.graphs[0],
        "model.onnx, fp32 from clean, opset 18, ",
    ),
    "an engine": (MANIFEST.engines[0], " for tensorrt_rtx-sm90, "),
    "surgery": (MANIFEST.surgery, f"{MANIFEST.surgery.nodes_before} to "),
    "an export": (
        ExportReport(exporter="trace", refused={"dynamo": "no"}, samples=("a", "b")),
        "by trace, compared on 2 samples",
    ),
    "an export that could not be compared": (
        ExportReport(exporter="dynamo", unverified="it has a custom operator"),
        "by dynamo, not verified: it has a custom operator",
    ),
    "a conversion": (
        PrecisionReport(precision="fp16", nodes=12, samples=3),
        "fp16, 0 of 12 nodes stay in fp32, ranges from 3 samples",
    ),
    "a refused conversion": (
        PrecisionReport(precision="fp8", refused="there is no data"),
        "fp8 refused: there is no data",
    ),
    "a comparison": (compared(0.25), "passed; largest error 0.25 in 1 outputs and 1 samples"),
    "a failed comparison": (compared(0.5, passed=False), "failed: Too far off.; largest error 0.5"),
    "latency": (MANIFEST.latency["opt"], " ms (0.5"),
    "a bisection": (
        Bisection(nodes=("a",), minimal=True, suspects=2, evaluations=3, sentence="It is 'a'."),
        "It is 'a'.",
    ),
    "a decision": (
        PASSED,
        "promoted, 1 of 1 gates passed",
    ),
    "a rejection": (REJECTED, "not promoted, "),
    "a choice": (
        Choice(
            variant="a",
            reason="the best.",
            goal=Goal(),
            others=(PassedOver(variant="b", reason="it is slower."),),
        ),
        "a, the best.",
    ),
    "evidence": (
        Evidence(variant=CPU, sha256="a", measured=True, parity={"profile": compared(0.5)}),
        f"{CPU} passed, largest error 0.5",
    ),
    "a bundle": (MANIFEST, "passed, 1 failed"),
    "a stored decision": (RECORD, "digits 7 promoted for @champion at 2026-11-30 12:00:00 UTC"),
    "a decision of today": (
        Redecision(record=RECORD, now=REJECTED),
        "Version 7 of digits: the decision would be another today (rejected)",
    ),
    "a contest": (
        Contest(goal="latency/p50_ms", decisions={"7": PASSED, "8": REJECTED}),
        "version 7 promoted of 2 by latency/p50_ms; version 8: parity/failed",
    ),
    "a history": (History(name="digits", moves=(MOVE,)), "1 move of aliases of digits"),
    "a move": (MOVE, f"{AT_TEXT} @champion version 7, before version 6 rollback by ann: slow"),
    "an approval": (
        Statement(
            name="digits",
            version="7",
            approval="release",
            answer="Approved",
            sha256="ab",
            by="ann",
            at=AT,
            signature="cd",
        ),
        f"digits 7 Approved as 'release' by ann at {AT_TEXT}, signed",
    ),
    "aliases": (
        GuardReport(
            name="digits",
            aliases=(
                GuardedAlias(alias="mine", standing="never decided", version="7"),
                GuardedAlias(
                    alias="champion", standing="moved by hand", version="7", decided="6", at=AT
                ),
            ),
        ),
        "digits: 1 of 2 aliases not as decided",
    ),
}

every_result = pytest.mark.parametrize(
    ("value", "part"), RESULTS.values(), ids=[name.replace(" ", "-") for name in RESULTS]
)


@every_result
def test_a_result_at_a_prompt_is_one_line_with_what_matters(value, part):
    text = repr(value)

    assert text.startswith(f"{type(value).__name__}: ")
    assert part in text
    assert "\n" not in text


@every_result
def test_a_result_in_a_notebook_is_its_line_and_a_small_table(value, part):
    page = Page(value._repr_html_())  # fails on a tag that is not closed
    columns, rows = page.all("th"), page.all("tr")

    assert page.text().startswith(" ".join(repr(value).split()))
    assert len(columns) <= 10
    assert len(page.all("td")) == len(columns) * (len(rows) - 1 if rows else 0)


@every_result
def test_a_result_as_a_data_frame_has_dtypes_that_do_not_hang_on_what_is_missing(value, part):
    frame = value.to_pandas()

    assert set(map(str, frame.dtypes)) <= {"string", "Int64", "float64", "boolean"}
    assert list(frame.dtypes) == list(frame.iloc[:0].dtypes)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if issubclass(kind, Summary)])
def test_a_result_with_any_content_can_be_shown(kind):
    @given(value=values_of(kind))
    def check(value):
        assert "\n" not in repr(value)
        assert value._repr_html_().endswith("</div>")

    check()


def test_what_a_name_holds_is_no_markup_in_a_notebook():
    entry = Evidence(variant="<script>", sha256="a", measured=False, reason="<b>no</b>")

    assert "<script>" not in manifest(entry)._repr_html_()
    assert "&lt;script&gt;" in manifest(entry)._repr_html_()


def test_a_long_table_ends_with_where_the_rest_is():
    nodes = tuple(f"node{number}" for number in range(100))
    found = Bisection(nodes=nodes, minimal=True, suspects=2, evaluations=3, sentence="Many.")

    assert "40 more rows: see to_pandas()" in found._repr_html_()
    assert len(found.to_pandas()) == 100


# The table of variants.


def test_a_manifest_as_a_data_frame_has_a_row_for_each_variant_and_number_of_items():
    frame = MANIFEST.to_pandas()
    sizes = sorted({report.items for report in MANIFEST.latency.values()})
    rows = frame[frame["variant"] == CPU]

    assert set(frame["variant"]) == {entry.variant for entry in MANIFEST.all_evidence}
    assert list(rows["items"]) == sizes
    assert not frame.duplicated(["variant", "machine", "items"]).any()


def test_the_rows_have_what_the_manifest_measured():
    frame = MANIFEST.to_pandas()
    report = MANIFEST.latency["opt"]
    tuned = frame[frame["items"] == report.items].set_index("variant")

    assert tuned.loc[HALF, "precision"] == "fp16"
    assert tuned.loc[ENGINE, "target"] == "tensorrt_rtx-sm90"
    assert pd.isna(tuned.loc[CPU, "target"])
    assert tuned.loc[TORCH, "outcome"] in ("reference", "unsteady")
    assert tuned.loc[CPU, "p50_ms"] == report[CPU].p50_ms
    assert tuned.loc[CPU, "p99_ms"] == report[CPU].p99_ms
    ratio = report.ratio(CPU, TORCH)
    found = tuned.loc[CPU, ["ratio", "ratio_low", "ratio_high"]]
    assert list(found) == [ratio.value, ratio.low, ratio.high]


def test_the_columns_are_ready_for_plots_and_arithmetic():
    frame = MANIFEST.to_pandas()

    assert str(frame["variant"].dtype) == "string"
    assert str(frame["items"].dtype) == "Int64"
    for name in ("p50_ms", "ratio", "ratio_low", "ratio_high", "max_abs_error"):
        assert frame[name].dtype == float
    medians = frame.groupby("precision")["p50_ms"].median()
    assert math.isfinite(medians["fp32"])


def test_a_variant_that_was_not_timed_has_one_row_without_times():
    entry = Evidence(variant=CPU, sha256="ab", measured=False, reason="There is no time.")
    frame = manifest(entry).to_pandas()

    assert len(frame) == 1
    assert frame.loc[0, ["items", "p50_ms", "ratio", "size_bytes"]].isna().all()
    assert frame.loc[0, "reason"] == "There is no time."


@pytest.mark.parametrize(
    ("name", "column", "texts"),
    [
        ("a move", "kind", ["rollback"]),
        ("aliases", "standing", ["never decided", "moved by hand"]),
        ("an approval", "answer", ["Approved"]),
        ("a decision", "severity", ["block"]),
    ],
)
def test_a_word_of_a_few_is_a_column(name, column, texts):
    assert list(RESULTS[name][0].to_pandas()[column]) == texts
