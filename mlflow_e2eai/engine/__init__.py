"""ONNX and a target -> TensorRT engine; engine -> `Infer`. Nothing else imports TensorRT.

stage           `compile`
builder         one build
targets         the GPUs that engines are for, and which machine can build them
backends        TensorRT and TensorRT-RTX: their differences in one table
request         the request for an engine, and its key
profiles        optimisation profiles and buckets
runner          an engine as a runner
context         execution contexts
memory          device memory, streams, outputs sized by the data
device_tensors  tensors that are on the GPU already
loading         deserialisation, and its errors in one sentence
inspection      a built engine, compared with its request
timing_cache    timing caches of TensorRT
cuda_graphs     CUDA graphs of TensorRT's work
plugins         plugins of TensorRT
refit           weights restored in an engine
kernel_cache    compiled kernels of TensorRT-RTX
"""

from mlflow_e2eai.engine.backends import UnlistedGPUWarning
from mlflow_e2eai.engine.profiles import choose_buckets
from mlflow_e2eai.engine.request import key_for, key_of, version_for
from mlflow_e2eai.engine.runner import engine_runner, graph_of, unsupported_here
from mlflow_e2eai.engine.stage import compile, reuse_builder
from mlflow_e2eai.engine.targets import (
    TARGETS,
    canonical,
    check_anywhere,
    check_here,
    covers,
    parse,
    resolve,
    unbuildable_anywhere,
    unbuildable_here,
)
from mlflow_e2eai.engine.timing_cache import SUFFIX as TIMINGS_SUFFIX
from mlflow_e2eai.engine.timing_cache import timings_key
