"""The frozen values that flow between stages, their JSON form and their digests.

A value says what a file is; the file lies beside it. Identity is content: every artifact knows the
sha256 of its file and of the artifact that it was made from, so that a chain of stages can be
checked anywhere, with no tracking server.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from mlflow_e2eai.errors import ArtifactError, InvalidInputError

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
"""Named arrays: what a model is asked, and what it answers."""

Infer: TypeAlias = Callable[[Tensors], Tensors]
"""The seam between whatever runs a model and whatever judges it."""

Precision: TypeAlias = Literal["fp32", "fp16"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Axis:
    """A dynamic axis: its name in the ONNX graph and the sizes that it may take.

    The same name on several inputs means that they share their size.

    Attributes:
        name: ONNX symbolic dimension, for example ``N``.
        min: Smallest size, at least 1.
        opt: The size that engines are tuned for.
        max: Largest size.

    Raises:
        InvalidInputError: The sizes are not ``1 <= min <= opt <= max``, or the name is no
            identifier.
    """

    name: str
    min: int = field(kw_only=True)
    opt: int = field(kw_only=True)
    max: int = field(kw_only=True)

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            msg = f"The axis name {self.name!r} is not an identifier; use a name such as 'N'."
            raise InvalidInputError(msg)
        if not 1 <= self.min <= self.opt <= self.max:
            msg = (
                f"Axis {self.name!r} has min={self.min}, opt={self.opt}, max={self.max}, "
                f"but 1 <= min <= opt <= max is wanted; put the three sizes in order."
            )
            raise InvalidInputError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its ONNX name.
        dtype: Its NumPy dtype name, for example ``float32``.
        shape: One entry an axis: a size, the name of a dynamic axis, or ``?`` where the graph
            does not say (a size that depends on the data).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxArtifact:
    """An ONNX file.

    Attributes:
        path: The file; weights are inside it.
        sha256: Digest of the file.
        parent_sha256: Digest of the artifact that it was made from; None for a fresh export.
        stage: The stage that wrote it.
        precision: The type that its weights and activations are in.
        opset: Version of the default ONNX operator set.
        inputs: The graph's inputs, in order.
        outputs: The graph's outputs, in order.
        axes: The dynamic axes that `inputs` name.
    """

    path: Path
    sha256: str
    parent_sha256: str | None
    stage: Literal["export", "clean", "convert"]
    precision: Precision
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What an engine is for.

    Attributes:
        backend: The library that builds and runs it.
        compute_capability: NVIDIA's name of the GPU generation, for example ``sm86``.
        gpu_name: The one GPU model that the engine is bound to, or None when it runs on every GPU
            of the compute capability.
    """

    backend: Literal["tensorrt", "tensorrt_rtx"]
    compute_capability: str
    gpu_name: str | None = None

    def __str__(self) -> str:
        return f"{self.backend}-{self.compute_capability}"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArtifact:
    """A serialised TensorRT engine.

    Attributes:
        path: The file.
        sha256: Digest of the file, checked before the engine is loaded: an engine is native code.
        parent_sha256: Digest of the ONNX file that it was built from.
        target: What it was built for.
        backend_version: The exact version that built it; no other version may run it.
        precision: Precision of the ONNX file, which a strongly typed engine keeps.
        tf32: Whether fp32 arithmetic may be rounded to TF32.
        inputs: The engine's inputs.
        outputs: The engine's outputs.
        axes: The dynamic axes, whose sizes are the engine's optimisation profile.
        build_s: Seconds that the build took.
        size_bytes: Size of the file.
    """

    path: Path
    sha256: str
    parent_sha256: str
    target: Target
    backend_version: str
    precision: Precision
    tf32: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]
    build_s: float
    size_bytes: int


def variant_name(runner: str, precision: str) -> str:
    """What is measured: a runner and what it runs, for example ``onnxruntime-cpu/fp16``."""
    return f"{runner}/{precision}"


def corners(axes: tuple[Axis, ...]) -> dict[str, dict[str, int]]:
    """The corners of a profile: each axis at its min, all at opt, each axis at its max.

    Returns:
        Sizes by axis name, under a label. Two axes give ``min``, ``opt``, ``max`` and the mixed
        corners; a profile with no axes gives ``static``.
    """
    if not axes:
        return {"static": {}}
    found: dict[str, dict[str, int]] = {
        bound: {axis.name: getattr(axis, bound) for axis in axes} for bound in ("opt", "min", "max")
    }
    for axis in axes:
        if len(axes) > 1:
            found[f"max {axis.name}, min others"] = {**found["min"], axis.name: axis.max}
    unique: dict[str, dict[str, int]] = {}
    for label, sizes in found.items():
        if sizes not in unique.values():
            unique[label] = sizes
    return unique


def resize(tensors: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Tensors:
    """Repeat or cut arrays along their dynamic axes until they have the sizes asked for.

    Repeating the caller's own data keeps its range, which random data would not.

    Args:
        tensors: One array for each spec.
        specs: Where the dynamic axes are.
        sizes: Wanted size by axis name; axes that it does not name stay as they are.
    """
    resized = {}
    for spec in specs:
        array = tensors[spec.name]
        for position, size in enumerate(spec.shape):
            if isinstance(size, str) and size in sizes:
                index = np.arange(sizes[size]) % array.shape[position]
                array = np.take(array, index, axis=position)
        resized[spec.name] = np.asarray(array, order="C")
    return resized


def sha256_of(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in pieces.

    Raises:
        ArtifactError: There is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        msg = f"Cannot read {path}: {error.strerror}; check the path, or make the artifact again."
        raise ArtifactError(msg) from error


def verify(path: Path, sha256: str) -> None:
    """Check that a file is the one that was recorded.

    Raises:
        ArtifactError: The file is missing or its digest differs.
    """
    if (found := sha256_of(path)) != sha256:
        msg = (
            f"{path.name} has sha256 {found[:12]}…, but {sha256[:12]}… was recorded: the file has "
            f"changed since it was made; download it again, or make it again."
        )
        raise ArtifactError(msg)


@contextmanager
def written(out: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `out`, moved to `out` when the block ends well.

    A stage that is killed or fails leaves nothing that looks finished.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp gives mode 0600, but artifacts are for everyone whom the folder lets in.
        temporary.chmod(0o644)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)


def to_json(value: object) -> str:
    """Write a frozen value as JSON; numbers that JSON lacks (NaN, infinities) become strings."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        msg = f"{type(value).__name__} is not a dataclass instance."
        raise TypeError(msg)
    return json.dumps(_plain(dataclasses.asdict(value)), indent=2, allow_nan=False)


def from_json(kind: type[Value], text: str | bytes) -> Value:
    """Read a frozen value that `to_json` wrote, with every field checked against its type.

    Raises:
        ArtifactError: The text is not JSON, or not a value of this kind.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        data = json.loads(text)
        value = TypeAdapter(kind).validate_python(data)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole"
        msg = f"This is not a {kind.__name__}: at {place}, {first['msg']}."
        raise ArtifactError(msg) from error
    except (ValueError, RecursionError) as error:
        msg = f"The text is not JSON ({error}); a {kind.__name__} was wanted."
        raise ArtifactError(msg) from error
    for place, found in _reread(data, json.loads(to_json(value))):
        msg = f"This is not a {kind.__name__}: at {place}, {found!r} is of another type."
        raise ArtifactError(msg)
    return value


def _reread(given: Any, read: Any, *place: str) -> Iterator[tuple[str, Any]]:
    """Where pydantic made one type of another, as 1 of true."""
    match given, read:
        case dict(), dict():
            for key in given.keys() & read.keys():
                yield from _reread(given[key], read[key], *place, key)
        case list(), list():
            for index, (old, new) in enumerate(zip(given, read, strict=True)):
                yield from _reread(old, new, *place, str(index))
        case (int(), float()) if not isinstance(given, bool):
            return
        case _ if type(given) is not type(read):
            yield ".".join(place), given


def _plain(value: Any) -> Any:
    """The same value in JSON's own types."""
    match value:
        case Path():
            return value.as_posix()
        case float() if not math.isfinite(value):
            return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
    return value
