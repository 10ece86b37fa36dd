"""ONNX files that are broken or made to do harm end in one sentence, in seconds, within memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from hostile_files import HARMLESS, HOSTILE, _doubling, write

from mlflow_e2eai.artifacts import graphs, model_file
from mlflow_e2eai.artifacts.repairs import read_repaired
from mlflow_e2eai.errors import ArtifactError

SUPPORT = Path(__file__).parents[1] / "support"
LIMIT_S, LIMIT_BYTES = 10, 2 << 30


def endings(place, ways, names):
    """How each file ended in each way; a process is forked for each."""
    path = os.pathsep.join([str(SUPPORT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "hostile_process.py"), str(place), ",".join(ways), *names],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {(each["way"], each["name"]): each for each in found}


WAYS = ("inspect", "save_model")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    return endings(tmp_path_factory.mktemp("hostile"), WAYS, [*HOSTILE, *HARMLESS])


LOOKED_AT = {
    *("a sparse tensor that claims 10^12 elements", "an axis of 10^15", "an input of 40 GB"),
    *("a value in between of 4 TB", "an unknown dtype of a weight", "no outputs"),
    "an opset of 10^9",
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("way", WAYS)
def test_a_hostile_file_is_one_sentence_of_ours_and_nothing_outside_is_touched(ended, way, name):
    found = ended[way, name]
    # What makes a file impossible to run may be no matter where it is looked at.
    assert found["how"] == "" or (way == "inspect" and name in LOOKED_AT)
    assert found["seconds"] < LIMIT_S
    assert found["bytes"] < LIMIT_BYTES


@pytest.mark.parametrize("name", HARMLESS)
@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_merely_odd_is_taken(ended, way, name):
    found = ended[way, name]
    # Only the pipeline repairs files: a look finds the nodes of one in no order.
    assert found["how"] == "accepted" or (way == "inspect" and name.startswith("no order"))
    assert found["bytes"] < LIMIT_BYTES


def test_a_read_or_write_outside_the_folder_would_be_seen(tmp_path):
    ended = endings(tmp_path, ["leave"], ["garbage"])
    assert ended["leave", "garbage"]["how"].startswith("outside: ['os.mkdir ")


# What the limits are


@pytest.mark.parametrize("what", ["a pipe", "a device"])
def test_a_path_that_is_no_file_is_refused_without_waiting(what, tmp_path):
    path = Path("/dev/zero") if what == "a device" else tmp_path / "m.onnx"
    if what == "a pipe":
        os.mkfifo(path)
    with pytest.raises(ArtifactError, match="it is no regular file; give an ONNX file"):
        model_file.load(path)


def test_a_file_beyond_protobufs_limit_is_refused_unread(tmp_path):
    path = tmp_path / "m.onnx"
    with path.open("wb") as file:
        file.truncate(3 << 30)
    with pytest.raises(ArtifactError, match="has 3221225472 bytes, and protobuf reads"):
        model_file.load(path)


def test_functions_are_counted_as_they_would_be_inlined(tmp_path):
    model, path = _doubling(tmp_path), write("functions that double 40 times", tmp_path)
    with pytest.raises(ArtifactError, match="its functions stand for 549755813888 nodes"):
        model_file.load(path)
    model.graph.node[0].op_type = "F15"
    onnx.save(model, path)
    model_file.check_structure(model_file.load(path), path)


def test_a_repair_that_fails_is_a_sentence_about_the_file(tmp_path):
    path = write("a sparse tensor with an index outside", tmp_path)
    with pytest.raises(ArtifactError, match=r"m\.onnx is not a valid ONNX file: index 1000000000"):
        read_repaired(path)


def test_names_that_are_not_text_are_not_printed(tmp_path):
    path = write("names with line breaks and escapes", tmp_path)
    with pytest.raises(ArtifactError) as raised:
        model_file.check_structure(onnx.load(path), path)
    assert "\n" not in str(raised.value)


def test_an_input_of_more_dimensions_than_numpy_has_is_one_sentence():
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1] * 70)
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [value], []))
    with pytest.raises(ArtifactError, match="'x' has 70 dimensions, but at most 64 are expected"):
        graphs.interface(model)
