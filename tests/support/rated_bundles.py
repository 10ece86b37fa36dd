"""Versions of a registered model in a store, made of one small bundle that is saved once."""

from __future__ import annotations

from pathlib import Path

from small_models import AXES, features, labelled, net

import mlflow_e2eai
from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.flavor import api

GATES = {"gates": [{"metric": "task/accuracy", "at_least": 0.5}]}
"""Gates that read one number: what a version has of it is what `register` gives it."""


def save(place: Path) -> Path:
    """Save the bundle, whose variants are right on data that the model itself labelled."""
    module = net()
    mlflow_e2eai.save_model(
        module,
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evaluation_data=labelled(module),
        precisions=("fp32",),
        evidence="quick",
    )
    return place


def register(saved: Path, place: Path, *, accuracy: float = 1.0, name: str = "digits") -> str:
    """Register a version of the bundle with another accuracy in its evidence; its number."""
    directory = bundle.find(saved)
    text = to_json(bundle.audit(directory))
    text = text.replace('"accuracy": 1.0', f'"accuracy": {accuracy}')
    bundle.write(place, from_json(bundle.Manifest, text), bundle.read_example(directory))
    info = api.log_model(place, name, registered_model_name=name)
    return str(info.registered_model_version)
