"""What tests of promotion share."""

import pytest
from small_models import AXES, features, labelled, net

import mlflow_e2eai


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    """A bundle whose variants are right on data that the model itself labelled."""
    place = tmp_path_factory.mktemp("good") / "model"
    module = net()
    mlflow_e2eai.save_model(
        module,
        place,
        input_example={"x": features()},
        dynamic_axes=AXES,
        evaluation_data=labelled(module),
    )
    return place
