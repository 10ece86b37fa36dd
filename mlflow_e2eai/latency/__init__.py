"""How long callables take: what is measured in turns, compared by interval, and doubted aloud."""

from mlflow_e2eai.latency.loads import Opened as Opened
from mlflow_e2eai.latency.loads import cold_start as cold_start
from mlflow_e2eai.latency.loads import opened as opened
from mlflow_e2eai.latency.loads import throughput as throughput
from mlflow_e2eai.latency.measure import BUDGET_S as BUDGET_S
from mlflow_e2eai.latency.measure import MIN_ROUNDS as MIN_ROUNDS
from mlflow_e2eai.latency.measure import MIN_WARMUP as MIN_WARMUP
from mlflow_e2eai.latency.measure import ROUNDS as ROUNDS
from mlflow_e2eai.latency.measure import WARMUP as WARMUP
from mlflow_e2eai.latency.measure import benchmark as benchmark
from mlflow_e2eai.latency.measure import items_of as items_of
from mlflow_e2eai.latency.ratios import Ratio as Ratio
from mlflow_e2eai.latency.timing import TimesItself as TimesItself
from mlflow_e2eai.latency.timing import Touched as Touched
from mlflow_e2eai.latency.timing import series as series
from mlflow_e2eai.latency.timing import timed as timed
from mlflow_e2eai.latency.values import ColdStart as ColdStart
from mlflow_e2eai.latency.values import GpuRecord as GpuRecord
from mlflow_e2eai.latency.values import Latency as Latency
from mlflow_e2eai.latency.values import LatencyFinding as LatencyFinding
from mlflow_e2eai.latency.values import LatencyReport as LatencyReport
from mlflow_e2eai.latency.values import Load as Load
from mlflow_e2eai.latency.values import Throughput as Throughput
from mlflow_e2eai.latency.values import Timing as Timing

__all__ = [
    "BUDGET_S",
    "MIN_ROUNDS",
    "MIN_WARMUP",
    "ROUNDS",
    "WARMUP",
    "ColdStart",
    "GpuRecord",
    "Latency",
    "LatencyFinding",
    "LatencyReport",
    "Load",
    "Opened",
    "Ratio",
    "Throughput",
    "TimesItself",
    "Timing",
    "Touched",
    "benchmark",
    "cold_start",
    "items_of",
    "opened",
    "series",
    "throughput",
    "timed",
]
