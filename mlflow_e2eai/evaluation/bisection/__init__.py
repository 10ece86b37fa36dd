"""The smallest set of ONNX nodes that explains why a variant failed.

No inner value of the suspect graph is marked as an output: that changes the fusion, and the fault
goes away (NVIDIA/TensorRT issue 4338). Whole graphs are compared instead, by their own outputs,
with other nodes in fp32 each time; or, for surgery, with other nodes spared; or, for an engine,
pieces that are cut out and built by themselves.

nodes    `bisect`: nodes of a converted graph
engines  `bisect_engine`: nodes of an engine
plans    `bisect_plan`: steps of a surgery plan
search   delta debugging
pieces   parts of a graph as graphs
shapes   shapes and values inside a graph
"""

from mlflow_e2eai.evaluation.bisection.engines import bisect_engine, built_here
from mlflow_e2eai.evaluation.bisection.nodes import bisect
from mlflow_e2eai.evaluation.bisection.pieces import cut
from mlflow_e2eai.evaluation.bisection.plans import bisect_plan
from mlflow_e2eai.evaluation.bisection.search import Bisection, narrow, search
