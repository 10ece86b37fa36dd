"""PyTorch modules and ONNX files as `Infer`: named arrays in, named arrays out.

Each runner is a context manager, and hands out its callable only once it is sure what will run:
ONNX Runtime drops a GPU provider that it cannot start and goes on with the CPU, which would be
measured as the GPU. Here that is an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlflow_e2eai import graphs, rounding
from mlflow_e2eai.artifacts import Infer, Library, Tensors
from mlflow_e2eai.calling import call, output_tensors
from mlflow_e2eai.context import has_gpu
from mlflow_e2eai.errors import RunnerError
from mlflow_e2eai.libraries import loadable
from mlflow_e2eai.modules import device_of, evaluation_mode
from mlflow_e2eai.sessions import GpuSession
from mlflow_e2eai.weights import lie_beside

if TYPE_CHECKING:
    import torch

Device: TypeAlias = Literal["cpu", "cuda"]

_PROVIDERS: dict[str, str] = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def onnxruntime_devices() -> tuple[Device, ...]:
    """The devices that ONNX Runtime could use here, best first.

    A provider that is listed may still fail to start; `onnxruntime_runner` finds that out.
    """
    import onnxruntime

    if _PROVIDERS["cuda"] in onnxruntime.get_available_providers() and has_gpu():
        return ("cuda", "cpu")
    return ("cpu",)


@contextmanager
def onnxruntime_runner(
    path: Path,
    *,
    device: Device = "cpu",
    rounded: bool = False,
    fused: bool = True,
    spinning: bool = False,
    libraries: Sequence[Library] = (),
) -> Iterator[Infer]:
    """Run an ONNX file with ONNX Runtime.

    Weights that lie in other files are used where they are mapped, and not packed for MatMul and
    Gemm when the session starts: packed they are copies, one for each session, while all sessions
    of a machine share what is mapped. On a matrix of 256 MiB (ONNX Runtime 1.31, 2 cores) a session
    then started in 0.02 s, not 1.8 s; a batch of 1 took 0.67 times as long, of 2 and 8 1.2 times,
    of 32 and 128 1.05 and 1.11 times.

    Args:
        path: The file.
        device: Where every supported node is to run.
        rounded: Have every fp16 or bf16 value between nodes rounded, as a GPU does; see
            `rounding`. It is slower, and of fp16 all values are held at once. Without it the CPU
            cannot run a graph in bf16.
        fused: Let it fuse nodes. A graph in fp8 must not be: ONNX Runtime 1.31 fuses Q/DQ pairs of
            fp8 as if they were of int8, and refuses what comes of it, or drops a Relu before them.
        spinning: Let idle workers spin for a while after a call, which is ONNX Runtime's own
            default: they answer the next call sooner, and take their cores from whatever else runs
            until then. A measure that takes turns must not have it.
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
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # failures come back as exceptions
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    if lie_beside(path):
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not fused:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    for library in loadable(libraries):
        try:
            options.register_custom_ops_library(str(library))
        except Exception as error:  # onnxruntime's exceptions share no base class
            msg = f"ONNX Runtime cannot load the library {library.name}: {_first_line(error)}"
            raise RunnerError(msg) from error
    wanted = _PROVIDERS[device]
    # Rounding to TF32 is on by default; here fp32 means fp32.
    provider = (wanted, {"use_tf32": "0"}) if device == "cuda" else wanted
    # Weights of a model that is given as bytes are looked for here.
    folder = "session.model_external_initializers_file_folder_path"
    options.add_session_config_entry(folder, str(path.parent))
    try:
        model = rounding.rounded(path) if rounded else path
        session = onnxruntime.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # onnxruntime's exceptions share no base class
        msg = f"ONNX Runtime cannot load {path.name} on {device}: {_first_line(error)}"
        raise RunnerError(msg) from error
    if (active := session.get_providers()[0]) != wanted:
        msg = (
            f"ONNX Runtime was asked for {wanted} but started {active}; check the driver and the "
            f"CUDA libraries, or ask for device 'cpu'."
        )
        raise RunnerError(msg)
    # Rounding adds outputs to the graph's own.
    outputs = graphs.read(path).graph.output if rounded else session.get_outputs()
    own = [output.name for output in outputs]

    def infer(tensors: Tensors) -> Tensors:
        try:
            return dict(zip(own, session.run(own, dict(tensors)), strict=True))
        except Exception as error:
            msg = f"ONNX Runtime cannot run {path.name} on these inputs: {_first_line(error)}"
            raise RunnerError(msg) from error

    yield infer if device == "cpu" else GpuSession(session, infer, own)


@contextmanager
def torch_runner(
    model: torch.nn.Module, *, inputs: Sequence[str], outputs: Sequence[str]
) -> Iterator[Infer]:
    """Run a PyTorch module, in evaluation mode and without gradients.

    Args:
        model: The module; its mode is given back when the block ends.
        inputs: Names of the inputs, bound as `call` does.
        outputs: Names for the outputs, in the order in which `output_tensors` gives them.
    """
    import torch

    device = device_of(model)

    def infer(tensors: Tensors) -> Tensors:
        arguments = {name: torch.from_numpy(tensors[name].copy()).to(device) for name in inputs}
        with torch.no_grad():
            answers = output_tensors(call(model, arguments)).values()
            arrays = [tensor.cpu().numpy() for tensor in answers]
        return dict(zip(outputs, arrays, strict=True))

    with evaluation_mode(model), _without_tf32(device):
        yield infer


@contextmanager
def _without_tf32(device: torch.device) -> Iterator[None]:
    """PyTorch rounds convolutions on CUDA to TF32 unless told not to; a reference must not."""
    import torch

    if device.type != "cuda":
        yield
        return
    cudnn, matmul = torch.backends.cudnn, torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(
            enabled=cudnn.enabled,
            benchmark=cudnn.benchmark,
            deterministic=cudnn.deterministic,
            allow_tf32=False,
        ):
            yield
    finally:
        torch.set_float32_matmul_precision(matmul)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
