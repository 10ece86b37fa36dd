"""The bill of materials names every part of a model; the provenance says where each is from."""

from __future__ import annotations

import json
import sys

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from example_manifest import shown

from mlflow_e2eai.bundle.attestation.materials import bill_of
from mlflow_e2eai.bundle.attestation.slsa import BuildRun, statement_of
from mlflow_e2eai.errors import MissingDependencyError

DIGESTS = {"MLmodel": "a" * 64, "bundle/model.onnx": "b" * 64}
REQUIREMENTS = """--find-links packages
mlflow==3.17.2
Numpy==2.4.6
numpy==2.4.6
pandas>=2  # any
"""
DATASETS = ({"name": "digits", "digest": "1797"},)


def bill(**changed):
    arguments = {"requirements": REQUIREMENTS, "datasets": DATASETS, **changed}
    return bill_of("net", shown(), DIGESTS, **arguments)


def test_the_bill_is_valid_and_the_same_each_time():
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill())
    assert problem is None, problem
    assert bill() == bill()


def test_each_graph_and_engine_is_a_model_with_its_digest():
    found = json.loads(bill())
    root = found["metadata"]["component"]
    assert (root["name"], root["type"]) == ("net", "machine-learning-model")
    assert root["hashes"] == [{"alg": "SHA-256", "content": "a" * 64}]
    parts = {
        part["name"]: part["hashes"][0]["content"]
        for part in found["components"]
        if part["type"] == "machine-learning-model"
    }
    manifest = shown()
    assert len(manifest.engines) > 0
    assert parts == {f"bundle/{item.path}": item.sha256 for item in manifest.files}
    (needs,) = [each for each in found["dependencies"] if each["ref"] == root["bom-ref"]]
    assert set(needs["dependsOn"]) == {part["bom-ref"] for part in found["components"]}


def test_each_package_is_named_once_with_its_version_where_it_is_pinned():
    libraries = {
        part["name"]: (part.get("version"), part["purl"])
        for part in json.loads(bill())["components"]
        if part["type"] == "library" and "purl" in part
    }
    assert libraries == {
        "mlflow": ("3.17.2", "pkg:pypi/mlflow@3.17.2"),
        "numpy": ("2.4.6", "pkg:pypi/numpy@2.4.6"),
        "pandas": (None, "pkg:pypi/pandas"),
    }


def test_the_data_of_the_evaluation_is_in_the_bill_where_it_is_known():
    def data(text):
        return [part["name"] for part in json.loads(text)["components"] if part["type"] == "data"]

    assert data(bill()) == ["digits"]
    assert data(bill(datasets=())) == []


def test_without_cyclonedx_it_is_said_which_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cyclonedx.model.bom", None)
    with pytest.raises(MissingDependencyError, match=r"cyclonedx-python-lib.*\[sign\]"):
        bill()


def test_the_provenance_is_a_statement_of_slsa_about_every_file():
    run = BuildRun(
        run_id="1",
        parameters={"opset": "18"},
        stages=({"name": "export", "run": "2"},),
        datasets=DATASETS,
        started_at="2026-12-01T14:00:00+00:00",
        source={"name": "net-source", "uri": "models:/m-1"},
    )
    found = json.loads(statement_of(shown(), DIGESTS, run))
    definition = found["predicate"]["buildDefinition"]
    assert (found["_type"], found["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    assert {each["name"]: each["digest"]["sha256"] for each in found["subject"]} == DIGESTS
    assert definition["externalParameters"]["settings"] == {"opset": "18"}
    inside = definition["internalParameters"]
    assert inside["environment"] == dict(shown().environment)
    assert inside["stages"] == [{"name": "export", "run": "2"}]
    steps = {step["sha256"]: step for step in inside["files"]}
    for engine in shown().engines:
        assert steps[engine.sha256]["made_from_sha256"] == engine.parent_sha256
        assert steps[engine.sha256]["tensorrt"] == engine.backend_version
    names = [each["name"] for each in definition["resolvedDependencies"]]
    assert names == ["net-source", "digits"]
    assert found["predicate"]["runDetails"]["metadata"] == {
        "invocationId": "1",
        "startedOn": "2026-12-01T14:00:00+00:00",
    }
