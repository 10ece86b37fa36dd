"""Checks of an exported graph against the module: its interface, and its numbers on samples.

An exporter that raises nothing may still have fixed the branch that the example took, or a size of
the example. That shows only on other samples.
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
class ReferenceSample:
    """A sample with the module's outputs for it, in order.

    Attributes:
        label: Kind of sample, for people.
        inputs: Arrays by name.
        right: The module's outputs.
    """

    label: str
    inputs: Tensors
    right: tuple[np.ndarray, ...]


def reference_samples(
    module: torch.nn.Module,
    example: Tensors,
    specs: tuple[TensorSpec, ...],
    axes: tuple[Axis, ...],
) -> tuple[ReferenceSample, ...]:
    """The samples to verify a graph on: the corners of its axes, then other values.

    Samples whose outputs are not finite are left out. So are samples with other values that the
    module refuses, and ties: where a rounding error in the inputs changes an integer of the output,
    such as an argmax of zeros, either is right.

    Raises:
        InvalidInputError: The module refuses the example at a corner of its axes.
    """
    samples = []
    for label, sizes in corners(axes).items():
        sample = resize(example, specs, sizes)
        what = f"the input example at the {label} size of its dynamic axes"
        samples.append(_run_sample(module, label, sample, what=what))
    opt = resize(example, specs, {axis.name: axis.opt for axis in axes})
    for label, sample in branch_samples(opt).items():
        try:
            samples.append(_run_sample(module, label, sample, what=label))
        except InvalidInputError:
            continue
    return tuple(each for each in samples if _is_finite(each) and not _is_tie(module, each))


def _run_sample(
    module: torch.nn.Module, label: str, sample: Tensors, *, what: str
) -> ReferenceSample:
    right = tuple(
        tensor.detach().cpu().numpy() for tensor in run_module(module, sample, what=what).values()
    )
    return ReferenceSample(label=label, inputs=sample, right=right)


def _is_finite(sample: ReferenceSample) -> bool:
    arrays = (*sample.inputs.values(), *sample.right)
    return all(np.isfinite(array).all() for array in arrays if array.dtype.kind == "f")


def _is_tie(module: torch.nn.Module, sample: ReferenceSample) -> bool:
    if not any(is_exact(array) for array in sample.right):
        return False
    random = np.random.default_rng(0)
    for _ in range(2):
        nudged = {name: _perturb(array, random) for name, array in sample.inputs.items()}
        try:
            again = _run_sample(module, sample.label, nudged, what=sample.label).right
        except InvalidInputError:
            return True
        for before, after in zip(sample.right, again, strict=True):
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
    """Compare the interface of a graph with the requested one.

    Raises:
        ExportError: The opset, an input or the outputs differ.
    """
    inputs, written_outputs = graphs.interface(model)
    if (written := graphs.opset_of(model)) != opset:
        msg = f"Opset {opset} was asked for, but the {exporter} exporter wrote opset {written}."
        raise ExportError(msg)
    names = tuple(spec.name for spec in written_outputs)
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
    samples: tuple[ReferenceSample, ...],
    outputs: tuple[str, ...],
    exporter: str,
    warned: Sequence[WarningMessage],
    *,
    lacking: Sequence[str] = (),
    libraries: Sequence[Library] = (),
) -> str | None:
    """Compare a graph's numbers with the module's.

    Args:
        path: The graph.
        samples: Those of `reference_samples`.
        outputs: Names of the outputs, in order.
        exporter: Name of the exporter that wrote it.
        warned: Warnings of the exporter.
        lacking: Operators of the graph that ONNX Runtime does not have.
        libraries: Libraries with its operators.

    Returns:
        The reason why they could not be compared; None where they are equal.

    Raises:
        ExportError: They differ, or the graph does not run.
    """
    if lacking:
        return f"ONNX Runtime does not have {', '.join(lacking)}"
    if not samples:
        return "no output of the module for any sample is finite and free of ties"
    wrong = _difference(path, samples, outputs, libraries)
    if wrong is None:
        return None
    # The tracer warns where it took a value for a constant.
    frozen = next((w for w in warned if w.category.__name__ == "TracerWarning"), None)
    where = "" if frozen is None else f" at {Path(frozen.filename).name}:{frozen.lineno}"
    what = "" if frozen is None else f", which froze a value{where},"
    msg = f"The graph of the {exporter} exporter{what} does not give the module's numbers{wrong}"
    raise ExportError(msg)


def _difference(
    path: Path,
    samples: tuple[ReferenceSample, ...],
    outputs: tuple[str, ...],
    libraries: Sequence[Library],
) -> str | None:
    """The first wrong output as a sentence; None where all numbers are right.

    ONNX Runtime runs in a process of its own: a graph that it cannot run may crash it.
    """
    right = iter(samples)
    now: ReferenceSample | None = None

    def reference(_: Tensors) -> Tensors:
        nonlocal now
        now = next(right)
        return dict(zip(outputs, now.right, strict=True))

    try:
        with isolated_onnxruntime(path, libraries=libraries) as candidate:
            report = candidate.compare(
                reference,
                [sample.inputs for sample in samples],
                repeats=1,
                scales=_scales(samples, outputs),
            )
    except RunnerError as error:
        return f"{_on(now)}: {error}"
    if report.passed:
        return None
    finding = report.findings[0]
    sample = None if finding.sample is None else samples[finding.sample]
    return f"{_on(sample)}: {finding.sentence}"


def _on(sample: ReferenceSample | None) -> str:
    return "" if sample is None else f" on the sample {sample.label!r}"


def _scales(samples: tuple[ReferenceSample, ...], outputs: tuple[str, ...]) -> dict[str, float]:
    """Largest magnitude of each floating output on the first sample, the scale of errors."""
    sizes = {
        name: float(np.abs(array).max(initial=0))
        for name, array in zip(outputs, samples[0].right, strict=True)
        if array.dtype.kind == "f"
    }
    return {name: size for name, size in sizes.items() if size > 0 and math.isfinite(size)}
