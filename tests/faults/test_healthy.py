"""No alarm on healthy models."""

import warnings

import pytest
from harmless import HARMLESS
from healthy import MODELS, runners
from unusual import UNUSUAL, alarms

from mlflow_e2eai.parity.comparison import compare

pytestmark = pytest.mark.usefixtures("on_threads")


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        *((name, 0) for name in MODELS),
        *(
            pytest.param(name, seed, marks=pytest.mark.slow)
            for name in MODELS
            for seed in range(1, 10)
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of the exporters, which are not on trial here
def test_a_healthy_model_raises_no_alarm(name, seed, tmp_path):
    with runners(name, seed, tmp_path) as (reference, candidates, samples):
        for precision, candidate in candidates.items():
            report = compare(reference, candidate, samples, precision=precision)

            assert report.findings == (), precision
            assert report.threads == 2


@pytest.mark.parametrize(
    ("model", "seed"),
    [
        pytest.param(model, seed, marks=pytest.mark.slow if seed or model.is_slow else ())
        for model in UNUSUAL
        for seed in range(10)
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_healthy_model_with_unusual_inputs_or_outputs_raises_no_alarm(model, seed, tmp_path):
    assert alarms(model, seed, tmp_path) == {}


@pytest.mark.parametrize("model", HARMLESS, ids=lambda model: model.name)
def test_a_healthy_model_that_looks_like_a_fault_raises_no_alarm_with_any_of_ten_seeds(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reports = [compare(*model.make(seed), **model.options) for seed in range(10)]

    assert [report.findings for report in reports] == 10 * [()]


def test_no_two_healthy_models_have_one_name():
    assert len({model.name for model in HARMLESS}) == len(HARMLESS) >= 25
    assert len({model.name for model in UNUSUAL}) == len(UNUSUAL) >= 20
