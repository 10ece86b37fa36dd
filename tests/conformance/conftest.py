"""Small trained models, saved once, and a tracking store of its own for each test."""

from __future__ import annotations

import functools
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from helpers import BATCH, ITEMS, TwoInputs, as_arrays, serving, tracking_server
from mlflow.utils.environment import _mlflow_conda_env

import mlflow_e2eai

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@dataclass(frozen=True)
class Saved:
    """A module, what it says, and the model directory that was made of it."""

    module: torch.nn.Module
    directory: Path
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]

    @property
    def bundle(self) -> Path:
        return self.directory / "bundle"

    @property
    def options(self) -> dict[str, Any]:
        """What makes the same model again."""
        return {
            "input_example": {name: array[:5] for name, array in self.inputs.items()},
            "dynamic_axes": {name: {0: BATCH} for name in self.inputs},
            "output_names": list(self.outputs),
            "precisions": ("fp32",),
        }


@pytest.fixture(scope="session")
def features() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ITEMS, 4)).astype(np.float32)


@pytest.fixture(scope="session")
def data(features) -> pd.DataFrame:
    names = ["sepal_length", "sepal_width", "petal_length", "petal_width"]
    return pd.DataFrame(features, columns=names)


def _save(module, inputs, output, directory, **options) -> Saved:
    saved = Saved(module.eval(), directory, inputs, as_arrays(module, inputs, output))
    mlflow_e2eai.save_model(saved.module, directory, **{**saved.options, **options})
    return saved


@pytest.fixture(scope="session")
def saved(features, tmp_path_factory) -> Saved:
    """One input, one output."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    folder = tmp_path_factory.mktemp("saved")
    return _save(module, {"input": features}, "output", folder / "model")


@pytest.fixture(scope="session")
def saved_in_two_precisions(saved, tmp_path_factory) -> Saved:
    """The same in fp32 and fp16."""
    folder = tmp_path_factory.mktemp("saved_in_two_precisions")
    options = {"precisions": ("fp32", "fp16")}
    return _save(saved.module, saved.inputs, "output", folder / "model", **options)


@pytest.fixture(scope="session")
def saved_with_two_inputs(features, tmp_path_factory) -> Saved:
    """Two inputs, one output."""
    torch.manual_seed(0)
    inputs = {
        "sepal_features": np.ascontiguousarray(features[:, :2]),
        "petal_features": np.ascontiguousarray(features[:, 2:]),
    }
    folder = tmp_path_factory.mktemp("saved_with_two_inputs")
    return _save(TwoInputs(), inputs, "target", folder / "model")


@pytest.fixture(scope="session")
def saved_without_signature(saved, tmp_path_factory) -> Path:
    """The model with one input as `mlflow.onnx` saves it by default: it has no signature."""
    directory = tmp_path_factory.mktemp("saved_without_signature") / "model"
    mlflow_e2eai.save_model(saved.bundle, directory, signature=False)
    return directory


@pytest.fixture
def model_path(tmp_path) -> str:
    return str(tmp_path / "model")


@pytest.fixture
def custom_env(tmp_path) -> str:
    conda_env = str(tmp_path / "conda_env.yml")
    _mlflow_conda_env(conda_env, additional_pip_deps=["onnx", "pytest", "torch"])
    return conda_env


@pytest.fixture(autouse=True)
def always_isolated(isolated) -> None:
    """Every test here meets MLflow, and those of MLflow itself ask for no store."""


@pytest.fixture
def log(store, saved) -> Callable[..., Any]:
    """`log_model` of the bundle that is there already, which takes no time."""
    return functools.partial(mlflow_e2eai.log_model, saved.bundle, "model")


@pytest.fixture(scope="session")
def server(empty_store, tmp_path_factory) -> Iterator[str]:
    """The address of an MLflow tracking server, over HTTP and on SQLite."""
    folder = tmp_path_factory.mktemp("server")
    shutil.copyfile(empty_store, folder / "mlflow.db")
    with tracking_server(folder) as address:
        yield address


@pytest.fixture
def remote_store(server, isolated) -> mlflow.MlflowClient:
    """The server as the active store."""
    mlflow.set_tracking_uri(server)
    mlflow.set_experiment("remote")
    return mlflow.MlflowClient()


@pytest.fixture(scope="session")
def served(saved) -> Iterator[str]:
    """The address at which `mlflow models serve` scores the model with one input."""
    with serving(saved.directory) as address:
        yield address
