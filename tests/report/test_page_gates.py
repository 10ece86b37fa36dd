"""What the HTML page says of each gate."""

import dataclasses
import math

import pytest
from parsed_page import Page
from small_manifest import ENGINE, PROMOTED, full

from mlflow_e2eai.evaluation.gates import Decision, Gate, MetricValue, Verdict, decide
from mlflow_e2eai.promotion.policy import Policy, decide_on
from mlflow_e2eai.report.formats import NONE
from mlflow_e2eai.report.page import html

NEEDED = "evidence/unmeasured"
WHY = f"nobody measured {ENGINE.variant} on a GPU of its target"
WARNED = Verdict(
    metric="latency/p99_ms", found=7.4, wanted="at most 5", passed=False, severity="warn"
)
FAILED = dataclasses.replace(WARNED, metric="latency/p50_ms", severity="block")


def text_of(*verdicts: Verdict, excluded: tuple[str, ...] = ()) -> str:
    return Page(html(full(), Decision(verdicts=verdicts, excluded=excluded))).text()


def of_policy(unmeasured: str) -> str:
    """The page of a version whose engine nobody measured, by a policy for such engines."""
    gate = Gate(metric="task/drop", bound="at_most", limit=0.01)
    values = [MetricValue(metric="task/drop", value=0.0)]
    policy = Policy(gates=(gate,), unmeasured=unmeasured)
    return Page(html(full(), decide_on(policy, full(), values, has_champion=False))).text()


def test_a_gate_that_failed_says_why():
    text = of_policy("block")

    assert "Rejected 1 of 2 gates did not pass." in text
    assert f"{NEEDED} failed {WHY} 1 at most 0" in text


def test_a_gate_that_warns_looks_like_none_that_blocks():
    text = of_policy("warn")

    assert "Promoted 1 of 2 gates passed, 1 warned." in text
    assert f"{NEEDED} warned {WHY} 1 at most 0" in text
    assert f"{NEEDED} failed" not in text


def test_gates_that_only_warn_promote_nothing_and_none_is_called_failed():
    text = Page(html(full(), Decision(verdicts=(WARNED,)))).text()

    assert (
        "Rejected Every gate only warns, and nothing is promoted without one that blocks." in text
    )


def test_the_only_gate_that_passed_or_warned_is_not_all_gates():
    inapplicable = dataclasses.replace(PROMOTED, inapplicable=("task/drop: not measured",))

    for decision, said in (
        (inapplicable, "The only gate that applied passed."),
        (
            dataclasses.replace(inapplicable, verdicts=(*PROMOTED.verdicts, WARNED)),
            "1 of 2 gates that applied passed, 1 warned.",
        ),
    ):
        assert f"Promoted {said}" in Page(html(full(), decision)).text()


def test_a_gate_that_warns_and_passed_has_passed():
    passed = dataclasses.replace(WARNED, found=4.0, passed=True)

    assert "latency/p99_ms passed 4 at most 5" in text_of(passed)


def test_gates_that_block_come_before_those_that_warn_and_both_before_those_that_passed():
    text = text_of(*PROMOTED.verdicts, WARNED, FAILED)

    assert text.index(FAILED.metric) < text.index(WARNED.metric) < text.index("task/drop passed")


@pytest.mark.parametrize("limit", [5, 9])
def test_a_gate_names_what_it_is_about_and_where_its_number_is_from(limit):
    gate = Gate(
        metric="latency/p50_ms", bound="at_most", limit=limit, target="sm86", precision="fp32", at=8
    )
    value = MetricValue(
        metric="latency/p50_ms",
        value=7.4,
        variant=ENGINE.variant,
        precision="fp32",
        targets=("sm86",),
        at=8,
        machine="RTX A4000",
    )
    outcome = "passed" if limit > value.value else "failed"
    text = text_of(*decide([gate], [value], has_champion=False).verdicts)

    assert (
        f"latency/p50_ms sm86 fp32 at 8 {outcome} {ENGINE.variant} at 8 on RTX A4000 7.4 "
        f"at most {limit}"
    ) in text


@pytest.mark.parametrize("found", [None, math.nan])
def test_a_reason_is_in_place_of_the_number_that_there_is_not(found):
    lacking = dataclasses.replace(
        FAILED, found=found, scope="sm86", source=ENGINE.variant, reason="not measured"
    )

    assert f"{lacking.metric} sm86 failed {ENGINE.variant} not measured {NONE} at most 5" in (
        text_of(lacking)
    )


def test_engines_that_were_excluded_are_named_below_the_gates():
    text = of_policy("exclude")

    assert "Promoted The only gate passed." in text
    assert NEEDED not in text
    assert (
        f"task/drop passed 0 at most 0.01 Excluded, because they were not measured: "
        f"{ENGINE.variant} Result Variants"
    ) in text
    assert "Excluded, because" not in of_policy("block")


def test_several_that_were_excluded_are_a_list():
    listed = "Excluded, because they were not measured: a/fp16 , b/fp16 "

    assert listed in text_of(FAILED, excluded=("a/fp16", "b/fp16"))


def test_long_names_are_shortened_and_folders_cut():
    long, scope, source = "v" * 500, "s" * 500, "w" * 500
    reason = "cannot read /home/someone/deep/model.onnx"
    odd = dataclasses.replace(FAILED, scope=scope, source=source, reason=reason)
    text = text_of(odd, excluded=(long,))

    assert "cannot read …/model.onnx" in text
    assert "someone" not in text
    assert scope[:40] + "…" in text
    assert source[:40] + "…" in text
    assert long[:30] + "…" in text
    assert "s" * 81 not in text
    assert "w" * 81 not in text
    assert "v" * 61 not in text


def test_what_a_gate_carries_is_text_and_no_markup():
    tag = "<b>x</b>"
    odd = dataclasses.replace(FAILED, scope=tag, source=tag, reason=tag)
    page = html(full(), Decision(verdicts=(odd,), excluded=(tag,)))

    assert tag not in page
    assert Page(page).text().count(tag) == 4
