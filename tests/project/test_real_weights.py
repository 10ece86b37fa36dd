"""Weights that packages ship go the whole way, or are refused in one true sentence."""

from __future__ import annotations

import mlflow
import numpy as np
import pytest
from shipped_models import SHIPPED, faces_of_any_size, pitch

import mlflow_e2eai
from mlflow_e2eai import compare
from mlflow_e2eai.cli import main
from mlflow_e2eai.cli.results import DONE
from mlflow_e2eai.errors import InvalidInputError

pytestmark = [
    pytest.mark.system,
    pytest.mark.slow,
    pytest.mark.exporters,
    pytest.mark.filterwarnings("ignore"),  # of old packages, and of MLflow about pickled modules
]


def require_same(shipped, model, precision):
    """What is served is what the original says, to the precision's limits, and means the same."""
    report = compare(
        shipped.original, model.predict, [shipped.example], precision=precision, threads=1
    )
    assert report.findings == ()
    assert shipped.read(model.predict(dict(shipped.example))) == shipped.meaning


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_go_the_whole_way_and_are_served_with_their_own_numbers(store, name):
    shipped = SHIPPED[name]()
    assert shipped.read(shipped.original(shipped.example)) == shipped.meaning

    info = mlflow_e2eai.log_model(
        shipped.model,
        "shipped",
        input_example=shipped.input_example,
        dynamic_axes=shipped.dynamic_axes,
        precisions=("fp32", "fp16", "bf16"),
        registered_model_name="shipped",
    )

    chosen = mlflow_e2eai.load_model("models:/shipped/1")
    evidence = {entry.variant: entry for entry in chosen.manifest.evidence}
    assert info.registered_model_version == 1
    assert {"onnxruntime-cpu/fp32", "onnxruntime-cpu/fp16", "onnxruntime-cpu/bf16"} <= set(evidence)
    assert all(entry.measured and entry.reason is None for entry in evidence.values())
    assert evidence["onnxruntime-cpu/fp32"].passed
    assert evidence[chosen.variant].passed  # a precision that loses the numbers is not served
    require_same(
        shipped, mlflow.pyfunc.load_model("models:/shipped/1"), chosen.variant.rpartition("/")[2]
    )


def test_a_file_of_tensorflow_goes_by_the_command_line_too(store, tmp_path, capsys):
    shipped = pitch()
    np.savez(tmp_path / "sound.npz", **shipped.example)
    axes = "serving_default_input_2:0:0=N:1:1:2"
    words = ["--onnx", str(shipped.model), "--input-example", str(tmp_path / "sound.npz")]
    assert main.main(["clean", *words, "--dynamic-axes", axes]) == DONE
    cleaned = capsys.readouterr().out.strip()
    words = ["--model-uri", cleaned, "--registered-model-name", "pitch", "--precisions", "fp32"]
    assert main.main(["pipeline", *words]) == DONE
    assert mlflow_e2eai.promote("pitch", "1").promoted
    require_same(shipped, mlflow.pyfunc.load_model("models:/pitch@champion"), "fp32")


def test_sizes_that_a_file_does_not_leave_open_are_refused_in_a_sentence(store):
    shipped = faces_of_any_size()
    with pytest.raises(InvalidInputError) as refusal:
        mlflow_e2eai.log_model(
            shipped.model,
            "faces",
            input_example=shipped.input_example,
            dynamic_axes=shipped.dynamic_axes,
        )
    assert str(refusal.value) == (
        "dynamic_axes names axis 0 of 'input.1', but the file leaves no such size open, its inputs "
        "are input.1 [10, 3, 32, 32]; leave that axis out, or open it in the file, by "
        "onnx.tools.update_model_dims or a new export."
    )
    assert mlflow.search_logged_models(output_format="list") == []
