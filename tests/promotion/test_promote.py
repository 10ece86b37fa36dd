"""Promotion: gates on a version's own evidence, against the version that holds the alias now."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import mlflow
import pytest
import torch
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED
from registered_bundles import altered, holder, register
from registry_servers import ADMIN, create_user, server_with_users
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError, TrackingError
from mlflow_e2eai.evaluation.gates import Gate
from mlflow_e2eai.flavor import api
from mlflow_e2eai.pipeline import publish
from mlflow_e2eai.promotion import challenge, gates_file, metrics
from mlflow_e2eai.promotion.appraisal import appraise
from mlflow_e2eai.report.plots import plots
from mlflow_e2eai.tracking.lineage import ROOTS

pytestmark = pytest.mark.usefixtures("on_threads")

FAST = (Gate(metric="parity/failed", bound="at_most", limit=0),)


def test_a_version_that_passes_every_gate_gets_the_alias(store, good):
    version = register(good)
    decision = mlflow_e2eai.promote("net", version)
    assert decision.promoted
    assert [v.metric for v in decision.verdicts] == [
        "parity/failed",
        "parity/measured",
        "evidence/unverified",
        "evidence/assumptions",
        "evidence/quick",
        "evidence/refused_sizes",
        "evidence/frozen",
        "evidence/zero_scores",
        "task/drop",
    ]
    assert holder(store) == version
    tags = store.get_model_version("net", version).tags
    assert tags["e2eai.decision"] == "promoted"
    assert tags["e2eai.alias"] == "champion"


def test_a_decision_names_its_version_its_run_and_what_had_the_alias_before(store, good):
    first, second = register(good), register(good)
    trial = mlflow_e2eai.promote("net", first, gates=FAST, dry_run=True)
    assert (trial.run_id, trial.before) == (None, {"champion": None})
    mlflow_e2eai.promote("net", first, gates=FAST)

    decision = mlflow_e2eai.promote("net", second, gates=FAST)
    assert (decision.name, decision.version, decision.aliases) == ("net", second, ("champion",))
    assert decision.before == {"champion": first}
    assert decision.run_id == store.get_model_version("net", second).tags["e2eai.decision_run"]
    assert repr(decision) == (
        f"Promotion: net {second} for @champion (before: version {first}): "
        "promoted, 1 of 1 gates passed"
    )
    assert mlflow_e2eai.promote("net", second, gates=FAST).run_id == decision.run_id


def test_a_version_has_few_tags_and_a_description_that_begins_with_its_decision(store, good):
    version = register(good)
    registered = store.get_model_version("net", version)
    model = tracking.model_of_version(registered)
    assert registered.tags == {tag: model.tags[tag] for tag in ROOTS}
    assert registered.description.startswith("Not evaluated against any gates yet: onnxruntime-cpu")
    assert "models:/net@champion" in store.get_registered_model("net").description

    mlflow_e2eai.promote("net", version, gates=FAST)
    registered = store.get_model_version("net", version)
    assert sorted(registered.tags) == [
        "e2eai.alias",
        "e2eai.decision",
        "e2eai.decision_run",
        "e2eai.mlmodel_sha256",
        "e2eai.reason",
        "e2eai.sha256",
    ]
    assert registered.description.startswith("Promoted ")
    assert "to champion: onnxruntime-cpu" in registered.description
    note = store.get_run(registered.run_id).data.tags["mlflow.note.content"]
    assert note == registered.description


def test_descriptions_of_a_user_stay(store, good):
    store.create_registered_model("net", description="Ann's model.")
    version = register(good)
    store.update_model_version("net", version, "Ask Ann before you touch it.")
    mlflow_e2eai.promote("net", version, gates=FAST)
    described = store.get_model_version("net", version).description
    assert described == "Ask Ann before you touch it."
    assert store.get_registered_model("net").description == "Ann's model."


def test_a_promotion_shows_the_plots_that_were_logged_and_does_not_draw_them_again(
    store, good, monkeypatch
):
    publish._plots.cache_clear()
    drawn = []
    monkeypatch.setattr(
        publish, "plots", lambda manifest: drawn.append(manifest) or plots(manifest)
    )
    mlflow_e2eai.promote("net", register(good))
    assert len(drawn) == 1
    runs = mlflow.search_runs(search_all_experiments=True, output_format="list")
    pictures = [
        Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id, artifact_path=file.path))
        for run in runs
        for file in store.list_artifacts(run.info.run_id)
        if file.path == "latency.png"
    ]
    assert len(pictures) == 2
    assert pictures[0].read_bytes() == pictures[1].read_bytes()


def test_the_second_version_is_held_against_the_first_which_is_remembered(store, good):
    first, second = register(good), register(good)
    mlflow_e2eai.promote("net", first)
    generous = {"gates": [{"metric": "champion/latency_ratio", "at_most": 20}]}
    decision = mlflow_e2eai.promote("net", second, gates=generous)
    (verdict,) = decision.verdicts
    assert verdict.passed
    assert 0.02 < verdict.found < 20
    assert holder(store) == second
    assert store.get_model_version("net", second).tags["e2eai.previous"] == first


def fail_fp16(data):
    for entry in data["evidence"]:
        if entry["variant"] == "onnxruntime-cpu/fp16":
            entry["parity"]["profile"]["findings"] = [
                {
                    "kind": "tolerance",
                    "output": "output",
                    "sample": 0,
                    "index": [0, 0],
                    "sentence": "wrong",
                }
            ]


def lose_accuracy(data):
    for entry in data["evidence"]:
        if entry["variant"] == "onnxruntime-cpu/fp16":
            entry["task"]["accuracy"] -= 0.5


def measure_nothing(data):
    for entry in data["evidence"]:
        if entry["sha256"] is not None:
            entry.update(measured=False, parity={}, task={}, reason="no time")


def nan_accuracy(data):
    for entry in data["evidence"]:
        if entry["variant"] == "onnxruntime-cpu/fp16":
            entry["task"]["accuracy"] = "NaN"


@pytest.mark.parametrize(
    ("change", "metric"),
    [
        (fail_fp16, "parity/failed"),
        (lose_accuracy, "task/drop"),
        (measure_nothing, "parity/measured"),
        (nan_accuracy, "task/drop"),
    ],
)
def test_bad_evidence_is_rejected_the_alias_stays_and_the_tags_say_why(
    store, good, tmp_path, change, metric
):
    champion = register(good)
    mlflow_e2eai.promote("net", champion)
    version = register(altered(good, tmp_path, change))
    decision = mlflow_e2eai.promote("net", version)
    assert not decision.promoted
    assert any(metric in reason for reason in decision.reasons)
    assert holder(store) == champion
    tags = store.get_model_version("net", version).tags
    assert tags["e2eai.decision"] == "rejected"
    assert metric in tags["e2eai.reason"]


def also_elsewhere(change):
    """Another machine found the same, but for a change."""

    def add(data):
        found = copy.deepcopy({key: data[key] for key in ("environment", "evidence", "latency")})
        change(found)
        data["elsewhere"] = [found]

    return add


def less_of_everything(data):
    for entry in data["evidence"]:
        entry["task"] = {name: value - 0.25 for name, value in entry["task"].items()}


def numbers(place):
    return metrics.totals(metrics.values_of(metrics.read_bundle(place)))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (dict, {}),  # the same
        (fail_fp16, {"parity/failed": 1.0}),
        (lose_accuracy, {"task/drop": 0.5, "task/accuracy": 0.5}),
        (measure_nothing, {"task/drop": math.nan}),
        # Every machine's variants are held against its own reference.
        (less_of_everything, {"task/accuracy": 0.75}),
    ],
)
def test_what_other_machines_found_counts_and_nothing_twice(good, tmp_path, change, differs):
    here = numbers(bundle.find(good))
    place = altered(good, tmp_path, also_elsewhere(change))
    assert numbers(place) == pytest.approx(here | differs, nan_ok=True)


def test_a_champion_that_was_better_at_the_task_keeps_the_alias(store, good, tmp_path):
    champion = register(good)
    mlflow_e2eai.promote("net", champion)

    def worse(data):
        for entry in data["evidence"]:
            entry["task"] = {name: value - 0.2 for name, value in entry["task"].items()}

    version = register(altered(good, tmp_path, worse))
    gates = {"gates": [{"metric": "champion/task_drop", "at_most": 0.01}]}
    decision = mlflow_e2eai.promote("net", version, gates=gates)
    assert decision.verdicts[0].found == pytest.approx(0.2)
    assert holder(store) == champion


class Slow(torch.nn.Module):
    """The same interface, and a thousand times the work."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(8, 3)
        self.body = torch.nn.Sequential(*(torch.nn.Linear(1024, 1024) for _ in range(8)))

    def forward(self, x):
        wide = torch.nn.functional.pad(x, (0, 1016))
        return self.head(x) + self.body(wide)[:, :3]


def slow_version():
    """Register a version that is much slower."""
    info = mlflow_e2eai.log_model(
        Slow().eval(),
        "net",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32",),
        registered_model_name="net",
    )
    return info.registered_model_version


def test_a_version_of_the_same_files_is_as_fast_by_construction(good):
    place = bundle.find(good)
    found = appraise(gates_file.read_policy(None), place, place)
    assert metrics.totals(found.values)["champion/latency_ratio"] == 1.0


def test_a_version_that_is_measured_to_be_much_slower_is_rejected(store, good):
    mlflow_e2eai.promote("net", register(good))
    slow = slow_version()
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1.25}]}
    decision = mlflow_e2eai.promote("net", slow, gates=gates)
    assert not decision.promoted
    assert decision.verdicts[0].found > 2


def test_a_latency_ratio_that_was_measured_on_a_busy_machine_does_not_pass(
    store, good, monkeypatch
):
    mlflow_e2eai.promote("net", register(good))
    # However fast it is: no share of a processor is above 1, so that all of them are too small.
    monkeypatch.setattr("mlflow_e2eai.latency.cpu.LEAST_SHARE", 1.1)
    monkeypatch.setattr("mlflow_e2eai.latency.findings.OTHERS_SHARE", 0.0)
    slow = slow_version()
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1e9}]}
    decision = mlflow_e2eai.promote("net", slow, gates=gates)

    assert not decision.promoted
    assert math.isnan(decision.verdicts[0].found)


def test_the_decision_is_a_run_with_both_versions_as_inputs(store, good):
    first, second = register(good), register(good)
    mlflow_e2eai.promote("net", first, gates=FAST)
    mlflow_e2eai.promote("net", second, gates=FAST)
    run_id = store.get_model_version("net", second).tags["e2eai.decision_run"]
    run = store.get_run(run_id)
    wanted = {
        store.get_model_version("net", v).source.removeprefix("models:/") for v in (first, second)
    }
    assert {link.model_id for link in run.inputs.model_inputs} == wanted
    assert run.data.tags["e2eai.decision"] == "promoted"
    stored = json.loads(mlflow.artifacts.load_text(f"{run.info.artifact_uri}/decision.json"))
    assert stored["decision"]["verdicts"][0]["metric"] == "parity/failed"


def test_promoting_the_holder_again_judges_it_on_its_own_and_changes_nothing(store, good):
    version = register(good)
    assert mlflow_e2eai.promote("net", version).promoted
    again = mlflow_e2eai.promote("net", version)
    assert again.promoted
    assert not any(verdict.metric.startswith("champion/") for verdict in again.verdicts)
    assert holder(store) == version


def test_evidence_that_was_changed_after_logging_is_refused(store, good, artifacts):
    info = api.log_model(good, "net", registered_model_name="net")
    with artifacts.edited(info.model_id) as folder:
        place = folder / "bundle" / "manifest.json"
        place.write_text(place.read_text().replace('"measured": true', '"measured": false', 1))
    with pytest.raises(ArtifactError, match=r"manifest.json has sha256"):
        mlflow_e2eai.promote("net", info.registered_model_version)
    assert holder(store) is None


def test_a_version_is_decided_again_against_the_one_that_got_the_alias_meanwhile(
    store, good, monkeypatch
):
    first, second, third = register(good), register(good), register(good)
    mlflow_e2eai.promote("net", first, gates=FAST)
    decide = challenge.appraise
    compared = []

    def meanwhile(*places, **options):
        if not compared:
            store.set_registered_model_alias("net", "champion", third)
        compared.append(places)
        return decide(*places, **options)

    monkeypatch.setattr(challenge, "appraise", meanwhile)
    assert mlflow_e2eai.promote("net", second, gates=FAST).promoted
    assert len(compared) == 2
    assert holder(store) == second
    assert mlflow_e2eai.explain("net", second).incumbents[0].version == third
    runs = mlflow.search_runs(filter_string="tags.`e2eai.version` = '2'", output_format="list")
    assert [run.data.tags["e2eai.decision"] for run in runs] == ["promoted", "superseded"]


def another_processor(data):
    data["environment"]["processor"] = "Another 3000"


def test_a_latency_on_another_kind_of_machine_is_not_comparable_and_blocks(store, good, tmp_path):
    mlflow_e2eai.promote("net", register(altered(good, tmp_path, another_processor)))
    slow = slow_version()
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1e9}]}
    decision = mlflow_e2eai.promote("net", slow, gates=gates)

    assert not decision.promoted
    (reason,) = decision.reasons
    assert reason == (
        "champion/latency_ratio, on Another 3000: not comparable, as the champion was measured "
        "there, and this version was not (gate: at most 1e+09)"
    )
    assert (
        "here, for this machine only: call promote as before, with remeasure=True;"
        in (decision.remedies[0])
    )


def test_the_command_that_measures_again_has_the_aliases_and_the_gates_of_the_call(
    store, good, tmp_path
):
    gates = tmp_path / "my gates.yaml"
    gates.write_text("gates:\n  - {metric: champion/latency_ratio, at_most: 1.0e+9}\n")
    store.set_registered_model_alias(
        "net", "edge", register(altered(good, tmp_path, another_processor))
    )
    slow = slow_version()
    decision = mlflow_e2eai.promote("net", slow, alias="edge", gates=gates, dry_run=True)

    command = (
        f"mlflow_e2eai promote net {slow} --alias edge --gates '{gates}' --remeasure --dry-run"
    )
    assert f": {command}; or where the champion was measured: " in decision.remedies[0]


def test_remeasuring_takes_the_place_of_what_was_stored_of_this_machine(store, good, tmp_path):
    def another_runtime(data):
        for name in data["environment"].keys() & {"onnxruntime", "onnxruntime-gpu"}:
            data["environment"][name] = "1.0"

    mlflow_e2eai.promote("net", register(altered(good, tmp_path, another_runtime)))
    slow = slow_version()
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1e9}]}
    decision = mlflow_e2eai.promote("net", slow, gates=gates)
    assert "the champion was measured with ONNX Runtime 1.0, and this" in decision.reasons[0]

    decision = mlflow_e2eai.promote("net", slow, gates=gates, remeasure=True)
    assert decision.promoted
    assert decision.verdicts[0].found > 2


def test_remeasuring_finds_a_version_that_is_much_slower_here(store, good):
    mlflow_e2eai.promote("net", register(good))
    selected = {
        "metric": "champion/latency_ratio",
        "at_most": 1.25,
        "variant": "onnxruntime-cpu/fp32",
    }
    gates = {"gates": [{"metric": "champion/latency_ratio", "at_most": 1.25}, selected]}
    decision = mlflow_e2eai.promote("net", slow_version(), gates=gates, remeasure=True)

    assert not decision.promoted
    assert all(verdict.found > 2 for verdict in decision.verdicts)


def everything_of(store):
    """Runs, aliases and tags of a store."""
    versions = store.search_model_versions("name='net'")
    return (
        len(mlflow.search_runs(search_all_experiments=True)),
        {version.version: dict(version.tags) for version in versions},
        dict(store.get_registered_model("net").aliases),
        dict(store.get_registered_model("net").tags),
    )


@pytest.mark.parametrize("limit", [0.5, 1.5])
def test_a_dry_run_decides_and_writes_nothing(store, good, limit):
    version = register(good)
    before = everything_of(store)
    gates = {"gates": [{"metric": "task/accuracy", "at_least": limit}]}

    decision = mlflow_e2eai.promote("net", version, gates=gates, dry_run=True)
    assert decision.promoted is (limit < 1)
    assert everything_of(store) == before


def test_a_dry_run_says_what_is_missing_as_a_command(store, good, tmp_path):
    version = register(altered(good, tmp_path, make_quick))
    decision = mlflow_e2eai.promote("net", version, dry_run=True)

    assert decision.remedies == (
        (
            f"mlflow_e2eai pipeline models:/net/{version} --registered-model-name net "
            "--evidence standard; then promote the version that it makes"
        ),
    )


def test_another_alias_and_gates_from_a_file(store, good, tmp_path):
    version = register(good)
    path = tmp_path / "gates.yaml"
    path.write_text("gates:\n  - {metric: task/accuracy, at_least: 1.1}\n")
    assert not mlflow_e2eai.promote("net", version, alias="edge", gates=path).promoted
    path.write_text("gates:\n  - {metric: task/accuracy, at_least: 0.5}\n")
    assert mlflow_e2eai.promote("net", version, alias="edge", gates=str(path)).promoted
    assert holder(store, "edge") == version
    assert holder(store) is None


def test_bad_requests_are_one_clear_sentence_and_move_nothing(store, good, tmp_path):
    version = register(good)
    with pytest.raises(TrackingError, match="There is no version 9 of 'net'"):
        mlflow_e2eai.promote("net", 9)
    with pytest.raises(TrackingError, match="There is no version 1 of 'other'"):
        mlflow_e2eai.promote("other", 1)
    with pytest.raises(InvalidInputError, match=r"Cannot read .*missing\.yaml: No such file"):
        mlflow_e2eai.promote("net", version, gates=tmp_path / "missing.yaml")
    with pytest.raises(InvalidInputError, match="is no gate"):
        mlflow_e2eai.promote("net", version, gates={"gates": [{"metric": "x"}]})
    with pytest.raises(InvalidInputError, match="v7"):
        mlflow_e2eai.promote("net", version, alias="v7")
    assert holder(store) is None


def test_a_version_of_another_flavor_is_refused(store):
    with mlflow.start_run():
        mlflow.pytorch.log_model(
            net(),
            name="other",
            input_example=features(),
            registered_model_name="other",
            pip_requirements=[],
        )
    with pytest.raises(ArtifactError, match="is a plain MLflow model, not a bundle"):
        mlflow_e2eai.promote("other", 1)


def measure_no_task(data):
    for entry in data["evidence"]:
        entry["task"] = {}


def test_without_labels_the_gates_on_tasks_do_not_apply_and_say_so(store, good, tmp_path):
    version = register(altered(good, tmp_path, measure_no_task))
    decision = mlflow_e2eai.promote("net", version)
    assert decision.promoted
    assert "task/drop" not in [verdict.metric for verdict in decision.verdicts]
    assert "task/drop: not measured, there is no data for it" in decision.inapplicable
    tags = store.get_model_version("net", version).tags
    assert "task/drop: not measured" in tags["e2eai.reason"]
    assert "task/drop" not in store.get_run(tags["e2eai.decision_run"]).data.metrics


def test_without_labels_a_gate_of_ones_own_on_a_task_rejects(store, good, tmp_path):
    version = register(altered(good, tmp_path, measure_no_task))
    gates = {"gates": [{"metric": "task/drop", "at_most": 0.01}]}
    decision = mlflow_e2eai.promote("net", version, gates=gates)
    assert not decision.promoted
    assert decision.reasons == ("task/drop: not measured (gate: at most 0.01)",)


def test_a_champion_with_labels_is_not_replaced_by_what_has_none(store, good, tmp_path):
    champion = register(good)
    mlflow_e2eai.promote("net", champion)
    version = register(altered(good, tmp_path, measure_no_task))
    decision = mlflow_e2eai.promote("net", version)
    assert any("champion/task_drop" in reason for reason in decision.reasons)
    assert holder(store) == champion


def test_a_first_version_with_labels_may_replace_a_champion_without(store, good, tmp_path):
    mlflow_e2eai.promote("net", register(altered(good, tmp_path, measure_no_task)))
    decision = mlflow_e2eai.promote("net", register(good))
    assert decision.promoted
    assert any("champion/task_drop" in reason for reason in decision.inapplicable)


def measure_variants_only(data):
    for entry in data["evidence"]:
        if entry["sha256"] is None:
            entry["task"] = {}


def test_a_drop_from_a_reference_that_was_not_measured_cannot_be_told(store, good, tmp_path):
    version = register(altered(good, tmp_path, measure_variants_only))
    decision = mlflow_e2eai.promote("net", version)
    assert any(reason.startswith("task/drop = nan") for reason in decision.reasons)


def test_a_version_s_tags_are_of_its_last_decision_and_name_the_alias(store, good):
    first, second = register(good), register(good)
    mlflow_e2eai.promote("net", first, gates=FAST)
    mlflow_e2eai.promote("net", second, gates=FAST)
    assert store.get_model_version("net", second).tags["e2eai.previous"] == first

    gates = {"gates": [{"metric": "task/accuracy", "at_least": 2}]}
    mlflow_e2eai.promote("net", second, alias="staging", gates=gates)
    tags = store.get_model_version("net", second).tags
    assert tags["e2eai.decision"] == "rejected"
    assert tags["e2eai.alias"] == "staging"
    assert "e2eai.previous" not in tags
    mlflow_e2eai.promote("net", second, alias="staging", gates=FAST)
    tags = store.get_model_version("net", second).tags
    assert [tags["e2eai.decision"], tags["e2eai.reason"]] == ["promoted", "every gate passed"]


def odd_name(data):
    for entry in data["evidence"]:
        if entry["task"]:
            entry["task"] = {"F1 (macro), 100 %//x": entry["task"]["accuracy"]}


@pytest.mark.parametrize(("limit", "promoted"), [(0.5, True), (1.5, False)])
def test_a_gate_reads_a_metric_whatever_characters_its_name_has(
    store, good, tmp_path, limit, promoted
):
    version = register(altered(good, tmp_path, odd_name))
    gates = {"gates": [{"metric": "task/F1 (macro), 100 %//x", "at_least": limit}]}
    assert mlflow_e2eai.promote("net", version, gates=gates).promoted is promoted
    run_id = store.get_model_version("net", version).tags["e2eai.decision_run"]
    assert store.get_run(run_id).data.metrics["task/F1 _macro__ 100 _/_/x"] == 1


def test_a_gate_on_an_odd_metric_that_was_not_measured_is_a_no(store, good):
    gates = {"gates": [{"metric": "task/F1 (macro)", "at_least": 0.5}]}
    decision = mlflow_e2eai.promote("net", register(good), gates=gates)
    assert decision.reasons == ("task/F1 (macro): not measured (gate: at least 0.5)",)


@pytest.mark.parametrize("metric", ["task/acuracy", "champion/task/acuracy/difference"])
def test_a_misspelt_task_metric_is_refused_and_nothing_is_decided(store, good, metric):
    version, before = register(good), len(mlflow.search_runs(search_all_experiments=True))
    gates = {"gates": [{"metric": metric, "at_least": 0.5}]}
    with pytest.raises(InvalidInputError, match=r"no metric 'task/acuracy'.* task/accuracy\?"):
        mlflow_e2eai.promote("net", version, gates=gates)
    assert len(mlflow.search_runs(search_all_experiments=True)) == before
    assert "e2eai.decision" not in store.get_model_version("net", version).tags
    gates["gates"][0]["optional"] = True
    gates["gates"].append({"metric": "parity/measured", "at_least": 1})
    assert mlflow_e2eai.promote("net", version, gates=gates).promoted


def make_quick(data):
    data["level"] = "quick"


def test_quick_evidence_is_not_promoted_by_the_shipped_gates(store, good, tmp_path):
    decision = mlflow_e2eai.promote("net", register(altered(good, tmp_path, make_quick)))
    (reason,) = decision.reasons
    assert reason == "evidence/quick = 1 (1 for evidence of the level quick; gate: at most 0)"


def test_the_report_that_a_model_was_logged_with_becomes_that_of_the_decision(store, good):
    with mlflow.start_run() as run:
        mlflow_e2eai.log_model(good, "net", registered_model_name="net")

    def text():
        return mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/report.html")

    assert "Not decided yet" in text()
    assert mlflow_e2eai.promote("net", 1).promoted
    assert "Not decided yet" not in text()
    assert "Promoted" in text()
    store.delete_run(run.info.run_id)
    assert mlflow_e2eai.promote("net", 1).promoted  # whose page nobody sees any more


def test_the_run_of_a_rejected_promotion_is_failed_and_says_so_in_its_name(store, good):
    version = register(good)
    gates = {"gates": [{"metric": "task/accuracy", "at_least": 2}]}
    with mlflow.start_run() as parent:
        mlflow_e2eai.promote("net", version, gates=gates)
        assert mlflow.active_run().info.run_id == parent.info.run_id
    run = store.get_run(store.get_model_version("net", version).tags["e2eai.decision_run"])
    assert run.info.status == "FAILED"
    assert run.info.run_name == f"REJECTED: promote net {version}"
    assert store.get_run(parent.info.run_id).info.status == "FINISHED"


@pytest.mark.parametrize(("given", "kept"), [("nightly 42", "nightly 42"), (None, "promote net 1")])
def test_a_run_keeps_the_name_that_its_user_gave_it(store, good, monkeypatch, given, kept):
    version = register(good)
    experiment = mlflow.get_experiment_by_name("tests").experiment_id
    run_id = store.create_run(experiment, run_name=given).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    mlflow_e2eai.promote("net", version)
    assert store.get_run(run_id).info.run_name == kept


def plain_version(store, name="net"):
    """Register a PyTorch model that MLflow logged, and give it the alias."""
    with mlflow.start_run():
        info = mlflow.pytorch.log_model(
            net(),
            name="m",
            registered_model_name=name,
            input_example=features(),
            pip_requirements=[],
        )
    store.set_registered_model_alias(name, "champion", info.registered_model_version)
    return info


def test_a_champion_that_is_a_plain_mlflow_model_is_named_and_nothing_is_made(store, good):
    plain_version(store)
    version = register(good)
    runs = len(mlflow.search_runs())
    with pytest.raises(ArtifactError, match=r"'champion' is held by version 1 of 'net', which is"):
        mlflow_e2eai.promote("net", version)
    assert len(mlflow.search_runs()) == runs
    assert "e2eai.decision" not in store.get_model_version("net", version).tags


def test_gates_that_compare_with_no_champion_need_none_that_can_be_read(store, good):
    info = plain_version(store)
    store.delete_logged_model(info.model_id)
    version = register(good)
    assert mlflow_e2eai.promote("net", version, gates=FAST).promoted
    assert store.get_model_version("net", version).tags["e2eai.previous"] == "1"


def model_id(store, version):
    return store.get_model_version("net", version).source.removeprefix("models:/")


def delete_model(store, artifacts, champion):
    store.delete_logged_model(model_id(store, champion))


def delete_files(store, artifacts, champion):
    with artifacts.edited(model_id(store, champion)) as folder:
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            path.unlink()


@pytest.mark.parametrize("gone", [delete_model, delete_files])
def test_a_champion_that_is_gone_is_named_with_what_to_do(store, good, artifacts, gone):
    champion, version = register(good), register(good)
    mlflow_e2eai.promote("net", champion, gates=FAST)
    gone(store, artifacts, champion)
    with pytest.raises(E2EAIError, match=r"held by version 1 of 'net', which cannot be read") as e:
        mlflow_e2eai.promote("net", version)
    assert "delete_registered_model_alias('net', 'champion')" in str(e.value)
    assert holder(store) == champion


def test_a_champion_whose_version_was_deleted_is_none(store, good):
    champion, version = register(good), register(good)
    mlflow_e2eai.promote("net", champion, gates=FAST)
    store.delete_model_version("net", champion)
    assert mlflow_e2eai.promote("net", version).promoted


def test_a_copy_of_a_version_is_promoted_though_its_origin_was_deleted(store, good):
    register(good, "origin")
    copied = store.copy_model_version("models:/origin/1", "net")
    store.delete_registered_model("origin")
    assert mlflow_e2eai.promote("net", copied.version).promoted


def test_what_is_no_bundle_is_not_promoted_and_the_version_is_named(store):
    plain_version(store)
    with pytest.raises(
        ArtifactError, match=r"Version 1 of 'net' is a plain MLflow model, not a bundle"
    ):
        mlflow_e2eai.promote("net", 1, alias="other")


@pytest.mark.parametrize(
    "wrong",
    [
        {"gates": [{"metric": "parity/measured", "at_least": 1}]},
        {"gates": 1},
        {"alias": "champion\n"},
        {"alias": None},
        {"alias": "latest"},
        {"alias": "v1"},
    ],
)
def test_gates_and_aliases_that_are_wrong_are_refused_before_there_is_a_run(store, good, wrong):
    version = register(good)
    runs = len(mlflow.search_runs())
    with pytest.raises(InvalidInputError):
        mlflow_e2eai.promote("net", version, **wrong)
    with pytest.raises(TrackingError, match="no version 9 of 'net'"):
        mlflow_e2eai.promote("net", 9)
    assert len(mlflow.search_runs()) == runs


def deny(monkeypatch, method, is_denied):
    """Let the server refuse a request as one with users does."""
    request = getattr(mlflow.MlflowClient, method)

    def ask(client, *args, **kwargs):
        if is_denied(*args, **kwargs):
            msg = "Permission denied"
            raise mlflow.exceptions.MlflowException(msg, PERMISSION_DENIED)
        return request(client, *args, **kwargs)

    monkeypatch.setattr(mlflow.MlflowClient, method, ask)


def test_who_may_not_change_the_training_experiment_promotes_by_a_run_of_their_own(
    store, good, monkeypatch, caplog
):
    version = register(good)
    training = mlflow.tracking.fluent._get_experiment_id()
    deny(monkeypatch, "create_run", lambda experiment_id, **_: experiment_id == training)
    deny(monkeypatch, "log_inputs", lambda *_, **__: True)

    assert mlflow_e2eai.promote("net", version, gates=FAST).promoted
    assert holder(store) == version
    own = store.get_experiment_by_name("promotions of net").experiment_id
    (run,) = store.search_runs([own])
    model_id = store.get_model_version("net", version).source.removeprefix("models:/")
    assert run.data.tags["e2eai.not_linked"] == model_id
    assert run.data.metrics["parity/failed"] == 0
    assert f"may not change the experiment of {model_id}" in caplog.text


def test_who_may_write_no_run_at_all_is_asked_for_an_experiment(store, good, monkeypatch):
    version = register(good)
    deny(monkeypatch, "create_run", lambda *_, **__: True)
    with pytest.raises(TrackingError, match="'promotions of net'; set MLFLOW_EXPERIMENT_NAME"):
        mlflow_e2eai.promote("net", version, gates=FAST)
    assert holder(store) is None


@pytest.mark.system
@pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi")
def test_a_server_with_users_lets_a_release_manager_promote(isolated, good, tmp_path, monkeypatch):
    pytest.importorskip("flask_wtf", reason="a server with users needs Flask-WTF: mlflow[auth]")
    from mlflow.server.auth.client import AuthServiceClient

    def log_in(name, password):
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", name)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", password)

    log_in(*ADMIN)
    with server_with_users(tmp_path) as server:
        mlflow.set_tracking_uri(server.uri)
        version = register(good)
        users = AuthServiceClient(server.uri)
        create_user(server, tmp_path, "manager", "manager1234567")
        users.grant_user_permission("manager", "registered_model", "net", "MANAGE")
        log_in("manager", "manager1234567")
        assert mlflow_e2eai.promote("net", version, gates=FAST).promoted
        assert holder(mlflow.MlflowClient()) == version
