"""A saved model, for tests that change or break copies of it."""

from __future__ import annotations

import pytest
from small_models import AXES, features, net

import mlflow_e2eai


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """A saved model with two graphs and two engines."""
    place = tmp_path_factory.mktemp("saved") / "model"
    mlflow_e2eai.save_model(
        net(),
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        targets=("sm86",),
        evidence="quick",
    )
    return place
