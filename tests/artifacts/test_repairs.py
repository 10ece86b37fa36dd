"""ONNX files of other tools: repaired where they can be, refused in a sentence where not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from mlflow_e2eai import clean, convert
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.repairs import REPAIRED, read_repaired
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.errors import ArtifactError, E2EAIError, InvalidInputError, PrecisionError
from mlflow_e2eai.pipeline.onnx_file import import_onnx
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")

W = np.random.default_rng(0).standard_normal((4, 5)).astype(np.float32)
AXES = {"x": {0: Axis("N", min=1, opt=2, max=4)}}
PRODUCT = helper.make_node("MatMul", ["x", "w"], ["h"], name="a")
RELU = helper.make_node("Relu", ["h"], ["y"], name="b")


def value(name, shape, kind=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def model_of(nodes=(PRODUCT, RELU), *, inputs=None, outputs=None, opset=18, ir=8, **rest):
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", ["n", 4])] if inputs is None else inputs,
        [value("y", ["n", 5])] if outputs is None else outputs,
        rest.pop("weights", [numpy_helper.from_array(W, "w")]),
        **rest,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir)


SPARSE = helper.make_sparse_tensor(
    helper.make_tensor("w", TensorProto.FLOAT, [3], W.ravel()[[0, 7, 13]]),
    helper.make_tensor("at", TensorProto.INT64, [3], [0, 7, 13]),
    [4, 5],
)
PLACES = helper.make_sparse_tensor(
    helper.make_tensor("w", TensorProto.FLOAT, [2], W.ravel()[[1, 8]]),
    helper.make_tensor("at", TensorProto.INT64, [2, 2], [0, 1, 1, 3]),
    [4, 5],
)
REPAIRABLE = {
    "nodes that are not sorted": model_of([RELU, PRODUCT]),
    "an output without a shape": model_of(outputs=[value("y", None)]),
    "an output without a type": model_of(outputs=[onnx.ValueInfoProto(name="y")]),
    "two nodes of one name": model_of([PRODUCT, helper.make_node("Relu", ["h"], ["y"], name="a")]),
    "weights among the inputs": model_of(
        inputs=[value("x", ["n", 4]), value("w", [4, 5])], opset=8, ir=3
    ),
    "weights that callers may replace": model_of(inputs=[value("x", ["n", 4]), value("w", [4, 5])]),
    "a sparse weight": model_of(weights=[], sparse_initializer=[SPARSE]),
    "a sparse weight by coordinates": model_of(weights=[], sparse_initializer=[PLACES]),
    "a sparse constant": model_of(
        [helper.make_node("Constant", [], ["w"], sparse_value=SPARSE), PRODUCT, RELU], weights=[]
    ),
    "sizes of -1": model_of(inputs=[value("x", [-1, 4])], outputs=[value("y", [-1, 5])]),
    "opset 6": model_of(
        [PRODUCT, RELU], inputs=[value("x", ["n", 4]), value("w", [4, 5])], opset=6, ir=3
    ),
}


def weight_of(case):
    if "sparse" not in case:
        return W
    weight = np.zeros((4, 5), np.float32)
    places = [1, 8] if "coordinates" in case else [0, 7, 13]
    weight.ravel()[places] = W.ravel()[places]
    return weight


@pytest.mark.parametrize("case", REPAIRABLE)
def test_a_file_that_needs_a_repair_goes_the_whole_way(case, tmp_path):
    onnx.save(REPAIRABLE[case], tmp_path / "given.onnx")
    raw, example = import_onnx(tmp_path / "given.onnx", out=tmp_path / "r.onnx", dynamic_axes=AXES)
    cleaned, _ = clean(raw, out=tmp_path / "clean.onnx", samples=[example])
    with onnxruntime_runner(cleaned.path) as infer:
        wanted = np.maximum(example["x"] @ weight_of(case), 0)
        np.testing.assert_allclose(infer(example)["y"], wanted, rtol=1e-5, atol=1e-6)
    for precision in ("fp16", "bf16", "int8"):
        made, _ = convert(raw, precision, out=tmp_path / "made.onnx", samples=[example])
        assert made.inputs == raw.inputs
        assert [output.name for output in made.outputs] == ["y"]


def test_a_hundred_thousand_weights_that_nothing_reads_are_left_out(tmp_path):
    model = model_of()
    given = [weight.name for weight in model.graph.initializer]
    unread = [onnx.numpy_helper.from_array(np.float32(at), f"unread{at}") for at in range(100_000)]
    model.graph.initializer.extend(unread)
    onnx.save(model, tmp_path / "given.onnx")
    repaired = read_repaired(tmp_path / "given.onnx")
    assert [weight.name for weight in repaired.graph.initializer] == given
    (entry,) = repaired.metadata_props
    assert entry.value == "weights that nothing reads are left out"


def test_a_file_says_which_repairs_it_had_and_a_good_one_had_none(tmp_path):
    onnx.save(REPAIRABLE["nodes that are not sorted"], tmp_path / "given.onnx")
    (entry,) = read_repaired(tmp_path / "given.onnx").metadata_props
    assert (entry.key, entry.value) == (REPAIRED, "nodes are sorted")
    onnx.save(model_of(), tmp_path / "given.onnx")
    assert not read_repaired(tmp_path / "given.onnx").metadata_props


def test_maps_of_scores_come_in_as_their_tensor(tmp_path):
    nodes = [
        helper.make_node(
            "LinearClassifier",
            ["x"],
            ["label", "p"],
            domain="ai.onnx.ml",
            classlabels_ints=[0, 1, 2],
            coefficients=W.ravel()[:12].tolist(),
            intercepts=[0.0, 0.1, 0.2],
            post_transform="SOFTMAX",
        ),
        helper.make_node(
            "ZipMap", ["p"], ["scores"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2]
        ),
    ]
    score = helper.make_map_type_proto(
        TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, [])
    )
    listed = helper.make_value_info("scores", helper.make_sequence_type_proto(score))
    outputs = [value("label", ["n"], TensorProto.INT64), listed]
    onnx.save(model_of(nodes, outputs=outputs, weights=[]), tmp_path / "given.onnx")
    raw, example = import_onnx(tmp_path / "given.onnx", out=tmp_path / "r.onnx", dynamic_axes=AXES)
    assert [(spec.name, spec.shape) for spec in raw.outputs] == [
        ("label", ("N",)),
        ("scores", ("N", 3)),
    ]
    with onnxruntime_runner(raw.path) as infer:
        scores = infer(example)["scores"]
    np.testing.assert_allclose(scores.sum(1), 1, rtol=1e-5)
    cleaned, _ = clean(raw, out=tmp_path / "clean.onnx", samples=[example])
    with pytest.raises(PrecisionError, match="LinearClassifier cannot be in fp16"):
        convert(cleaned, "fp16", out=tmp_path / "half.onnx", samples=[example])


SAME = helper.make_node("Identity", ["x"], ["y"])
PAIR = helper.make_node("SequenceConstruct", ["x", "x"], ["y"])
LISTED = helper.make_tensor_sequence_value_info
HOPELESS = {
    "texts": model_of(
        [SAME],
        inputs=[value("x", ["n"], TensorProto.STRING)],
        outputs=[value("y", ["n"], TensorProto.STRING)],
    ),
    "complex numbers": model_of(
        [SAME],
        inputs=[value("x", ["n"], TensorProto.COMPLEX64)],
        outputs=[value("y", ["n"], TensorProto.COMPLEX64)],
    ),
    "already computes in bf16": model_of(
        [SAME],
        inputs=[value("x", ["n"], TensorProto.BFLOAT16)],
        outputs=[value("y", ["n"], TensorProto.BFLOAT16)],
    ),
    "'y' is a sequence, but inputs and outputs must be tensors": model_of(
        [PAIR], outputs=[LISTED("y", TensorProto.FLOAT, None)]
    ),
    "'x' of given.onnx has no shape": model_of([SAME], inputs=[value("x", None)]),
    "'y' of given.onnx has no type and shape": model_of(
        [helper.make_node("Foo", ["x"], ["y"], domain="ai.onnx.ml")], outputs=[value("y", None)]
    ),
    "has no outputs": model_of(outputs=[]),
    "depends on its own output": model_of(
        [helper.make_node("Add", ["x", "z"], ["y"]), helper.make_node("Relu", ["y"], ["z"])]
    ),
    "uses opset 99": model_of(opset=99),
}


@pytest.mark.parametrize("words", HOPELESS)
def test_a_file_that_cannot_be_repaired_is_refused_in_one_sentence(words, tmp_path):
    onnx.save(HOPELESS[words], tmp_path / "given.onnx")
    with pytest.raises(E2EAIError, match=words) as refused:
        import_onnx(tmp_path / "given.onnx", out=tmp_path / "raw.onnx", dynamic_axes=AXES)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "raw.onnx").exists()


def test_an_example_that_is_empty_is_refused_by_its_axis(tmp_path):
    onnx.save(model_of(), tmp_path / "given.onnx")
    empty = {"x": np.zeros((0, 4), np.float32)}
    with pytest.raises(InvalidInputError, match="'x' is empty along axis 'N'"):
        import_onnx(
            tmp_path / "given.onnx", out=tmp_path / "r.onnx", example=empty, dynamic_axes=AXES
        )


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_an_empty_batch_among_the_samples_changes_nothing(precision, tmp_path):
    onnx.save(model_of(), tmp_path / "given.onnx")
    raw, example = import_onnx(tmp_path / "given.onnx", out=tmp_path / "r.onnx", dynamic_axes=AXES)
    empty = {"x": np.zeros((0, 4), np.float32)}
    one, _ = convert(raw, precision, out=tmp_path / "one.onnx", samples=[example])
    other, _ = convert(raw, precision, out=tmp_path / "two.onnx", samples=[empty, example, empty])
    assert one.sha256 == other.sha256


def test_a_graph_of_ir_version_3_is_read_without_its_weights_among_the_inputs(tmp_path):
    onnx.save(REPAIRABLE["weights among the inputs"], tmp_path / "old.onnx")
    model = graphs.read(tmp_path / "old.onnx")
    assert (model.ir_version, [value.name for value in model.graph.input]) == (4, ["x"])


def test_what_breaks_the_rules_of_onnx_is_no_file_for_the_strict_reader(tmp_path):
    onnx.save(REPAIRABLE["nodes that are not sorted"], tmp_path / "given.onnx")
    with pytest.raises(ArtifactError, match=r"not a valid ONNX file: .*; export it again\."):
        graphs.read(tmp_path / "given.onnx")


def test_a_fresh_name_is_one_that_nothing_has_at_any_depth():
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> g (float[n] x, bool c) => (float[n] y) { '
        "y = If (c) <then_branch = t () => (float[n] a) { [b] z = Relu(x) a = Neg(z) }, "
        "else_branch = e () => (float[n] d) <float[1] w = {1}> { d = Mul(x, w) }> }"
    )
    fresh = FreshNames.of_model(model)
    assert [fresh(name) for name in ("new", "new", "new_2", "x", "z", "w", "b")] == [
        *("new", "new_2", "new_2_2", "x_2", "z_2", "w_2", "b_2"),
    ]
