"""Faults that a stage meets, each in the real one: export, clean, evaluate, promote, compile."""

from staged import engines, evaluations, exports, plans
from staged.cases import STAGED, Staged

__all__ = ["STAGED", "Staged", "engines", "evaluations", "exports", "plans"]
