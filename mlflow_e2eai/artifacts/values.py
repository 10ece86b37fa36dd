"""The frozen values that flow between stages.

A value describes a file, which lies next to it. Identity is content: every artifact has the sha256
of its file and of the artifact that it was made from, so that a chain of stages can be checked
anywhere, with no tracking server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from numpy.typing import NDArray

from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.files import Real, Summary, Table
from mlflow_e2eai.artifacts.names import shape_text
from mlflow_e2eai.errors import InvalidInputError, nearest, require_kind, require_several

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
"""Named arrays: the inputs of a model, or its outputs."""

Infer: TypeAlias = Callable[[Tensors], Tensors]
"""Runs a model: named inputs to named outputs. All runners have this interface."""

Precision: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
"""What a model computes in. No graph is in tf32: it is how an engine of the fp32 graph computes."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8")

_OTHER_NAMES: Mapping[str, Precision] = {
    "float32": "fp32",
    "float": "fp32",
    "single": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
}


def precision_of(name: str) -> Precision:
    """Read a precision by any of its names, such as ``half``, ``float16`` or ``fp16``.

    Raises:
        InvalidInputError: It is none.
    """
    key = str(name).lower().removeprefix("torch.")  # as the dtypes of PyTorch are written
    for precision in PRECISIONS:
        if _OTHER_NAMES.get(key, key) == precision:
            return precision
    near = nearest(name, (*PRECISIONS, *_OTHER_NAMES))
    hint = f" Did you mean {near}?" if near else ""
    msg = f"The precision is {name!r}, but one of {', '.join(PRECISIONS)} is expected.{hint}"
    raise InvalidInputError(msg)


@dataclass(frozen=True, slots=True)
class Axis:
    """A dynamic axis: its name in the ONNX graph and the sizes that it may take.

    The same name on several inputs means that they share their size.

    Attributes:
        name: ONNX symbolic dimension, for example ``N``.
        min: Smallest size, at least 1.
        opt: The size that engines are tuned for.
        max: Largest size.
        multiple: Every size is a multiple of this, as where a model merges pixels in groups.
        buckets: Sizes that engines are tuned for one by one, in addition to the range min to max.

    Raises:
        InvalidInputError: The sizes are not ``1 <= min <= opt <= max`` or no multiples, the buckets
            are not in order and among them, the name is no identifier, or a value is of a wrong
            type.

    Examples:
        >>> batch = Axis("N", min=1, opt=8, max=64)
        >>> length = Axis("T", min=32, opt=64, max=512, multiple=32, buckets=(64, 128))
    """

    name: str
    min: int = field(kw_only=True)
    opt: int = field(kw_only=True)
    max: int = field(kw_only=True)
    multiple: int = field(default=1, kw_only=True)
    buckets: tuple[int, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        require_kind("The name of an axis", self.name, str, "a name such as 'N'")
        of_axis = f"of axis {self.name!r}"
        for name in ("min", "opt", "max", "multiple"):
            size = require_kind(f"{name} {of_axis}", getattr(self, name), int, "a whole number")
            object.__setattr__(self, name, size)  # Python's int in place of NumPy's
        buckets = require_several(f"buckets {of_axis}", self.buckets, int, "a list of sizes")
        object.__setattr__(self, "buckets", buckets)
        if not self.name.isidentifier():
            msg = f"The axis name {self.name!r} is not an identifier; use a name such as 'N'."
            raise InvalidInputError(msg)
        if not 1 <= self.min <= self.opt <= self.max:
            msg = (
                f"Axis {self.name!r} has min={self.min}, opt={self.opt}, max={self.max}, but 1 <= "
                "min <= opt <= max is expected; put the three sizes in order."
            )
            raise InvalidInputError(msg)
        if self.multiple < 1 or not all(map(self.admits, (self.min, self.opt, self.max))):
            msg = (
                f"Axis {self.name!r} has min={self.min}, opt={self.opt}, max={self.max}, but "
                f"multiples of {self.multiple} are expected; round them."
            )
            raise InvalidInputError(msg)
        if list(self.buckets) != sorted(filter(self.admits, set(self.buckets))):
            msg = (
                f"Axis {self.name!r} has the buckets {list(self.buckets)}, but sizes of {self}, "
                "each once and in order, are expected."
            )
            raise InvalidInputError(msg)

    def admits(self, size: int) -> bool:
        """Whether the axis may have a size."""
        return self.min <= size <= self.max and size % self.multiple == 0

    def __str__(self) -> str:
        """The sizes that the axis admits, for people."""
        steps = f" in steps of {self.multiple}" if self.multiple > 1 else ""
        return f"{self.min} to {self.max}{steps}"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        name: Its ONNX name.
        dtype: Its NumPy dtype name, for example ``float32``.
        shape: One entry an axis: a size, the name of a dynamic axis, or ``?`` where the graph
            leaves it open (a size that depends on the data).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    @property
    def interface(self) -> tuple[str, str, int]:
        """Its name, dtype and number of axes: what a caller must know, whatever the sizes."""
        return self.name, self.dtype, len(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOrigin:
    """The input of the raw graph that an input of a cleaned graph comes from.

    With `perm`, `scale` and `offset` the graph makes the old input of the new one:
    ``old = transpose(cast(new), perm) * scale + offset``.

    Attributes:
        name: Its name before.
        dtype: Its NumPy dtype name before.
        perm: As ONNX Transpose takes it; empty where the axes are in the same order.
        scale: One factor, or one for each channel (axis 1 before).
        offset: One summand, or one for each channel.
    """

    name: str
    dtype: str
    perm: tuple[int, ...] = ()
    scale: tuple[Real, ...] = (1.0,)
    offset: tuple[Real, ...] = (0.0,)

    @property
    def is_scaled(self) -> bool:
        """Whether the numbers are scaled or shifted."""
        return (self.scale, self.offset) != ((1.0,), (0.0,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Origins:
    """The inputs and outputs of the raw graph that those of a cleaned graph come from.

    Attributes:
        inputs: One for each input.
        outputs: The old name of each output.
    """

    inputs: tuple[InputOrigin, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightFile:
    """A file of weights next to an ONNX file.

    Attributes:
        path: Relative to the folder of the ONNX file.
        sha256: Digest of the file.
        size_bytes: Its size.
    """

    path: Path
    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Library:
    """A shared library with operators that ONNX has not, or with plugins for TensorRT.

    Attributes:
        path: The file; as stored, relative to the folder of the model that needs it.
        sha256: Digest of the file, checked before it is loaded: it is native code.
        allowed: Whether the caller allows loading it. Set in this process only, never read from a
            file.
    """

    path: Path
    sha256: str
    allowed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class OnnxArtifact(Summary):
    """An ONNX file.

    Attributes:
        path: The file.
        sha256: Digest of the file and of its weight files; see `weight_files.digest`.
        parent_sha256: Digest of the artifact that it was made from; None for a fresh export.
        stage: The stage that wrote it.
        precision: The type that its weights and activations are in; never tf32.
        opset: Version of the default ONNX operator set.
        inputs: The graph's inputs, in order.
        outputs: The graph's outputs, in order.
        axes: The dynamic axes that `inputs` name.
        origins: The inputs and outputs of the raw graph that its own come from; None for a raw
            graph.
        weights: Files next to it with its weights; none where they are inside.
        libraries: Libraries with its operators for ONNX Runtime.
        assumptions: What is assumed of the model's inputs, as nobody said it; a sentence each.
        size_bytes: Size of the file with its weight files, in a bundle; else None.
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
    origins: Origins | None = None
    weights: tuple[WeightFile, ...] = ()
    libraries: tuple[Library, ...] = ()
    assumptions: tuple[str, ...] = ()
    size_bytes: int | None = None

    def _line(self) -> str:
        name, tensors = self.path.name, _tensors_text(self.inputs, self.outputs)
        return f"{name}, {self.precision} from {self.stage}, opset {self.opset}, {tensors}"

    def _table(self) -> Table:
        return tensor_table(self.inputs, self.outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The GPUs and the backend that an engine is built for; `engine.parse` reads its text.

    Attributes:
        backend: The library that builds and runs it.
        compute_capability: NVIDIA's name of the GPU generation, for example ``sm86``; several with
            ``+`` between; empty for every GPU from Ampere (``sm80``) on, later ones too.
        gpu_name: The one GPU model that the engine is bound to, or None when it runs on every GPU
            of the compute capability.
        version: TensorRT's major version; None for TensorRT-RTX.
        compatible: Whether TensorRT gives up some speed so that the engine is bound to no model.
    """

    backend: Literal["tensorrt", "tensorrt_rtx"]
    compute_capability: str
    gpu_name: str | None = None
    version: int | None = None
    compatible: bool = False

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities one by one; none where it is for all from Ampere on."""
        return tuple(part for part in self.compute_capability.split("+") if part)

    def __str__(self) -> str:
        version = "" if self.version is None else self.version
        capability = f"-{self.compute_capability}" if self.compute_capability else ""
        return f"{self.backend}{version}{capability}{'+compatible' if self.compatible else ''}"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class EngineArtifact(Summary):
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
        libraries: Libraries with its plugins for TensorRT.
        settings: How it was built.
        checked: The parts of the built engine that were compared with the request, by its own
            record: ``inputs and outputs``, ``profiles``, ``layers``. None of them without such a
            GPU, where only its network is checked.
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
    build_s: Real
    size_bytes: int
    libraries: tuple[Library, ...] = ()
    settings: BuildSettings = DEFAULT_BUILD
    checked: tuple[str, ...] | None = None

    @property
    def arithmetic(self) -> Precision:
        """Precision of the arithmetic: ``tf32`` where fp32 may be rounded to that."""
        return "tf32" if self.tf32 and self.precision == "fp32" else self.precision

    def _line(self) -> str:
        size = f"{self.size_bytes / 1e6:.2f} MB, built in {self.build_s:.1f} s"
        tensors = _tensors_text(self.inputs, self.outputs)
        return f"{self.path.name}, {self.arithmetic} for {self.target}, {size}, {tensors}"

    def _table(self) -> Table:
        return tensor_table(self.inputs, self.outputs)


@dataclass(frozen=True, slots=True)
class _Tensor:
    """A row about one input or output."""

    tensor: str
    name: str
    dtype: str
    shape: str


def tensor_table(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Table:
    """A row for each input and output."""
    sides = [("input", inputs), ("output", outputs)]
    return _Tensor, [
        _Tensor(side, spec.name, spec.dtype, shape_text(spec.shape))
        for side, specs in sides
        for spec in specs
    ]


def _tensors_text(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    _, rows = tensor_table(inputs, outputs)
    texts = [
        ", ".join(f"{row.name}: {row.dtype}{row.shape}" for row in rows if row.tensor == side)
        for side in ("input", "output")
    ]
    return " -> ".join(texts)


def require_graph(source: Any) -> OnnxArtifact:
    """Refuse what is no graph, such as the path of one; see `errors.require_kind`."""
    graph = "a graph as export, clean and convert return it"
    return cast("OnnxArtifact", require_kind("source", source, OnnxArtifact, graph))


def graph_precision(precision: Precision) -> Precision:
    """The precision of the graph that an engine in `precision` is built of."""
    return "fp32" if precision == "tf32" else precision


def variant_name(runner: str, precision: str) -> str:
    """Name of a variant: a runner and a precision, such as ``onnxruntime-cpu/fp16``."""
    return f"{runner}/{precision}"
