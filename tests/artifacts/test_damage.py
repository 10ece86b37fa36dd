"""Files that were damaged on their way: a byte that flipped, an end that is missing."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import AXES, features, net

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import ArtifactError, E2EAIError, EngineMismatchError

pytestmark = pytest.mark.usefixtures("on_threads")

VARIANTS = {
    "model.onnx": "onnxruntime-cpu/fp32",
    "model-fp16.onnx": "onnxruntime-cpu/fp16",
    "engines/tensorrt_rtx-sm86-fp32.engine": "tensorrt_rtx-sm86/fp32",
    "manifest.json": None,
}


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A bundle with two graphs and two engines."""
    place = tmp_path_factory.mktemp("whole") / "model"
    example = {"x": features()}
    mlflow_e2eai.save_model(
        net(), place, input_example=example, dynamic_axes=AXES, targets=("sm86",)
    )
    return bundle.find(place)


@pytest.fixture(scope="session")
def damaged(whole, tmp_path_factory):
    """The same bundle, with a file of it as a damage leaves it."""
    place = tmp_path_factory.mktemp("damaged") / "bundle"
    shutil.copytree(whole, place)

    def make(name: str, damage) -> Path:
        for file in VARIANTS:
            (place / file).write_bytes((whole / file).read_bytes())
        content = (whole / name).read_bytes()
        (place / name).write_bytes(damage(content))
        return place

    return make


@st.composite
def damages(draw):
    """A function that flips a bit of a file or cuts its end off."""
    at, bit = draw(st.floats(0, 1, exclude_max=True)), draw(st.integers(0, 7))
    cuts = draw(st.booleans())

    def damage(content: bytes) -> bytes:
        place = int(at * len(content))
        if cuts:
            return content[:place]
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        return bytes(changed)

    return damage


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=60)
@given(damage=damages())
def test_a_damaged_file_is_an_error_before_anything_is_loaded(whole, damaged, name, damage):
    place = damaged(name, damage)

    try:
        load(place, variant=VARIANTS[name], fallback=False)
    except ArtifactError:
        return
    except EngineMismatchError:
        # Of the manifest, which is read whole, only the name of its digest can be another.
        assert name == "manifest.json"
    assert bundle.read(place) == bundle.read(whole)


@pytest.mark.parametrize("name", ["model.onnx", "engines/tensorrt_rtx-sm86-fp32.engine"])
def test_a_missing_file_is_named(damaged, name):
    place = damaged(name, lambda content: content)
    (place / name).unlink()

    with pytest.raises(ArtifactError, match=f"Cannot read .*{Path(name).name}"):
        load(place, variant=VARIANTS[name])


def test_a_damaged_graph_is_not_replaced_by_another_variant(damaged):
    place = damaged("model.onnx", lambda content: content[:-1])

    with pytest.raises(ArtifactError, match=r"model\.onnx has sha256"):
        load(place)


def test_a_damaged_engine_for_another_machine_hinders_nobody(whole, damaged):
    name = "engines/tensorrt_rtx-sm86-fp32.engine"
    place = damaged(name, lambda content: content[:-1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found, wanted = load(place), load(whole)

    assert found.variant == wanted.variant == "onnxruntime-cpu/fp32"
    np.testing.assert_array_equal(found(features())["output"], wanted(features())["output"])


@settings(max_examples=300)
@given(damage=damages())
def test_a_damaged_onnx_file_of_somebody_is_read_or_refused(whole, tmp_path_factory, damage):
    path = tmp_path_factory.getbasetemp() / "damaged.onnx"
    path.write_bytes(damage((whole / "model.onnx").read_bytes()))

    try:
        graphs.describe(path, stage="export", precision="fp32", axes=(), parent_sha256=None)
    except E2EAIError as error:
        assert type(error) is ArtifactError  # noqa: PT017 - some damages are none


def test_an_input_that_is_no_tensor_is_named_with_what_to_do(tmp_path):
    text = """
    <ir_version: 8, opset_import: ["" : 18]>
    first (seq(float[2]) several) => (float[2] y)
    { zero = Constant<value_int = 0>()  y = SequenceAt(several, zero) }
    """
    path = tmp_path / "sequence.onnx"
    graphs.write(onnx.parser.parse_model(text), path)

    with pytest.raises(ArtifactError, match="'several' is a sequence, but inputs"):
        graphs.describe(path, stage="export", precision="fp32", axes=(), parent_sha256=None)
