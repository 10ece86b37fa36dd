"""A PyTorch model goes in; an MLflow version with ONNX, engines and evidence comes out.

Names are resolved at their first use: importing this package imports no heavy library.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mlflow_e2eai._version import __version__

if TYPE_CHECKING:
    from mlflow_e2eai.artifacts.build_settings import BuildSettings as BuildSettings
    from mlflow_e2eai.artifacts.values import Axis as Axis
    from mlflow_e2eai.engine.profiles import choose_buckets as choose_buckets
    from mlflow_e2eai.engine.stage import compile as compile
    from mlflow_e2eai.evaluation.bisection.nodes import bisect as bisect
    from mlflow_e2eai.flavor.api import log_model as log_model
    from mlflow_e2eai.flavor.api import save_model as save_model
    from mlflow_e2eai.flavor.native import load_model as load_model
    from mlflow_e2eai.flavor.tables import compare_versions as compare_versions
    from mlflow_e2eai.flavor.tables import list_versions as list_versions
    from mlflow_e2eai.flavor.tables import variants as variants
    from mlflow_e2eai.flavor.triton import export_triton as export_triton
    from mlflow_e2eai.latency.measure import benchmark as benchmark
    from mlflow_e2eai.parity.comparison import compare as compare
    from mlflow_e2eai.precision.stage import convert as convert
    from mlflow_e2eai.promotion.redecision import redecide as redecide
    from mlflow_e2eai.promotion.registry.approvals import approve as approve
    from mlflow_e2eai.promotion.registry.approvals import reject as reject
    from mlflow_e2eai.promotion.registry.drift import guard as guard
    from mlflow_e2eai.promotion.registry.drift import watch as watch
    from mlflow_e2eai.promotion.registry.record import explain as explain
    from mlflow_e2eai.promotion.registry.timeline import history as history
    from mlflow_e2eai.promotion.reversal import rollback as rollback
    from mlflow_e2eai.promotion.stage import promote as promote
    from mlflow_e2eai.pytorch.operators.operator import Operator as Operator
    from mlflow_e2eai.pytorch.stage import export as export
    from mlflow_e2eai.surgery.stage import clean as clean
    from mlflow_e2eai.tracking.store.attestations import sign as sign
    from mlflow_e2eai.tracking.store.attestations import verify as verify
    from mlflow_e2eai.tracking.store.leftovers import tidy as tidy

_HOMES = {
    "Axis": "artifacts.values",
    "BuildSettings": "artifacts.build_settings",
    "Operator": "pytorch.operators.operator",
    "approve": "promotion.registry.approvals",
    "benchmark": "latency.measure",
    "bisect": "evaluation.bisection.nodes",
    "choose_buckets": "engine.profiles",
    "clean": "surgery.stage",
    "compare": "parity.comparison",
    "compare_versions": "flavor.tables",
    "compile": "engine.stage",
    "convert": "precision.stage",
    "explain": "promotion.registry.record",
    "export": "pytorch.stage",
    "export_triton": "flavor.triton",
    "guard": "promotion.registry.drift",
    "history": "promotion.registry.timeline",
    "list_versions": "flavor.tables",
    "load_model": "flavor.native",
    "log_model": "flavor.api",
    "promote": "promotion.stage",
    "redecide": "promotion.redecision",
    "reject": "promotion.registry.approvals",
    "rollback": "promotion.reversal",
    "save_model": "flavor.api",
    "sign": "tracking.store.attestations",
    "tidy": "tracking.store.leftovers",
    "variants": "flavor.tables",
    "verify": "tracking.store.attestations",
    "watch": "promotion.registry.drift",
}

__all__ = [*sorted(_HOMES), "__version__"]  # noqa: PLE0604 - built from the one table


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
