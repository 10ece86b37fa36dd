"""A custom operator that no runtime knows: TensorRT refuses it by name, surgery takes it out.

The network of conv_bn_relu.py, with an operator ``devtech::FooOp`` between its two blocks, as in
NVIDIA's article "End-to-End AI for Workstation". In PyTorch the operator hands on what it gets; in
the graph it is a node that only its author could run.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from conv_bn_relu import BATCH, OPSET, TARGET, ConvBnRelu, batches, images, seeded

import mlflow_e2eai
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import OnnxArtifact
from mlflow_e2eai.errors import E2EAIError, EngineBuildError, MissingDependencyError
from mlflow_e2eai.pytorch.runner import torch_runner
from mlflow_e2eai.runtime.ort import onnxruntime_runner
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, plan_from

PLAN = plan_from([{"bypass": {"op_type": "FooOp", "domain": "devtech"}}, *DEFAULT_PLAN])
DIFFERENT = 1
NOT_REFUSED = 2


class FooOp(torch.autograd.Function):
    """Hands on what it gets, and stands in the ONNX graph as a node of its own.

    `symbolic` says what that node is; mlflow_e2eai keeps it under the dynamo exporter too, which of
    itself would look into `forward`, find nothing to compute, and lose the node unseen.
    """

    @staticmethod
    def symbolic(g: Any, x: Any) -> Any:
        """The node, with the type of what goes in, so that shapes are known behind it."""
        return g.op("devtech::FooOp", x).setType(x.type())

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:  # noqa: ARG004 - autograd's signature
        """What PyTorch computes: nothing."""
        return x.view_as(x)


class WithFooOp(ConvBnRelu):
    """The two blocks with the custom operator between them."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Feature maps for a batch of images, as without the operator."""
        return self.high(FooOp.apply(self.low(image)))


def exported(model: torch.nn.Module, folder: Path) -> OnnxArtifact:
    """Export by trace, and show the nodes."""
    raw, _ = mlflow_e2eai.export(
        model,
        images(),
        out=folder / "with_foo.onnx",
        dynamic_axes={"input": {0: BATCH}},
        exporter="trace",
        opset=OPSET,
        deferred=["devtech::FooOp"],  # PLAN takes it out
    )
    nodes = graphs.read(raw.path).graph.node
    chain = " -> ".join(graphs.operator_name(node.domain, node.op_type) for node in nodes)
    print(f"exported  {chain}")
    return raw


def refused(graph: OnnxArtifact) -> bool:
    """Whether TensorRT refuses a graph (or is not here to be asked), with its reason printed."""
    try:
        mlflow_e2eai.compile(graph, TARGET, out=graph.path.with_name("refused.engine"))
    except EngineBuildError as error:
        print(f"refused   node {error.node}, operator {error.operator}: {error.reason}")
    except MissingDependencyError as error:
        print(f"no engine {error}")
    else:
        print("NOT REFUSED: this TensorRT builds devtech::FooOp")
        return False
    return True


def operated(model: torch.nn.Module, raw: OnnxArtifact, folder: Path) -> tuple[OnnxArtifact, bool]:
    """Take the operator out, with the PyTorch module to say what is right; and whether it is."""
    out = folder / "without_foo.onnx"
    with torch_runner(model, inputs=["input"], outputs=["output"]) as reference:
        clean, report = mlflow_e2eai.clean(
            raw, PLAN, out=out, samples=batches(raw), reference=reference
        )
        print(f"surgery   {', '.join(f'{rule}: {count}' for rule, count in report.edits.items())}")
        with onnxruntime_runner(clean.path) as candidate:
            parity = mlflow_e2eai.compare(reference, candidate, batches(clean), repeats=3)
    verdict = "parity" if parity.passed else f"NO PARITY: {parity.findings[0].sentence}"
    print(f"compared  {verdict}, error up to {parity.max_abs_error:.1e}")
    return clean, parity.passed


def built(graph: OnnxArtifact) -> None:
    """Build the engine that was refused before."""
    try:
        engine = mlflow_e2eai.compile(graph, TARGET, out=graph.path.with_suffix(".engine"))
    except MissingDependencyError:
        return  # `refused` has said so
    print(f"built     {engine.target} engine, {engine.size_bytes / 1e6:.2f} MB")


def main() -> int:
    """Export, be refused, operate, compare, build."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/custom_operator"))
    folder = parser.parse_args().out
    model = seeded(WithFooOp)
    raw = exported(model, folder)
    if not refused(raw):
        return NOT_REFUSED
    clean, same = operated(model, raw, folder)
    built(clean)
    return 0 if same else DIFFERENT


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except E2EAIError as error:
        message = f"custom_operator: {error}"
        raise SystemExit(message) from error
