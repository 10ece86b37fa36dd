"""ONNX files that keep their weights in other files, and those that are broken."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.runtime.ort import onnxruntime_runner

W = np.arange(12, dtype=np.float32).reshape(3, 4)
BYTES = W.tobytes()
X = {"x": np.ones((2, 3), np.float32)}
TEXT = (
    '<ir_version: 8, opset_import: ["" : 18]> g (float[N,3] x) => (float[N,4] y) {y = MatMul(x, w)}'
)
NESTED = (
    '<ir_version: 8, opset_import: ["" : 18]> g (bool c) => (float[3,4] y) '
    "{y = If(c) <then_branch = t () => (float[3,4] a) {a = Identity(w)}, "
    "else_branch = e () => (float[3,4] b) {b = Identity(w)}>}"
)


def external(path, location="w.bin", *, data=BYTES, **entries):
    """Write a model whose only weight is said to lie in another file, and that file."""
    path.parent.mkdir(exist_ok=True)
    model = onnx.parser.parse_model(TEXT)
    weight = onnx.TensorProto(name="w", dims=W.shape, data_type=onnx.TensorProto.FLOAT)
    weight.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        weight.external_data.add(key=key, value=str(value))
    model.graph.initializer.append(weight)
    path.write_bytes(model.SerializeToString())
    if data is not None:
        (path.parent / location).write_bytes(data)
    return path


def test_weights_in_another_file_are_read_and_one_file_is_written(tmp_path):
    source = external(tmp_path / "model.onnx", data=b"\0" * 64 + W.tobytes(), offset=64, length=48)
    model = graphs.read(source)
    out = tmp_path / "elsewhere" / "out.onnx"
    graphs.write(model, out)
    assert [path.name for path in out.parent.iterdir()] == ["out.onnx"]
    with onnxruntime_runner(out) as infer:
        np.testing.assert_array_equal(infer(X)["y"], X["x"] @ W)


def test_weights_in_a_folder_below_and_those_of_a_subgraph_are_read(tmp_path):
    (tmp_path / "below").mkdir()
    assert graphs.read(external(tmp_path / "model.onnx", "below/w.bin"))
    model = onnx.parser.parse_model(NESTED)
    for attribute in model.graph.node[0].attribute:
        attribute.g.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    path = tmp_path / "nested.onnx"
    onnx.save(model, path, save_as_external_data=True, size_threshold=0, location="nested.bin")
    read = graphs.read(path)
    for attribute in read.graph.node[0].attribute:
        (found,) = attribute.g.initializer
        np.testing.assert_array_equal(onnx.numpy_helper.to_array(found), W)
    (tmp_path / "nested.bin").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"'nested\.bin' up to byte .*, but that file has 0"):
        graphs.read(path)


@pytest.mark.parametrize("how", ["absolute", "upwards", "and back", "drive", "backslash", "empty"])
def test_a_place_outside_the_folder_is_refused_though_the_file_is_there(tmp_path, how):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    location = {
        "absolute": str(tmp_path / "w.bin"),
        "upwards": "../w.bin",
        "and back": "../folder/w.bin",
        "drive": "C:w.bin",
        "backslash": "..\\w.bin",
        "empty": "",
    }[how]
    path = external(tmp_path / "folder" / "model.onnx", location, data=None)
    (path.parent / "w.bin").write_bytes(W.tobytes())
    with pytest.raises(ArtifactError, match="only a file in its own folder is read"):
        graphs.read(path)


@pytest.mark.parametrize("link", ["file", "folder"])
def test_a_symbolic_link_is_refused(tmp_path, link):
    (tmp_path / "w.bin").write_bytes(W.tobytes())
    location = "w.bin" if link == "file" else "linked/w.bin"
    path = external(tmp_path / "folder" / "model.onnx", location, data=None)
    if link == "file":
        (path.parent / "w.bin").symlink_to(tmp_path / "w.bin")
    else:
        (path.parent / "linked").symlink_to(tmp_path)
    with pytest.raises(
        ArtifactError, match=r"a symbolic link .* put the file itself next to model"
    ):
        graphs.read(path)


BROKEN = {
    "missing": ({"data": None}, "which does not exist; put it there"),
    "truncated": ({"data": W.tobytes()[:-1], "length": 48}, "up to byte 48, but that file has 47"),
    "offset": ({"offset": 16, "length": 48}, "up to byte 64, but that file has 48"),
    "short": ({"length": 44}, "44 bytes from byte 0 on, but its shape and type take 48"),
    "long": ({"data": bytes(99), "length": 52}, "52 bytes .* take 48"),
    "long file": ({"data": bytes(52)}, "52 bytes .* take 48"),
    "negative": ({"offset": -4, "length": 48}, "48 bytes from byte -4 on"),
    "not a number": ({"offset": "x"}, "at an offset that is not a number"),
}


@pytest.mark.parametrize(("how", "message"), BROKEN.values(), ids=BROKEN)
def test_weights_that_are_not_there_are_told_in_a_sentence(tmp_path, how, message):
    path = external(tmp_path / "model.onnx", **how)
    with pytest.raises(ArtifactError, match=f"model.onnx keeps weight 'w' in 'w.bin'.*{message}"):
        graphs.read(path)


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path):
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(W, "w"))
    path = tmp_path / "model.onnx"
    whole = model.SerializeToString()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(
            ArtifactError, match=r"^model\.onnx is not a valid ONNX file: ."
        ) as told:
            graphs.read(path)
        assert "\n" not in str(told.value)


@pytest.mark.parametrize("content", [b"\xff" * 99, b"<html>", b"PK\x03\x04" + bytes(60)])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="not a valid ONNX file"):
        graphs.read(path)
