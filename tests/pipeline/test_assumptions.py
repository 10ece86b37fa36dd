"""Inputs that nobody gave are assumed, said, and by default not promoted."""

from __future__ import annotations

import mlflow
import numpy as np
import onnx
import pytest
import torch
from logged_graphs import TEXT

import mlflow_e2eai
from mlflow_e2eai import bundle, promote, tracking
from mlflow_e2eai.artifacts.axes import parse_axes
from mlflow_e2eai.flavor import repackage
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.report.page import html
from mlflow_e2eai.report.sections.doubts import doubts

pytestmark = pytest.mark.usefixtures("on_threads")


class Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = torch.nn.Embedding(60, 8), torch.nn.Linear(8, 3)

    def forward(self, ids):
        return self.head(self.table(ids).mean(1))


@pytest.fixture
def words(store):
    """URI of a model of words that MLflow logged with a signature and no example."""
    schema = mlflow.types.Schema([mlflow.types.TensorSpec(np.dtype(np.int64), (-1, 6), "ids")])
    signature = mlflow.models.ModelSignature(inputs=schema)
    with mlflow.start_run():
        return mlflow.pytorch.log_model(
            Words().eval(),
            name="words",
            signature=signature,
            serialization_format="pickle",
            pip_requirements=[],
        ).model_uri


def manifest_of(uri):
    with mlflow_e2eai.load_model(uri) as model:
        return model.manifest


def assumptions(manifest):
    return [text for text, _ in doubts(manifest) if "say little about real inputs" in text]


@pytest.fixture
def package(words):
    return repackage.package(
        words,
        name="words",
        registered_model_name="words",
        precisions=["fp32"],
        allow_pickle=True,
    )


def test_the_doubts_come_first_and_say_what_was_assumed(package):
    example, axis = assumptions(manifest_of(package.model_uri))

    assert "ids int64[2, 6] from 0 to " in example
    assert axis.startswith("Axis 0 of 'ids' is open, and is assumed to be ")


def test_token_ids_are_of_the_vocabulary_and_differ(package, tmp_path):
    model = tracking.fetch(tracking.resolve(package.model_uri), tmp_path)
    ids = bundle.read_example(model / bundle.FOLDER)["ids"]

    assert len(set(ids.flat)) > 3
    assert ids.max() < 60


def test_such_a_version_is_not_promoted_unless_the_gates_say_so(package):
    rejected = promote("words", 1)

    assert not rejected.promoted
    failed = [verdict.metric for verdict in rejected.verdicts if not verdict.passed]
    assert "evidence/assumptions" in failed
    own = {"gates": [{"metric": "parity/failed", "at_most": 0}]}
    assert promote("words", 1, gates=own).promoted


def test_every_stage_alone_carries_the_assumptions_on(words, tmp_path):
    cleaned = jobs.clean(jobs.export(words, allow_pickle=True))
    half = jobs.convert(cleaned, precision="fp16")

    graph = tracking.fetch_graph(tracking.resolve(half), tmp_path)
    assert len(graph.assumptions) == 2


def test_the_line_of_the_export_says_so(words, capsys):
    from mlflow_e2eai.cli.main import main

    main(["export", "--model-uri", words, "--allow-pickle"])

    assert "INPUTS ASSUMED" in capsys.readouterr().err


def test_an_onnx_file_without_an_example_is_the_same(store, tmp_path):
    file = tmp_path / "m.onnx"
    onnx.save(onnx.parser.parse_model(TEXT.replace("SCALE", "1")), file)
    axes = parse_axes("x:0=N:1:2:8")

    guessed = mlflow_e2eai.log_model(file, "net", dynamic_axes=axes, precisions=["fp32"])
    given = mlflow_e2eai.log_model(
        file,
        "net",
        dynamic_axes=axes,
        precisions=["fp32"],
        input_example={"x": np.ones((2, 4), np.float32)},
    )

    assert len(assumptions(manifest_of(guessed.model_uri))) == 1
    assert assumptions(manifest_of(given.model_uri)) == []
    assert "was generated, as none was given" in html(manifest_of(guessed.model_uri))
