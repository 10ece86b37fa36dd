"""Several challengers in one call."""

from __future__ import annotations

import mlflow
import pytest
from graded_bundles import CPU32, TORCH, timed, version
from registered_bundles import model_of
from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.bundle.side_by_side import Ratios, SideBySide, SizeRatio
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.flavor import api
from mlflow_e2eai.promotion import contenders, remeasurement
from mlflow_e2eai.promotion.appraisal import Appraisal
from mlflow_e2eai.promotion.challengers import Goal
from mlflow_e2eai.promotion.metrics import values_of
from mlflow_e2eai.promotion.policy import Policy, decide_on

pytestmark = pytest.mark.usefixtures("on_threads")

GATES = {"gates": [{"metric": "task/accuracy", "at_least": 0.5}]}


LENIENT = {"gates": [{"metric": "task/accuracy", "at_least": 0.0}]}


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    place = tmp_path_factory.mktemp("good") / "model"
    module = net()
    mlflow_e2eai.save_model(
        module,
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evaluation_data=labelled(module),
    )
    return place


@pytest.fixture
def versions(store, good, tmp_path):
    """Three versions: the second is the most accurate, the third fails its gate."""
    made = []
    for number, accuracy in enumerate((0.6, 0.8, 0.1)):
        directory = bundle.find(good)
        text = to_json(bundle.audit(directory))
        text = text.replace('"accuracy": 1.0', f'"accuracy": {accuracy}')
        place = tmp_path / str(number)
        bundle.write(place, from_json(bundle.Manifest, text), bundle.read_example(directory))
        info = api.log_model(place, "net", registered_model_name="net")
        made.append(str(info.registered_model_version))
    return made


def holder(store):
    return str(store.get_model_version_by_alias("net", "champion").version)


def test_the_best_of_those_that_pass_is_promoted_and_the_others_say_why_not(store, versions):
    contest = mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy")

    first, second, third = versions
    assert contest.winner == second
    assert holder(store) == second
    assert contest.reasons[0] == (
        f"version {first}: goal/task/accuracy = 0.6 (gate: the highest of 2 versions, 0.8 of "
        f"version {second})"
    )
    assert contest.reasons[1].startswith(f"version {third}: task/accuracy = 0.1")
    tags = {each: store.get_model_version("net", each).tags["e2eai.decision"] for each in versions}
    assert tags == {first: "rejected", second: "promoted", third: "rejected"}


def test_where_none_passes_none_is_promoted(store, versions):
    gates = {"gates": [{"metric": "task/accuracy", "at_least": 0.9}]}
    contest = mlflow_e2eai.promote("net", versions, gates=gates, goal="task/accuracy")

    assert contest.winner is None
    assert not contest.promoted
    assert len(contest.reasons) == 3


def test_the_holder_of_the_alias_may_be_among_them_and_a_dry_run_writes_nothing(store, versions):
    mlflow_e2eai.promote("net", versions[0], gates=GATES)
    contest = mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy", dry_run=True)

    assert contest.winner == versions[1]
    assert holder(store) == versions[0]
    assert "e2eai.decision" not in store.get_model_version("net", versions[2]).tags


def runs_of(store):
    return len(mlflow.search_runs(search_all_experiments=True))


def test_promoting_several_twice_is_promoting_them_once(store, versions):
    first = mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy")
    before, moves = runs_of(store), mlflow_e2eai.history("net").moves
    again = mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy")

    assert runs_of(store) == before
    assert mlflow_e2eai.history("net").moves == moves
    assert again.winner == first.winner
    assert [each.run_id for each in again.decisions.values()] == [
        each.run_id for each in first.decisions.values()
    ]


def test_a_rejection_by_other_rules_is_written_again(store, versions):
    mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy")
    before = runs_of(store)
    other = {"gates": [{"metric": "task/accuracy", "at_least": 0.55}]}
    mlflow_e2eai.promote("net", versions, gates=other, goal="task/accuracy")

    assert runs_of(store) == before + len(versions)


def test_a_version_that_is_named_twice_is_refused_by_whatever_name(store, versions):
    mlflow_e2eai.promote("net", versions[1], gates=GATES)
    for names in (["@champion", versions[1]], ["latest", versions[2]]):
        with pytest.raises(InvalidInputError, match="give each once"):
            mlflow_e2eai.promote("net", names, gates=GATES, goal="task/accuracy")


def test_a_champion_that_is_damaged_and_that_no_gate_reads_stops_nobody(store, versions, artifacts):
    mlflow_e2eai.promote("net", versions[0], gates=GATES)
    source = store.get_model_version("net", versions[0]).source
    with artifacts.edited(source.removeprefix("models:/")) as folder:
        path = folder / "bundle" / "model.onnx"
        path.write_bytes(path.read_bytes() + b"!")

    contest = mlflow_e2eai.promote("net", versions[1:], gates=GATES, goal="task/accuracy")
    assert contest.winner == versions[1]


def test_a_rejection_against_another_version_is_written_again(store, versions):
    some, (other,) = versions[:2], versions[2:]
    mlflow_e2eai.promote("net", some, gates=GATES, goal="task/accuracy")
    mlflow_e2eai.promote("net", other, gates={"gates": [{"metric": "parity/failed", "at_most": 0}]})
    before = runs_of(store)
    contest = mlflow_e2eai.promote("net", some, gates=GATES, goal="task/accuracy")

    assert runs_of(store) == before + len(some)
    assert {each.before["champion"] for each in contest.decisions.values()} == {other}


def test_each_challenger_is_measured_once_though_it_is_decided_on_twice(
    store, versions, monkeypatch
):
    mlflow_e2eai.promote("net", versions[2], gates=LENIENT)
    measured = []

    def measure(challenger, champion, **_):
        measured.append(challenger)
        sizes = (SizeRatio(items=8, high=1.0),)
        return SideBySide(machine="a test", overall=Ratios(sizes=sizes))

    monkeypatch.setattr(remeasurement, "measure_side_by_side", measure)
    gates = {"gates": [*GATES["gates"], {"metric": "champion/latency_ratio", "at_most": 1e9}]}
    challengers = versions[:2]
    mlflow_e2eai.promote("net", challengers, gates=gates, goal="task/accuracy", remeasure=True)

    assert len(measured) == len(challengers)


def test_a_challenger_that_cannot_be_read_is_one_of_the_others(store, versions, artifacts):
    first, second, third = versions
    with artifacts.edited(model_of(first).model_id) as folder:
        (graph, *_) = folder.rglob("*.onnx")
        data = bytearray(graph.read_bytes())
        data[-1] ^= 1
        graph.write_bytes(bytes(data))
    store.delete_logged_model(model_of(third).model_id)
    plain = mlflow.pytorch.log_model(
        net(),
        name="plain",
        input_example=features(),
        registered_model_name="net",
        pip_requirements=[],
    )
    names = [*versions, str(plain.registered_model_version)]
    contest = mlflow_e2eai.promote("net", names, gates=GATES, goal="task/accuracy")

    assert contest.winner == second == holder(store)
    assert list(contest.decisions) == names
    flipped, deleted, other = contest.reasons
    assert flipped.startswith(f"version {first}: files: Version {first} of 'net' cannot be read")
    assert deleted.startswith(f"version {third}: files: Version {third} of 'net' cannot be read")
    assert "is a plain MLflow model, not a bundle of this package" in other


def test_a_challenger_that_does_not_exist_is_an_error(store, versions):
    before = runs_of(store)
    with pytest.raises(TrackingError, match="There is no version 9 of 'net'"):
        mlflow_e2eai.promote("net", [*versions, 9], gates=GATES, goal="task/accuracy")
    assert runs_of(store) == before


def test_a_server_that_fails_is_no_fault_of_a_challenger(store, versions, monkeypatch):
    def fail(*_):
        msg = "The store of artifacts does not answer."
        raise TrackingError(msg, resumable=True)

    monkeypatch.setattr(contenders.tracking, "fetch_verified", fail)
    with pytest.raises(TrackingError, match="does not answer"):
        mlflow_e2eai.promote("net", versions, gates=GATES, goal="task/accuracy")


@pytest.mark.parametrize(
    ("numbers", "goal", "message"),
    [
        ([1, 2], None, "Several versions are given and no goal"),
        ([1, 1], "task/accuracy", "give each once"),
        ([], "task/accuracy", "at least one"),
        (1, "task/accuracy", "to choose among several versions"),
        ([1, 2], "latency/p98_ms", "did you mean latency/p99_ms"),
        ([1, 2], {"minimise": "latency/p50_ms"}, "Did you mean minimize"),
        ([1, 2], {"minimize": "latency/p50_ms", "maximize": "task/a"}, "give a metric"),
        ([1, 2], {"minimize": 3}, "give a metric"),
        ([1, 2], "champion/task_drop", "which compares"),
    ],
)
def test_a_goal_that_is_wrong_is_one_sentence(store, versions, numbers, goal, message):
    with pytest.raises(InvalidInputError, match=message):
        mlflow_e2eai.promote("net", numbers, gates=GATES, goal=goal)


@pytest.mark.parametrize(
    ("metric", "is_high"),
    [
        ("latency/p50_ms", False),
        ("latency/throughput_items_per_s", True),
        ("concurrency/items_per_s", True),
        ("task/accuracy", True),
        ("task/drop", False),
        ("parity/cosine", True),
        ("parity/max_abs_error", False),
        ("file/size_bytes", False),
    ],
)
def test_the_better_side_of_a_metric_is_known(metric, is_high):
    assert Goal.parse(metric).is_high is is_high
    assert Goal.parse({"minimize": metric}).is_high is False
    assert Goal.parse({"maximize": metric}).is_high is True


def appraisal(found):
    values = values_of(found)
    gates = (Gate(metric="parity/failed", bound="at_most", limit=0),)
    decision = decide_on(Policy(gates=gates), found, values, has_champion=False)
    return Appraisal(manifest=found, values=tuple(values), decision=decision)


def test_a_version_has_the_time_of_its_best_variant_and_the_error_of_its_worst():
    one = appraisal(version())

    assert Goal.parse("latency/p50_ms").value_of(one) == 1.0
    assert Goal.parse({"minimize": "latency/p50_ms", "precision": "fp16"}).value_of(one) == 1.5
    assert Goal.parse("task/accuracy").value_of(one) == 0.9


def test_a_goal_may_be_at_a_size():
    latency = {"min": timed({TORCH: 1.0, CPU32: 3.0}, 1), "opt": timed({TORCH: 1.0, CPU32: 5.0})}
    one = appraisal(version(latency=latency))

    assert Goal.parse({"minimize": "latency/p50_ms", "at": 1}).value_of(one) == 3.0
    assert Goal.parse("latency/p50_ms").value_of(one) == 5.0
