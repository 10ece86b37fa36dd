"""Models whose weights do not fit into one ONNX file."""

from __future__ import annotations

import os
from pathlib import Path

import mlflow
import numpy as np
import onnx
import pytest
import torch
from memory_use import tree, watched
from wide_models import Wide

import mlflow_e2eai
from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts import external_data, graphs
from mlflow_e2eai.artifacts.external_data import references
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.evaluation.bisection.nodes import bisect
from mlflow_e2eai.fleet import distributed
from mlflow_e2eai.pipeline import jobs
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.plan import plan_from

pytestmark = pytest.mark.system

IDS = {"ids": np.arange(6).reshape(2, 3)}


class Tied(torch.nn.Module):
    """An embedding whose weights are those of the last layer too."""

    def __init__(self, words=64, width=32):
        super().__init__()
        self.embedding = torch.nn.Embedding(words, width)
        self.hidden = torch.nn.Linear(width, width)
        self.out = torch.nn.Linear(width, words, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids):
        return self.out(torch.relu(self.hidden(self.embedding(ids))))


@pytest.fixture
def lowered(monkeypatch):
    """Weights of a few KiB count as large."""
    monkeypatch.setattr(external_data, "EXTERNAL_BYTES", 1 << 11)
    monkeypatch.setattr(external_data, "SMALL_BYTES", 1 << 8)


def module():
    torch.manual_seed(0)
    return Tied().eval()


def right():
    with torch.no_grad():
        return module()(torch.from_numpy(IDS["ids"])).numpy()


def weight_files(folder):
    return sorted(path for path in Path(folder).rglob("*.weights"))


def sizes(path):
    """Bytes that a graph refers to."""
    model = onnx.load(path, load_external_data=False)
    return sum(int(each.external_data[2].value) for each in references(model))


def exported(folder, exporter="dynamo"):
    raw, _ = mlflow_e2eai.export(module(), IDS, out=folder / "raw.onnx", exporter=exporter)
    return raw


@pytest.mark.parametrize("exporter", ["dynamo", "trace"])
def test_one_copy_of_the_weights_goes_from_export_to_bundle(tmp_path, lowered, exporter):
    raw = exported(tmp_path / "raw", exporter)
    (weights,) = weight_files(tmp_path)
    assert [file.path.name for file in raw.weights] == [weights.name]
    assert raw.path.stat().st_size < weights.stat().st_size
    cleaned, _ = mlflow_e2eai.clean(raw, out=tmp_path / "clean" / "clean.onnx", samples=[IDS])
    assert cleaned.weights == raw.weights
    inodes = {path.stat().st_ino for path in weight_files(tmp_path)}
    assert (len(weight_files(tmp_path)), len(inodes)) == (2, 1)
    with onnxruntime_runner(cleaned.path) as infer:
        (answer,) = infer(IDS).values()
    np.testing.assert_allclose(answer, right(), atol=1e-6)


def test_a_saved_model_holds_one_copy_that_all_readers_take(tmp_path, lowered):
    place = tmp_path / "saved"
    mlflow_e2eai.save_model(module(), place, input_example=IDS)
    manifest = bundle.read(place / "bundle")
    fp32, fp16 = manifest.graphs
    (large,), (half,) = fp32.weights, fp16.weights
    assert sizes(place / "bundle" / fp32.path) == 2 * sizes(place / "bundle" / fp16.path) > 0
    names = {path.name for path in weight_files(place)}
    assert names == {large.path.name, half.path.name}
    assert {path.stat().st_nlink for path in weight_files(place)} == {1}
    assert all(entry.passed for entry in manifest.evidence if entry.measured)
    for variant, atol in (("onnxruntime-cpu/fp32", 1e-6), ("onnxruntime-cpu/fp16", 1e-2)):
        with mlflow_e2eai.load_model(str(place), variant=variant) as model:
            (answer,) = model(IDS).values()
        np.testing.assert_allclose(answer, right(), atol=atol)
    served = mlflow.pyfunc.load_model(str(place)).predict(IDS)
    np.testing.assert_allclose(next(iter(served.values())), right(), atol=1e-2)
    assert mlflow.onnx.load_model(str(place)).graph.initializer


def test_weights_that_changed_are_not_run(tmp_path, lowered):
    mlflow_e2eai.save_model(module(), tmp_path / "m", input_example=IDS, precisions=("fp32",))
    (file,) = weight_files(tmp_path)
    data = bytearray(file.read_bytes())
    data[100] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"\.weights has sha256"):
        mlflow_e2eai.load_model(str(tmp_path / "m"))
    file.write_bytes(bytes(data[:100]) + bytes([data[100] ^ 1]) + bytes(data[101:]))
    again = tmp_path / "again"
    mlflow_e2eai.save_model(tmp_path / "m", again)
    assert {path.stat().st_nlink for path in weight_files(tmp_path)} == {1}
    file.unlink()
    with pytest.raises(
        ArtifactError, match=r"\.weights of .* cannot be downloaded: No such artifact"
    ):
        mlflow_e2eai.load_model(str(tmp_path / "m"))


def test_every_stage_reads_what_the_one_before_logged(store, lowered, tmp_path):
    info = mlflow_e2eai.log_model(module(), "large", input_example=IDS, precisions=("fp32",))
    model = tracking.resolve(info.model_uri)
    cleaned = tracking.ancestor(model, ("clean",))
    again = jobs.clean(cleaned.model_id)
    half = jobs.convert(again, precision="fp16")
    passed = {entry.variant: entry.passed for entry in distributed.evaluate(half)[0].evidence}
    assert passed["onnxruntime-cpu/fp16"]
    for each in (cleaned.model_id, again, half):
        assert mlflow.onnx.load_model(f"models:/{each}").graph.initializer
        graph = tracking.fetch_graph(tracking.resolve(each), tmp_path / each)
        assert len(graph.weights) == 1
    copied = mlflow_e2eai.log_model(tracking.fetch(model, tmp_path / "bundle"), "copied")
    assert mlflow.onnx.load_model(copied.model_uri).graph.initializer


def test_what_a_rule_makes_anew_goes_to_a_file_of_its_own(tmp_path, lowered):
    raw = exported(tmp_path)

    def doubled(graph):
        weight = max(
            (t for t in graph.tensors().values() if hasattr(t, "values")),
            key=lambda t: t.values.size,
        )
        weight.values = weight.values * 2
        return 1

    graph = graphs.to_graph(graphs.read(raw.path))
    assert doubled(graph)
    out = tmp_path / "doubled" / "out.onnx"
    graphs.write(graphs.to_onnx(graph, like=graphs.read(raw.path)), out)
    described = graphs.describe(
        out, stage="clean", precision="fp32", axes=(), parent_sha256=raw.sha256
    )
    assert described.sha256 != raw.sha256
    before = {t.name: t for t in onnx.load(raw.path).graph.initializer}
    after = {t.name: t for t in onnx.load(out).graph.initializer}
    ratio = [
        onnx.numpy_helper.to_array(after[n]).sum() / onnx.numpy_helper.to_array(before[n]).sum()
        for n in before
    ]
    assert max(np.round(ratio, 3)) == 2


def test_rules_that_compare_constants_leave_them_in_their_file(tmp_path, lowered):
    raw = exported(tmp_path)
    plan = plan_from(["merge_duplicates", "fold_constants", "simplify", "drop_unused"])
    cleaned, _ = mlflow_e2eai.clean(raw, plan, out=tmp_path / "c" / "clean.onnx", samples=[IDS])
    assert cleaned.weights == raw.weights


def test_bisect_takes_a_large_graph(tmp_path, lowered):
    cleaned, _ = mlflow_e2eai.clean(exported(tmp_path), out=tmp_path / "clean.onnx")
    found = bisect(cleaned, "fp16", samples=[IDS], run=onnxruntime_runner)
    assert found


def test_a_conversion_that_fails_leaves_no_weights(tmp_path, lowered, monkeypatch):
    cleaned, _ = mlflow_e2eai.clean(exported(tmp_path / "a"), out=tmp_path / "a" / "clean.onnx")
    monkeypatch.setattr(
        "mlflow_e2eai.precision.stage.isolated_onnxruntime",
        lambda *_, **__: onnxruntime_runner(tmp_path),
    )
    with pytest.raises(mlflow_e2eai.errors.PrecisionError, match="does not load"):
        mlflow_e2eai.convert(cleaned, "fp16", out=tmp_path / "b" / "half.onnx")
    assert list((tmp_path / "b").iterdir()) == []


def own_bytes(pid):
    """Memory of a process that no file backs."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss_Anon:"))


def test_a_session_uses_weights_that_lie_beside_where_they_are_mapped(tmp_path, monkeypatch):
    monkeypatch.setattr(external_data, "EXTERNAL_BYTES", 1 << 20)
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(4096, 8192), np.ones((2, 4096), dtype=np.float32)
    weights_bytes = layer.weight.numel() * 4
    raw, _ = mlflow_e2eai.export(layer.eval(), {"input": x}, out=tmp_path / "beside" / "raw.onnx")
    inlined = tmp_path / "whole" / "raw.onnx"
    inlined.parent.mkdir()
    onnx.save(onnx.load(raw.path), inlined)
    held, answers, others = [], [], set(tree(os.getpid()))
    for path in (raw.path, inlined):
        with isolated_onnxruntime(path) as infer:
            answers.append(infer({"input": x})["output"])
            (there,) = set(tree(os.getpid())) - others
            held.append(own_bytes(there))
    assert held[1] - held[0] > 0.9 * weights_bytes
    np.testing.assert_allclose(*answers, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_more_than_2_gb_go_the_way_as_one_file_in_two_and_a_half_times_their_memory(tmp_path):
    torch.manual_seed(0)
    wide = Wide().eval()
    weights_bytes = sum(each.numel() * each.element_size() for each in wide.parameters())
    assert weights_bytes > 2.4e9
    with watched(os.getpid(), tmp_path, large_bytes=weights_bytes // 10) as seen:
        mlflow_e2eai.save_model(wide, tmp_path / "m", input_example=IDS, precisions=("fp32",))
    assert len(seen.inodes) == 1
    assert weights_bytes < seen.peak_bytes <= 2.5 * weights_bytes
    (file,) = weight_files(tmp_path)
    assert (file.stat().st_ino in seen.inodes, file.stat().st_nlink) == (True, 1)
    assert all(entry.passed for entry in bundle.read(tmp_path / "m" / "bundle").evidence)
    with torch.no_grad():
        wanted = wide(torch.from_numpy(IDS["ids"])).numpy()
    with mlflow_e2eai.load_model(str(tmp_path / "m")) as model:
        (answer,) = model(IDS).values()
    np.testing.assert_allclose(answer, wanted, atol=1e-4)
