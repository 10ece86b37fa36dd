"""The description of a version: a sentence that says it all, and the user's own words stay."""

import dataclasses
from datetime import date

import pytest
from small_manifest import CPU, ENGINE, HALF, PROMOTED, TORCH, full, manifest, measured

from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.latency.report import LatencyFinding
from mlflow_e2eai.pipeline.publish import summary_metrics
from mlflow_e2eai.report.background import Background, Before
from mlflow_e2eai.report.description import (
    aliases_of,
    is_own_description,
    model_description,
    version_description,
    with_aliases,
)
from mlflow_e2eai.report.text import markdown

LATENCY = {"opt": measured({"torch/fp32": 1.25, "onnxruntime-cpu/fp32": 0.146})}
FOUND = manifest(TORCH, CPU, ENGINE, latency=LATENCY)
PASSED = Verdict(metric="parity/failed", found=0, wanted="at most 0", passed=True)
FAILED = Verdict(metric="task/accuracy", found=0.9, wanted="at least 0.97", passed=False)
DAY = date(2026, 11, 30)


def sentence(found=FOUND, *verdicts):
    decision = Decision(verdicts=verdicts) if verdicts else None
    text = version_description(found, decision, alias="champion", day=DAY)
    first, table, *_ = text.split("\n\n")
    assert table == markdown(found)
    return first


def test_a_promoted_version_says_when_to_which_alias_and_what_it_serves():
    assert sentence(FOUND, PASSED) == (
        "Promoted 30 Nov 2026 to champion: onnxruntime-cpu/fp32, 0.146 ms at batch 8, "
        "accuracy 0.9750 (torch/fp32 0.9750). 1 engine not measured."
    )


def test_a_rejected_version_says_why():
    text = sentence(manifest(TORCH, CPU, latency=LATENCY), PASSED, FAILED, FAILED)
    assert text.startswith("Rejected 30 Nov 2026 for champion: onnxruntime-cpu/fp32")
    assert text.endswith("Reason: task/accuracy = 0.9 (gate: at least 0.97), and 1 more.")


def test_a_version_that_was_not_decided_on_says_so():
    assert sentence().startswith(
        "Not evaluated against any gates yet: onnxruntime-cpu/fp32, 0.146 ms"
    )


def test_a_version_that_nothing_timed_or_passed_says_what_passed():
    assert sentence(manifest(TORCH, CPU)).endswith(": onnxruntime-cpu/fp32 passed.")
    assert sentence(manifest(TORCH, HALF)).endswith(": no variant passed.")


def test_a_time_of_a_busy_machine_is_no_number():
    busy = LatencyFinding(kind="busy", variant="onnxruntime-cpu/fp32", sentence="It waited.")
    report = dataclasses.replace(LATENCY["opt"], findings=(busy,))
    text = sentence(manifest(TORCH, CPU, latency={"opt": report}))
    assert "onnxruntime-cpu/fp32, latency at batch 8 too noisy to tell" in text


def test_the_fastest_is_not_known_where_another_was_timed_on_a_busy_machine():
    half = dataclasses.replace(HALF, parity=CPU.parity)
    report = measured({"torch/fp32": 1.25, CPU.variant: 0.146, half.variant: 0.2})
    both = manifest(TORCH, CPU, half, latency={"opt": report})
    assert summary_metrics(both)["fastest/p50_ms"] == pytest.approx(0.146)
    assert "2 variants: 2 passed" in repr(both)
    assert f"fastest {CPU.variant}" in repr(both)

    busy = LatencyFinding(kind="busy", variant=half.variant, sentence="It waited.")
    report = dataclasses.replace(report, findings=(busy,))
    found = manifest(TORCH, CPU, half, latency={"opt": report})
    assert f"{CPU.variant}, latency at batch 8 too noisy to tell" in sentence(found)
    assert "fastest/p50_ms" not in summary_metrics(found)
    assert "fastest" not in repr(found)


@pytest.mark.parametrize("own", [None, "", version_description(FOUND)])
def test_a_description_that_nobody_wrote_or_changed_is_ours(own):
    assert is_own_description(own)


@pytest.mark.parametrize(
    "text",
    [
        "Trained on the winter data.",
        "Ask Ann first. " + version_description(FOUND),
        version_description(FOUND) + "\n\nAsk Ann first.",
        version_description(FOUND).replace("passed", "is fine"),
    ],
)
def test_a_description_with_a_users_words_is_the_users(text):
    assert not is_own_description(text)


def test_a_registered_model_says_how_to_load_the_version_in_use():
    assert 'load_model("models:/net@champion")' in model_description("net")


def test_approvals_and_changes_are_a_paragraph_of_the_description():
    background = Background(
        by="ann",
        at="2026-11-30 12:00:05 UTC",
        aliases=("champion",),
        approvals=("Approved by bob",),
        before=(Before(version="2", aliases=("champion",), manifest=full()),),
    )

    text = version_description(full(), PROMOTED, background=background)

    assert text.split("\n\n")[1] == "Approved by bob. Before: version 2: the same files."
    assert is_own_description(text)


def test_the_last_move_of_each_alias_is_in_the_description():
    text = with_aliases(version_description(full(), PROMOTED), {"champion": "since Monday"})
    text = with_aliases(text, {"champion-sm89": "since Tuesday"})
    text = with_aliases(text, {"champion": "until Friday, then version 3"})

    assert aliases_of(text) == (
        "@champion until Friday, then version 3; @champion-sm89 since Tuesday"
    )
    assert text.count("Aliases: ") == 1
    assert is_own_description(text)
    again = version_description(full(), PROMOTED, aliases=aliases_of(text))
    assert aliases_of(again) == aliases_of(text)


@pytest.mark.parametrize("text", ["", "Ask Ann.", "Ask Ann.\n\nAliases: @champion since ever"])
def test_a_description_of_a_user_gets_no_moves(text):
    assert with_aliases(text, {"champion": "since Monday"}) == text
    assert aliases_of(text) == ""
