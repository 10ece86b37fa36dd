"""Checks of an exported graph against the module: its interface, and its numbers on samples.

An exporter that raises nothing may still have fixed the branch that the example took, or a size of
the example. That shows only on other samples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.values import Library, Tensors, TensorSpec
from mlflow_e2eai.errors import ExportError, RunnerError
from mlflow_e2eai.parity.report import ParityReport
from mlflow_e2eai.pytorch.references import References, ReferenceSample
from mlflow_e2eai.runtime.isolation import IsolatedRunner, isolated_onnxruntime

if TYPE_CHECKING:
    from warnings import WarningMessage

    import onnx


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
        msg = f"Opset {opset} was requested, but the {exporter} exporter wrote opset {written}."
        raise ExportError(msg)
    names = tuple(spec.name for spec in written_outputs)
    if names != outputs:
        msg = f"The outputs are named {list(names)}, but {list(outputs)} was requested."
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
                f"{list(spec.shape)} was requested: forward fixes a size (or the {exporter} "
                "exporter did); make forward independent of it, or leave the axis static."
            )
            raise ExportError(msg)


def check_numbers(
    path: Path,
    references: References,
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
        references: The samples.
        outputs: Names of the outputs, in order.
        exporter: Name of the exporter that wrote it.
        warned: Warnings of the exporter.
        lacking: Operators of the graph that ONNX Runtime does not have.
        libraries: Libraries with its operators.

    Returns:
        The reason why they could not be compared; None where they are equal.

    Raises:
        ExportError: They differ, or the graph does not run; or the exporter froze a value, and no
            sample with other values of an input could be run.
    """
    references.compared += 1
    references.max_abs_error = None
    where = frozen_at(warned)
    what = "" if where is None else f", which froze a value at {where},"
    if lacking:
        doubt = "" if where is None else f", and the {exporter} exporter froze a value at {where}"
        return f"ONNX Runtime does not have {', '.join(lacking)}{doubt}"
    if not references.samples:
        return "the model accepts no sample whose outputs are free of ties"
    if where is not None and (untried := references.untried_inputs()):
        msg = (
            f"The graph of the {exporter} exporter{what} may be wrong for other values of "
            f"{untried[0]!r}, none of which the model accepted"
        )
        raise ExportError(msg)
    wrong = _difference(path, references, outputs, libraries, strict=where is not None)
    if wrong is None:
        return None
    msg = f"The graph of the {exporter} exporter{what} does not match PyTorch{wrong}"
    raise ExportError(msg)


_MOST_LINES = 3
"""Lines that a sentence about frozen values names."""


def frozen_at(warned: Sequence[WarningMessage]) -> str | None:
    """The lines where the tracer took a value for a constant; None where it warned of none.

    Of ``torch._assert`` it warns too, by which an exported program checks its inputs: nothing that
    is computed comes from there.
    """
    import torch

    places = {
        f"{Path(each.filename).name}:{each.lineno}": None
        for each in warned
        if each.category.__name__ == "TracerWarning" and each.filename != torch.__file__
    }
    more = f" and {len(places) - _MOST_LINES} more" if len(places) > _MOST_LINES else ""
    return f"{', '.join([*places][:_MOST_LINES])}{more}" or None


def _difference(
    path: Path,
    references: References,
    outputs: tuple[str, ...],
    libraries: Sequence[Library],
    *,
    strict: bool,
) -> str | None:
    """The first wrong output as a sentence; None where all numbers are right.

    ONNX Runtime runs in a process of its own: a graph that it cannot run may crash it. Extreme
    samples come last, each on its own. They decide where `strict`, for an exporter that froze a
    value, unless only NaN differs: of a row that is masked whole PyTorch makes zeros, and the graph
    another mean of nothing.
    """
    usual = [sample for sample in references.samples if not sample.extreme]
    extreme = [sample for sample in references.samples if sample.extreme]
    scales = _scales(tuple(references.samples), outputs)
    now: ReferenceSample | None = None

    def compare(candidate: IsolatedRunner, samples: Sequence[ReferenceSample]) -> ParityReport:
        right = iter(samples)

        def reference(_: Tensors) -> Tensors:
            nonlocal now
            now = next(right)
            return dict(zip(outputs, now.right, strict=True))

        inputs = [sample.inputs for sample in samples]
        return candidate.compare(reference, inputs, repeats=1, scales=scales)

    try:
        with isolated_onnxruntime(path, libraries=libraries) as candidate:
            report = compare(candidate, usual)
            if not report.passed:
                return _sentence(report, usual)
            references.max_abs_error = report.max_abs_error
            for sample in extreme:
                report = compare(candidate, [sample])
                if report.passed:
                    continue
                undefined = _is_undefined(report)
                if strict and not undefined:
                    return _sentence(report, [sample])
                given = "NaN" if undefined else "other numbers"
                references.leave_out(
                    sample, f"a reduction may run over nothing there, and the graph gives {given}"
                )
    except RunnerError as error:
        return f"{_on(now)}: {error}"
    return None


def _is_undefined(report: ParityReport) -> bool:
    """Whether nothing is wrong but numbers that are not finite, and are in the module."""
    wrong = [output for output in report.outputs if output.outside_share > 0]
    undefined = [
        output
        for output in wrong
        if round(output.outside_share * output.elements) == output.nonfinite_count
        and output.candidate_nonfinite >= output.nonfinite_count
    ]
    return bool(wrong) and wrong == undefined


def _sentence(report: ParityReport, samples: Sequence[ReferenceSample]) -> str:
    """The first finding, with its sample by label in place of its number."""
    finding = report.findings[0]
    if finding.sample is None:
        return f": {finding.sentence}"
    words = finding.sentence.removeprefix(f"Sample {finding.sample}, ")
    return f"{_on(samples[finding.sample])}: {words}"


def _on(sample: ReferenceSample | None) -> str:
    return "" if sample is None else f" on the sample {sample.label!r}"


def _scales(samples: tuple[ReferenceSample, ...], outputs: tuple[str, ...]) -> dict[str, float]:
    """Largest magnitude of each floating output on the first sample, the scale of errors."""
    sizes = {
        name: float(np.abs(array[np.isfinite(array)]).max(initial=0))
        for name, array in zip(outputs, samples[0].right, strict=True)
        if array.dtype.kind == "f"
    }
    return {name: size for name, size in sizes.items() if size > 0 and math.isfinite(size)}
