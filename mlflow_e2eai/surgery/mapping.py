"""Inputs and outputs of a cleaned graph as those of the raw graph, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Array, Infer, InputOrigin, OnnxArtifact, Origins, Tensors
from mlflow_e2eai.errors import InvalidInputError, SurgeryError
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.surgery.extraction import extract


def origins_of(graph: OnnxArtifact) -> Origins:
    """The origins of a graph; those of a raw graph are its own inputs and outputs."""
    if graph.origins is not None:
        return graph.origins
    return Origins(
        inputs=tuple(InputOrigin(name=spec.name, dtype=spec.dtype) for spec in graph.inputs),
        outputs=tuple(spec.name for spec in graph.outputs),
    )


def starts_inside(cleaned: OnnxArtifact, raw: OnnxArtifact) -> bool:
    """Whether a cleaned graph starts at inner tensors of the raw one."""
    names = {origin.name for origin in origins_of(cleaned).inputs}
    return names != {spec.name for spec in raw.inputs}


def require_same_inputs(cleaned: OnnxArtifact, raw: OnnxArtifact) -> None:
    """Refuse a cleaned graph that starts at inner tensors of the raw one.

    Raises:
        InvalidInputError: The graph is such a one.
    """
    if starts_inside(cleaned, raw):
        msg = (
            f"The plan lets the graph begin at {[spec.name for spec in cleaned.inputs]}, but the "
            f"model takes {[spec.name for spec in raw.inputs]}, so it cannot be compared with the "
            "model; extract outputs only, or use `mlflow_e2eai.clean`, which compares the part "
            "alone."
        )
        raise InvalidInputError(msg)


def convert_inputs(tensors: Tensors, cleaned: OnnxArtifact) -> dict[str, Array]:
    """Inputs of the raw graph as the cleaned one takes them; their sizes stay.

    Numbers that an integer type cannot hold become the nearest that it can.
    """
    pairs = zip(cleaned.inputs, origins_of(cleaned).inputs, strict=True)
    return {spec.name: _new(tensors[old.name], old, spec.dtype) for spec, old in pairs}


def map_inputs(tensors: Tensors, cleaned: OnnxArtifact) -> dict[str, Array]:
    """Inputs of the raw graph as the cleaned one takes them, fitted to its fixed sizes."""
    mapped = convert_inputs(tensors, cleaned)
    for spec in cleaned.inputs:
        array = mapped[spec.name]
        for position, size in enumerate(spec.shape):
            if isinstance(size, int) and array.shape[position] not in (0, size):
                index = np.arange(size) % array.shape[position]
                array = np.take(array, index, axis=position)
        mapped[spec.name] = np.asarray(array, order="C")
    return mapped


def wrap_reference(reference: Infer, cleaned: OnnxArtifact) -> Infer:
    """A reference of the raw graph under the inputs and outputs of the cleaned one.

    Tensors that surgery exposed are missing, as the reference lacks them; `full_reference` has them
    too.
    """
    origins = origins_of(cleaned)
    inputs = list(zip(cleaned.inputs, origins.inputs, strict=True))
    outputs = list(zip(cleaned.outputs, origins.outputs, strict=True))

    def infer(tensors: Tensors) -> Tensors:
        outputs_before = reference(
            {old.name: _old(tensors[spec.name], old) for spec, old in inputs}
        )
        return {spec.name: outputs_before[name] for spec, name in outputs if name in outputs_before}

    return infer


def _new(array: Array, origin: InputOrigin, dtype: str) -> Array:
    if not origin.is_scaled and dtype == origin.dtype:
        return array if not origin.perm else array.transpose(np.argsort(origin.perm))
    if origin.is_scaled:
        wide = array.astype(np.float64)
        array = (wide - along(origin.offset, array.ndim)) / along(origin.scale, array.ndim)
    wanted = np.dtype(dtype)
    if array.dtype != wanted and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        array = np.clip(np.rint(array), limits.min, limits.max)
    if origin.perm:
        array = array.transpose(np.argsort(origin.perm))
    return np.asarray(array.astype(wanted, copy=False), order="C")


def _old(array: Array, origin: InputOrigin) -> Array:
    """Convert in the graph's own order of operations, so that both round alike."""
    array = array.astype(origin.dtype, copy=False)
    if origin.perm:
        array = array.transpose(origin.perm)
    if origin.is_scaled:
        scale = along(origin.scale, array.ndim).astype(array.dtype)
        array = array * scale + along(origin.offset, array.ndim).astype(array.dtype)
    return np.asarray(array, order="C")


def along(values: tuple[float, ...], rank: int) -> Array:
    """One number for all, or one for each channel (the axis 1), for an array of that rank."""
    array = np.asarray(values, np.float64)
    return array.reshape(()) if len(values) == 1 else array.reshape(-1, *[1] * (rank - 2))


# The reference of a cleaned graph whose inputs or outputs the exported model lacks.


Run: TypeAlias = Callable[..., AbstractContextManager[Infer]]


@contextmanager
def full_reference(
    reference: Infer, raw: OnnxArtifact, cleaned: OnnxArtifact, *, run: Run = isolated_onnxruntime
) -> Iterator[Infer]:
    """A reference for all outputs of the cleaned graph, those that surgery exposed too.

    `reference` lacks the tensors that surgery exposed: those come from ONNX Runtime on the graph
    before. Where the graph begins inside the one before, all do.

    Args:
        reference: Runs the graph before.
        raw: The graph before.
        cleaned: The graph after.
        run: Opens ONNX Runtime on a file, with ``libraries``.

    Raises:
        RunnerError: ONNX Runtime cannot run that part of the graph before.
        SurgeryError: The graph before has no such tensor.
    """
    origins = origins_of(cleaned)
    known = set() if starts_inside(cleaned, raw) else {spec.name for spec in raw.outputs}
    if unknown := [name for name in origins.outputs if name not in known]:
        inputs = [origin.name for origin in origins.inputs]
        with _piece(raw, inputs, unknown, run) as inner:

            def infer(tensors: Tensors) -> Tensors:
                known_outputs = reference(tensors) if known else {}
                return {**known_outputs, **inner(tensors)}

            yield wrap_reference(infer, cleaned)
    else:
        yield wrap_reference(reference, cleaned)


@contextmanager
def input_mapper(
    raw: OnnxArtifact, cleaned: OnnxArtifact
) -> Iterator[Callable[[Tensors], dict[str, Array]]]:
    """Open a function that maps inputs of the raw graph to those of the cleaned one.

    Where the graph begins inside the one before, ONNX Runtime on that computes its inputs.
    """
    given = {spec.name for spec in raw.inputs}
    names = [origin.name for origin in origins_of(cleaned).inputs]
    with ExitStack() as stack:
        inner: Infer = lambda _: {}  # noqa: E731 - nothing to compute
        if computed := [name for name in names if name not in given]:
            piece = _piece(raw, None, computed, isolated_onnxruntime)
            inner = stack.enter_context(piece)
        yield lambda tensors: map_inputs({**tensors, **inner(tensors)}, cleaned)


@contextmanager
def _piece(
    raw: OnnxArtifact, inputs: Sequence[str] | None, outputs: Sequence[str], run: Run
) -> Iterator[Infer]:
    """The part of the graph before surgery between some of its tensors."""
    model = graphs.read(raw.path)
    graph = graphs.to_graph(model)
    try:
        extract(graph, inputs=inputs, outputs=outputs)
    except SurgeryError as error:
        msg = (
            f"The graph before the plan gives no reference for {list(outputs)}: {error} Expose or "
            "extract before the steps that make new tensors."
        )
        raise SurgeryError(msg) from error
    with TemporaryDirectory() as folder:
        path = Path(folder, "piece.onnx")
        graphs.write(graphs.to_onnx(graph, like=model), path)
        with run(path, libraries=raw.libraries) as infer:
            yield infer
