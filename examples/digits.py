"""A small CNN on scikit-learn's handwritten digits, from training to a promoted version."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.cli.arguments import OPTIONS
from mlflow_e2eai.cli.main import entry_point
from mlflow_e2eai.cli.results import DONE, NOT_PASSED
from mlflow_e2eai.cli.verbs import Verb
from mlflow_e2eai.pipeline.options import Option, parse_or, parse_whole
from mlflow_e2eai.report.text import table
from mlflow_e2eai.tracking.versions import name_filter


class DigitsNet(torch.nn.Module):
    """Images of 8 x 8 pixels in, ten logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(1, 16, 3, padding=1),
            torch.nn.BatchNorm2d(16),
            torch.nn.ReLU(),
            torch.nn.Conv2d(16, 32, 3, padding=1),
            torch.nn.BatchNorm2d(32),
            torch.nn.ReLU(),
            torch.nn.MaxPool2d(2),
            torch.nn.Dropout(0.25),
        )
        self.classifier = torch.nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits for a batch of images.

        Args:
            x: float32 [N, 1, 8, 8], pixels from 0 to 1.

        Returns:
            float32 [N, 10].
        """
        return self.classifier(self.features(x).flatten(1))


def data() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and held-out images and labels; the split is always the same."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    return tuple(train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels))


def train(epochs: int, seed: int) -> DigitsNet:
    """Train for some epochs; seconds on two cores."""
    torch.manual_seed(seed)
    model = DigitsNet()
    images, _, labels, _ = data()
    batches = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(images), torch.from_numpy(labels)),
        batch_size=64,
        shuffle=True,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model.eval()


def build(epochs: int = 12, seed: int = 1) -> dict[str, Any]:
    """What `mlflow run . -e log -P model=examples/digits.py:build` logs."""
    _, held_out, _, labels = data()
    return {
        "model": train(epochs, seed),
        "input_example": {"x": held_out[:8]},
        "dynamic_axes": {"x": {0: Axis("N", min=1, opt=8, max=64)}},
        "evaluation_data": ({"x": held_out}, labels),
    }


DEMO = Verb(
    name="main",
    summary=str(__doc__),
    options=(
        replace(OPTIONS["name"], default="digits"),
        replace(OPTIONS["targets"], default="sm86,sm89,sm120"),
        Option(
            name="epochs",
            argument="epochs",
            parse=parse_whole,
            default="12",
            metavar="N",
            help="passes over the training images",
        ),
        Option(
            name="seed",
            argument="seed",
            parse=parse_or("auto", parse_whole),
            default="auto",
            metavar="N",
            help="seed of the weights and of the order of the images; 'auto' is the number of the "
            "version that is made, so that each demo trains another model",
        ),
    ),
)


GATES = Path(__file__).parent / "gates.yaml"


def next_version(name: str) -> int:
    """The number that the next version of a registered model gets."""
    newest = mlflow.MlflowClient().search_model_versions(
        name_filter(name), max_results=1, order_by=["version_number DESC"]
    )
    return int(newest[0].version) + 1 if newest else 1


def main(name: str, targets: list[str], epochs: int, seed: int | None) -> int:
    """Train, log, register, promote, and print what came of it."""
    with mlflow.start_run(run_name=name):
        digits = build(epochs, next_version(name) if seed is None else seed)
        info = mlflow_e2eai.log_model(
            digits.pop("model"),
            name=name,
            precisions=("fp32", "fp16"),
            targets=targets,
            registered_model_name=name,
            **digits,
        )
        version = info.registered_model_version
        mlflow.set_tag("mlflow.runName", f"{name} v{version}")
        decision = mlflow_e2eai.promote(name, version, gates=GATES)
    loaded = mlflow_e2eai.load_model(info.model_uri, variant="onnxruntime-cpu/fp32")
    print(f"\n{table(loaded.manifest)}\n")
    for verdict in decision.verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict}")
    if decision.excluded:
        print(f"excluded, because they were not measured: {', '.join(decision.excluded)}")
    outcome = "is the champion" if decision.promoted else "was rejected"
    print(f"\n{name} version {version} {outcome}: models:/{name}/{version}")
    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        print(f"See it at: {uri}")
    else:
        command = Path(sys.executable).with_name("mlflow")  # on no PATH without .venv activated
        print(f"See it with: {command} ui --backend-store-uri {uri}")
    print(f'There, switch the mode to "Model training"; version {version} links its report.')
    return DONE if decision.promoted else NOT_PASSED


if __name__ == "__main__":
    with entry_point(DEMO) as arguments:
        raise SystemExit(main(**arguments))
