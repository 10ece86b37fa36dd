"""`mlflow.models.evaluate(..., evaluators="e2eai")`: parity and latency of any two models.

MLflow loads this module while it is being imported itself, so it imports nothing but the standard
library until it evaluates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

_OPTIONS = ("precision", "tolerance", "repeats", "threads")
"""Keys of the configuration that are arguments of `compare`."""

_KEYS = ("reference", "samples", *_OPTIONS)

if TYPE_CHECKING:
    from mlflow.models import EvaluationResult

    from mlflow_e2eai.artifacts.values import Infer, Tensors
    from mlflow_e2eai.evaluation.evidence import Evidence


class ParityEvaluator:
    """An MLflow model evaluator (entry-point group ``mlflow.model_evaluator``, name ``e2eai``).

    Its configuration:

    - ``reference`` (required): URI of the model that the other is compared with.
    - ``samples``: named arrays to run both on; without it, MLflow's evaluation data, which
      can be 2-D arrays and DataFrames only.
    - ``precision``, ``tolerance``, ``repeats``, ``threads``: see `mlflow_e2eai.compare`.

    MLflow calls only the two methods below; deriving from its class would import MLflow.
    """

    @classmethod
    def can_evaluate(
        cls, *, model_type: str | None, evaluator_config: Mapping[str, Any], **_: Any
    ) -> bool:
        """Whether the configuration is for this evaluator, for any type of model."""
        del model_type
        return not set(_KEYS).isdisjoint(evaluator_config or {})

    def evaluate(
        self,
        *,
        model_type: str | None,
        dataset: Any,
        run_id: str,
        evaluator_config: Mapping[str, Any],
        model: Any = None,
        **_: Any,
    ) -> EvaluationResult:
        """Compare and measure a model against the reference.

        Returns:
            Metrics ``parity/...`` and ``latency/...`` (the candidate's, and its ratio to the
            reference with the bounds of a 99 % interval), those that are finite. The whole reports
            are the artifacts ``evidence.json`` and ``latency.json`` of the run; of a further
            evaluation in one run, in a folder.

        Raises:
            InvalidInputError: There is no model to compare, the configuration is wrong, or the
                samples hold no items.
        """
        import mlflow
        from mlflow.models import EvaluationResult

        from mlflow_e2eai.errors import InvalidInputError
        from mlflow_e2eai.latency.measure import benchmark, items_of

        del model_type
        _check_keys(evaluator_config)
        if model is None:
            msg = "The evaluator 'e2eai' compares models, but none was given; pass model=."
            raise InvalidInputError(msg)
        sample, convert = _sample(dataset, evaluator_config.get("samples"))
        if not items_of(sample):
            msg = "The samples are empty, so there is nothing to compare; give at least one item."
            raise InvalidInputError(msg)
        reference = mlflow.pyfunc.load_model(evaluator_config["reference"])
        infers = {"reference": _infer(reference, convert), "candidate": _infer(model, convert)}
        evidence = _compare(infers, sample, evaluator_config)
        latency = benchmark(infers, sample)
        metrics = _log_reports(evidence, latency, run_id)
        return EvaluationResult(metrics=metrics, artifacts={}, run_id=run_id)


def _check_keys(configuration: Mapping[str, Any]) -> None:
    import difflib

    from mlflow_e2eai.errors import InvalidInputError

    for key in configuration:
        if key not in _KEYS:
            near = difflib.get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(_KEYS)}."
            msg = f"The evaluator 'e2eai' has no option {key!r}; {hint}"
            raise InvalidInputError(msg)
    if "reference" not in configuration:
        msg = "The evaluator 'e2eai' compares two models; give the URI of the other as 'reference'."
        raise InvalidInputError(msg)


def _sample(dataset: Any, samples: Mapping[str, Any] | None) -> tuple[Tensors, Callable[..., Any]]:
    """The sample as named arrays, and a function that converts it for ``predict``."""
    import numpy as np
    import pandas as pd

    from mlflow_e2eai.errors import InvalidInputError

    if samples is not None:
        if not isinstance(samples, Mapping):
            msg = f"'samples' is a {type(samples).__name__}; give a mapping of names to arrays."
            raise InvalidInputError(msg)
        return {name: np.asarray(value) for name, value in samples.items()}, dict
    features = dataset.features_data
    if isinstance(features, pd.DataFrame):
        return {"features": features.to_numpy()}, lambda _: features
    return {"features": np.asarray(features)}, lambda tensors: tensors["features"]


def _infer(model: Any, convert: Callable[..., Any]) -> Infer:
    """A pyfunc model as a callable on named arrays; a single output has one name for all models."""
    import numpy as np
    import pandas as pd

    def infer(tensors: Tensors) -> Tensors:
        outputs = model.predict(convert(tensors))
        if isinstance(outputs, pd.DataFrame):
            outputs = {str(name): np.array(outputs[name].to_list()) for name in outputs}
        if not isinstance(outputs, Mapping):
            outputs = {"output": outputs}
        arrays = {str(name): np.asarray(value) for name, value in outputs.items()}
        return {"output": next(iter(arrays.values()))} if len(arrays) == 1 else arrays

    return infer


def _compare(
    infers: Mapping[str, Infer], sample: Tensors, configuration: Mapping[str, Any]
) -> Evidence:
    from mlflow_e2eai.evaluation.evidence import Evidence
    from mlflow_e2eai.parity.comparison import compare

    options = {key: configuration[key] for key in _OPTIONS if key in configuration}
    report = compare(infers["reference"], infers["candidate"], [sample], **options)
    return Evidence(variant="candidate", sha256=None, measured=True, parity={"data": report})


def _log_reports(evidence: Evidence, latency: Any, run_id: str) -> dict[str, float]:
    """Write the reports on the run; MLflow logs the metrics itself, so only finite ones go back."""
    import math

    from mlflow import MlflowClient

    from mlflow_e2eai import tracking
    from mlflow_e2eai.artifacts.files import to_json

    client = MlflowClient()
    folder = tracking.report_folder(run_id, "evidence.json", "evaluation")
    client.log_text(run_id, to_json(evidence), f"{folder}evidence.json")
    client.log_text(run_id, to_json(latency), f"{folder}latency.json")
    ratio = latency.ratio("candidate", "reference")
    metrics = {
        **tracking.parity_metrics(evidence),
        "latency/p50_ms": latency["candidate"].p50_ms,
        "latency/throughput_items_per_s": latency["candidate"].throughput_items_per_s,
        "latency/ratio": ratio.value,
        "latency/ratio_low": ratio.low,
        "latency/ratio_high": ratio.high,
    }
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    if not_finite := sorted(metrics.keys() - finite.keys()):
        client.set_tag(run_id, tracking.NONFINITE, ", ".join(not_finite))
    return finite
