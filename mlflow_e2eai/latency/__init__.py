"""Latency of callables: measured in turns, compared by interval, with findings.

measure      interleaved rounds over all callables
timing       one series of calls
ratios       ratios with confidence intervals
findings     what makes a number doubtful
concurrency  throughput under several callers; cold start
cpu          share of the processor that the calls got
gpu_monitor  clock, power and temperature of the GPU while it is measured
report       the report
"""

from mlflow_e2eai.latency.measure import benchmark
from mlflow_e2eai.latency.report import LatencyReport
