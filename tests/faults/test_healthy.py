"""No alarm on healthy models."""

import pytest
from healthy import MODELS, runners

from mlflow_e2eai.parity import compare


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
