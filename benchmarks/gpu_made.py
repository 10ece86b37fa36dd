"""A model of benchmarks/gpu.py, built and loaded by our public API, and what opens each way."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_page
import gpu_ways
import torch

import mlflow_e2eai
from mlflow_e2eai.artifacts.values import Axis, Tensors
from mlflow_e2eai.evaluation import stage as evaluation_stage
from mlflow_e2eai.evaluation import variants
from mlflow_e2eai.evaluation.effort import EFFORTS
from mlflow_e2eai.evaluation.variants import engine_variant

_BRIEF = dataclasses.replace(EFFORTS["standard"], latency_s=1.0)


@contextmanager
def on_this_gpu() -> Iterator[None]:
    """Judge on the GPU alone.

    On the CPU BERT-base takes minutes that a lent GPU does not have, and no figure here is of it.
    """

    def variants_of(*arguments: Any) -> dict[str, Any]:
        found = variants.variants_of(*arguments)
        return {name: it for name, it in found.items() if not name.startswith("onnxruntime-cpu")}

    with (
        mock.patch.object(evaluation_stage, "variants_of", variants_of),
        mock.patch.object(evaluation_stage, "EFFORTS", {"standard": _BRIEF}),
    ):
        yield


class Made:
    """A model and what came of it by `save_model`, with what its cells share."""

    def __init__(
        self, name: str, folder: Path, stack: ExitStack, *, buckets: tuple[int, ...]
    ) -> None:
        self.name, self._stack = name, stack
        self._on_cpu = gpu_ways.model(name)
        self.module = copy.deepcopy(self._on_cpu).cuda()
        self._folder, self._buckets = folder, buckets
        self._kept: dict[Any, Any] = {}
        example = gpu_ways.sample(name, 2, seed=0)
        axis = Axis("N", min=1, opt=8, max=max(buckets), buckets=buckets)
        with on_this_gpu():
            mlflow_e2eai.save_model(
                self.module,
                folder,
                input_example=example,
                dynamic_axes={given: {0: axis} for given in example},
                output_names=["output"],
                precisions=("fp32", "fp16"),
                targets=("local",),
            )

    def kept(self, *key: Any, make: Callable[[], Any]) -> Any:
        """What is made once."""
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def loaded(self, **how: Any) -> Any:
        """Ours."""

        def make() -> Any:
            return self._stack.enter_context(mlflow_e2eai.load_model(str(self._folder), **how))

        return self.kept(*how.items(), make=make)

    def wanted(self, samples: Sequence[Tensors]) -> Any:
        """What the module answers on the CPU, in fp32."""

        def make() -> Any:
            with torch.no_grad():
                given = [[torch.from_numpy(each) for each in one.values()] for one in samples]
                return [self._on_cpu(*one).cuda() for one in given]

        return self.kept("wanted", len(next(iter(samples[0].values()))), make=make)

    def engine(self, precision: str) -> Any:
        """The engine of a precision."""
        engines = self.loaded(goal="latency").manifest.engines
        return next(engine for engine in engines if engine.arithmetic == precision)

    def graph(self, precision: str) -> Path:
        """The graph of a precision."""
        graphs = self.loaded(goal="latency").manifest.graphs
        return next(Path(graph.path) for graph in graphs if graph.precision == precision)

    def openers(
        self, question: Any, precision: str, wanted: Any
    ) -> Mapping[str, Callable[[], tuple[Any, str]]]:
        """For each way what opens it: a callable without arguments, and a note."""
        module = self.module
        if precision == "fp16":
            module = self.kept("half", make=lambda: gpu_ways.Half(self.module).eval())
        batch = len(wanted)
        goal = f"latency@{batch}" if batch in self._buckets else "latency"

        def session() -> Any:
            made = partial(gpu_ways.session, self.graph(precision))
            return self.kept("session", precision, make=made)

        def plan() -> Any:
            return self.kept("plan", precision, make=lambda: gpu_ways.Plan(self.engine(precision)))

        def ours(given: Any, **how: Any) -> tuple[Any, str]:
            model = self.loaded(**how)
            return lambda: model(given), model.variant

        def named() -> str:
            return engine_variant(self.engine(precision))

        return {
            gpu_page.EAGER: lambda: (gpu_ways.eager(module, question), ""),
            gpu_page.COMPILED: lambda: (gpu_ways.compiled(module, question), ""),
            gpu_page.ORT: lambda: (gpu_ways.bound(session(), question, wanted.shape), ""),
            gpu_page.BARE: lambda: (gpu_ways.bare(plan(), question, graph=False), ""),
            gpu_page.GRAPH: lambda: (gpu_ways.bare(plan(), question, graph=True), ""),
            gpu_page.OURS: lambda: (ours(question.device, variant=named())[0], ""),
            gpu_page.CHOSEN: lambda: ours(question.device, goal=goal),
            gpu_page.PINNED: lambda: (gpu_ways.pinned(plan(), question), ""),
            gpu_page.NUMPY: lambda: (ours(question.host, variant=named())[0], ""),
        }
