"""Histograms of a graph's values on samples -> the range that each is quantised to."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from mlflow_e2eai.artifacts import weight_files as weights
from mlflow_e2eai.artifacts.files import Real
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.values import Array, Infer, Library, Tensors
from mlflow_e2eai.runtime.isolation import isolated
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx

Calibrator: TypeAlias = Literal["max", "mse"]

_BIN_BITS = 5
"""Bits of a float's mantissa in the number of its bin: 32 bins for each power of two."""

_SHIFT = 23 - _BIN_BITS
_BINS = (0x7F800000 >> _SHIFT) + 1
"""Bins for all finite magnitudes of fp32, and one for infinities; NaN is in none."""

_ENDS = np.geomspace(1, 2.0**-4, 65)
"""Where a range may end, as shares of the largest magnitude; 4 % apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """The range that one value is quantised to.

    Attributes:
        value: Its name.
        magnitude: Largest finite magnitude on the samples.
        limit: End of the range; larger numbers are clipped.
        clipped: Share of the numbers that are.
    """

    value: str
    magnitude: Real
    limit: Real
    clipped: Real


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The ranges of a quantised graph's values, and their origin.

    Attributes:
        calibrator: ``max`` ends each range at the largest magnitude; ``mse`` where the mean square
            of the rounding and clipping error is least.
        samples: Number of samples.
        values: The values that are quantised, in the graph's order.
    """

    calibrator: Calibrator
    samples: int
    values: tuple[Calibrated, ...] = ()


def calibrate(
    model: onnx.ModelProto,
    values: Sequence[str],
    samples: Iterable[Tensors],
    *,
    calibrator: Calibrator,
    steps: int,
    libraries: Sequence[Library] = (),
) -> Calibration:
    """Choose the range to which each value is quantised, from its numbers on all samples.

    Samples are read once, one at a time, into histograms whose bins do not depend on the data: so
    any number of samples takes the same memory, and their order does not matter.

    Args:
        model: A graph in fp32.
        values: Names of its values.
        samples: Named arrays of its inputs' dtypes.
        calibrator: See `Calibration`.
        steps: Steps from zero to the end of a range: 127 in int8.
        libraries: Libraries with operators of the graph.

    Raises:
        RunnerError: ONNX Runtime cannot run the graph on a sample.
    """
    totals = {name: np.zeros(_BINS, np.int64) for name in values}
    largest = dict.fromkeys(values, 0.0)
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "observed.onnx")
        write_observed(model, values, path)
        with isolated(partial(_histograms_runner, path, tuple(values), libraries)) as infer:
            for sample in samples:
                count += 1
                for name, row in infer(sample).items():
                    totals[name] += row[:-1].astype(np.int64)
                    largest[name] = max(largest[name], float(row[-1]))
    return Calibration(
        calibrator=calibrator,
        samples=count,
        values=tuple(
            _range_of(name, totals[name], largest[name], calibrator, steps) for name in values
        ),
    )


def write_observed(model: onnx.ModelProto, values: Sequence[str], path: Path) -> None:
    """Write a graph whose outputs are these values."""
    import onnx

    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    inputs = {value.name for value in model.graph.input}
    fresh = FreshNames.of_model(model)
    del observed.graph.output[:]
    for name in values:
        # ONNX Runtime takes no output that is an input; a node between makes it one of its own.
        output = fresh(f"{name}_observed") if name in inputs else name
        if output != name:
            observed.graph.node.append(onnx.helper.make_node("Identity", [name], [output]))
        kind = onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)
        observed.graph.output.append(kind)
    with weights.weights_linked(observed, path.parent):
        path.write_bytes(observed.SerializeToString())


@contextmanager
def _histograms_runner(
    path: Path, values: Sequence[str], libraries: Sequence[Library]
) -> Iterator[Infer]:
    """Run a graph and return, for each value, its histogram and last its largest magnitude."""
    with onnxruntime_runner(path, libraries=libraries) as infer:

        def histograms(tensors: Tensors) -> Tensors:
            outputs = infer(tensors).values()
            return {name: histogram(array) for name, array in zip(values, outputs, strict=True)}

        yield histograms


def histogram(array: Array) -> Array:
    """Number of magnitudes in each bin, followed by the largest finite magnitude.

    A float's bits, read as a whole number, grow with its magnitude: the upper bits number the bin.
    """
    magnitudes = np.abs(np.ascontiguousarray(array, np.float32)).ravel()
    bins = np.bincount(magnitudes.view(np.uint32) >> _SHIFT, minlength=_BINS)[:_BINS]
    largest = np.max(magnitudes, initial=0.0, where=np.isfinite(magnitudes))
    return np.append(bins.astype(np.float64), float(largest))


def _range_of(
    name: str, counts: Array, largest: float, calibrator: Calibrator, steps: int
) -> Calibrated:
    exact = calibrator == "max" or not largest
    limit = largest if exact else _least_error(counts, largest, steps)
    centres = _centres()
    beyond = int(counts[:-1][centres > limit].sum()) if limit < largest else 0
    total = int(counts[:-1].sum())
    return Calibrated(
        value=name, magnitude=largest, limit=limit, clipped=beyond / total if total else 0.0
    )


def _least_error(counts: Array, largest: float, steps: int) -> float:
    """The end of a range of so many steps at which the mean square error is least."""
    centres, weighed = _centres(), counts[:-1].astype(np.float64)
    there = weighed > 0
    centres, weighed = centres[there], weighed[there]
    best, least = largest, np.inf
    for end in largest * _ENDS:
        step = end / steps
        # Within a bin that is wider than a step, an error is as likely to be anything up to half.
        exact = (centres - np.rint(centres / step) * step) ** 2
        rounded = np.where(centres / (1 << _BIN_BITS) > step, step**2 / 12, exact)
        errors = np.where(centres > end, (centres - end) ** 2, rounded)
        if (error := float(weighed @ errors)) < least:
            best, least = float(end), error
    return best


def _centres() -> Array:
    """The middle of each bin of finite magnitudes; that of zeros is zero."""
    edges = (np.arange(_BINS, dtype=np.uint32) << _SHIFT).view(np.float32).astype(np.float64)
    edges[-1] = 2.0**128
    centres = (edges[:-1] + edges[1:]) / 2
    centres[0] = 0.0
    return centres


def limits_of(calibration: Calibration) -> Mapping[str, float]:
    """The end of the range of each value, by name."""
    return {one.value: one.limit for one in calibration.values}
