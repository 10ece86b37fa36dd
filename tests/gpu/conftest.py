"""Networks for the tests that need a GPU."""

from __future__ import annotations

import dataclasses
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from images import images

from mlflow_e2eai import save_model
from mlflow_e2eai.artifacts.values import Axis

BATCH = Axis("N", min=1, opt=8, max=64)


class Bottleneck(torch.nn.Module):
    """The block of He et al., Deep Residual Learning for Image Recognition, 2015, figure 5."""

    def __init__(self, given, width, stride):
        super().__init__()
        made = 4 * width
        self.body = torch.nn.Sequential(
            torch.nn.Conv2d(given, width, 1, bias=False),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            torch.nn.BatchNorm2d(width),
            torch.nn.ReLU(),
            torch.nn.Conv2d(width, made, 1, bias=False),
            torch.nn.BatchNorm2d(made),
        )
        self.shortcut = torch.nn.Sequential()
        if given != made or stride != 1:
            self.shortcut = torch.nn.Sequential(
                torch.nn.Conv2d(given, made, 1, stride=stride, bias=False),
                torch.nn.BatchNorm2d(made),
            )

    def forward(self, x):
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50():
    """ResNet-50 with random weights: 53 convolutions, images of 224 x 224 to 1000 logits."""
    torch.manual_seed(0)
    layers = [
        torch.nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
        torch.nn.BatchNorm2d(64),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(3, stride=2, padding=1),
    ]
    given = 64
    for width, blocks, stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for number in range(blocks):
            layers.append(Bottleneck(given, width, stride if number == 0 else 1))
            given = 4 * width
    layers += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(given, 1000)]
    model = torch.nn.Sequential(*layers).eval()
    for part in model.modules():
        if isinstance(part, torch.nn.Conv2d):
            torch.nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return model


def small_cnn():
    """A few convolutions with BatchNorm: images of 32 x 32 to 10 logits."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1),
        torch.nn.BatchNorm2d(16),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 3, stride=2, padding=1),
        torch.nn.BatchNorm2d(32),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(4),
        torch.nn.Flatten(),
        torch.nn.Linear(512, 10),
    ).eval()


@pytest.fixture(scope="session")
def batch():
    return BATCH


@pytest.fixture(scope="session")
def cnn():
    return small_cnn()


@pytest.fixture(scope="session")
def resnet():
    return resnet50()


def pytest_collection_modifyitems(items):
    """TensorRT-RTX 1.6.1 does not list an H100, and is tried there all the same."""
    unlisted = pytest.mark.filterwarnings("ignore::mlflow_e2eai.engine.UnlistedGPUWarning")
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(unlisted)


@pytest.fixture(autouse=True)
def unkept(monkeypatch, tmp_path):
    """Kernels that are compiled are kept nowhere."""
    if find_spec("tensorrt") is None:
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="session")
def saved(cnn, budgets, tmp_path_factory):
    """The small network with engines for this GPU in two precisions, judged here, in full."""
    place = tmp_path_factory.mktemp("saved") / "model"
    buckets = dataclasses.replace(BATCH, buckets=(1, 8))
    with pytest.MonkeyPatch.context() as patch:
        for name, (whole, _) in budgets.items():
            patch.setattr(name, whole)
        save_model(
            cnn,
            place,
            input_example=images(2),
            dynamic_axes={"image": {0: buckets}},
            targets=("local",),
        )
    return place
