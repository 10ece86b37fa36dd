"""Whether an exported graph is the module: its interface, and its numbers on samples.

An exporter that raises nothing may still have frozen a branch at what the example took, or a size
at what the example had. That shows only on other samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.axes import corners, resize
from mlflow_e2eai.artifacts.values import Array, Axis, Library, Tensors, TensorSpec
from mlflow_e2eai.errors import ExportError, InvalidInputError, RunnerError
from mlflow_e2eai.parity.measure import is_exact
from mlflow_e2eai.parity.samples import branch_samples
from mlflow_e2eai.pytorch.flat_module import run_module
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime

if TYPE_CHECKING:
    from warnings import WarningMessage

    import onnx
    import torch

_NUDGE = 2.0**-20
"""Of the largest number: 16 times the unit roundoff of fp32, as a few layers leave it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A sample, and the module's answer to it, outputs in order.

    Attributes:
        label: What kind of sample it is, for people.
        inputs: The arrays.
        right: What the module gave.
    """

    label: str
    inputs: Tensors
    right: tuple[np.ndarray, ...]


def test_samples(
    module: torch.nn.Module,
    example: Tensors,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
) -> tuple[Question, ...]:
    """The samples to verify a graph on: the corners of its axes, then other values.

    Answers that are not finite are left out: what a module makes of such numbers is its own. So are
    samples with other values that it refuses, and ties: where a rounding error in the inputs
    changes an integer of the answer, such as an argmax of zeros, either is right.

    Raises:
        InvalidInputError: The module refuses the example at a corner of its axes.
    """
    asked = []
    for label, sizes in corners(axes).items():
        sample = resize(example, specs, sizes)
        what = f"the input example at the {label} size of its dynamic axes"
        asked.append(_run_sample(module, label, sample, what=what))
    opt = resize(example, specs, {axis.name: axis.opt for axis in axes})
    for label, sample in branch_samples(opt).items():
        try:
            asked.append(_run_sample(module, label, sample, what=label))
        except InvalidInputError:
            continue
    return tuple(each for each in asked if _is_finite(each) and not _is_tie(module, each))


def _run_sample(module: torch.nn.Module, label: str, sample: Tensors, *, what: str) -> Question:
    right = tuple(
        tensor.detach().cpu().numpy() for tensor in run_module(module, sample, what=what).values()
    )
    return Question(label=label, inputs=sample, right=right)


def _is_finite(question: Question) -> bool:
    arrays = (*question.inputs.values(), *question.right)
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def _is_tie(module: torch.nn.Module, question: Question) -> bool:
    if not any(is_exact(array) for array in question.right):
        return False
    random = np.random.default_rng(0)
    for _ in range(2):
        nudged = {name: _perturb(array, random) for name, array in question.inputs.items()}
        try:
            again = _run_sample(module, question.label, nudged, what=question.label).right
        except InvalidInputError:
            return True
        for before, after in zip(question.right, again, strict=True):
            if is_exact(before) and not np.array_equal(before, after):
                return True
    return False


def _perturb(array: Array, random: np.random.Generator) -> Array:
    """An array whose floating-point numbers are off by about a rounding error of fp32."""
    if array.dtype.kind != "f":
        return array
    scale = float(np.abs(array).max(initial=0)) or 1.0
    return np.asarray(array + scale * _NUDGE * random.standard_normal(array.shape), array.dtype)


def check_interface(
    model: onnx.ModelProto,
    *,
    specs: tuple[TensorSpec, ...],
    outputs: tuple[str, ...],
    opset: int,
    exporter: str,
) -> None:
    """Compare what was written with what was asked for.

    Raises:
        ExportError: The opset, an input or the outputs are others.
    """
    inputs, found_outputs = graphs.interface(model)
    if (found := graphs.opset_of(model)) != opset:
        msg = f"Opset {opset} was asked for, but the {exporter} exporter wrote opset {found}."
        raise ExportError(msg)
    names = tuple(spec.name for spec in found_outputs)
    if names != outputs:
        msg = f"The outputs are named {list(names)}, but {list(outputs)} was asked for."
        raise ExportError(msg)
    by_name = {spec.name: spec for spec in inputs}
    for spec in specs:
        written_spec = by_name.get(spec.name)
        if written_spec is None:
            msg = (
                f"The {exporter} exporter dropped input {spec.name!r}: forward does not use it, "
                f"or only to choose a branch or a length that is now fixed; leave it out of the "
                f"input example, or use exporter='script'."
            )
            raise ExportError(msg)
        if written_spec.shape != spec.shape:
            msg = (
                f"Input {spec.name!r} has shape {list(written_spec.shape)} in the graph, but "
                f"{list(spec.shape)} was asked for: forward fixes a size (or the {exporter} "
                f"exporter did); make forward independent of it, or leave the axis static."
            )
            raise ExportError(msg)


def check_numbers(
    path: Path,
    asked: tuple[Question, ...],
    outputs: tuple[str, ...],
    exporter: str,
    warned: Sequence[WarningMessage],
    *,
    lacking: Sequence[str] = (),
    libraries: Sequence[Library] = (),
) -> str | None:
    """Hold a graph's numbers against the module's.

    Args:
        path: The graph.
        asked: See `test_samples`.
        outputs: Names of the outputs, in order.
        exporter: Who wrote it.
        warned: What it warned of meanwhile.
        lacking: Operators of the graph that ONNX Runtime has not.
        libraries: Libraries with its operators.

    Returns:
        Why they could not be compared; None where they are the module's.

    Raises:
        ExportError: They are others, or the graph does not run.
    """
    if lacking:
        return f"ONNX Runtime does not have {', '.join(lacking)}"
    if not asked:
        return "no answer of the module to any sample is finite and free of ties"
    wrong = _difference(path, asked, outputs, libraries)
    if wrong is None:
        return None
    # The tracer says where it took a value for a constant.
    frozen = next((w for w in warned if w.category.__name__ == "TracerWarning"), None)
    where = "" if frozen is None else f" at {Path(frozen.filename).name}:{frozen.lineno}"
    what = "" if frozen is None else f", which froze a value{where},"
    msg = f"The graph of the {exporter} exporter{what} does not give the module's numbers{wrong}"
    raise ExportError(msg)


def _difference(
    path: Path, asked: tuple[Question, ...], outputs: tuple[str, ...], libraries: Sequence[Library]
) -> str | None:
    """The first wrong output as a sentence; None where all numbers are right.

    ONNX Runtime is asked in a process of its own: a graph that it does not take may crash it.
    """
    right = iter(asked)
    now: Question | None = None

    def reference(_: Tensors) -> Tensors:
        nonlocal now
        now = next(right)
        return dict(zip(outputs, now.right, strict=True))

    try:
        with isolated_onnxruntime(path, libraries=libraries) as candidate:
            report = candidate.compare(
                reference,
                [question.inputs for question in asked],
                repeats=1,
                scales=_scales(asked, outputs),
            )
    except RunnerError as error:
        return f"{_on(now)}: {error}"
    if report.passed:
        return None
    finding = report.findings[0]
    question = None if finding.sample is None else asked[finding.sample]
    return f"{_on(question)}: {finding.sentence}"


def _on(question: Question | None) -> str:
    return "" if question is None else f" on the sample {question.label!r}"


def _scales(asked: tuple[Question, ...], outputs: tuple[str, ...]) -> dict[str, float]:
    """The magnitude of each floating output's first answer: of zeros there is no share."""
    sizes = {
        name: float(np.abs(array).max(initial=0))
        for name, array in zip(outputs, asked[0].right, strict=True)
        if array.dtype.kind == "f"
    }
    return {name: size for name, size in sizes.items() if size > 0 and math.isfinite(size)}
