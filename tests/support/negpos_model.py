"""A model whose operator only a library has: ``NegPos`` of onnxruntime-extensions.

It gives what is negative of its input, and what is not.
"""

import onnxruntime_extensions
import torch

from mlflow_e2eai import Axis

LIBRARY = onnxruntime_extensions.get_library_path()


class NegPos(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x):
        negative, positive = g.op("ai.onnx.contrib::NegPos", x, outputs=2)
        return negative.setType(x.type()), positive.setType(x.type())

    @staticmethod
    def forward(_ctx, x):
        return x.clamp(max=0), x.clamp(min=0)


class WithNegPos(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        negative, positive = NegPos.apply(self.linear(x))
        return positive - 0.1 * negative


EXAMPLE = torch.linspace(-1, 1, 12).reshape(3, 4)
AXES = {"x": {0: Axis("N", min=1, opt=3, max=8)}}


def make():
    return {
        "model": WithNegPos(),
        "input_example": EXAMPLE,
        "dynamic_axes": AXES,
        "operator_libraries": [LIBRARY],
    }
