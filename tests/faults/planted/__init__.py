"""Faults, each planted in a candidate that is right but for it.

The model is a small network of NumPy with two outputs of one shape, an integer one, and weights
from a seed, so that a fault is the only difference there is.
"""

from planted import calls, interfaces, units, values, weights
from planted.cases import FAULTS, Fault

__all__ = ["FAULTS", "Fault", "calls", "interfaces", "units", "values", "weights"]
