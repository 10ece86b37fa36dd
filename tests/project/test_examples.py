"""The examples without MLflow, as a reader would run them."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from mlflow_e2eai.artifacts import graphs

pytestmark = pytest.mark.system

EXAMPLES = Path(__file__).parents[2] / "examples"


def output_of(example, out):
    """What an example prints."""
    command = [sys.executable, EXAMPLES / example, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = tmp_path_factory.mktemp("conv_bn_relu")
    return folder, output_of("conv_bn_relu.py", folder)


@pytest.fixture(scope="module")
def custom(tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom_operator")
    return folder, output_of("custom_operator.py", folder)


@pytest.mark.parametrize("exporter", ["trace", "script"])
def test_the_pair_is_exported_by_both_exporters_to_the_same_four_operators(exporter, pair):
    folder, said = pair
    signature = r"input ['N', 3, 224, 224] -> output ['N', 64, 55, 55]"
    assert f"{exporter:6}  opset 13: 2 Conv, 2 Relu; {signature}" in said
    model = onnx.load(folder / f"{exporter}-clean.onnx")
    assert graphs.operators(model) == {"Conv": 2, "Relu": 2}
    assert graphs.opset_of(model) == 13


def test_the_pair_agrees_with_pytorch_in_both_precisions(pair):
    _, said = pair
    assert "NO PARITY" not in said
    errors = re.findall(r"(fp32|fp16) +parity, error up to (\S+);", said)
    assert [precision for precision, _ in errors] == ["fp32", "fp32", "fp16"]
    assert all(float(error) < 1e-5 for precision, error in errors if precision == "fp32")
    assert "PyTorch" in said
    assert "ONNX Runtime" in said


def test_the_pair_gets_an_engine_of_each_precision(pair):
    pytest.importorskip("tensorrt_rtx")
    folder, said = pair
    assert re.findall(r"sm86 +(fp32|fp16) engine, 0\.\d+ MB", said) == ["fp32", "fp16"]
    assert {path.name for path in folder.glob("*.engine")} == {
        "sm86-fp32.engine",
        "sm86-fp16.engine",
    }


def test_the_custom_operator_is_in_the_graph(custom):
    folder, said = custom
    assert "Conv -> Relu -> devtech::FooOp -> Conv -> Relu" in said
    operators = graphs.operators(onnx.load(folder / "with_foo.onnx"))
    assert operators == {"Conv": 2, "Relu": 2, "devtech::FooOp": 1}


def test_tensorrt_refuses_the_custom_operator_by_name(custom):
    pytest.importorskip("tensorrt_rtx")
    folder, said = custom
    assert re.search(
        r"refused +node \S*FooOp, operator devtech::FooOp: Op type FooOp is not supported", said
    )
    assert not (folder / "refused.engine").exists()


def test_surgery_takes_the_custom_operator_out_and_keeps_the_numbers(custom):
    folder, said = custom
    assert "surgery   bypass: 1" in said
    (error,) = re.findall(r"compared  parity, error up to (\S+)", said)
    assert float(error) < 1e-5
    operators = graphs.operators(onnx.load(folder / "without_foo.onnx"))
    assert operators == {"Conv": 2, "Relu": 2}


def test_the_engine_builds_once_the_custom_operator_is_out(custom):
    pytest.importorskip("tensorrt_rtx")
    folder, said = custom
    assert re.search(r"built +tensorrt_rtx-sm86 engine, 0\.\d+ MB", said)
    assert (folder / "without_foo.engine").stat().st_size > 10_000


@pytest.mark.parametrize("example", ["conv_bn_relu.py", "custom_operator.py"])
def test_without_tensorrt_an_example_says_what_to_install_and_goes_on(
    example, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setattr(sys, "argv", [example, "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(EXAMPLES / example), run_name="__main__")
    said = capsys.readouterr().out
    assert "pip install 'mlflow_e2eai[rtx]'" in said
    assert "parity" in said
    assert not list(tmp_path.glob("*.engine"))
