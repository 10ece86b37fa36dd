"""ONNX files as `Infer`, by ONNX Runtime: named arrays in, named arrays out.

The runner is a context manager, and yields its callable only when the device is certain: ONNX
Runtime drops a GPU provider that it cannot start and goes on with the CPU, which would be measured
as the GPU. Here that is an error.
"""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import graphs, machine
from mlflow_e2eai.artifacts.arrays import is_on_gpu
from mlflow_e2eai.artifacts.libraries import loadable
from mlflow_e2eai.artifacts.machine import has_gpu
from mlflow_e2eai.artifacts.values import Infer, Library, Tensors
from mlflow_e2eai.artifacts.weight_files import has_weight_files
from mlflow_e2eai.errors import InvalidInputError, RunnerError, require_kind
from mlflow_e2eai.runtime import emulation
from mlflow_e2eai.runtime.crashes import before_native, write_session

if TYPE_CHECKING:
    import onnxruntime

Device: TypeAlias = Literal["cpu", "cuda"]

_PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def onnxruntime_devices() -> tuple[Device, ...]:
    """The devices that ONNX Runtime could use on this machine, best first.

    A provider that is listed may still fail to start; `onnxruntime_runner` finds that out.
    """
    import onnxruntime

    if _PROVIDERS["cuda"] in onnxruntime.get_available_providers() and has_gpu():
        return ("cuda", "cpu")
    return ("cpu",)


FIRST_OPSET = 7
"""The first version of the ONNX operator set that PyTorch writes."""

_LATEST_TRIED = 21
"""A version that every ONNX Runtime that this package installs with has: it is not looked up."""


def check_opset(opset: int) -> None:
    """Refuse a version of the ONNX operator set that cannot be written or run here.

    Raises:
        InvalidInputError: It is no number, too old for PyTorch, or too new for the installed onnx
            or ONNX Runtime.
    """
    require_kind("opset", opset, int, f"a number, such as {FIRST_OPSET}")
    if FIRST_OPSET <= opset <= _LATEST_TRIED:
        return
    newest = _newest_opset()
    if not FIRST_OPSET <= opset <= newest:
        import onnxruntime

        msg = (
            f"Opset {opset} is too {'old' if opset < FIRST_OPSET else 'new'}: PyTorch and the "
            f"installed ONNX Runtime {onnxruntime.__version__} have {FIRST_OPSET} to {newest}; "
            f"give one of these."
        )
        raise InvalidInputError(msg)


@functools.cache
def _newest_opset() -> int:
    """The newest operator set of which the installed ONNX Runtime loads a graph.

    It has no function that says so.
    """
    import onnx
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy")
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "probe", [x], [y])
    for opset in range(onnx.defs.onnx_opset_version(), _LATEST_TRIED, -1):
        imports = [onnx.helper.make_opsetid("", opset)]
        model = onnx.helper.make_model(graph, ir_version=8, opset_imports=imports)
        with contextlib.suppress(Exception):  # its errors share no base class
            onnxruntime.InferenceSession(
                model.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return opset
    return _LATEST_TRIED


_CRASHING = {"fp16": ("MatmulTransposeFusion",)}
"""Optimizers that are off on the CPU, by precision. ONNX Runtime 1.31 crashes as it loads a MatMul
in fp16 behind a Transpose of its first axes, as each layer of a transformer has it that PyTorch
runs with the sequence first."""


@contextmanager
def onnxruntime_runner(
    path: Path,
    *,
    device: Device = "cpu",
    precision: str = "fp32",
    rounded: bool = False,
    optimized: bool = True,
    spinning: bool = False,
    libraries: Sequence[Library] = (),
) -> Iterator[Infer]:
    """Run an ONNX file with ONNX Runtime.

    Weights that lie in other files are used where they are mapped, and not packed for MatMul and
    Gemm when the session starts: packed they are copies, one for each session, while all sessions
    of a machine share what is mapped. On a matrix of 256 MiB (ONNX Runtime 1.31, 2 cores) a session
    then started in 0.02 s, not 1.8 s; a batch of 1 took 0.67 times as long, of 2 and 8 1.2 times,
    of 32 and 128 1.05 and 1.11 times.

    On a CPU whose instructions for int8 saturate, the exact kernel runs, or none that is fused.

    Args:
        path: The file.
        device: Where every supported node is to run.
        precision: The graph's arithmetic, for what ONNX Runtime 1.31 must not do to it. In fp8 it
            fuses Q/DQ pairs as if they were of int8, and refuses what comes of it, or drops a Relu
            before them. In fp16 see `_CRASHING`.
        rounded: Have every fp16 or bf16 value between nodes rounded, as a GPU does; see
            `emulation`. It is slower, and in fp16 keeps all values in memory. Without it the CPU
            cannot run a graph in bf16.
        optimized: Let it rewrite the graph at all. For a graph with an output for every value this
            gains nothing, and its time grows with the square of the nodes: of 1,000 layers with
            their twins 33 s, not 2 (ONNX Runtime 1.31).
        spinning: Let idle workers spin for a while after a call, which is ONNX Runtime's own
            default: the next call starts sooner, and other work has fewer cores until then. Must be
            off where callables are measured in turns.
        libraries: Shared libraries with operators of the graph. They are native code, which this
            process loads, if they are allowed and as they were recorded.

    Yields:
        The model as a callable on named arrays of the graph's dtypes and shapes; on a GPU, a
        `GpuSession`.

    Raises:
        RunnerError: ONNX Runtime cannot load the file or a library, or cannot use the device; or
            a library is not allowed.
        ArtifactError: A library is missing, or has changed since it was recorded.
    """
    import onnxruntime

    if device == "cuda" and hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    is_exact = device == "cpu" and machine.int8_saturates()
    entries = _entries(path, spinning=spinning, is_exact=is_exact)
    options = _options(entries, libraries)
    # Weights of a model that is given as bytes are looked for here.
    options.add_session_config_entry(_WEIGHTS_FOLDER, str(path.parent))
    wanted = _PROVIDERS[device]
    # Rounding to TF32 is on by default; here fp32 means fp32.
    provider = (wanted, {"use_tf32": "0"}) if device == "cuda" else wanted
    arguments: dict[str, Any] = {"providers": [provider]}
    if device == "cpu" and (crashing := _CRASHING.get(precision)):
        arguments["disabled_optimizers"] = crashing

    def start(level: str) -> onnxruntime.InferenceSession:
        options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        reproduction = partial(
            write_session,
            graph=model,
            weights=path.parent,
            level=level,
            entries=entries,
            libraries=[library.path for library in libraries],
            arguments=arguments,
            outputs=own,
        )
        before_native(reproduction)
        return onnxruntime.InferenceSession(model, options, **arguments)

    try:
        model = emulation.emulate_rounding(path) if rounded else path
        # Rounding adds outputs to the graph's own.
        own = [output.name for output in graphs.read(path).graph.output] if rounded else None
        try:
            session = start(_level(precision, optimized=optimized))
        except Exception:
            if not is_exact:
                raise
            # ONNX Runtime 1.31 converts a weight that two nodes read twice, and fails at that. What
            # is not fused is computed in fp32, which is exact too.
            session = start("ORT_ENABLE_BASIC")
    except Exception as error:  # onnxruntime's exceptions share no base class
        msg = f"ONNX Runtime cannot load {path.name} on {device}: {_first_line(error)}"
        raise RunnerError(msg) from error
    if (active := session.get_providers()[0]) != wanted:
        msg = (
            f"ONNX Runtime was requested with {wanted} but started {active}; check the driver and "
            "the CUDA libraries, or ask for device 'cpu'."
        )
        raise RunnerError(msg)
    names = own or [output.name for output in session.get_outputs()]

    def infer(tensors: Tensors) -> Tensors:
        try:
            return dict(zip(names, session.run(names, dict(tensors)), strict=True))
        except Exception as error:
            msg = f"ONNX Runtime cannot run {path.name} on these inputs: {_first_line(error)}"
            raise RunnerError(msg) from error

    yield infer if device == "cpu" else GpuSession(session, infer, names)


def _level(precision: str, *, optimized: bool) -> str:
    """Name of the level to which a graph is rewritten."""
    if not optimized:
        return "ORT_DISABLE_ALL"
    return "ORT_ENABLE_BASIC" if precision == "fp8" else "ORT_ENABLE_ALL"


_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"


def _entries(path: Path, *, spinning: bool, is_exact: bool) -> dict[str, str]:
    """The configuration of a session by key."""
    entries = {"session.intra_op.allow_spinning": str(int(spinning))}
    if is_exact:
        entries["session.x64quantprecision"] = "1"
    if has_weight_files(path):
        entries["session.disable_prepacking"] = "1"
    return entries


def _options(
    entries: Mapping[str, str], libraries: Sequence[Library]
) -> onnxruntime.SessionOptions:
    """The options of a session, with the libraries that it loads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    for library in loadable(libraries):
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:  # onnxruntime's exceptions share no base class
            msg = f"ONNX Runtime cannot load the library {library.name}: {_first_line(error)}"
            raise RunnerError(msg) from error
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


# ONNX Runtime's sessions on a GPU, with tensors that are there already.


class GpuSession:
    """A session on a GPU, for arrays and for torch tensors that are there already.

    Args:
        session: ONNX Runtime's.
        infer: Runs it on arrays.
        outputs: The names of its outputs.
        device: The device of outputs.
    """

    def __init__(
        self, session: Any, infer: Infer, outputs: Sequence[str], *, device: str = "cuda"
    ) -> None:
        self._session, self._infer, self._outputs = session, infer, outputs
        self._device = device
        self._types = {value.name: value.type for value in session.get_inputs()}

    def __call__(self, tensors: Tensors) -> Tensors:
        """Run the model on arrays."""
        return self._infer(tensors)

    def on_device(self, tensors: Mapping[str, Any]) -> dict[str, Any]:
        """Run the model on torch tensors where they are, by I/O binding.

        ONNX Runtime works in a stream of its own. So this waits for PyTorch's current stream
        first, and the outputs are complete when it returns.

        Args:
            tensors: torch tensors and, for inputs that are not on the GPU, arrays.

        Raises:
            InvalidInputError: A tensor on the GPU is not PyTorch's, of another dtype than the
                graph's, or not contiguous.
            RunnerError: ONNX Runtime cannot run.
        """
        torch = sys.modules.get("torch")
        binding = self._session.io_binding()
        for name, value in tensors.items():
            if torch is not None and isinstance(value, torch.Tensor):
                self._bind(binding, name, value.detach(), torch)
            elif is_on_gpu(value):
                msg = (
                    f"Input {name!r} is on the GPU but is not a torch tensor; give a torch tensor, "
                    "or an array on the CPU."
                )
                raise InvalidInputError(msg)
            else:
                binding.bind_cpu_input(name, np.ascontiguousarray(value))
        for name in self._outputs:
            binding.bind_output(name, self._device)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:  # onnxruntime's exceptions share no base class
            msg = f"ONNX Runtime cannot run on these inputs: {str(error).strip().splitlines()[0]}"
            raise RunnerError(msg) from error
        outputs = zip(self._outputs, binding.get_outputs(), strict=True)
        return {name: self._tensor(torch, value) for name, value in outputs}

    def _bind(self, binding: Any, name: str, tensor: Any, torch: Any) -> None:
        dtype = str(tensor.dtype).removeprefix("torch.")
        if _TYPES.get(dtype) != self._types[name]:
            msg = f"Input {name!r} is {dtype}, but {self._types[name]} is expected; convert it."
            raise InvalidInputError(msg)
        if not tensor.is_contiguous():
            msg = f"Input {name!r} is not contiguous; make it so by .contiguous()."
            raise InvalidInputError(msg)
        if tensor.is_cuda:
            torch.cuda.current_stream(tensor.device).synchronize()
        binding.bind_input(
            name,
            tensor.device.type,
            tensor.device.index or 0,
            np.dtype(dtype),
            tuple(tensor.shape),
            tensor.data_ptr(),
        )

    @staticmethod
    def _tensor(torch: Any, value: Any) -> Any:
        tensor = torch.from_dlpack(value)
        # DLPack has had no bool for long, and ONNX Runtime says uint8.
        return tensor.bool() if value.data_type() == "tensor(bool)" else tensor


_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int8": "tensor(int8)",
    "int16": "tensor(int16)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint8": "tensor(uint8)",
    "bool": "tensor(bool)",
}
"""NumPy's and PyTorch's names of types -> ONNX Runtime's."""
