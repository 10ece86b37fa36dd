"""Two arrays of one shape -> how they differ, in one pass that stays in the processor's cache."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from mlflow_e2eai.artifacts import Array
from mlflow_e2eai.parity.tolerances import FLOOR, MAX_SNR_DB
from mlflow_e2eai.parity.values import Element, OutputParity

TINY = float(np.finfo(np.float32).tiny)
"""The scale of an output is at least the smallest normal number of fp32."""

BLOCK = 8192
"""Elements taken at a time: five buffers of float64 then stay in a core's own cache, and are too
short for BLAS to bring in its threads."""

FIVE = 5


@dataclass(slots=True)
class Measure:
    """How one answer, or several, differ from the reference.

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
        """Largest difference as a share of the largest magnitude; infinite where one is strange."""
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
        """Take another answer in; positions are not kept, as they are of one answer."""
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
        strange = bool(self.mismatched)
        return OutputParity(
            name=name,
            max_abs_error=math.inf if strange else self.max_abs,
            max_rel_error=self.noise,
            mean_abs_error=self.absolute / finite,
            rmse=math.sqrt(self.squared / finite),
            cosine=max(-1.0, min(1.0, product / norms)) if norms else float(equal_zeros),
            nonfinite_count=self.mismatched,
            elements=self.elements,
            tolerance=tolerance,
            max_elementwise_error=math.inf if strange else self.max_elementwise,
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
    return bool(np.array_equal(_bits(one), _bits(other)))


def is_exact(array: Array) -> bool:
    """Whether elements are to be equal: integers, booleans and texts."""
    return array.dtype.kind not in "fc"


def measure(right: Array, given: Array, limit: float) -> Measure:
    """Hold one answer against another.

    Args:
        right: What is wanted, of any shape.
        given: What there is, of the same shape.
        limit: Largest difference, as a share of the largest magnitude in `right`; integers,
            booleans and texts must be equal.
    """
    found = Measure()
    exact = is_exact(right)
    with np.errstate(all="ignore"):  # infinities and NaN are counted, not warned of
        if not exact and given.dtype.kind not in "OSUT":
            _rank(found, right, given)
        flat_right, flat_given = _numbers(right, given)
        scale = max(_peak(flat_right), TINY)
        buffers = np.ones((5, min(BLOCK, max(flat_right.size, 1))))
        for start in range(0, flat_right.size, BLOCK):
            pair = flat_right[start : start + BLOCK], flat_given[start : start + BLOCK]
            _block(found, *pair, buffers, start=start, scale=scale, limit=None if exact else limit)
    found.elements = right.size
    found.max_rel = found.max_abs / scale
    return found


def _block(
    found: Measure,
    right: Array,
    given: Array,
    buffers: Array,
    *,
    start: int,
    scale: float,
    limit: float | None,
) -> None:
    """Add a piece of both; where `limit` is None the elements must be equal."""
    room_right, room_given, difference, scratch, ones = (b[: right.size] for b in buffers)
    wide_right, wide_given = _widened(right, room_right), _widened(given, room_given)
    np.subtract(wide_given, wide_right, out=difference)
    squared = float(difference @ difference)
    if not math.isfinite(squared):
        np.copyto(room_right, right)
        np.copyto(room_given, given)
        wide_right, wide_given = room_right, room_given
        _strange(found, wide_right, wide_given, difference, start)
        squared = float(difference @ difference)
    found.squared += squared
    found.reference_squared += float(wide_right @ wide_right)
    found.candidate_squared += float(wide_given @ wide_given)
    np.abs(difference, out=difference)
    if limit is None:
        # float64 cannot tell large neighbours apart.
        np.maximum(difference, 1, out=difference, where=right != given)
    at = int(difference.argmax())
    if not (largest := float(difference[at])):
        return
    found.absolute += float(difference @ ones)
    np.abs(wide_right, out=scratch)
    np.add(scratch, FLOOR * scale, out=scratch)
    np.divide(difference, scratch, out=scratch)
    found.elementwise += float(scratch @ ones)
    found.max_elementwise = max(found.max_elementwise, float(scratch[scratch.argmax()]))
    if largest > found.max_abs:
        found.max_abs, found.worst = largest, start + at
    if largest / scale > (allowed := limit or 0.0):
        outside = difference / scale > allowed
        found.outside += int(np.count_nonzero(outside))
        if found.first is None:
            found.first = start + int(outside.argmax())


def _widened(array: Array, room: Array) -> Array:
    if array.dtype == room.dtype:
        return array
    np.copyto(room, array)
    return room


def _strange(
    found: Measure, wide_right: Array, wide_given: Array, difference: Array, start: int
) -> None:
    """Count what is not finite, and put zeros in its place."""
    strange_right, strange_given = ~np.isfinite(wide_right), ~np.isfinite(wide_given)
    strange = strange_right | strange_given
    alike = (wide_right == wide_given) | (np.isnan(wide_right) & np.isnan(wide_given))
    mismatched = strange & ~alike
    found.reference_nonfinite += int(np.count_nonzero(strange_right))
    found.candidate_nonfinite += int(np.count_nonzero(strange_given))
    if count := int(np.count_nonzero(mismatched)):
        found.mismatched += count
        found.bad = start + int(mismatched.argmax()) if found.bad is None else found.bad
    for array in (wide_right, wide_given, difference):
        array[strange] = 0


def _rank(found: Measure, right: Array, given: Array) -> None:
    """Count the rows whose largest element is in the same place, ties given the benefit."""
    if right.dtype.kind != "f" or right.ndim < 2 or right.shape[-1] < 2 or not right.size:  # noqa: PLR2004
        return
    classes = right.shape[-1]
    right, given = right.reshape(-1, classes), given.reshape(-1, classes)
    first, chosen = right.argmax(axis=-1), given.argmax(axis=-1)
    found.rows = len(first)
    other = np.flatnonzero(first != chosen)
    first, chosen = first[other], chosen[other]
    wanted = given[other, first]
    tied = (wanted == given[other, chosen]) | (right[other, chosen] == right[other, first])
    found.argmax_agrees = found.rows - len(other) + int(np.count_nonzero(tied))
    if classes > FIVE:
        found.top5_rows = found.rows
        among = tied | ((given[other] > wanted[:, None]).sum(axis=-1) < FIVE)
        found.top5_agrees = found.rows - len(other) + int(np.count_nonzero(among))


def _numbers(right: Array, given: Array) -> tuple[Array, Array]:
    """Both as flat arrays of real numbers; of texts, only whether they are equal."""
    if {right.dtype.kind, given.dtype.kind} & set("OSUT"):
        unequal = np.asarray(right != given)
        return np.zeros(right.size), np.broadcast_to(unequal, right.shape).reshape(-1).astype(float)
    if "c" in (right.dtype.kind, given.dtype.kind):
        # A complex number is as far off as its difference is long.
        return np.abs(right).reshape(-1), np.abs(right).reshape(-1) + np.abs(given - right).ravel()
    return right.reshape(-1), given.reshape(-1)


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
