"""The models of benchmarks/gpu.py, and the ways that peers and hands take to an answer."""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from mlflow_e2eai.artifacts.values import Array, EngineArtifact, Tensors

Call: TypeAlias = Callable[[], Mapping[str, Any]]
"""Answers what `Question` holds. The answer of a way on device tensors may still be on its way."""

SEQUENCE = 128


class Sentences(torch.nn.Module):
    """BERT-base of transformers, from its configuration: the last hidden state."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.bert = BertModel(BertConfig(), add_pooling_layer=False)

    def forward(self, input_ids: Any, attention_mask: Any) -> Any:
        """Hidden states [N, 128, 768] of token ids [N, 128]."""
        return self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state


class Half(torch.nn.Module):
    """A module in fp16 between float32 inputs and outputs, as converted graphs are."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half()

    def forward(self, *inputs: Any) -> Any:
        """Answer in float32."""
        halves = [x.half() if x.is_floating_point() else x for x in inputs]
        return self.module(*halves).float()


def model(name: str) -> torch.nn.Module:
    """ResNet-50 of torchvision or BERT-base of transformers, with random weights."""
    torch.manual_seed(0)
    if name == "ResNet-50":
        from torchvision.models import resnet50

        made: torch.nn.Module = resnet50(weights=None)
    else:
        made = Sentences()
    return made.eval().requires_grad_(requires_grad=False)


def sample(name: str, batch: int, seed: int) -> dict[str, Array]:
    """Inputs of a model: noise, or sentences of 64 to 128 tokens."""
    random = np.random.default_rng(seed)
    if name == "ResNet-50":
        return {"image": random.standard_normal((batch, 3, 224, 224), dtype=np.float32)}
    lengths = random.integers(SEQUENCE // 2, SEQUENCE, (batch, 1), endpoint=True)
    mask = (np.arange(SEQUENCE) < lengths).astype(np.int64)
    return {"input_ids": random.integers(0, 30522, mask.shape) * mask, "attention_mask": mask}


class Question:
    """What is asked, on the device and on the host; the arrays stay, and their values change."""

    def __init__(self, samples: Sequence[Tensors]) -> None:
        self._samples = samples
        self.host = {name: array.copy() for name, array in samples[0].items()}
        self.device = {name: torch.from_numpy(array).cuda() for name, array in self.host.items()}

    def ask(self, at: int) -> None:
        """Ask another sample from now on."""
        for name, array in self._samples[at].items():
            self.host[name][...] = array
            self.device[name].copy_(torch.from_numpy(array))
        torch.cuda.synchronize()


def eager(module: torch.nn.Module, question: Question) -> Call:
    """PyTorch as it is."""

    def call() -> Mapping[str, Any]:
        with torch.inference_mode():
            return {"output": module(*question.device.values())}

    return call


def compiled(module: torch.nn.Module, question: Question) -> Call:
    """torch.compile, which captures CUDA graphs by itself."""
    torch._dynamo.reset()  # noqa: SLF001 - after eight shapes of one code it would go on uncompiled
    fast = torch.compile(module, mode="reduce-overhead", dynamic=False)

    def call() -> Mapping[str, Any]:
        torch.compiler.cudagraph_mark_step_begin()
        with torch.no_grad():
            return {"output": fast(*question.device.values())}

    return call


def session(path: Path) -> Any:
    """ONNX Runtime on CUDA, without TF32.

    Raises:
        RuntimeError: It fell back to the CPU.
    """
    import onnxruntime

    onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    provider = ("CUDAExecutionProvider", {"use_tf32": "0"})
    made = onnxruntime.InferenceSession(path, options, providers=[provider])
    if made.get_providers()[0] != provider[0]:
        msg = f"ONNX Runtime runs {path.name} on {made.get_providers()[0]}."
        raise RuntimeError(msg)
    return made


def bound(running: Any, question: Question, shape: Sequence[int]) -> Call:
    """ONNX Runtime with inputs and the output bound to device memory."""
    binding = running.io_binding()
    for name, tensor in question.device.items():
        dtype = np.dtype(str(tensor.dtype).removeprefix("torch."))
        binding.bind_input(name, "cuda", 0, dtype, tuple(tensor.shape), tensor.data_ptr())
    (output,) = running.get_outputs()
    answer = torch.empty(tuple(shape), device="cuda")
    binding.bind_output(output.name, "cuda", 0, np.float32, tuple(shape), answer.data_ptr())

    def call() -> Mapping[str, Any]:
        running.run_with_iobinding(binding)
        return {output.name: answer}

    return call


class Plan:
    """An engine, deserialised by hand."""

    def __init__(self, engine: EngineArtifact) -> None:
        self._trt: Any = import_module(engine.target.backend)
        self._log = self._trt.Logger(self._trt.Logger.ERROR)
        self._runtime = self._trt.Runtime(self._log)
        self._engine = self._runtime.deserialize_cuda_engine(engine.path.read_bytes())
        self.output = engine.outputs[0].name

    @property
    def captures(self) -> bool:
        """Whether the library captures CUDA graphs by itself."""
        return hasattr(self._trt, "CudaGraphStrategy")

    def context(self, shapes: Mapping[str, Sequence[int]], stream: int, *, graph: bool) -> Any:
        """An execution context for some shapes, with its static profile where there is one."""
        if self.captures:
            config = self._engine.create_runtime_config()
            strategy = self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            config.dynamic_shapes_kernel_specialization_strategy = strategy
            if graph:
                config.cuda_graph_strategy = self._trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if profile := self._profile(shapes):
            context.set_optimization_profile_async(profile, stream)
        for name, shape in shapes.items():
            context.set_input_shape(name, tuple(shape))
        return context

    def _profile(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """The narrowest profile that covers some shapes."""
        widths = {}
        for at in range(self._engine.num_optimization_profiles):
            bounds = {name: self._engine.get_tensor_profile_shape(name, at) for name in shapes}
            sizes = [
                size
                for name, (least, _, most) in bounds.items()
                for size in zip(least, shapes[name], most, strict=True)
            ]
            if all(low <= size <= high for low, size, high in sizes):
                widths[at] = sum(high - low for low, _, high in sizes)
        return min(widths, key=widths.__getitem__, default=0)


def bare(plan: Plan, question: Question, *, graph: bool) -> Call:
    """The engine on device tensors and nothing else, in a CUDA graph or not."""
    stream = torch.cuda.Stream()
    shapes = {name: tuple(tensor.shape) for name, tensor in question.device.items()}
    context = plan.context(shapes, stream.cuda_stream, graph=graph)
    answer = torch.empty(tuple(context.get_tensor_shape(plan.output)), device="cuda")
    for name, tensor in {**question.device, plan.output: answer}.items():
        context.set_tensor_address(name, tensor.data_ptr())
    handle = stream.cuda_stream
    if graph and not plan.captures:
        context.execute_async_v3(handle)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=stream):
            context.execute_async_v3(handle)

    def call() -> Mapping[str, Any]:
        if graph and not plan.captures:
            captured.replay()
        else:
            context.execute_async_v3(handle)
        return {plan.output: answer}

    return call


def pinned(plan: Plan, question: Question) -> Call:
    """What an engineer writes for NumPy: pinned buffers that are used again, one stream, a graph.

    The answer is the caller's to keep, as it is from every other way: it is copied out.
    """
    from cuda.core import Device, LegacyPinnedMemoryResource

    device = Device(0)
    device.set_current()
    stream, memory = device.create_stream(), LegacyPinnedMemoryResource()
    handle = int(stream.handle)
    shapes = {name: array.shape for name, array in question.host.items()}
    context = plan.context(shapes, handle, graph=plan.captures)
    shape = tuple(context.get_tensor_shape(plan.output))
    arrays = {**question.host, plan.output: np.empty(shape, np.float32)}
    there = {name: device.allocate(array.nbytes, stream=stream) for name, array in arrays.items()}
    here = {name: memory.allocate(array.nbytes) for name, array in arrays.items()}
    views = {name: _array(here[name], array) for name, array in arrays.items()}
    for name, buffer in there.items():
        context.set_tensor_address(name, int(buffer.handle))

    def call() -> Mapping[str, Any]:
        for name, array in question.host.items():
            np.copyto(views[name], array)
            there[name].copy_from(here[name], stream=stream)
        context.execute_async_v3(handle)
        here[plan.output].copy_from(there[plan.output], stream=stream)
        stream.sync()
        return {plan.output: views[plan.output].copy()}

    return call


def _array(buffer: Any, like: Array) -> Array:
    """The memory of a host buffer as an array."""
    raw: Any = (ctypes.c_byte * like.nbytes).from_address(int(buffer.handle))
    array: Array = np.frombuffer(raw, like.dtype).reshape(like.shape)
    return array
