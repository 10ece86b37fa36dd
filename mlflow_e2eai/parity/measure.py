"""Two arrays of one shape -> their differences, in one pass that fits the cache."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass, fields

import numpy as np

from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.parity.report import Element, OutputParity
from mlflow_e2eai.parity.tolerances import FLOOR, MAX_SNR_DB, TINY

BLOCK = 12288
"""Elements taken at a time: three buffers of float64 and one of ones then stay in a core's own
cache."""


FIVE = 5

NO_NUMBERS = "OSUTMmV"
"""Kinds of dtype that are only equal or not: objects, texts, times and records."""


@dataclass(slots=True)
class Measure:
    """Differences of one output, or of several, from the reference.

    Attributes are sums but for those that start with ``max``; `worst`, `first` and `bad` are
    positions in the flattened output: of the largest difference, of the first that is outside the
    tolerance and of the first that is not finite on both sides, None where there is none.
    """

    elements: int = 0
    mismatched: int = 0
    reference_nonfinite: int = 0
    candidate_nonfinite: int = 0
    outside: int = 0
    absolute: float = 0.0
    squared: float = 0.0
    reference_squared: float = 0.0
    candidate_squared: float = 0.0
    elementwise: float = 0.0
    rows: int = 0
    argmax_agrees: int = 0
    top5_rows: int = 0
    top5_agrees: int = 0
    max_abs: float = 0.0
    max_rel: float = 0.0
    max_elementwise: float = 0.0
    worst: int | None = None
    first: int | None = None
    bad: int | None = None

    @property
    def right(self) -> bool:
        """Whether every element is within the tolerance, and finite where it must be."""
        return not (self.outside or self.mismatched)

    @property
    def noise(self) -> float:
        """Largest difference as a share of the largest magnitude; infinite on a mismatch."""
        return math.inf if self.mismatched else self.max_rel

    @property
    def noise_to_signal(self) -> float:
        """Root mean square of the differences as a share of the reference's."""
        if self.mismatched:
            return math.inf
        if not self.reference_squared:
            return math.inf if self.squared else 0.0
        return math.sqrt(self.squared / self.reference_squared)

    def add(self, other: Measure) -> None:
        """Add the sums of another call; positions are left out, as they are of one call."""
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name in _MAXIMA:
            setattr(self, name, max(getattr(self, name), getattr(other, name)))

    def result(
        self,
        name: str,
        *,
        tolerance: float,
        noise: float,
        reference_noise: float,
        first_wrong: Element | None,
    ) -> OutputParity:
        """The same for people and for MLflow."""
        # Where |a - b|² is known, a·b is; a sum less in every block.
        product = (self.reference_squared + self.candidate_squared - self.squared) / 2
        norms = math.sqrt(self.reference_squared) * math.sqrt(self.candidate_squared)
        equal_zeros = self.reference_squared == self.candidate_squared == 0
        finite = max(self.elements - self.mismatched, 1)
        mismatched = bool(self.mismatched)
        return OutputParity(
            name=name,
            max_abs_error=math.inf if mismatched else self.max_abs,
            max_rel_error=self.noise,
            mean_abs_error=self.absolute / finite,
            rmse=math.sqrt(self.squared / finite),
            cosine=max(-1.0, min(1.0, product / norms)) if norms else float(equal_zeros),
            nonfinite_count=self.mismatched,
            elements=self.elements,
            tolerance=tolerance,
            max_elementwise_error=math.inf if mismatched else self.max_elementwise,
            mean_elementwise_error=self.elementwise / finite,
            snr_db=_decibels(self.noise_to_signal),
            outside_share=(self.outside + self.mismatched) / max(self.elements, 1),
            argmax_agreement=self.argmax_agrees / self.rows if self.rows else None,
            top5_agreement=self.top5_agrees / self.top5_rows if self.top5_rows else None,
            reference_nonfinite=self.reference_nonfinite,
            candidate_nonfinite=self.candidate_nonfinite,
            noise=noise,
            reference_noise=reference_noise,
            first_wrong=first_wrong,
        )


_MAXIMA = tuple(field.name for field in fields(Measure) if field.name.startswith("max_"))
_SUMS = tuple(
    field.name for field in fields(Measure) if field.name not in (*_MAXIMA, "worst", "first", "bad")
)


def _decibels(noise_to_signal: float) -> float:
    if math.isinf(noise_to_signal):
        return -math.inf
    return min(-20 * math.log10(noise_to_signal), MAX_SNR_DB) if noise_to_signal else MAX_SNR_DB


def same_bits(one: Array, other: Array) -> bool:
    """Whether two arrays have one dtype and shape and equal bits, NaN among them."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == object:
        return bool(np.all(one == other))
    return not np.count_nonzero(_bits(one) != _bits(other))


def is_exact(array: Array) -> bool:
    """Whether elements are to be equal: integers, booleans, texts and times.

    NumPy has no kind for bfloat16 and the floats of 8 bits, which come from a package of their own.
    """
    return array.dtype.kind not in "fc" and "float" not in array.dtype.name


def measure(
    right: Array, given: Array, limit: float, *, calls: int = 1, least: float = TINY
) -> Measure:
    """Compare an output with the right one, or those of several calls in one go.

    Args:
        right: The right output, of any shape.
        given: The output to compare, of the same shape.
        limit: Largest difference, as a share of the largest magnitude in `right`; integers,
            booleans and texts must be equal.
        calls: Calls whose outputs of one shape the arrays hold, one after the other. Each has a
            largest magnitude of its own.
        least: Magnitude that stands in where the largest is smaller.
    """
    sums = Measure(elements=right.size)
    exact = is_exact(right)
    right, given = _plain(right), _plain(given)
    with np.errstate(all="ignore"):  # infinities and NaN are counted, not warned of
        if not exact and given.dtype.kind not in NO_NUMBERS:
            _rank(sums, right, given)
        flat_right, flat_given = _numbers(right, given)
        scale = _scale(flat_right, calls, least)
        for start in range(0, flat_right.size, BLOCK):
            piece = slice(start, start + BLOCK)
            _block(
                sums,
                flat_right[piece],
                flat_given[piece],
                start=start,
                scale=scale if isinstance(scale, float) else scale[piece],
                limit=None if exact else limit,
            )
    return sums


class _Buffers(threading.local):
    """Buffers of a thread: allocating them for each call costs more than the arithmetic."""

    def __init__(self) -> None:
        self.buffers = np.empty((3, BLOCK))
        self.ones = np.ones(BLOCK)


_ROOM = _Buffers()


def _block(
    sums: Measure,
    right: Array,
    given: Array,
    *,
    start: int,
    scale: float | Array,
    limit: float | None,
) -> None:
    """Add a piece of both; where `limit` is None the elements must be equal."""
    buffers = _ROOM.buffers[:, : right.size]
    wide_right, wide_given, difference = buffers
    np.copyto(wide_right, right)
    np.copyto(wide_given, given)
    np.subtract(wide_given, wide_right, out=difference)
    squares = _dots(buffers, buffers)
    if not math.isfinite(squares[2]):
        _count_nonfinite(sums, buffers, start)
        squares = _dots(buffers, buffers)
    sums.reference_squared += squares[0]
    sums.candidate_squared += squares[1]
    sums.squared += squares[2]
    np.abs(difference, out=difference)
    if limit is None:
        # float64 cannot tell large neighbours apart.
        np.maximum(difference, 1, out=difference, where=right != given)
    at = int(difference.argmax())
    if not (largest := float(difference[at])):
        return
    if largest > sums.max_abs:
        sums.max_abs, sums.worst = largest, start + at
    relative = np.abs(wide_right, out=wide_right)
    np.add(relative, FLOOR * scale, out=relative)
    np.divide(difference, relative, out=relative)
    elementwise, absolute = _dots(buffers[::2], _ROOM.ones[: right.size])
    sums.elementwise += elementwise
    sums.absolute += absolute
    sums.max_elementwise = max(sums.max_elementwise, float(relative[relative.argmax()]))
    share = largest / scale if isinstance(scale, float) else float((difference / scale).max())
    sums.max_rel = max(sums.max_rel, share)
    if share > (allowed := limit or 0.0):
        outside = difference / scale > allowed
        sums.outside += int(np.count_nonzero(outside))
        if sums.first is None:
            sums.first = start + int(outside.argmax())


def _dots(rows: Array, others: Array) -> list[float]:
    """The dot product of each row, in halves of a block: longer, and BLAS starts its threads."""
    half = rows.shape[-1] // 2
    first = np.vecdot(rows[:, :half], others[..., :half])
    return list((first + np.vecdot(rows[:, half:], others[..., half:])).tolist())


def _count_nonfinite(sums: Measure, buffers: Array, start: int) -> None:
    """Count values that are not finite on either side, and replace them by zeros."""
    right, given, _ = buffers
    right_nonfinite, given_nonfinite = ~np.isfinite(right), ~np.isfinite(given)
    nonfinite = right_nonfinite | given_nonfinite
    alike = (right == given) | (np.isnan(right) & np.isnan(given))
    mismatched = nonfinite & ~alike
    sums.reference_nonfinite += int(np.count_nonzero(right_nonfinite))
    sums.candidate_nonfinite += int(np.count_nonzero(given_nonfinite))
    if count := int(np.count_nonzero(mismatched)):
        sums.mismatched += count
        sums.bad = start + int(mismatched.argmax()) if sums.bad is None else sums.bad
    buffers[:, nonfinite] = 0


def _rank(sums: Measure, right: Array, given: Array) -> None:
    """Count the rows whose largest element is in the same place, ties given the benefit."""
    if right.dtype.kind != "f" or right.ndim < 2 or right.shape[-1] < 2 or not right.size:  # noqa: PLR2004
        return
    classes = right.shape[-1]
    right, given = right.reshape(-1, classes), given.reshape(-1, classes)
    first, chosen = right.argmax(axis=-1), given.argmax(axis=-1)
    sums.rows = sums.argmax_agrees = len(first)
    if classes > FIVE:
        sums.top5_rows = sums.top5_agrees = sums.rows
    other = np.flatnonzero(first != chosen)
    if not other.size:
        return
    first, chosen = first[other], chosen[other]
    wanted = given[other, first]
    tied = (wanted == given[other, chosen]) | (right[other, chosen] == right[other, first])
    sums.argmax_agrees -= int(np.count_nonzero(~tied))
    if classes > FIVE:
        among = tied | ((given[other] > wanted[:, None]).sum(axis=-1) < FIVE)
        sums.top5_agrees -= int(np.count_nonzero(~among))


def _plain(array: Array) -> Array:
    """Floats that NumPy has no kind for, in float32, which holds them all."""
    extended = array.dtype.kind == "V" and "float" in array.dtype.name
    return array.astype(np.float32) if extended else array


def _numbers(right: Array, given: Array) -> tuple[Array, Array]:
    """Both as flat arrays of real numbers; of texts, only whether they are equal."""
    if {right.dtype.kind, given.dtype.kind} & set(NO_NUMBERS):
        unequal = np.asarray(right != given)
        return np.zeros(right.size), np.broadcast_to(unequal, right.shape).reshape(-1).astype(float)
    if "c" in (right.dtype.kind, given.dtype.kind):
        # A complex number is as far off as its difference is long.
        return np.abs(right).reshape(-1), np.abs(right).reshape(-1) + np.abs(given - right).ravel()
    return right.reshape(-1), given.reshape(-1)


def _scale(flat: Array, calls: int, least: float) -> float | Array:
    """The largest magnitude of one call; of several, that of its call for each element."""
    if calls == 1:
        return max(_peak(flat), least)
    table = flat.reshape(calls, -1)
    peaks = np.array([_peak(row) for row in table])
    return np.repeat(np.maximum(peaks, least), table.shape[1])


def _peak(flat: Array) -> float:
    """The largest magnitude among the finite elements; 0 where there are none."""
    if not flat.size:
        return 0.0
    peak = max(abs(float(flat.max())), abs(float(flat.min())))
    if math.isfinite(peak):
        return peak
    return float(np.max(np.abs(flat[np.isfinite(flat)]), initial=0.0))


def _bits(array: Array) -> Array:
    """The array's memory as integers, so that NaN equals itself."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if flat.dtype.kind in "biuUS" or flat.dtype.itemsize not in (1, 2, 4, 8):
        return flat if flat.dtype.kind in "biuUST" else flat.view(np.uint8)
    return flat.view(f"u{flat.dtype.itemsize}")
