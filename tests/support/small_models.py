"""Small models that several tests take the way, and what goes in."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mlflow_e2eai import Axis, Operator

N = Axis("N", min=1, opt=4, max=16)
AXES = {"x": {0: N}}


class Net(torch.nn.Module):
    """Eight features in, three logits out, with what training and evaluation tell apart."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(
            torch.nn.Linear(8, 16),
            torch.nn.BatchNorm1d(16),
            torch.nn.ReLU(),
            torch.nn.Dropout(0.5),
            torch.nn.Linear(16, 3),
        )

    def forward(self, x):
        return self.body(x)


class Overflowing(torch.nn.Module):
    """A net with weights that fp16 cannot hold, which is scaled back behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 16)
        self.large = torch.nn.Linear(16, 3, bias=False)
        with torch.no_grad():
            self.large.weight *= 2.0**20

    def forward(self, x):
        return self.large(self.first(x).tanh()) * 2.0**-10 * 2.0**-10


class RoundedAway(torch.nn.Module):
    """A difference of two weights that fp16 rounds to the same number."""

    def __init__(self):
        super().__init__()
        self.register_buffer("one", torch.full((8,), 1.0))
        self.register_buffer("nearly", torch.full((8,), 1.0001))

    def forward(self, x):
        return x * self.nearly - x * self.one


def net(seed=0):
    """A net in evaluation mode; the same seed gives the same weights."""
    torch.manual_seed(seed)
    return Net().eval()


def features(items=4):
    return np.random.default_rng(0).standard_normal((items, 8)).astype(np.float32)


def labelled(module, items=50):
    """Features, and the labels that a module gives them: its accuracy on them is 1."""
    x = features(items)
    with torch.no_grad():
        return {"x": x}, module(torch.from_numpy(x)).argmax(1).numpy()


def build():
    """What `mlflow run . -e log -P model=tests/support/small_models.py:build` logs."""
    module = net()
    return {
        "model": module,
        "input_example": {"x": features()},
        "dynamic_axes": AXES,
        "evaluation_data": labelled(module),
    }


@dataclasses.dataclass
class Tokens:
    ids: torch.Tensor
    mask: torch.Tensor | None = None


@dataclasses.dataclass
class Read:
    score: torch.Tensor
    layers: tuple[torch.Tensor, ...]


class Reader(torch.nn.Module):
    """Nested arguments and answers, with a constant and an optional argument among them."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(8, 4)

    def forward(self, tokens, scale=1.0, extra=None):
        values = self.table(tokens.ids) * scale
        if tokens.mask is not None:
            values = values * tokens.mask
        if extra is not None:
            values = values + extra["bias"]
        return Read(score=values.mean((1, 2)), layers=(values, {"next": values + 1}))


def build_nested():
    """The same for a model whose arguments and answers are nested."""
    torch.manual_seed(0)
    ids = torch.arange(6).reshape(2, 3)
    return {
        "model": Reader().eval(),
        "input_example": {"tokens": Tokens(ids), "scale": 2.0, "extra": {"bias": torch.ones(4)}},
        "dynamic_axes": {"tokens.ids": {0: N}},
    }


def build_overflowing():
    """The same for a model that fails in fp16."""
    torch.manual_seed(0)
    module = Overflowing().eval()
    return {**build(), "model": module, "evaluation_data": labelled(module)}


class Scale(torch.autograd.Function):
    """A node of its own in the graph, which no runtime knows."""

    @staticmethod
    def symbolic(g, x, alpha):
        return g.op("devtech::Scale", x, alpha_f=alpha).setType(x.type())

    @staticmethod
    def forward(_ctx, x, alpha):
        return x * alpha


SCALE = """<domain: "devtech", opset_import: ["": 18]>
Scale <alpha> (x) => (y) { a = Constant <value_float: float = @alpha> () y = Mul (x, a) }"""


class Scaled(Net):
    """The net with an operator of its own."""

    alpha = 0.5

    def forward(self, x):
        return Scale.apply(self.body(x), self.alpha)


def build_scaled(alpha=0.5):
    """A model with an operator, and what the operator means."""
    torch.manual_seed(0)
    module = Scaled().eval()
    module.alpha = alpha
    return {
        "model": module,
        "input_example": {"x": features()},
        "dynamic_axes": AXES,
        "operators": [Operator(name="devtech::Scale", function=SCALE)],
    }
