"""Variants: what can run a bundle, which of them to run here, and the callable that does.

running   their names, and what runs each
choosing  which of them to run here, and why not the others
batching  sizes that a profile does not admit
padding   sizes between buckets
model     the callable
loading   opening the one that was chosen
"""

from mlflow_e2eai.variants.choosing import Choice, Goal, PassedOver
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
    "Choice",
    "Goal",
    "Model",
    "PassedOver",
    "engine_variant",
    "graph_variant",
    "is_emulated",
    "load",
    "raw_runner",
    "runner",
]
