"""torch tensors through ONNX Runtime by I/O binding, here in the memory of the host."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from mlflow_e2eai.errors import InvalidInputError, RunnerError
from mlflow_e2eai.runtime.ort import GpuSession

TEXT = """
<ir_version: 8, opset_import: ["" : 18]>
main (float[N, 3] x, float[N, 3] z) => (float[N, 3] y, bool[N, 3] less, int64[2, found] at) {
    y = Add(x, z)
    less = Less(x, z)
    at = NonZero(x)
}"""


@pytest.fixture(scope="module")
def session():
    model = onnx.parser.parse_model(TEXT).SerializeToString()
    made = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return GpuSession(made, lambda tensors: tensors, ["y", "less", "at"], device="cpu")


class Elsewhere:
    """A tensor on a GPU that is not PyTorch's."""

    def __dlpack_device__(self):
        return 2, 0


def test_torch_tensors_and_arrays_are_answered_with_torch_tensors(session):
    x, z = torch.randn(4, 3), np.ones((4, 3), np.float32)
    answer = session.on_device({"x": x, "z": z})
    torch.testing.assert_close(answer["y"], x + torch.from_numpy(z))
    torch.testing.assert_close(answer["less"], x < torch.from_numpy(z))
    torch.testing.assert_close(answer["at"], torch.nonzero(x).T.contiguous())


def test_answers_are_the_callers_to_keep(session):
    x = torch.randn(4, 3)
    first = session.on_device({"x": x, "z": x})["y"]
    session.on_device({"x": -x, "z": -x})
    torch.testing.assert_close(first, 2 * x)


def test_a_tensor_with_a_gradient_is_taken_as_its_values(session):
    x = torch.randn(4, 3, requires_grad=True)
    torch.testing.assert_close(session.on_device({"x": x, "z": x})["y"], (2 * x).detach())


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(4, 3, dtype=torch.float64), r"'x' is float64, but tensor\(float\) is expected"),
        (torch.ones(3, 4).T, r"'x' is not contiguous; make it so by .contiguous\(\)"),
        (Elsewhere(), "'x' is on the GPU but is not a torch tensor"),
    ],
)
def test_what_onnx_runtime_would_misread_is_refused(tensor, message, session):
    with pytest.raises(InvalidInputError, match=message):
        session.on_device({"x": tensor, "z": torch.ones(4, 3)})


def test_what_onnx_runtime_cannot_run_is_told(session):
    with pytest.raises(RunnerError, match="cannot run on these inputs"):
        session.on_device({"x": torch.ones(4, 3), "z": torch.ones(5, 3)})


def test_arrays_go_the_usual_way(session):
    x = {"x": np.ones((4, 3), np.float32)}
    assert session(x) is x
