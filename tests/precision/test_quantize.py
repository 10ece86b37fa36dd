"""fp32 -> int8 and fp8: calibrated on all that the caller gives, smaller, and close."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from scipy.ndimage import gaussian_filter
from trained_models import face_net

from mlflow_e2eai import bisect, clean, compare, convert, export
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.engine.stage import compile
from mlflow_e2eai.engine.targets import resolve, unbuildable_here
from mlflow_e2eai.errors import EngineBuildError, InvalidInputError, PrecisionError
from mlflow_e2eai.precision.calibration import calibrate, histogram
from mlflow_e2eai.runtime.ort import onnxruntime_runner

pytestmark = pytest.mark.usefixtures("on_threads")

AXES = (Axis("N", min=1, opt=2, max=64),)
QUANTIZED = ("int8", "fp8")
WEIGHTS = np.random.default_rng(3).standard_normal((3, 4)).astype(np.float32)

SHARED = """
main (float[N, 3] x) => (float[N, 4] y, float[N, 4] z)
<float[3, 4] w = {WEIGHTS}> {
    [one] y = MatMul(x, w)
    [two] z = MatMul(x, w)
}"""

LAYERS = """
main (float[N, 3] x) => (float[N, 3] y)
<float[3, 4] w = {WEIGHTS}, float[3, 4] v = {WEIGHTS}, float[3] b = {100, 200, 300}> {
    [first] a = MatMul(x, w)
    [relu] r = Relu(a)
    [last] y = Gemm <transB = 1> (r, v, b)
}"""

AFTER_RELU = """
main (float[N, 3] x) => (float[N, 4] y)
<float[3, 4] w = {WEIGHTS}> {
    r = Relu(x)
    y = MatMul(r, w)
}"""

ATTENTION = """
main (float[N, 3] x) => (float[N, N] y) {
    t = Transpose <perm = [1, 0]> (x)
    y = MatMul(x, t)
}"""

PARTLY_ZERO = """
main (float[N, 3] x) => (float[N, 4] y, float[N, 4] z)
<float[3, 4] w = {WEIGHTS}, float nothing = {0}> {
    [none] n = Mul(x, nothing)
    [off] z = MatMul(n, w)
    [on] y = MatMul(x, w)
}"""


@pytest.fixture
def graph(tmp_path):
    def write(text, opset=18):
        numbers = ", ".join(str(float(number)) for number in WEIGHTS.ravel())
        header = f'<ir_version: 8, opset_import: ["" : {opset}]>'
        model = onnx.parser.parse_model(header + text.replace("WEIGHTS", numbers))
        path = tmp_path / f"source{opset}.onnx"
        graphs.write(model, path)
        return graphs.describe(path, stage="clean", precision="fp32", axes=AXES, parent_sha256=None)

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "made.onnx"


def batches(count=8, items=16, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((items, 3)).astype(np.float32)} for _ in range(count)]


def answers(artifact, sample):
    with onnxruntime_runner(artifact.path, precision=artifact.precision) as infer:
        return infer(sample)


def weights_of(artifact):
    return {one.name: one for one in graphs.read(artifact.path).graph.initializer}


@pytest.mark.parametrize("precision", QUANTIZED)
def test_it_is_close_has_the_same_interface_and_says_how_it_was_calibrated(precision, graph, out):
    source = graph(LAYERS)
    made, report = convert(source, precision, out=out, samples=batches())
    assert (made.precision, made.parent_sha256) == (precision, source.sha256)
    assert (made.inputs, made.outputs) == (source.inputs, source.outputs)
    with (
        onnxruntime_runner(source.path) as right,
        onnxruntime_runner(made.path, precision=precision) as infer,
    ):
        found = compare(right, infer, batches(2, seed=9), precision=precision)
    assert found.passed, found.findings
    assert found.max_abs_error > 0
    assert (report.quantized, report.pairs, report.samples, report.refused) == (2, 4, 8, None)
    assert report.calibration.calibrator == {"int8": "mse", "fp8": "max"}[precision]
    assert [one.value for one in report.calibration.values] == ["x", "r"]


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_relu_before_a_pair_is_still_there(precision, graph, out):
    """ONNX Runtime drops it in fp8 where it may fuse: the numbers below zero would come back."""
    made, _ = convert(graph(AFTER_RELU), precision, out=out, samples=batches())
    answer = answers(made, {"x": np.full((2, 3), -1, np.float32)})
    np.testing.assert_array_equal(answer["y"], np.zeros((2, 4)))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_value_and_a_weight_that_two_nodes_read_are_quantised_once(precision, graph, out):
    made, report = convert(graph(SHARED), precision, out=out, samples=batches())
    found = graphs.operators(graphs.read(made.path))
    assert (found["QuantizeLinear"], found["DequantizeLinear"]) == (1, 2)
    assert (report.pairs, report.quantized) == (2, 2)
    assert "w" not in weights_of(made)


def test_weights_are_stored_in_int8_with_a_scale_for_each_output_channel(graph, out):
    made, _ = convert(graph(LAYERS), "int8", out=out, samples=batches())
    found = weights_of(made)
    stored = onnx.numpy_helper.to_array(found["w_1_quantized"])
    scales = onnx.numpy_helper.to_array(found["w_1_scale"])
    assert (stored.dtype, scales.shape) == (np.int8, (4,))
    assert stored.min() >= -127
    np.testing.assert_allclose(stored * scales, WEIGHTS, atol=scales.max() / 2 * 1.001)
    assert onnx.numpy_helper.to_array(found["v_scale"]).shape == (3,)  # transB: channels come first
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(found["b"]), [100, 200, 300])


def test_every_sample_counts_and_their_order_does_not(graph, tmp_path):
    source = graph(LAYERS)
    samples = [*batches(3), {"x": np.full((2, 3), 50, np.float32)}]
    made, report = convert(source, "fp8", out=tmp_path / "a.onnx", samples=iter(samples))
    again, _ = convert(source, "fp8", out=tmp_path / "b.onnx", samples=samples[::-1])
    assert report.calibration.values[0].magnitude == 50
    assert made.sha256 == again.sha256


def test_an_outlier_is_clipped_in_int8_where_that_loses_less():
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 18]> main (float[N] x) => (float[N] y) { y = Abs(x) }'
    )
    usual = rng.standard_normal(100_000).astype(np.float32)
    sample = {"x": np.append(usual, np.float32(10))}

    def limit(calibrator):
        found = calibrate(model, ["x"], [sample], calibrator=calibrator, steps=127)
        return found.values[0]

    assert (limit("max").limit, limit("max").clipped) == (10, 0)
    best = limit("mse")
    assert 4 < best.limit < 8
    assert best.clipped == pytest.approx(1 / 100_001)

    def error(end):
        step = end / 127
        rounded = np.clip(np.rint(sample["x"] / step), -127, 127) * step
        return float(np.mean((rounded - sample["x"]) ** 2))

    ends = np.linspace(3, 10, 200)
    assert error(best.limit) <= 1.02 * min(map(error, ends))


def test_a_histogram_tells_magnitudes_apart_and_leaves_infinities_out():
    counts = histogram(np.array([0, 1, -1, 1.01, 2, np.inf, np.nan], np.float32))
    assert counts[-1] == 2
    assert counts[0] == 1
    assert sorted(counts[1:-2][counts[1:-2] > 0]) == [1, 3]  # 1.01 is in the bin of 1
    assert counts[-2] == 1  # the infinity


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_node_that_was_asked_for_stays_in_fp32(precision, graph, out):
    made, report = convert(
        graph(LAYERS), precision, out=out, samples=batches(), keep_fp32=["first"]
    )
    assert [(one.node, one.reason) for one in report.kept] == [("first", "asked for")]
    np.testing.assert_array_equal(onnx.numpy_helper.to_array(weights_of(made)["w"]), WEIGHTS)
    assert report.quantized == 1


def test_a_product_that_only_saw_zeros_stays_in_fp32(graph, out):
    made, report = convert(graph(PARTLY_ZERO), "int8", out=out, samples=batches())
    kept = [(one.node, one.reason, one.value, one.magnitude) for one in report.kept]
    assert kept == [("off", "all zero", "n", 0.0)]
    assert "w" in weights_of(made)


def test_products_of_two_activations_are_refused_as_nothing_to_quantise(graph, out):
    with pytest.raises(PrecisionError, match=r"no Conv, .* with a constant weight") as refused:
        convert(graph(ATTENTION), "int8", out=out, samples=batches())
    assert refused.value.report.refused == str(refused.value)
    assert not out.exists()


@pytest.mark.parametrize("precision", QUANTIZED)
def test_without_samples_it_is_refused(precision, graph, out):
    with pytest.raises(PrecisionError, match="calibrated on evaluation data; give"):
        convert(graph(LAYERS), precision, out=out)
    assert not out.exists()


def test_zeros_alone_are_refused(graph, out):
    with pytest.raises(PrecisionError, match="are zero on the samples"):
        convert(graph(LAYERS), "int8", out=out, samples=[{"x": np.zeros((2, 3), np.float32)}])


def test_a_sample_that_does_not_fit_is_one_sentence(graph, out):
    with pytest.raises(PrecisionError, match="cannot be calibrated: ONNX Runtime cannot run"):
        convert(graph(LAYERS), "int8", out=out, samples=[{"x": np.zeros((2, 5), np.float32)}])
    assert not out.exists()


@pytest.mark.parametrize(("precision", "opset"), [("int8", 13), ("fp8", 19)])
def test_the_operator_set_is_raised_where_the_type_needs_it(precision, opset, graph, out):
    made, _ = convert(graph(SHARED, opset=11), precision, out=out, samples=batches())
    assert made.opset == opset


def test_nodes_are_not_searched_for_int8(graph):
    with pytest.raises(InvalidInputError, match="from fp32 to fp16 and bf16"):
        bisect(graph(LAYERS), "int8", samples=batches(1))


@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_face_net_is_a_quarter_of_its_size_and_close(precision, tmp_path):
    net = face_net("ONet")
    raw, _ = export(
        net.module, net.example, out=tmp_path / "raw.onnx", dynamic_axes=net.dynamic_axes
    )
    source, _ = clean(raw, out=tmp_path / "clean.onnx")
    rng = np.random.default_rng(4)

    def sample():
        smooth = gaussian_filter(rng.standard_normal((4, 3, 48, 48)), (0, 0, 4, 4))
        return {"x": (smooth / np.abs(smooth).max()).astype(np.float32)}

    made, report = convert(
        source, precision, out=tmp_path / "made.onnx", samples=(sample() for _ in range(8))
    )
    assert report.quantized >= 5
    assert graphs.size_of(made) < 0.35 * graphs.size_of(source)
    with (
        onnxruntime_runner(source.path) as right,
        onnxruntime_runner(made.path, precision=precision) as infer,
    ):
        found = compare(right, infer, [sample(), sample()], precision=precision)
    assert found.passed, found.findings


CONVOLUTION = """
main (float[N, 3, 4, 4] x) => (float[N, 4, 4, 4] y)
<float[4, 3, 1, 1] w = {WEIGHTS}> {
    [conv] y = Conv(x, w)
}"""


def images():
    rng = np.random.default_rng(0)
    return [{"x": rng.standard_normal((2, 3, 4, 4)).astype(np.float32)}]


@pytest.mark.parametrize(
    ("text", "precision", "target", "samples", "reason"),
    [
        (CONVOLUTION, "int8", "sm89", images(), "cannot build convolutions in int8"),
        (CONVOLUTION, "fp8", "sm86", images(), "sm86 does not support fp8"),
        (CONVOLUTION, "fp8", "rtx:sm86+sm89", images(), "sm86 does not support fp8"),
        (CONVOLUTION, "fp8", "rtx", images(), "sm80 does not support fp8"),
        (CONVOLUTION, "fp8", "sm89", images(), None),
        (CONVOLUTION, "fp8", "rtx:sm89+sm120", images(), None),
        (LAYERS, "int8", "sm86", batches(), None),
    ],
)
def test_what_tensorrt_rtx_cannot_build_is_said_before_it_tries(
    text, precision, target, samples, reason, graph, out
):
    rtx = pytest.importorskip("tensorrt_rtx")
    if "convolutions" in str(reason) and not rtx.__version__.startswith("1.6"):
        pytest.skip("TensorRT-RTX 1.7 builds them")
    made, _ = convert(graph(text), precision, out=out, samples=samples)
    assert (unbuildable_here(made, resolve(target)) is None) is (reason is None)
    engine = out.with_suffix(".engine")
    if reason is None:
        assert compile(made, target, out=engine).precision == precision
    else:
        with pytest.raises(EngineBuildError, match=reason):
            compile(made, target, out=engine)
        assert not engine.exists()
