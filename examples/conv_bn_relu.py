"""Two blocks of Conv, BatchNorm and ReLU: two exporters, one clean graph, an engine for sm86.

The network is the worked example of NVIDIA's article "End-to-End AI for Workstation". PyTorch
writes it once by trace and once by script; both must come out as the same four operators.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import mlflow_e2eai
from mlflow_e2eai import Axis
from mlflow_e2eai.artifacts.axes import resize
from mlflow_e2eai.artifacts.values import OnnxArtifact, Tensors
from mlflow_e2eai.engine.runner import engine_runner, unsupported_here
from mlflow_e2eai.errors import E2EAIError, MissingDependencyError
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner

OPSET = 13
TARGET = "sm86"
BATCH = Axis("N", min=1, opt=2, max=4)
DIFFERENT = 1


class ConvBnRelu(torch.nn.Module):
    """Images of 224 x 224 pixels in, 64 feature maps of 55 x 55 out."""

    def __init__(self) -> None:
        super().__init__()
        self.low = torch.nn.Sequential(
            torch.nn.Conv2d(3, 16, 3, stride=2), torch.nn.BatchNorm2d(16), torch.nn.ReLU()
        )
        self.high = torch.nn.Sequential(
            torch.nn.Conv2d(16, 64, 3, stride=2), torch.nn.BatchNorm2d(64), torch.nn.ReLU()
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Feature maps for a batch of images.

        Args:
            image: float32 [N, 3, 224, 224].

        Returns:
            float32 [N, 64, 55, 55].
        """
        return self.high(self.low(image))


def seeded(kind: type[torch.nn.Module]) -> torch.nn.Module:
    """A network with the same random weights each time, its BatchNorms with something to do."""
    torch.manual_seed(0)
    model = kind()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(part.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    return model.eval()


def images() -> Tensors:
    """The input example: two images of noise, under the name that the graph shall use."""
    noise = np.random.default_rng(0).standard_normal((2, 3, 224, 224), dtype=np.float32)
    return {"input": noise}


def batches(graph: OnnxArtifact) -> list[Tensors]:
    """The input example at the smallest, the usual and the largest batch of the profile."""
    sizes = (BATCH.min, BATCH.opt, BATCH.max)
    return [resize(images(), graph.inputs, {BATCH.name: size}) for size in sizes]


def cleaned(model: torch.nn.Module, exporter: str, folder: Path) -> OnnxArtifact:
    """Export a model by one exporter, clean the graph and say what it came to."""
    raw, _ = mlflow_e2eai.export(
        model,
        images(),
        out=folder / f"{exporter}.onnx",
        dynamic_axes={"input": {0: BATCH}},
        exporter=exporter,
        opset=OPSET,
    )
    clean, report = mlflow_e2eai.clean(raw, out=folder / f"{exporter}-clean.onnx")
    operators = ", ".join(f"{count} {name}" for name, count in report.operators_after.items())
    (given,), (answer,) = clean.inputs, clean.outputs
    print(
        f"{exporter:6}  opset {clean.opset}: {operators}; {given.name} {list(given.shape)} -> "
        f"{answer.name} {list(answer.shape)}"
    )
    return clean


def agrees(model: torch.nn.Module, graph: OnnxArtifact) -> bool:
    """Hold ONNX Runtime's answers and speed against PyTorch's, and say what was seen."""
    with (
        torch_runner(model, inputs=["input"], outputs=["output"]) as reference,
        onnxruntime_runner(graph.path) as candidate,
    ):
        parity = mlflow_e2eai.compare(
            reference, candidate, batches(graph), precision=graph.precision, repeats=3
        )
        candidates = {"PyTorch": reference, "ONNX Runtime": candidate}
        latency = mlflow_e2eai.benchmark(candidates, images(), warmup=3, rounds=20)
    verdict = "parity" if parity.passed else f"NO PARITY: {parity.findings[0].sentence}"
    times = ", ".join(f"{entry.name} {entry.p50_ms:.1f} ms" for entry in latency.variants)
    print(f"{graph.precision:6}  {verdict}, error up to {parity.max_abs_error:.1e}; {times}")
    return parity.passed


def engine_agrees(model: torch.nn.Module, graph: OnnxArtifact) -> bool:
    """Build an engine, and hold it against PyTorch where this machine can run it."""
    out = graph.path.with_name(f"{TARGET}-{graph.precision}.engine")
    try:
        engine = mlflow_e2eai.compile(graph, TARGET, out=out)
    except MissingDependencyError as error:
        print(f"{TARGET:6}  no engine: {error}")
        return True
    built = f"{TARGET:6}  {graph.precision} engine, {engine.size_bytes / 1e6:.2f} MB"
    if (reason := unsupported_here(engine)) is not None:
        print(f"{built}; not run: {reason}")
        return True
    with (
        torch_runner(model, inputs=["input"], outputs=["output"]) as reference,
        engine_runner(engine) as candidate,
    ):
        parity = mlflow_e2eai.compare(
            reference, candidate, batches(graph), precision=graph.precision
        )
    verdict = "parity" if parity.passed else f"NO PARITY: {parity.findings[0].sentence}"
    print(f"{built}; {verdict}, error up to {parity.max_abs_error:.1e}")
    return parity.passed


def main() -> int:
    """Export twice, clean, convert, compile and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/conv_bn_relu"))
    folder = parser.parse_args().out
    model = seeded(ConvBnRelu)
    graphs = [cleaned(model, exporter, folder) for exporter in ("trace", "script")]
    half, _ = mlflow_e2eai.convert(graphs[0], "fp16", out=folder / "trace-fp16.onnx")
    sound = [agrees(model, graph) for graph in (*graphs, half)]
    sound += [engine_agrees(model, graph) for graph in (graphs[0], half)]
    return 0 if all(sound) else DIFFERENT


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except E2EAIError as error:
        message = f"conv_bn_relu: {error}"
        raise SystemExit(message) from error
