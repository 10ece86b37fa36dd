"""The life of a model on real servers: PostgreSQL, with artifacts in a folder or in S3."""

from __future__ import annotations

import mlflow
import pytest
import requests
from ranked_versions import register

import mlflow_e2eai
from mlflow_e2eai.errors import ArtifactError

pytestmark = pytest.mark.system

GATES = {
    "gates": [
        {"metric": "parity/failed", "at_most": 0},
        {"metric": "champion/task_drop", "at_most": 0.1},
        {"approval": "release"},
    ]
}
TASKS = {"gates": GATES["gates"][:2]}


@pytest.fixture(scope="module")
def over_s3(tmp_path_factory):
    pytest.importorskip("moto", reason="S3 is missing; `make .venv/servers`")
    from registry_servers import registry_server

    with registry_server("s3", tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.mark.parametrize("kind", ["over_postgres", "over_s3"])
def test_a_model_is_approved_promoted_guarded_and_rolled_back(isolated, request, kind):
    server = request.getfixturevalue(kind)
    server.empty()
    mlflow.set_tracking_uri(server.uri)
    mlflow.set_experiment("tests")
    client = mlflow.MlflowClient()
    first, second, worse, broken = register((0.8, 0.9, 0.5, 0.9))
    for version in (first, second, worse, broken):
        mlflow_e2eai.approve("net", version, as_="release")

    def holder():
        return str(client.get_model_version_by_alias("net", "champion").version)

    assert mlflow_e2eai.promote("net", first, gates=GATES).promoted
    assert mlflow_e2eai.promote("net", second, gates=GATES).promoted
    assert not mlflow_e2eai.promote("net", worse, gates=GATES).promoted
    assert holder() == second

    source = client.get_model_version("net", broken).source
    with server.artifacts.edited(source.removeprefix("models:/")) as folder:
        path = folder / "bundle" / "model.onnx"
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        mlflow_e2eai.promote("net", broken, gates=GATES)

    client.set_registered_model_alias("net", "champion", worse)
    (drifted,) = mlflow_e2eai.guard("net", restore=True).drifted
    assert drifted.standing == "moved by hand"
    assert holder() == second
    assert mlflow_e2eai.rollback("net").after == first
    assert holder() == first

    kinds = [(move.before, move.after, move.kind) for move in mlflow_e2eai.history("net").moves]
    assert kinds == [
        (None, first, "promotion"),
        (first, second, "promotion"),
        (worse, second, "restoration"),
        (second, first, "rollback"),
    ]
    assert mlflow_e2eai.explain("net", second).incumbents[0].version == first
    served = mlflow_e2eai.load_model("models:/net@champion")
    assert served.variant == "onnxruntime-cpu/fp32"


def test_the_requests_of_a_call_do_not_grow_with_the_registry(on_postgres, monkeypatch):
    mlflow.set_experiment("tests")
    sent, send = [], requests.Session.send

    def count(self, request, **options):
        sent.append(request.path_url)
        return send(self, request, **options)

    monkeypatch.setattr(requests.Session, "send", count)

    def requests_of(call):
        sent.clear()
        call()
        return len(sent)

    def requests_of_each():
        return {
            "promote": requests_of(lambda: mlflow_e2eai.promote("net", second, gates=TASKS)),
            "explain": requests_of(lambda: mlflow_e2eai.explain("net", second)),
            "history": requests_of(lambda: mlflow_e2eai.history("net")),
            "load": requests_of(lambda: mlflow_e2eai.load_model("models:/net@champion")),
        }

    first, second = register((0.9, 0.9))
    mlflow_e2eai.promote("net", first, gates=TASKS)
    mlflow_e2eai.promote("net", second, gates=TASKS)
    mlflow_e2eai.promote("net", first, gates=TASKS)
    few = requests_of_each()
    more = register((0.9,) * 6)
    register((0.9,) * 3, "other")
    for version in [*more, first]:
        mlflow_e2eai.promote("net", version, gates=TASKS)

    assert requests_of_each() == few
    assert few["promote"] > few["load"] > few["explain"] > few["history"] > 0
