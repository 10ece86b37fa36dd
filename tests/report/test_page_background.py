"""The registry's part of a decision on its page: who, approvals, the version before, history."""

from __future__ import annotations

import dataclasses

import pytest
from parsed_page import Page
from small_manifest import CPU, ORIGIN, PROMOTED, full

from mlflow_e2eai.evaluation.gates import Decision, Verdict
from mlflow_e2eai.report.background import AliasMove, Background, Before
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.sections.changes import Change, changes, summary

NOW = full()
APPROVED = "Approved as 'release' by bob at 2026-11-30 11:58:40 UTC, signed"


def with_cpu(manifest=NOW, **fields):
    """The manifest, with other evidence of the variant on the CPU."""
    evidence = [
        dataclasses.replace(entry, **fields) if entry.variant == CPU.variant else entry
        for entry in manifest.evidence
    ]
    return dataclasses.replace(manifest, evidence=tuple(evidence))


OLD = dataclasses.replace(
    with_cpu(sha256="another", task={"accuracy": 0.95}),
    environment={**NOW.environment, "python": "3.10"},
)
MOVE = AliasMove(
    at="2026-11-28 09:10:00 UTC",
    alias="champion",
    version="2",
    kind="promotion",
    by="ann",
    reason="every gate passed",
)


def background(**fields):
    given = {
        "by": "ann",
        "at": "2026-11-30 12:00:05 UTC",
        "aliases": ("champion",),
        "before": (Before(version="2", aliases=("champion",), manifest=OLD),),
        "moves": (MOVE,),
        "approvals": (APPROVED,),
    }
    return Background(**{**given, **fields})


def text_of(decision=PROMOTED, **fields):
    return Page(html(NOW, decision, origin=ORIGIN, background=background(**fields))).text()


def test_the_first_screen_tells_who_decided_who_approved_and_what_changed():
    text = text_of()

    assert "Decided 2026-11-30 12:00:05 UTC by ann, for @champion" in text
    assert f"Approvals {APPROVED}" in text
    assert "Before version 2 at @champion since 2026-11-28 09:10:00 UTC, promotion by ann" in text
    assert "Changed 1 of 3 variants have a new file; accuracy" not in text  # the worst is as it was
    assert "Changed 1 of 3 variants have a new file; another python ( all changes )" in text
    assert text.index("Decided") < text.index("The gates") < text.index("Against version 2")


def test_the_changes_and_the_moves_are_tables():
    text = text_of()

    assert "onnxruntime-cpu/fp32 accuracy 0.9500 0.9750" in text
    assert "python 3.10 3.11" in text
    assert "2026-11-28 09:10:00 UTC @champion 2 promotion: every gate passed ann" in text


def test_a_first_version_has_none_before_and_no_history():
    text = text_of(before=(), moves=(), approvals=())

    assert "Before no other version at @champion" in text
    assert "Approvals" not in text
    assert "Against version" not in text
    assert "Moves of the aliases" not in text


def test_a_version_that_a_hand_put_there_is_named_so():
    assert "Before version 2 at @champion, put there by hand" in text_of(moves=())


def test_a_version_that_no_gate_compared_with_has_no_changes():
    text = text_of(before=(Before(version="2", aliases=("champion",)),))

    assert "Before version 2 at @champion" in text
    assert "Changed" not in text


def test_an_approval_among_the_gates_is_a_sentence_and_no_number():
    verdict = Verdict(
        metric="approval/release", found=None, wanted="Approved", passed=True, source=APPROVED
    )

    assert f"approval/release {APPROVED} passed" in text_of(Decision(verdicts=(verdict,)))


def test_a_page_without_a_registry_is_as_before():
    text = Page(html(NOW, PROMOTED, origin=ORIGIN)).text()

    assert "Decided 2" not in text
    assert "Before version" not in text


def test_versions_of_the_same_files_have_no_changes_but_those_of_the_environment():
    assert changes(NOW, NOW) == []
    assert summary(NOW, NOW) == "the same files"
    newer = dataclasses.replace(NOW, environment={**NOW.environment, "python": "3.12"})
    (change,) = changes(newer, NOW)
    assert change == Change(subject=NOW.machine, name="python", before="3.11", now="3.12")


def test_two_measurements_of_one_file_are_no_change():
    assert changes(with_cpu(task={"accuracy": 0.5}), NOW) == []


@pytest.mark.parametrize(
    ("fields", "name", "texts"),
    [
        ({"task": {"accuracy": 0.5}}, "accuracy", ("0.9750", "0.5000")),
        ({"parity": {}}, "largest error", ("1.0e-06", "\N{EN DASH}")),
    ],
)
def test_a_number_of_a_new_file_is_a_change(fields, name, texts):
    found = changes(with_cpu(sha256="new", **fields), NOW)

    assert [(c.before, c.now) for c in found if c.name == name] == [texts]


def test_a_variant_that_came_or_went_is_a_change():
    less = dataclasses.replace(NOW, evidence=NOW.evidence[:-1])
    engine = NOW.evidence[-1].variant

    assert changes(less, NOW) == [
        Change(
            subject=engine,
            name="outcome",
            before="built, not measured here",
            now="not in the version",
        )
    ]
    assert summary(less, NOW).endswith(f"without {engine}")
