"""What `mlflow models serve` and `mlflow.pyfunc` take in MLflow's meaning, and what they refuse."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import urllib.error
import venv
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from helpers import assert_close, post, serving
from mlflow.exceptions import MlflowException

import mlflow_e2eai
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, RunnerError

pytestmark = [pytest.mark.system, pytest.mark.exporters]

ROOT = Path(__file__).parents[2]
COLUMNS = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
X = [[5.1, 3.5, 1.4, 0.2], [6.2, 2.9, 4.3, 1.3]]


@pytest.fixture(scope="module")
def served_unsigned(saved_without_signature):
    """The address at which the model is served that has no signature."""
    with serving(saved_without_signature) as address:
        yield address


@pytest.fixture(scope="module")
def served_two(saved_with_two_inputs):
    """The address at which the model with two inputs is served."""
    with serving(saved_with_two_inputs.directory) as address:
        yield address


def answers(saved, rows) -> np.ndarray:
    return mlflow_e2eai.load_model(saved.directory)(np.array(rows, np.float32))["output"]


def refused(address, payload) -> str:
    """The sentence with which a request is refused."""
    with pytest.raises(urllib.error.HTTPError) as caught:
        post(address, payload)
    assert caught.value.code == 400
    return json.loads(caught.value.read())["message"]


def test_the_champion_is_served(log, saved, store):
    log(registered_model_name="digits")
    store.set_registered_model_alias("digits", "champion", "1")

    with serving("models:/digits@champion") as address:
        assert_close(post(address, {"inputs": X})["output"], answers(saved, X))


@pytest.mark.parametrize(
    "payload",
    [
        {"inputs": X},
        {"inputs": {"input": X}},
        {"instances": X},
        {"instances": [{"input": row} for row in X]},
        {"dataframe_split": {"columns": ["input"], "data": [[row] for row in X]}},
        {"dataframe_records": [{"input": row} for row in X]},
    ],
    ids=lambda payload: "-".join([*payload, type(next(iter(payload.values()))).__name__]),
)
def test_each_form_of_json_is_answered(served, saved, payload):
    assert_close(post(served, payload)["output"], answers(saved, X))


@pytest.mark.slow
def test_a_table_of_numbers_is_answered_where_there_is_no_signature(served_unsigned, saved):
    rows = post(served_unsigned, {"dataframe_split": {"columns": COLUMNS, "data": X}})

    assert_close([row["output"] for row in rows], answers(saved, X).reshape(-1))


@pytest.mark.slow
def test_several_inputs_are_given_by_name(served_two, saved_with_two_inputs):
    given = {name: array[:2].tolist() for name, array in saved_with_two_inputs.inputs.items()}
    wanted = saved_with_two_inputs.outputs["target"][:2]
    instances = [{name: rows[at] for name, rows in given.items()} for at in range(2)]

    for payload in ({"inputs": given}, {"instances": instances}):
        assert_close(post(served_two, payload)["target"], wanted)


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"inputs": [[1.0, 2.0]]}, r"Shape of input \(1, 2\) does not match expected shape"),
        ({"inputs": {"other": X}}, r"Model is missing inputs \['input'\]"),
        ({"inputs": [["a", "b", "c", "d"]]}, "could not convert string to float: 'a'"),
        ({"inputs": [[1.0], [1.0, 2.0]]}, "inhomogeneous"),
    ],
)
def test_what_does_not_fit_the_signature_is_refused_by_mlflow(served, payload, sentence):
    assert re.search(sentence, refused(served, payload))


@pytest.mark.parametrize(
    ("payload", "sentence"),
    [
        ({"inputs": [[1.0, 2.0]]}, "Input 'input' has shape [1, 2], but ['batch', 4] is expected"),
        ({"inputs": {"other": X}}, "The inputs are ['other'], but the model expects"),
        ({"inputs": [["a", "b", "c", "d"]]}, "Input 'input' is <U1, but float32 is expected"),
        ({"inputs": [[1, 2, 3, 4]]}, "Input 'input' is int64, but float32 is expected; convert it"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_with_our_sentence(
    served_unsigned, payload, sentence
):
    assert sentence in refused(served_unsigned, payload)


def test_a_server_that_refused_still_answers(served_unsigned, saved):
    refused(served_unsigned, {"inputs": [[1.0]]})

    assert_close(post(served_unsigned, {"inputs": X})["output"], answers(saved, X))


@pytest.mark.parametrize(
    "given",
    [
        np.array(X, np.float32),
        X,
        {"input": X},
        {"input": np.array(X)},
        [{"input": row} for row in X],
        pd.DataFrame({"input": X}),
        pd.DataFrame(X, columns=COLUMNS),
    ],
    ids=["array", "list", "lists by name", "arrays by name", "rows", "column", "table"],
)
def test_predict_takes_what_mlflow_knows(saved, saved_without_signature, given):
    answer = mlflow.pyfunc.load_model(str(saved_without_signature)).predict(given)

    assert_close(np.ravel(answer["output"]), answers(saved, X).reshape(-1))


def test_a_signature_is_enforced(saved):
    model = mlflow.pyfunc.load_model(str(saved.directory))

    for wrong in (np.ones((2, 3), np.float32), {"other": np.ones((2, 4), np.float32)}, X):
        with pytest.raises(MlflowException, match="Failed to enforce schema"):
            model.predict(wrong)


@pytest.mark.slow
def test_the_requirements_alone_make_an_environment_that_serves(saved, tmp_path, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)  # or it would find this checkout
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"

    def run(*words) -> str:
        done = subprocess.run(
            [python, *map(str, words)], capture_output=True, text=True, check=False, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    run("-m", "pip", "install", "--quiet", "-r", saved.directory / "requirements.txt")

    code = (
        "import sys, json, importlib.util, mlflow_e2eai\n"
        "model = mlflow_e2eai.load_model(sys.argv[1])\n"
        "answer = model(json.loads(sys.argv[2]))['output'].tolist()\n"
        "print(json.dumps([answer, importlib.util.find_spec('torch'), mlflow_e2eai.__file__]))"
    )
    answer, spec, file = json.loads(run("-c", code, saved.directory, json.dumps(X)))
    assert_close(answer, answers(saved, X))
    assert spec is None
    assert Path(file).is_relative_to(tmp_path / "venv")
    with serving(saved.directory, python=python) as address:
        assert_close(post(address, {"inputs": X})["output"], answers(saved, X))


def test_an_error_is_of_mlflows_kind_and_of_ours(saved_without_signature):
    model = mlflow.pyfunc.load_model(str(saved_without_signature))

    with pytest.raises(InvalidInputError, match="has shape") as caught:
        model.predict(np.ones((2, 3)))
    assert isinstance(caught.value, MlflowException)
    assert isinstance(caught.value, ValueError)
    assert caught.value.get_http_status_code() == 400  # type: ignore[attr-defined]  # mypy sees a wider type
    assert type(caught.value.__cause__) is InvalidInputError


def test_an_error_keeps_its_attributes(saved_without_signature, monkeypatch):
    model = mlflow.pyfunc.load_model(str(saved_without_signature))

    def fail(_):
        msg = "It broke down."
        raise RunnerError(msg, runner="the second")

    monkeypatch.setattr(model.get_raw_model(), "_infer", fail)
    with pytest.raises(E2EAIError, match=r"It broke down\.") as caught:
        model.predict(X)
    assert caught.value.runner == "the second"  # type: ignore[attr-defined]  # mypy sees a wider type
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again), again.runner) == (RunnerError, "It broke down.", "the second")
