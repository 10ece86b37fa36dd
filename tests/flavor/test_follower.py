"""A served model that follows an alias: it changes with it, and never stops serving."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from small_models import AXES, features

import mlflow_e2eai
from mlflow_e2eai import tracking
from mlflow_e2eai.errors import InvalidInputError, TrackingError
from mlflow_e2eai.flavor import api

pytestmark = pytest.mark.usefixtures("on_threads")

NEVER = 1e6


class Times(torch.nn.Module):
    """Multiplies, so that an output tells which version ran."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return x * self.factor


class Renamed(Times):
    def forward(self, other):
        return other * self.factor


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Bundles that multiply by 1, by 2, and by 3 under another name."""
    folder = tmp_path_factory.mktemp("times")
    for at, (name, module) in enumerate(
        [("x", Times(1.0)), ("x", Times(2.0)), ("other", Renamed(3.0))], start=1
    ):
        mlflow_e2eai.save_model(
            module.eval(),
            folder / str(at),
            input_example={name: features()},
            dynamic_axes={name: AXES["x"]},
            precisions=("fp32",),
            evidence="quick",
        )
    return folder


def register(place):
    return str(
        api.log_model(place, "times", registered_model_name="times").registered_model_version
    )


@pytest.fixture
def registry(store, saved):
    """Versions that multiply by 1 and by 2, the first of which is the champion."""
    for number in ("1", "2"):
        register(saved / number)
    store.set_registered_model_alias("times", "champion", "1")
    return store


@pytest.fixture
def model(registry):
    with mlflow_e2eai.load_model("models:/times@champion", follow=NEVER) as model:
        yield model


def factor(model):
    (output,) = model(features()).values()
    return float((output / features()).mean())


def test_it_serves_the_version_that_the_alias_moved_to(registry, model):
    assert (model.version, factor(model)) == ("1", pytest.approx(1))
    assert not model.check()
    registry.set_registered_model_alias("times", "champion", "2")
    assert model.check()
    assert (model.version, factor(model)) == ("2", pytest.approx(2))
    assert repr(model).startswith("<mlflow_e2eai.FollowedModel times@champion version 2 onnx")
    assert model.explain().reason
    assert [each.name for each in (*model.inputs, *model.outputs)] == ["x", "output"]
    with pytest.raises(InvalidInputError, match="give all of them by name"):
        model(features(), features())
    registry.set_registered_model_alias("times", "champion", "1")
    assert model.check()
    assert factor(model) == pytest.approx(1)


def test_it_looks_by_itself(registry):
    with mlflow_e2eai.load_model("models:/times@champion", follow=0.05) as model:
        registry.set_registered_model_alias("times", "champion", "2")
        deadline = time.monotonic() + 30
        while model.version == "1" and time.monotonic() < deadline:
            time.sleep(0.05)
        assert factor(model) == pytest.approx(2)


def test_a_version_with_other_inputs_is_not_served(registry, model, saved, caplog):
    version = register(saved / "3")
    registry.set_registered_model_alias("times", "champion", version)
    for _ in range(2):
        assert not model.check()
    assert model.problem == (
        "version 1 goes on: version 3 of times takes other: float32 of 2 axes, where "
        "x: float32 of 2 axes is served; load it anew."
    )
    assert caplog.text.count("version 1 goes on") == 1
    assert factor(model) == pytest.approx(1)
    registry.set_registered_model_alias("times", "champion", "2")
    assert model.check()
    assert model.problem is None


def test_a_version_that_cannot_be_loaded_is_not_served(registry, model):
    found = tracking.model_of_version(registry.get_model_version("times", "2"))
    for place in Path(found.artifact_location.removeprefix("file://")).rglob("*.onnx"):
        place.write_bytes(b"broken")
    registry.set_registered_model_alias("times", "champion", "2")
    assert not model.check()
    assert model.problem.startswith("version 1 goes on: ")
    assert factor(model) == pytest.approx(1)


def test_a_deleted_alias_leaves_what_is_served(registry, model):
    registry.delete_registered_model_alias("times", "champion")
    assert not model.check()
    assert "version 1 goes on: There is no version '@champion' of 'times'" in model.problem
    assert factor(model) == pytest.approx(1)


def test_a_call_ends_on_the_version_that_it_began_with(registry, model):
    inner = model._current
    began, moved = threading.Event(), threading.Event()
    real = inner.model._infer

    def slow(inputs):
        began.set()
        assert moved.wait(30)
        return real(inputs)

    inner.model._infer = slow
    found = []
    caller = threading.Thread(target=lambda: found.append(factor(model)))
    caller.start()
    assert began.wait(30)
    registry.set_registered_model_alias("times", "champion", "2")
    assert model.check()
    assert (inner.users, inner.retired) == (1, True)
    assert factor(model) == pytest.approx(2)
    moved.set()
    caller.join()
    assert found == [pytest.approx(1)]
    assert inner.users == 0


def test_pyfunc_follows_by_the_uri_that_names_the_alias(registry):
    served = mlflow.pyfunc.load_model("e2eai:/times@champion", model_config={"follow": NEVER})
    model = served.get_raw_model()
    registry.set_registered_model_alias("times", "champion", "2")
    assert model.check()
    (output,) = served.predict({"x": features()}).values()
    np.testing.assert_allclose(output, 2 * features(), rtol=1e-5)
    with model:
        pass


@pytest.mark.parametrize("uri", ["models:/times@champion", "e2eai:/times/1"])
def test_pyfunc_without_an_alias_to_follow_says_how_to_name_one(registry, uri):
    with pytest.raises(InvalidInputError, match=r"by this package: e2eai:/digits@champion"):
        mlflow.pyfunc.load_model(uri, model_config={"follow": NEVER})


@pytest.mark.parametrize("uri", ["models:/times/1", "runs:/abc/times", "times", "models:/@a"])
def test_what_has_no_alias_cannot_be_followed(uri):
    with pytest.raises(InvalidInputError, match="does not name an alias to follow; give one"):
        mlflow_e2eai.load_model(uri, follow=NEVER)


def test_what_cannot_be_followed_is_one_sentence(registry, tmp_path):
    with pytest.raises(TrackingError, match="There is no version '@canary' of 'times'"):
        mlflow_e2eai.load_model("models:/times@canary", follow=NEVER)
    with pytest.raises(InvalidInputError, match="give seconds above 0"):
        mlflow_e2eai.load_model("models:/times@champion", follow=0)
    with pytest.raises(InvalidInputError, match="leave dst_path out"):
        mlflow_e2eai.load_model("models:/times@champion", str(tmp_path), follow=NEVER)
