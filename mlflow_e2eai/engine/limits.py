"""What TensorRT is known not to build, said before it is tried."""

from __future__ import annotations

from typing import Any

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import OnnxArtifact, Target
from mlflow_e2eai.building import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.engine import backends

_FIRST_WITH_FP8 = 89
"""Compute capability 8.9; TensorRT-RTX 1.6.1 says that sm86 has no fp8_e4m3."""

_FIRST_WITH_INT8_CONVOLUTIONS = (1, 7)
"""Version of TensorRT-RTX: 1.6.1 fails an assertion on every one, 1.7.1 builds them."""


def why_not_built(
    source: OnnxArtifact, target: Target, settings: BuildSettings = DEFAULT_BUILD
) -> str | None:
    """Why a target cannot have an engine of a graph from this machine; None if nothing is known.

    Raises:
        MissingDependencyError: The target's TensorRT is not installed.
    """
    # TensorRT-RTX 1.6.1 and 1.7.1 end such builds with CHECK(status == CUDA_SUCCESS).
    if (settings.refit or settings.strip_weights) and backends.local_compute_capability() is None:
        return (
            "refit and strip_weights need a GPU, and there is none in this machine; leave them "
            "out, or compile it on a machine that has one"
        )
    if source.precision == "fp8":
        # Without a named capability TensorRT-RTX 1.6.1 builds it, and says that it is for sm80 too.
        for name in target.capabilities or ("sm80",):
            if int(name.removeprefix("sm")) < _FIRST_WITH_FP8:
                return f"{name} has no fp8; leave it out, or take sm89 or later"
    if source.precision != "int8" or target.backend != "tensorrt_rtx":
        return None
    trt: Any = backends.load(backends.BACKENDS[target.backend])
    version = str(trt.__version__)
    found = tuple(int(part) for part in version.split(".")[:2])
    if found >= _FIRST_WITH_INT8_CONVOLUTIONS or not _convolves_in_int8(source):
        return None
    return (
        f"TensorRT-RTX {version} cannot build convolutions in int8; install 1.7 or later, take fp8 "
        f"(sm89 or later) or keep the Conv nodes in fp32"
    )


def _convolves_in_int8(source: OnnxArtifact) -> bool:
    nodes = graphs.read(source.path).graph.node
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return any(
        node.op_type in ("Conv", "ConvTranspose") and node.input[0] in dequantised for node in nodes
    )
