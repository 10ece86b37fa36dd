"""Triton models of a bundle's graphs and engines, and the reasons for those left out."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.arrays import feed
from mlflow_e2eai.artifacts.files import verify
from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.values import (
    Axis,
    EngineArtifact,
    Library,
    OnnxArtifact,
    Tensors,
    variant_name,
)
from mlflow_e2eai.artifacts.weight_files import verify_graph
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.triton import config
from mlflow_e2eai.bundle.triton.batching import why_items_mix
from mlflow_e2eai.bundle.triton.config import Message, Word
from mlflow_e2eai.engine.profiles import profiles
from mlflow_e2eai.parity.samples import batch_samples, profile_samples


@dataclass(frozen=True, slots=True, kw_only=True)
class TritonModel:
    """One folder of a model repository.

    Attributes:
        name: The folder's name and the model's.
        config: Its configuration.
        files: Source file or bytes of each file, by its path in the folder.
        notes: Comments above the configuration.
        needs: Options that Triton's server needs for it.
    """

    name: str
    config: Message
    files: Mapping[str, Path | bytes]
    notes: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Shared:
    """Parts that all models of a bundle share."""

    interface: Message
    warmup: Mapping[str, bytes]


def models_of(
    manifest: Manifest, example: Tensors, prefix: str
) -> tuple[list[TritonModel], list[str]]:
    """The Triton models of a bundle, and a reason for each file that is left out.

    Args:
        manifest: The bundle's manifest, with absolute paths.
        example: One array for each input.
        prefix: Prefix of their names.

    Raises:
        ArtifactError: A file is missing or has changed.
        RunnerError: A library with operators of a graph is not allowed.
    """
    graph = manifest.graphs[0]
    verify_graph(graph)
    batch, apart = _batch(graph, example)
    if (reason := config.why_not_served((*graph.inputs, *graph.outputs), batch)) is not None:
        return [], [reason]
    shared = _client_interface(graph, feed(example, graph.inputs), batch)
    refused = _excluded_files(manifest)
    left_out = [f"{apart}, so that a request is a whole batch"] if apart else []
    models = []
    by_precision, reasons = _engines(manifest.engines, refused)
    for precision, engines in by_precision.items():
        name = f"{prefix}-tensorrt-{precision}"
        models.append(_of_engines(name, engines, shared))
    for each in manifest.graphs:
        if each.sha256 in refused:
            reasons.append(f"{variant_name('onnxruntime', each.precision)} {refused[each.sha256]}")
        else:
            name = f"{prefix}-onnxruntime-{each.precision}"
            models.append(_of_graph(name, each, shared))
    return models, [*left_out, *reasons]


def _batch(graph: OnnxArtifact, example: Tensors) -> tuple[Axis | None, str | None]:
    """The axis along which requests are batched, or the reason why not along a candidate."""
    axis = config.batch_axis((*graph.inputs, *graph.outputs), graph.axes)
    reason = why_items_mix(graph, example, axis) if axis else None
    return (None if reason else axis), reason


def _excluded_files(manifest: Manifest) -> dict[str, str]:
    """Reason against each file that is not to be served, by its digest."""
    reasons = {}
    for entry in manifest.all_evidence:
        if entry.sha256 is not None and entry.measured and not entry.passed:
            reasons[entry.sha256] = f"failed its comparison with the {manifest.subject}"
        elif entry.sha256 is not None and entry.rejected:
            reasons[entry.sha256] = "is not worth its precision"
    return reasons


def _engines(
    engines: Sequence[EngineArtifact], refused: Mapping[str, str]
) -> tuple[dict[str, dict[str, EngineArtifact]], list[str]]:
    """Engines for Triton to choose from, by precision and capability; reasons against others."""
    usable = [e for e in engines if e.target.backend == "tensorrt" and e.sha256 not in refused]
    newest = max(usable, key=lambda e: _parts(e.backend_version)).backend_version if usable else ""
    chosen: dict[str, dict[str, EngineArtifact]] = {}
    reasons = []
    for engine in engines:
        name = variant_name(str(engine.target), engine.arithmetic)
        if engine.target.backend != "tensorrt":
            reasons.append(f"{name} is a TensorRT-RTX engine, for which Triton has no backend")
        elif engine.sha256 in refused:
            reasons.append(f"{name} {refused[engine.sha256]}")
        elif engine.backend_version != newest:
            reasons.append(
                f"{name} was built by TensorRT {engine.backend_version}, and a server has one "
                f"TensorRT version: other engines here need {newest}"
            )
        elif engine.settings.strip_weights:
            reasons.append(f"{name} was built without weights, which Triton cannot refit")
        elif twice := _keys(engine) & (same := chosen.get(engine.arithmetic, {})).keys():
            which = min(twice) or "8.0 and newer"
            reasons.append(
                f"{name} is the second engine for compute capability {which}, and Triton chooses "
                "by that alone"
            )
        else:
            chosen[engine.arithmetic] = {**same, **dict.fromkeys(_keys(engine), engine)}
    return chosen, reasons


def _parts(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version))


def _keys(engine: EngineArtifact) -> set[str]:
    """Triton's keys for an engine: ``8.6`` for sm86, ``12.0`` for sm120; empty for all others."""
    numbers = [name.removeprefix("sm") for name in engine.target.capabilities]
    return {f"{number[:-1]}.{number[-1]}" for number in numbers} or {""}


def _of_engines(name: str, engines: Mapping[str, EngineArtifact], shared: _Shared) -> TritonModel:
    files: dict[str, Path | bytes] = {}
    plans, notes = [], []
    libraries: dict[str, Library] = {}
    default: dict[str, str] = {}
    for capability, engine in sorted(engines.items()):
        plan = f"{engine.target.compute_capability or 'ampere+'}.plan"
        if capability:
            plans.append({"key": capability, "value": plan})
        else:
            default = {"default_model_filename": plan}
        if f"1/{plan}" in files:
            continue
        verify(engine.path, engine.sha256)
        files[f"1/{plan}"] = engine.path
        bound = f", on {json.dumps(engine.target.gpu_name)} only" if engine.target.gpu_name else ""
        notes.append(f"{plan}: sha256 {engine.sha256}{bound}.")
        libraries.update({library.path.name: library for library in engine.libraries})
    (version,) = {engine.backend_version for engine in engines.values()}
    needs = [f"TensorRT {version}, and no other"]
    if libraries:
        for path in loadable(tuple(libraries.values())):
            files[f"1/{path.name}"] = path
        listed = ";".join(f"<repository>/{name}/1/{library}" for library in libraries)
        needs.append(f"--backend-config=tensorrt,plugins={listed}")
    return TritonModel(
        name=name,
        config={
            "name": name,
            "backend": "tensorrt",
            **shared.interface,
            "instance_group": [{"count": 1, "kind": Word("KIND_GPU"), **_profiles(engines)}],
            **default,
            "cc_model_filenames": plans,
        },
        files={**files, **shared.warmup},
        notes=(*notes, *(f"The server needs {need}." for need in needs)),
        needs=tuple(needs),
    )


def _profiles(engines: Mapping[str, EngineArtifact]) -> Message:
    """Profiles of all engines, for Triton to choose from; by default it takes the first.

    It takes the one whose opt is nearest to the request, and of several the first, in any order of
    its configuration: GetMostOptimizedProfile of its TensorRT backend
    (src/instance_state.cc at e2ef6d7, July 2026). So an engine's static profiles come first.
    """
    count = min(len(profiles(engine.axes)) for engine in engines.values())
    return {"profile": [str(at) for at in range(count)]} if count > 1 else {}


def _of_graph(name: str, graph: OnnxArtifact, shared: _Shared) -> TritonModel:
    verify_graph(graph)
    files: dict[str, Path | bytes] = {"1/model.onnx": graph.path}
    for weights in graph.weights:
        files[f"1/{weights.path.as_posix()}"] = graph.path.parent / weights.path
    operations: Message = {}
    needs = []
    if graph.libraries:
        for path in loadable(graph.libraries):
            files[f"1/{path.name}"] = path
        names = [library.path.name for library in graph.libraries]
        operations = {"model_operations": {"op_library_filename": names}}
        needs.append(f"LD_LIBRARY_PATH=<repository>/{name}/1, where it finds {', '.join(names)}")
    if graph.precision == "int8":
        # The exact kernel is an option of sessions that Triton's configuration does not have.
        needs.append(
            "a GPU, or a processor with VNNI or AMX: on others ONNX Runtime's sums of int8 "
            "saturate, which they did not when its numbers were compared"
        )
    # ONNX Runtime's CPU has no kernels for bf16.
    kind = "KIND_GPU" if graph.precision == "bf16" else "KIND_AUTO"
    return TritonModel(
        name=name,
        config={
            "name": name,
            "backend": "onnxruntime",
            **shared.interface,
            "instance_group": [{"count": 1, "kind": Word(kind)}],
            "optimization": _as_measured(graph),
            **operations,
        },
        files={**files, **shared.warmup},
        notes=(
            f"model.onnx: sha256 {graph.sha256}, opset {graph.opset}.",
            *(f"The server needs {need}." for need in needs),
        ),
        needs=tuple(needs),
    )


def _as_measured(graph: OnnxArtifact) -> Message:
    """ONNX Runtime as it was when the evidence was measured; see `ort.onnxruntime_runner`.

    TF32 is off, and of a graph in fp8 no nodes are fused (level -1 is ORT_ENABLE_BASIC).
    """
    cuda = {"name": "cuda", "parameters": [{"key": "use_tf32", "value": "0"}]}
    return {
        **({"graph": {"level": -1}} if graph.precision == "fp8" else {}),
        "execution_accelerators": {"gpu_execution_accelerator": [cuda]},
    }


def _client_interface(graph: OnnxArtifact, example: Tensors, batch: Axis | None) -> _Shared:
    """The interface for clients, and the input example at the corners of the profile."""
    requests, files = [], {}
    buckets = batch.buckets if batch else ()
    samples = {**profile_samples(example, graph), **batch_samples(example, graph, buckets)}
    for label, sample in samples.items():
        inputs: list[dict[str, Any]] = []
        for at, spec in enumerate(graph.inputs):
            array = sample[spec.name]
            item = array[:1] if batch else array  # Triton makes the batch of equal items
            file = f"{re.sub(r'[^A-Za-z0-9]+', '-', label)}-{at}"
            files[f"warmup/{file}"] = np.asarray(item, order="C").tobytes()
            value = {
                "data_type": config.data_type(spec),
                "dims": config.dims(spec, batch, array.shape),
                "input_data_file": file,
            }
            inputs.append({"key": spec.name, "value": value})
        size = array.shape[0] if batch else 1
        requests.append({"name": label, "batch_size": size, "inputs": inputs})
    preferred = {"preferred_batch_size": list(buckets)} if buckets else {}
    interface = {
        "max_batch_size": batch.max if batch else 0,
        "input": config.tensors(graph.inputs, batch),
        "output": config.tensors(graph.outputs, batch),
        **({"dynamic_batching": preferred} if batch else {}),
        "model_warmup": requests,
    }
    return _Shared(interface=interface, warmup=files)
