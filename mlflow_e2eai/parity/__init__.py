"""Two callables and samples -> ParityReport: does the candidate give the reference's numbers?

asking      who is asked what, when
stack       small answers -> judged together
judge       answers -> sums and findings
measure     two arrays -> how they differ
tolerances  how much they may
values      what is said about it
"""

from mlflow_e2eai.parity.asking import REPEATS, WINDOW, compare
from mlflow_e2eai.parity.tolerances import NOISE_TO_SIGNAL, TOLERANCES
from mlflow_e2eai.parity.values import Element, Finding, Kind, OutputParity, ParityReport

__all__ = [
    "NOISE_TO_SIGNAL",
    "REPEATS",
    "TOLERANCES",
    "WINDOW",
    "Element",
    "Finding",
    "Kind",
    "OutputParity",
    "ParityReport",
    "compare",
]
