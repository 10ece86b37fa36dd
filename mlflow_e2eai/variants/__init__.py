"""Variants: what can run a bundle, which of them to run here, and the callable that does.

running   their names, and what runs each
model     the callable
loading   which of them to run here
"""

from mlflow_e2eai.variants.loading import load
from mlflow_e2eai.variants.model import Model
from mlflow_e2eai.variants.running import (
    engine_variant,
    graph_variant,
    is_emulated,
    raw_runner,
    runner,
)

__all__ = [
    "Model",
    "engine_variant",
    "graph_variant",
    "is_emulated",
    "load",
    "raw_runner",
    "runner",
]
