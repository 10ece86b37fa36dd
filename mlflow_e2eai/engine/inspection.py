"""A built engine, loaded where it was built and compared with the request."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact, Precision, Target
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.profiles import profiles, shape_at
from mlflow_e2eai.engine.targets import covers
from mlflow_e2eai.errors import EngineBuildError

_MOVING = ("Reformat", "Constant", "Cast", "NoOp", "Shuffle")
"""Types of layers, as the engine inspector names them, that compute nothing."""

_TYPE_NAMES: Mapping[Precision, re.Pattern[str]] = {
    "fp16": re.compile(r"\b(half|fp16)\b", re.IGNORECASE),
    "bf16": re.compile(r"\b(bf16|bfloat16)\b", re.IGNORECASE),
    "int8": re.compile(r"\bint8\b", re.IGNORECASE),
    "fp8": re.compile(r"\b(fp8|float8)", re.IGNORECASE),
}
"""Types as the engine inspector writes them in ``Format/Datatype``: ``Half``, or ``Row major linear
FP16 format``. Source: "Engine Inspector" in NVIDIA's TensorRT documentation."""


def inspect_plan(
    trt: Any, log: Any, plan: Any, *, source: OnnxArtifact, target: Target
) -> tuple[str, ...]:
    """Load a plan in this process, if it is for this GPU, and compare it with its graph.

    Args:
        trt: The backend's module.
        log: A logger of the backend.
        plan: The serialised engine.
        source: The graph that it was built of.
        target: What it was built for.

    Returns:
        What was checked: ``inputs and outputs``, ``profiles``, ``layers``. Nothing where there is
        no such GPU here; no layers where the backend does not report their types.

    Raises:
        EngineBuildError: It does not load where it was built, or differs from the request.
    """
    here = backends.local_compute_capability()
    backend = backends.BACKENDS[target.backend]
    if (
        here is None
        or not covers(target, here)
        or not backends.lists_capabilities(backend, trt, [here])
    ):
        return ()
    runtime = trt.Runtime(log)
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        raise _wrong(source, f"{backend.title} cannot load the engine that it built")
    checks = ("inputs and outputs", "profiles")
    _check_tensors(trt, loaded, source)
    _check_profiles(loaded, source)
    inspector = loaded.create_engine_inspector()
    information = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    return (*checks, "layers") if check_layers(information, source) else checks


def _check_tensors(trt: Any, loaded: Any, source: OnnxArtifact) -> None:
    types = {
        "float32": trt.DataType.FLOAT,
        "float16": trt.DataType.HALF,
        "bfloat16": trt.DataType.BF16,
        "int8": trt.DataType.INT8,
        "int32": trt.DataType.INT32,
        "int64": trt.DataType.INT64,
        "uint8": trt.DataType.UINT8,
        "bool": trt.DataType.BOOL,
    }
    names = [loaded.get_tensor_name(at) for at in range(loaded.num_io_tensors)]
    specs = (*source.inputs, *source.outputs)
    if sorted(names) != sorted(spec.name for spec in specs):
        raise _wrong(source, f"the engine has the inputs and outputs {sorted(names)}")
    for spec in specs:
        dtype = loaded.get_tensor_dtype(spec.name)
        if spec.dtype in types and dtype != types[spec.dtype]:
            raise _wrong(source, f"the engine has {spec.name!r} as {dtype}, not {spec.dtype}")


def _check_profiles(loaded: Any, source: OnnxArtifact) -> None:
    for at, sizes in enumerate(profiles(source.axes) if source.axes else ()):
        for spec in (spec for spec in source.inputs if not all(map(_is_fixed, spec.shape))):
            wanted = [shape_at(spec, sizes, bound) for bound in range(3)]
            shapes = [tuple(shape) for shape in loaded.get_tensor_profile_shape(spec.name, at)]
            if shapes != wanted:
                reason = f"profile {at} of the engine has {spec.name!r} from {shapes}, not {wanted}"
                raise _wrong(source, reason)


def _is_fixed(size: int | str) -> bool:
    return isinstance(size, int)


def check_layers(information: str, source: OnnxArtifact | EngineArtifact) -> bool:
    """Compare the layers of an engine with the precision of a graph.

    Args:
        information: The engine inspector's description in JSON.
        source: The graph, or the record of the engine.

    Returns:
        Whether the description has their types.

    Raises:
        EngineBuildError: None computes in the graph's precision.
    """
    types = list(_types(information))
    wanted = _TYPE_NAMES.get(source.precision)
    if wanted is not None and types and not any(map(wanted.search, types)):
        others = ", ".join(sorted(set(types)))
        reason = f"none of the engine's layers computes in it, but in {others}"
        raise _wrong(source, reason)
    return bool(types)


def _types(information: str) -> Iterator[str]:
    """The types of the inputs and outputs of the layers that compute.

    A convolution in int8 may take int8 and return fp16, where its dequantisation is fused into it.
    """
    for each in json.loads(information).get("Layers", ()):
        if isinstance(each, dict) and each.get("LayerType") not in _MOVING:
            for tensor in (*each.get("Inputs", ()), *each.get("Outputs", ())):
                yield tensor["Format/Datatype"]


def _wrong(source: OnnxArtifact | EngineArtifact, reason: str) -> EngineBuildError:
    msg = (
        f"{source.path.name} in {source.precision} was built, but {reason}; leave this precision "
        f"or this target out, and report it."
    )
    return EngineBuildError(msg, reason=reason)
