"""The key of a stage: the content of all that its result depends on, and nothing else."""

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.pipeline import keys


def test_no_two_values_have_one_key():
    values = [
        *(None, True, 1, 1.0, "1", b"1", [1], ["1"], [[1]], [], {}, {"a": 1}, {"a": "1"}),
        *([1, 2], [12], ["ab", "c"], ["a", "bc"], {"a": {}, "b": 1}, {"a": {"b": 1}}),
        *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.zeros(2, np.int64)),
        *(Axis("N", min=1, opt=1, max=2), Axis("N", min=1, opt=2, max=2)),
    ]
    found = [keys.stage_key("stage", value=value) for value in values]
    assert None not in found
    assert len(set(found)) == len(values)
    assert keys.stage_key("one", value=1) != keys.stage_key("other", value=1)


def test_a_value_of_unknown_content_has_no_key():
    for value in (object(), keys.UNKNOWN, [lambda: 1], {"a": object()}, np.array([object()])):
        assert keys.stage_key("stage", value=value) is None


def test_every_setting_is_part_of_a_key_or_named_here():
    """A new setting that no key has would be a change that goes unseen."""
    from mlflow_e2eai.pipeline.settings import Settings

    in_keys = {
        *("dynamic_axes", "samples_at", "exporter", "opset", "output_names", "operators"),
        *("operator_libraries", "surgery", "keep_fp32", "batch_sizes", "evidence"),
        *("plugin_libraries", "build_settings"),  # of the engine's key
    }
    # Each of these has stages of its own, or says what is reused.
    others = {"precisions", "targets", "rebuild", "fresh", "evidence_days"}
    assert {field.name for field in dataclasses.fields(Settings)} == in_keys | others


def test_the_digest_of_the_code_is_that_of_every_file_of_the_package(tmp_path, monkeypatch):
    before = keys.code_digest.__wrapped__()
    package = tmp_path / "mlflow_e2eai"
    shutil.copytree(Path(mlflow_e2eai.__file__).parent, package)
    monkeypatch.setattr(mlflow_e2eai, "__file__", str(package / "__init__.py"))
    assert keys.code_digest.__wrapped__() == before
    file = package / "precision" / "half.py"
    file.write_text(file.read_text() + "\n")
    assert keys.code_digest.__wrapped__() != before


@pytest.mark.parametrize("name", ["code_digest", "_versions"])
def test_other_code_and_other_libraries_are_another_key(name, monkeypatch):
    before = keys.stage_key("stage", value=1)
    monkeypatch.setattr(keys, name, lambda: "another")
    assert keys.stage_key("stage", value=1) != before


def test_a_path_stands_for_the_content_of_its_file(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1")
    other.write_bytes(b"1")
    first = keys.stage_key("stage", file=one)
    assert keys.stage_key("stage", file=other) == first
    one.write_bytes(b"2")
    assert keys.stage_key("stage", file=one) != first


def test_an_array_stands_for_its_numbers():
    one, other = np.zeros(4), np.array([0.0, 0, 0, 1e-300])
    assert keys.stage_key("stage", array=one) == keys.stage_key("stage", array=np.zeros(8)[::2])
    assert keys.stage_key("stage", array=one) != keys.stage_key("stage", array=other)


def data(inputs, labels, metrics=None):
    example = {"x": np.zeros((1, 2), np.float32)}
    return EvaluationData.of((inputs, labels), example=example, metrics=metrics)


def test_evaluation_data_stands_for_its_inputs_labels_and_metrics():
    inputs = np.arange(8, dtype=np.float32).reshape(4, 2)
    digest = keys.data_digest(data(inputs, np.array([0, 1, 0, 1])))
    assert digest == keys.data_digest(data(inputs.copy(), np.array([0, 1, 0, 1])))
    assert digest != keys.data_digest(data(inputs, np.array([0, 1, 1, 1])))
    assert digest != keys.data_digest(data(inputs + 1, np.array([0, 1, 0, 1])))
    assert keys.data_digest(None) is None
