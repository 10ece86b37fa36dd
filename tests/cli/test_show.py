"""A model's graph in Netron: a real server that answers on this machine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import onnx
import pytest
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai.cli import main
from mlflow_e2eai.cli.show import serve_graph
from mlflow_e2eai.pipeline import jobs

TEXT = '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,3] y) {y = Relu(x)}'


@pytest.fixture(autouse=True)
def not_started_by_netron(monkeypatch):
    """Netron would give this program's log a handler."""
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "one relu.onnx"
    onnx.save(onnx.parser.parse_model(TEXT), path)
    return path


def served(url, path="/"):
    with urllib.request.urlopen(url + path, timeout=30) as answer:  # noqa: S310 - http, as the code under test says
        return answer.read()


def graph_at(url):
    """What the page reads: the graph that it names."""
    page = served(url).decode()
    name = page.partition('<meta name="file" content="')[2].partition('"')[0]
    return onnx.load_from_string(served(url, name.replace(" ", "%20")))


def operators(graph):
    return sorted(node.op_type for node in graph.graph.node)


def test_a_file_is_shown_and_the_server_ends_with_the_block(path):
    with serve_graph(str(path)) as url:
        assert url.startswith("http://127.0.0.1:")
        assert b"<title>Netron</title>" in served(url)
        assert operators(graph_at(url)) == ["Relu"]
    with pytest.raises(OSError, match=r"refused|reset"):
        served(url)


@pytest.mark.exporters
def test_a_bundle_shows_its_cleaned_graph(tmp_path):
    mlflow_e2eai.save_model(
        net(),
        tmp_path / "bundle",
        input_example={"x": features()},
        dynamic_axes=AXES,
        precisions=("fp32",),
    )
    with serve_graph(str(tmp_path / "bundle")) as url:
        assert operators(graph_at(url)) == ["Gemm", "Gemm", "Relu"]


def test_any_model_of_a_chain_is_shown_by_its_uri(store):
    raw = jobs.export(jobs.log("small_models:build", name="net"), exporter="trace")
    half = jobs.convert(jobs.clean(raw), precision="fp16")
    with serve_graph(f"models:/{raw}") as url:
        assert "BatchNormalization" in operators(graph_at(url))
    with serve_graph(half) as url:
        graph = graph_at(url)
    half_precision = onnx.TensorProto.FLOAT16
    assert half_precision in {weight.data_type for weight in graph.graph.initializer}


def test_the_command_says_the_address_and_ends_with_ctrl_c(path):
    command = [sys.executable, "-m", "mlflow_e2eai", "show", str(path), "--no-browser"]
    # A shell's background jobs ignore Ctrl-C, and so does what they start.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    signal.signal(signal.SIGINT, ignored)
    try:
        url = process.stdout.readline().strip()
        assert operators(graph_at(url)) == ["Relu"]
        time.sleep(1)  # it is about to wait
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == main.DONE
    finally:
        process.kill()
        process.stdout.close()
        process.wait()


def test_a_port_that_is_taken_is_one_sentence(path, capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert main.main(["show", str(path), "--port", port, "--no-browser"]) == main.ERROR
    assert f"Netron cannot listen on port {port}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        ("missing.onnx", "There is no file missing.onnx"),
        ("broken.onnx", "broken.onnx is not a valid ONNX file"),
        (".", "There is no bundle at '.'"),
        ("models:/nothing/1", "There is no model 'models:/nothing/1'"),
    ],
)
def test_what_is_no_model_is_one_sentence(model, sentence, store, tmp_path, capsys):
    (tmp_path / "broken.onnx").write_bytes(b"\x00broken")
    assert main.main(["show", model, "--no-browser"]) == main.ERROR
    err = capsys.readouterr().err.strip()
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_model_without_a_graph_says_so(store, capsys):
    source = jobs.log("small_models:build", name="net")
    assert main.main(["show", source]) == main.ERROR
    assert "is a PyTorch model, but this step needs" in capsys.readouterr().err


def test_a_missing_netron_names_the_extra(path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "netron", None)
    assert main.main(["show", str(path)]) == main.ERROR
    assert "pip install 'mlflow_e2eai[show]'" in capsys.readouterr().err
