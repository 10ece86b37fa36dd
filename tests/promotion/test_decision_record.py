"""A decision explained from what is stored, years later, and computed again."""

from __future__ import annotations

import dataclasses
import json

import mlflow
import pytest
from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
from registered_bundles import altered, model_of, register

import mlflow_e2eai
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.side_by_side import Ratios, SideBySide, SizeRatio
from mlflow_e2eai.errors import ArtifactError, E2EAIError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.promotion import remeasurement
from mlflow_e2eai.promotion.registry.record import FORMAT_VERSION, DecisionRecord

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)
AGE = (*FAST, Gate(metric="evidence/age_days", bound="at_most", limit=30))


@pytest.fixture
def registry(store, good):
    """Two versions, each of which was promoted."""
    for version in (register(good), register(good)):
        mlflow_e2eai.promote("net", version, gates=AGE)
    return store


def run_of(store, version):
    return store.get_model_version("net", version).tags["e2eai.decision_run"]


def stored(store, version):
    """The file of a decision, parsed."""
    return json.loads(mlflow.artifacts.load_text(f"runs:/{run_of(store, version)}/decision.json"))


def test_a_decision_has_all_that_it_was_made_of(registry):
    record = mlflow_e2eai.explain("net", 2)
    data = stored(registry, "2")
    assert data["format_version"] == FORMAT_VERSION
    tags = {version: model_of(version).tags for version in ("1", "2")}
    (before,) = record.incumbents
    for contender in (before, record.challenger):
        its = tags[contender.version]
        assert contender.sha256 == its["e2eai.mlmodel_sha256"]
        assert contender.evidence_sha256 == its["e2eai.sha256"]
        assert all("onnxruntime-gpu" in each for each in contender.environments.values())
    assert (before.version, before.aliases) == ("1", ("champion",))
    assert len(record.policy_sha256) == 64
    assert record.by
    assert record.host
    assert record.at.endswith("+00:00")
    assert {value.metric for value in record.values} >= {"parity/failed", "evidence/age_days"}
    assert from_json(DecisionRecord, to_json(record)) == record


def test_the_text_of_a_decision_is_for_people(registry):
    lines = mlflow_e2eai.explain("net", 2).text().splitlines()
    assert lines[0] == "Version 2 of net: promoted for @champion"
    assert any(line.startswith("  before: version 1 at @champion, files sha256 ") for line in lines)
    assert any(line.startswith("  passed  parity/failed") for line in lines)


def test_what_the_machines_differ_in_is_named(store, good, tmp_path):
    def other(data):
        there = data["environment"]
        there |= {"processor": "Another 3000", "measured": "2020-02-02 02:02 UTC", "load": "0.7"}

    gates = (*FAST, Gate(metric="champion/task_drop", bound="at_most", limit=1))
    mlflow_e2eai.promote("net", register(good), gates=gates)
    mlflow_e2eai.promote("net", register(altered(good, tmp_path, other)), gates=gates)
    differences = mlflow_e2eai.explain("net", 2).differences
    assert any("processor" in line and "Another 3000 (version 2)" in line for line in differences)
    assert not any(line.startswith(("measured", "load")) for line in differences)


def test_a_rejection_is_explained_too(registry, good):
    version = register(good)
    mlflow_e2eai.promote(
        "net", version, gates=(Gate(metric="parity/failed", bound="at_least", limit=99),)
    )
    record = mlflow_e2eai.explain("net", version)
    assert not record.decision.promoted
    assert "  FAILED  parity/failed" in record.text()


def test_the_decision_that_gave_an_alias_is_explained_whatever_came_later(registry):
    mlflow_e2eai.promote("net", 2, alias="canary", gates=FAST)

    assert mlflow_e2eai.explain("net", 2).aliases == ("canary",)
    assert mlflow_e2eai.explain("net", 2, alias="champion").aliases == ("champion",)
    assert mlflow_e2eai.explain("net", 1, alias="champion").challenger.version == "1"
    with pytest.raises(TrackingError, match="No decision gave version 1 of 'net' the alias 'can"):
        mlflow_e2eai.explain("net", 1, alias="canary")


def test_a_decision_that_confirmed_an_alias_is_explained_too(registry):
    registry.set_registered_model_alias("net", "canary", "1")
    mlflow_e2eai.promote("net", 1, alias="canary", gates=FAST)
    mlflow_e2eai.promote("net", 1, alias="blue", gates=FAST)

    assert mlflow_e2eai.explain("net", 1, alias="canary").aliases == ("canary",)


def test_a_version_that_stands_by_a_rollback_says_so_until_it_is_left(registry):
    move = mlflow_e2eai.rollback("net")

    for alias in (None, "champion"):
        record = mlflow_e2eai.explain("net", 1, alias=alias)
        assert record.rollbacks == (move,)
        assert f", by {move.by}, before version 2\n" in f"{record.text()}\n"
        assert "  rolled back: @champion points to it since 20" in record.text()
    assert mlflow_e2eai.explain("net", 2).rollbacks == ()
    mlflow_e2eai.promote("net", 2, gates=FAST)
    assert mlflow_e2eai.explain("net", 1).rollbacks == ()


def test_a_version_that_was_not_decided_about_is_named_with_the_command(store, good):
    register(good)
    with pytest.raises(
        TrackingError,
        match=r"Nothing was decided about version 1 of .* promote it with `ml",
    ):
        mlflow_e2eai.explain("net", 1)
    with pytest.raises(TrackingError, match="There is no version 9 of 'net'"):
        mlflow_e2eai.explain("net", 9)


def test_a_decision_whose_run_is_gone_is_named(registry):
    run_id = run_of(registry, "2")
    artifact_uri = registry.get_run(run_id).info.artifact_uri
    get_artifact_repository(artifact_uri).delete_artifacts("decision.json")
    with pytest.raises(TrackingError, match=f"is no longer in run {run_id}"):
        mlflow_e2eai.explain("net", 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"format_version": 99}, "has format 99, written by mlflow_e2eai .*install that version"),
        ({"format_version": None}, "kept verdicts only; promote the version again"),
        ({"policy": 3}, "This is not a DecisionRecord: at policy"),
    ],
)
def test_a_file_of_another_format_is_refused(registry, change, sentence):
    text = json.dumps({**stored(registry, "2"), **change})
    registry.log_text(run_of(registry, "2"), text, "decision.json")
    with pytest.raises(ArtifactError, match=sentence):
        mlflow_e2eai.explain("net", 2)


# Computed again.


def test_the_same_evidence_gives_the_same_decision_today(registry):
    runs = len(mlflow.search_runs(search_all_experiments=True))
    again = mlflow_e2eai.redecide("net", 2)
    assert not again.differs
    assert again.now.promoted
    assert again.text().startswith("Version 2 of net: the decision would be the same today")
    assert len(mlflow.search_runs(search_all_experiments=True)) == runs


def test_evidence_that_is_too_old_by_now_would_be_rejected_today(registry, monkeypatch):
    data = stored(registry, "2")
    for gate in data["policy"]["gates"]:
        if gate["metric"] == "evidence/age_days":
            gate["limit"] = -1
    registry.log_text(run_of(registry, "2"), json.dumps(data), "decision.json")
    again = mlflow_e2eai.redecide("net", 2)
    assert again.differs
    assert "would be another today (rejected)" in again.text()
    (difference,) = again.differences
    assert difference.startswith("then passed  evidence/age_days")
    assert "; now failed  evidence/age_days" in difference


@pytest.mark.parametrize("aliases", [("champion",), ("champion", "edge")])
def test_what_was_measured_for_a_decision_counts_when_it_is_computed_again(
    store, good, tmp_path, monkeypatch, aliases
):
    def elsewhere(data):
        data["environment"]["processor"] = "Another 3000"

    highs = iter((1.5, 1.25))

    def measure(*_, **__):
        sizes = (SizeRatio(items=8, high=next(highs)),)
        return SideBySide(machine="Another 3000", overall=Ratios(sizes=sizes))

    monkeypatch.setattr(remeasurement, "measure_side_by_side", measure)
    for alias in aliases:
        old = register(altered(good, tmp_path / alias, elsewhere))
        store.set_registered_model_alias("net", alias, old)
    version = register(good)
    gates = (Gate(metric="champion/latency_ratio", bound="at_most", limit=2),)
    decision = mlflow_e2eai.promote("net", version, alias=aliases, gates=gates, remeasure=True)
    again = mlflow_e2eai.redecide("net", version)

    assert decision.promoted
    assert not again.differs
    assert again.differences == ()
    found = [verdict.found for verdict in again.now.verdicts]
    assert found == [1.5, 1.25][: len(aliases)]


def test_each_of_several_incumbents_and_gates_on_one_metric_is_told_apart(store, good):
    for alias in ("champion", "edge"):
        store.set_registered_model_alias("net", alias, register(good))
    drop = "champion/task_drop"
    gates = [Gate(metric=drop, bound="at_most", limit=limit) for limit in (0.5, 0.25)]
    decision = mlflow_e2eai.promote("net", register(good), alias=["champion", "edge"], gates=gates)

    first, _, third, _ = map(str, decision.verdicts)
    assert first == f"{drop} = 0 (against version 1 at @champion; gate: at most 0.5)"
    assert third == f"{drop} = 0 (against version 2 at @edge; gate: at most 0.5)"
    again = mlflow_e2eai.redecide("net", 3)
    assert again.differences == ()
    bad = [dataclasses.replace(each, passed=False) for each in again.now.verdicts]
    worse = dataclasses.replace(again, now=dataclasses.replace(again.now, verdicts=tuple(bad)))
    assert len(worse.differences) == 4


def test_an_approval_that_was_withdrawn_would_count_today(store, good):
    register(good)
    mlflow_e2eai.approve("net", 1, as_="release")
    mlflow_e2eai.promote("net", 1, gates={"gates": [{"approval": "release"}]})
    assert not mlflow_e2eai.redecide("net", 1).differs
    mlflow_e2eai.reject("net", 1, as_="release")
    assert mlflow_e2eai.redecide("net", 1).differs


def test_a_file_that_changed_since_is_found(registry, artifacts):
    with artifacts.edited(model_of("2").model_id) as folder:
        (graph, *_) = folder.rglob("*.onnx")
        graph.write_bytes(graph.read_bytes() + b" ")
    with pytest.raises(E2EAIError, match="Version 2 of 'net'"):
        mlflow_e2eai.redecide("net", 2)
