"""Native code in a process of its own: what it does there is a result, not an end.

A crash, a hang or a kill for memory ends that process, and reaches the caller as a `RunnerError`
that says what was being asked. Whole pieces of work are done over there: a comparison runs beside
the runner, and only samples and the reference's answers travel.

caller      runners in other processes, as their caller sees them
process     this side of one: starts it, has work done there, and notices its end
worker      the other side
note        what the worker is at, kept where its death does not take it
"""

from mlflow_e2eai.isolation.caller import (
    PATIENCE_S,
    Ahead,
    Isolated,
    Opened,
    Opener,
    Together,
    isolated,
    isolated_onnxruntime,
    isolated_together,
    onnxruntime_ahead,
)
from mlflow_e2eai.isolation.process import Process

__all__ = [
    "PATIENCE_S",
    "Ahead",
    "Isolated",
    "Opened",
    "Opener",
    "Process",
    "Together",
    "isolated",
    "isolated_onnxruntime",
    "isolated_together",
    "onnxruntime_ahead",
]
