"""A stage whose result is in the store is linked; whatever changes, the stage is done anew."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import mlflow
import pytest
import torch
from small_models import AXES, Net, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import Axis, tracking
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.flavor import api, logged_bundle
from mlflow_e2eai.flavor.repackage import package
from mlflow_e2eai.pipeline import earlier_runs, keys
from mlflow_e2eai.precision.stage import PrecisionReport
from mlflow_e2eai.pytorch.stage import ExportReport
from mlflow_e2eai.report import canvas
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.tracking.lineage import ROOTS
from mlflow_e2eai.tracking.store.source_digest import source_digest
from mlflow_e2eai.tracking.store.stage_results import (
    REUSED,
    REUSED_FROM,
    STAGE_KEY,
    find_result,
)

pytestmark = pytest.mark.usefixtures("on_threads")

NODE = "/model/body/body.0/Gemm"
"""A node of the cleaned graph."""

ALL = {"export", "clean", "convert fp16", "evaluate", "package"}

REPORTS = {
    "export": ExportReport,
    "clean": SurgeryReport,
    "convert fp16": PrecisionReport,
    "evaluate torch/fp32": MachineEvidence,
    "evaluate onnxruntime-cpu/fp16": Evidence,
    "package": mlflow_e2eai.bundle.Manifest,
}


def options():
    return {
        "input_example": {"x": features()},
        "dynamic_axes": AXES,
        "evaluation_data": labelled(net()),
        "exporter": "trace",
        "evidence": "quick",
        "registered_model_name": "net",
    }


def log(model=None, **changed):
    return mlflow_e2eai.log_model(net() if model is None else model, **{**options(), **changed})


@pytest.fixture(scope="module")
def empty_store(empty_store, on_threads, tmp_path_factory):
    """A database that each test gets a copy of, in which a pipeline has run."""
    folder = tmp_path_factory.mktemp("logged")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(canvas, "png", lambda *_: b"")
        patch.setattr(canvas, "svg", lambda *_: "<svg/>")
        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.create_experiment("logged", artifact_location=(folder / "artifacts").as_uri())
        mlflow.set_experiment("logged")
        log()
        mlflow.set_tracking_uri(before)
    return folder / "mlflow.db"


@pytest.fixture
def logged(store):
    mlflow.set_experiment("logged")
    return store


def newest_parent(client):
    runs = mlflow.search_runs(order_by=["attributes.start_time DESC"], output_format="list")
    return next(run for run in runs if "mlflow.parentRunId" not in run.data.tags)


def children(client):
    parent = newest_parent(client).info.run_id
    return mlflow.search_runs(
        filter_string=f"tags.`mlflow.parentRunId` = '{parent}'", output_format="list"
    )


def done_anew(client):
    """Stages of the newest pipeline that did their work; of variants, whether any was measured."""
    anew = {run.info.run_name for run in children(client) if REUSED_FROM not in run.data.tags}
    return {name.split()[0] if name.startswith("evaluate") else name for name in anew} - {"log"}


def stored_runs():
    """The run of each stage that has a result, by its name."""
    runs = mlflow.search_runs(filter_string=f"tags.`{STAGE_KEY}` LIKE '%'", output_format="list")
    return {run.info.run_name: run for run in runs}


def test_with_nothing_changed_everything_is_linked(logged):
    (version,) = mlflow.MlflowClient().search_model_versions("name = 'net'")
    info = log()
    assert done_anew(logged) == set()
    assert str(info.registered_model_version) == str(version.version)
    assert info.model_id in version.source
    (again,) = mlflow.MlflowClient().search_model_versions("name = 'net'")
    assert again.version == version.version


def test_what_was_reused_is_said_on_the_line_the_run_and_the_report(logged, caplog):
    originals = {name: run.info.run_id for name, run in stored_runs().items()}
    with caplog.at_level("INFO", logger="mlflow_e2eai"):
        info = log(precisions=("fp32", "fp16", "bf16"))
    lines = {line.split("  ")[0]: line for line in caplog.messages if "reused from run" in line}
    tag = newest_parent(logged).data.tags[REUSED]
    page = logged.download_artifacts(info.run_id, "report.html")
    for stage in ("export", "clean", "convert fp16"):
        sentence = f"reused from run {originals[stage]}, "
        assert sentence in lines[stage]
        assert f"{stage}: {sentence}" in tag
        assert sentence in Path(page).read_text()
        (run,) = [run for run in children(logged) if run.info.run_name == stage]
        assert sentence in run.data.tags[REUSED_FROM]


def test_the_models_of_reused_stages_are_outputs_of_their_runs(logged):
    log(precisions=("fp32", "fp16", "bf16"))
    before = {name: run.outputs.model_outputs for name, run in stored_runs().items()}
    for run in children(logged):
        if run.info.run_name in ("export", "clean", "convert fp16"):
            now = [each.model_id for each in run.outputs.model_outputs]
            assert now == [each.model_id for each in before[run.info.run_name]]


def test_fresh_does_everything_again(logged):
    log(fresh=True)
    assert done_anew(logged) == ALL


def test_a_version_whose_run_died_before_its_report_is_taken_by_the_next(logged, monkeypatch):
    def die(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(logged_bundle, "log_report", die)
        with pytest.raises(KeyboardInterrupt):
            log(registered_model_name="other")
    (version,) = logged.search_model_versions("name = 'other'")
    assert version.description is None
    for tag in ROOTS:  # as if the process had died before these too
        logged.delete_model_version_tag("other", version.version, tag)
    info = log(registered_model_name="other")
    (version,) = logged.search_model_versions("name = 'other'")
    assert info.model_id in version.source
    assert version.description
    assert version.tags.keys() >= set(ROOTS)
    (run,) = [run for run in children(logged) if run.info.run_name == "package"]
    assert [each.model_id for each in run.outputs.model_outputs] == [info.model_id]
    files = logged.list_artifacts(newest_parent(logged).info.run_id)
    assert "report.html" in {file.path for file in files}


def test_the_digests_of_a_version_are_a_witness_that_a_rerun_does_not_overwrite(logged):
    (version,) = logged.search_model_versions("name = 'net'")
    logged.set_model_version_tag("net", version.version, ROOTS[0], "0" * 64)
    with pytest.raises(ArtifactError, match="was registered with other files than its model has"):
        log()
    (version,) = logged.search_model_versions("name = 'net'")
    assert version.tags[ROOTS[0]] == "0" * 64


def test_the_tags_of_the_caller_are_on_a_version_that_a_linked_model_becomes(logged):
    log(tags={"team": "vision"})
    version = max(logged.search_model_versions("name = 'net'"), key=lambda each: int(each.version))
    logged.delete_model_version("net", version.version)
    info = log(tags={"team": "vision"})
    again = logged.get_model_version("net", info.registered_model_version)
    assert again.version != version.version
    assert again.source == version.source
    assert again.tags["team"] == "vision"


@pytest.mark.parametrize(
    ("gates", "beginning"),
    [
        (None, "Rejected"),
        ({"gates": [{"metric": "parity/failed", "at_most": 0}]}, "Promoted"),
    ],
)
def test_the_description_of_a_decision_stays_where_its_version_is_linked(logged, gates, beginning):
    mlflow_e2eai.promote("net", 1, gates=gates)
    decided = logged.get_model_version("net", "1").description
    assert decided.startswith(beginning)
    info = log()
    assert str(info.registered_model_version) == "1"
    assert logged.get_model_version("net", "1").description == decided
    assert "[Report](" in decided
    assert newest_parent(logged).data.tags["mlflow.note.content"] == decided


def test_with_one_precision_more_only_its_stages_run(logged, monkeypatch):
    compared = []
    whole = mlflow_e2eai.evaluation.examination.Examination.of

    def compare(self, variant, *rest):
        compared.append(variant.name)
        return whole(self, variant, *rest)

    monkeypatch.setattr("mlflow_e2eai.evaluation.examination.Examination.of", compare)
    log(precisions=("fp32", "fp16", "bf16"))
    assert done_anew(logged) == {"convert bf16", "evaluate", "package"}
    assert compared == ["onnxruntime-cpu/bf16"]


@pytest.mark.parametrize(
    ("changed", "anew"),
    [
        pytest.param({"opset": 17}, ALL, id="opset"),
        pytest.param({"exporter": "script"}, ALL, id="exporter"),
        pytest.param({"output_names": ["logits"]}, ALL, id="output names"),
        pytest.param({"input_example": {"x": features() + 1}}, ALL, id="example"),
        pytest.param({"dynamic_axes": {"x": {0: Axis("N", min=1, opt=4, max=15)}}}, ALL, id="axes"),
        pytest.param({"samples_at": [{"x": features(7)}]}, ALL, id="samples"),
        # The graph comes out equal, and is the same input for later stages.
        pytest.param({"surgery": ["drop_identities"]}, {"clean", "package"}, id="plan"),
        pytest.param(
            {"keep_fp32": [NODE]}, {"convert fp16", "evaluate", "package"}, id="nodes in fp32"
        ),
        pytest.param({"batch_sizes": [2]}, {"evaluate", "package"}, id="batch sizes"),
        pytest.param({"evidence": "standard"}, {"evaluate", "package"}, id="level"),
        pytest.param(
            {"evaluation_data": labelled(net(), items=51)},
            {"convert fp16", "evaluate", "package"},
            id="data",
        ),
        pytest.param({"metadata": {"by": "me"}}, {"package"}, id="metadata"),
        pytest.param({"signature": False}, {"package"}, id="signature"),
        pytest.param({"registered_model_name": "other", "name": "net"}, {"package"}, id="name"),
        pytest.param({"evidence_days": 0}, {"evaluate", "package"}, id="age"),
    ],
)
def test_a_setting_that_changes_does_its_stages_anew(logged, changed, anew):
    log(**changed)
    assert done_anew(logged) == anew


def other_weights():
    return net(seed=1)


class Louder(Net):
    """The same weights and the same layers, and other code."""

    def forward(self, x):
        return self.body(x * 1.0)


def other_code():
    model = Louder().eval()
    model.load_state_dict(net().state_dict())
    return model


@pytest.mark.parametrize("model", [other_weights, other_code])
def test_another_model_is_exported_anew(logged, model):
    log(model())
    assert {"export", "clean", "evaluate", "package"} <= done_anew(logged)


@pytest.mark.parametrize("name", ["code_digest", "_versions"])
def test_other_code_of_the_package_and_other_libraries_do_everything_anew(
    logged, monkeypatch, name
):
    monkeypatch.setattr(keys, name, lambda: "another")
    log()
    assert done_anew(logged) == ALL


def test_evidence_of_another_machine_is_not_reused(logged, monkeypatch):
    kind = keys.machine_kind()
    monkeypatch.setattr(
        "mlflow_e2eai.pipeline.variant_stages.machine_kind",
        lambda: {**kind, "processor": "another"},
    )
    log()
    assert done_anew(logged) == {"evaluate", "package"}


def test_the_kind_of_a_machine_is_neither_its_name_nor_the_moment():
    kind = keys.machine_kind()
    assert {"measured", "host", "load"} & kind.keys() == set()
    assert {"processor", "cores", "python"} <= kind.keys()


def test_evidence_that_is_too_old_is_measured_again(logged, monkeypatch):
    class Later(earlier_runs.datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + earlier_runs.timedelta(days=31)

    monkeypatch.setattr(earlier_runs, "datetime", Later)
    log()
    assert done_anew(logged) == {"evaluate", "package"}
    assert "convert fp16" not in done_anew(logged)


def test_evidence_of_no_days_is_measured_again(logged):
    log(evidence_days=0)
    assert done_anew(logged) == {"evaluate", "package"}


def test_a_pickled_model_is_exported_anew_and_the_reason_is_said(logged, monkeypatch, caplog):
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: 1 / 0)
    log()
    with caplog.at_level("INFO", logger="mlflow_e2eai"):
        log()
    assert {"export", "clean", "evaluate"} <= done_anew(logged)
    assert "convert fp16" not in done_anew(logged)
    (line,) = [line for line in caplog.messages if line.startswith("export")]
    assert "anew each time, as the PyTorch model is pickled" in line


def test_a_metric_whose_code_is_not_known_is_evaluated_anew(logged):
    factors = (1.0 for _ in range(100))

    def metric(outputs, labels):
        return next(factors)

    log(metrics={"ours": metric})
    log(metrics={"ours": metric})
    assert {"evaluate", "package"} <= done_anew(logged)
    assert {"export", "clean"} & done_anew(logged) == set()


def test_a_metric_of_a_closure_is_reused_until_a_value_in_it_changes(logged):
    def metric_of(factor):
        return lambda *_: factor

    log(metrics={"ours": metric_of(1.0)})
    log(metrics={"ours": metric_of(1.0)})
    assert done_anew(logged) == set()
    log(metrics={"ours": metric_of(2.0)})
    assert {"evaluate", "package"} <= done_anew(logged)


def test_a_rule_of_the_callers_own_is_applied_anew(logged):
    def nothing(graph):
        return 0

    log(surgery=[nothing])
    log(surgery=[nothing])
    assert "clean" in done_anew(logged)
    assert "export" not in done_anew(logged)


def files_of(run):
    """All stored files of a stage: of its model, and its result."""
    result = Path(mlflow.artifacts.download_artifacts(run_id=run.info.run_id), "result.json")
    outputs = run.outputs.model_outputs if run.outputs else []
    folders = [
        Path(tracking.resolve(each.model_id).artifact_location.removeprefix("file://"))
        for each in outputs
    ]
    return [result, *(path for folder in folders for path in folder.rglob("*") if path.is_file())]


@pytest.fixture
def find(logged, tmp_path):
    """Find the result of a stage again, and whether that warned."""

    def find_again(run):
        folder = tmp_path / str(len([*tmp_path.iterdir()]))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = find_result(run.data.tags[STAGE_KEY], REPORTS[run.info.run_name], folder)
        return found, [str(each.message) for each in caught]

    return find_again


@pytest.mark.parametrize("stage", REPORTS)
def test_each_stored_file_that_changed_is_found(find, stage):
    run = stored_runs()[stage]
    files = files_of(run)
    assert len(files) >= (1 if stage.startswith("evaluate") else 5)
    for path in files:
        content = path.read_bytes()
        for other in (bytes([content[0] ^ 1]) + content[1:], content[:-1], content + b" "):
            path.write_bytes(other)
            found, said = find(run)
            assert found is None, path
            assert any("cannot be reused" in each for each in said), path
        path.unlink()
        assert find(run)[0] is None, path
        path.write_bytes(content)
    found, said = find(run)
    assert found is not None
    assert said == []


@pytest.mark.parametrize("stage", ["export", "clean", "convert fp16", "package"])
def test_a_stored_file_that_was_added_is_found(find, stage):
    run = stored_runs()[stage]
    added = files_of(run)[1].parent / "added.txt"
    added.write_text("more")
    assert find(run)[0] is None
    added.unlink()


def test_a_result_of_a_run_that_did_not_finish_is_not_taken(find, logged):
    run = stored_runs()["clean"]
    for status in ("RUNNING", "FAILED", "KILLED"):
        logged.update_run(run.info.run_id, status=status)
        assert find(run)[0] is None
    logged.update_run(run.info.run_id, status="FINISHED")
    assert find(run)[0] is not None


def test_a_result_whose_model_is_not_finished_is_not_taken(find, logged):
    run = stored_runs()["clean"]
    (output,) = run.outputs.model_outputs
    logged.finalize_logged_model(output.model_id, "FAILED")
    assert find(run)[0] is None


@pytest.mark.parametrize(("stage", "anew"), [("export", {"export"}), ("package", {"package"})])
def test_a_stage_whose_files_changed_is_done_anew(logged, stage, anew):
    path = next(each for each in files_of(stored_runs()[stage]) if each.suffix == ".onnx")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        with pytest.warns(UserWarning, match="cannot be reused"):
            log()
    finally:
        path.write_bytes(content)
    assert done_anew(logged) == anew


def test_a_source_whose_files_changed_is_logged_anew(logged):
    (model,) = mlflow.search_logged_models(
        filter_string="tags.`e2eai.stage` = 'source'", output_format="list"
    )
    path = Path(model.artifact_location.removeprefix("file://"), "data", "model.pt2")
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        log()
    finally:
        path.write_bytes(content)
    models = mlflow.search_logged_models(
        filter_string="tags.`e2eai.stage` = 'source'", output_format="list"
    )
    assert len(models) == 2


def test_the_pipeline_of_a_logged_model_loads_nothing_the_second_time(logged, monkeypatch):
    (model,) = mlflow.search_logged_models(
        filter_string="tags.`e2eai.stage` = 'source'", output_format="list"
    )
    arguments = {"registered_model_name": "again", "exporter": "trace", "evidence": "quick"}
    first = package(model.model_uri, **arguments)
    monkeypatch.setattr("mlflow.pytorch.load_model", lambda *_, **__: 1 / 0)
    second = package(model.model_uri, **arguments)
    assert done_anew(logged) == set()
    assert first.model_id == second.model_id


def test_a_pickle_has_no_digest(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model.pth").write_bytes(b"pickle")
    assert source_digest(tmp_path) is None


def test_a_finished_bundle_is_logged_each_time(logged, tmp_path):
    api.save_model(net(), tmp_path / "saved", **options_to_save())
    first, second = (api.log_model(tmp_path / "saved", "net") for _ in range(2))
    assert first.model_id != second.model_id


def test_save_model_reuses_nothing(logged, tmp_path):
    api.save_model(net(), tmp_path / "saved", **{**options_to_save(), "fresh": False})
    assert (tmp_path / "saved" / "MLmodel").is_file()


def options_to_save():
    return {name: value for name, value in options().items() if name != "registered_model_name"}


def test_the_files_that_requirements_name_are_part_of_the_key_of_a_package(logged, tmp_path):
    base, constraints, extra = (tmp_path / name for name in ("base.txt", "c.txt", "extra.txt"))
    for file, text in ((base, "numpy"), (constraints, "numpy<9"), (extra, "one")):
        file.write_text(text)
    (tmp_path / "all.txt").write_text(f"-r {base}\n")
    given = {
        "pip_requirements": [f"-r {tmp_path / 'all.txt'}", f"-c {constraints}"],
        "extra_files": [extra.as_uri()],
    }
    log(**given)
    log(**given)
    assert done_anew(logged) == set()
    for file, text in ((base, "numpy\nrich"), (constraints, "numpy<8"), (extra, "two")):
        file.write_text(text)
        log(**given)
        assert done_anew(logged) == {"package"}, file.name


def test_a_requirement_of_300_letters_and_evidence_of_any_age_are_taken(logged):
    url = f"package @ https://host/{'a' * 300}.whl"
    log(pip_requirements=["numpy", url], evidence_days=10**10)
    assert done_anew(logged) == {"package"}
