"""Tolerances of outputs by precision, and the derivation of the numbers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from numbers import Real

from mlflow_e2eai.artifacts.values import precision_of
from mlflow_e2eai.errors import InvalidInputError, require_kind

TOLERANCES: Mapping[str, float] = {
    "fp32": 1e-3,
    "tf32": 1e-2,
    "fp16": 1e-2,
    "bf16": 8e-2,
    "int8": 1e-1,
    "fp8": 2e-1,
}
"""Largest error by precision, as a share of the reference output's largest magnitude.

A rounding error grows with the numbers that were summed, not with the number that is left of them,
so the scale is the whole output's. The unit roundoff u is 2^-24 in fp32, 2^-11 in fp16 and TF32,
and 2^-8 in bf16. A network of L layers with sums of n terms drifts by about u·sqrt(n·L) in fp32
and, as sums are kept in fp32 there, u·sqrt(L) in the others: for ResNet-50 (L = 53, n <= 4608)
3e-5, 3.6e-3 and 2.8e-2. Seen on an H100 with ResNet-50 and BERT: 3e-4 to 6e-4 in fp32 (where the
reference itself may have been TF32), 1.5e-3 to 3.4e-3 in fp16, and 1.1e-2 from an engine that was
wrong; the limits lie between.

Of 256 steps over twice the largest magnitude, int8 is off by 1/(127·sqrt(12)) of it at each tensor,
1.7e-2 after 53 layers; fp8 (E4M3) has u = 2^-4, of which a sum keeps u/sqrt(3), about 4e-2 a layer,
most of it forgotten at each normalisation. The limits of these two stop what is broken; what they
cost is for a task metric to say.
"""

NOISE_TO_SIGNAL: Mapping[str, float] = {
    "fp32": 1e-4,
    "tf32": 5e-3,
    "fp16": 5e-3,
    "bf16": 4e-2,
    "int8": 1e-1,
    "fp8": 2e-1,
}
"""Largest root mean square of the error by precision, as a share of that of the reference.

Rounding errors are as likely up as down and seldom meet, so that over many elements they leave no
more than u·sqrt(n·L) of the signal (see `TOLERANCES`), 3e-5 in fp32; the limit is three times that.
It finds what no one element shows: weights that were rounded to fp16 leave 2.7e-4 in a network of
three layers, and one channel of C scaled by 1.01 leaves up to 0.01/sqrt(C), 4.4e-4 of 512.
For the other precisions it is half of the tolerance, as rounding alone comes near it.
"""

SLICE_NOISE_TO_SIGNAL: Mapping[str, float] = {
    "fp32": 5e-3,
    "tf32": 1e-1,
    "fp16": 1e-1,
    "bf16": 4e-1,
    "int8": 5e-1,
    "fp8": 7e-1,
}
"""Largest root mean square of a slice's error by precision, as a share of the slice's own.

Wider than `NOISE_TO_SIGNAL`, as a slice may be small for good reasons: an error in a logit is a
relative error in its probability, however small that is, and logits of 30 are off by 0.03 in fp16
and by 0.25 in bf16. Seen on ten networks with random and seven with trained weights: 6e-6 in fp32,
7e-3 in fp16 and 0.39 in int8 (a box offset of MTCNN's ONet, over 7 elements); and 2.3e-3 in fp32
between two runs of one file with and without ONNX Runtime's optimisations (PP-OCRv4's detection, a
column of an image where text is all but excluded). A slice that is lost has 1.
"""

FEW = 64
"""An error's root mean square over fewer elements scatters as much as its largest."""

NOISE_SHARE = 0.25
"""Two outputs for the same inputs may differ by this share of the tolerance.

Only the order of sums differs between them, not the rounding of weights and activations, which is
the greater part of the error that the tolerance admits.
"""

NOISE_FACTOR = 3.0
"""Or by this many times what two outputs of the reference differ by: the largest of about fifty
differences is three times that of one pair, where noise is normal."""

FLOOR = 1e-3
"""Share of the sample's largest magnitude that is added to an element's own before errors are taken
relative to it: the result of a sum with cancellation has no correct digits."""

TINY = 2.0**-126
"""The scale of an output is at least the smallest normal number of fp32."""

MAX_SNR_DB = 20 * math.log10(2**53)
"""Signal-to-noise of numbers that are equal in float64's 53 bits: 319 dB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one comparison.

    Attributes:
        default: Limit on the relative error where an output has none of its own.
        noise_to_signal: Limit on the root mean square; infinite where the caller chose `default`.
        slices: Limit on the root mean square of a slice, as a share of its own; infinite where the
            caller chose `default`.
        outputs: Limits of outputs that have their own; no other limit holds for them.
        scales: Magnitude that errors are a share of where the output's own is smaller. The root
            mean square of an output that has one is not limited: it has no such floor.
    """

    default: float
    noise_to_signal: float
    slices: float
    outputs: Mapping[str, float]
    scales: Mapping[str, float]

    def of(self, output: str) -> float:
        """Limit on the relative error of an output."""
        return self.outputs.get(output, self.default)

    def noise_to_signal_of(self, output: str) -> float:
        """Limit on the root mean square of an output's error."""
        return math.inf if self._has_own(output) else self.noise_to_signal

    def slices_of(self, output: str) -> float:
        """Limit on the root mean square of the error of an output's slices."""
        return math.inf if self._has_own(output) else self.slices

    def _has_own(self, output: str) -> bool:
        return output in self.outputs or output in self.scales

    def scale_of(self, output: str) -> float:
        """Magnitude that an output is taken to have at least."""
        return max(self.scales.get(output, TINY), TINY)

    def check(self, outputs: Collection[str]) -> None:
        """Refuse limits of outputs that there are not: a name with a slip in it limits nothing.

        Raises:
            InvalidInputError: One is not among `outputs`.
        """
        if unknown := sorted((self.outputs.keys() | self.scales.keys()) - set(outputs)):
            msg = (
                f"There is a limit for {unknown}, but the reference's outputs are {list(outputs)}."
            )
            raise InvalidInputError(msg)


_BY_OUTPUT = "a number of at least 0, or a mapping of outputs to such numbers"


def limits_for(
    precision: str,
    tolerance: float | Mapping[str, float] | None,
    scales: Mapping[str, float] | None,
) -> Limits:
    """The limits of a precision, with the caller's own in their place.

    Raises:
        InvalidInputError: The precision is unknown, or a tolerance or scale is not a number of
            at least 0.
    """
    floors = {} if scales is None else require_kind("scales", scales, Mapping, _BY_OUTPUT)
    precision = precision_of(precision)
    own = tolerance if isinstance(tolerance, Mapping) else {}
    chosen = None if isinstance(tolerance, Mapping) else tolerance
    for value in (*own.values(), *floors.values(), *([] if chosen is None else [chosen])):
        require_kind("tolerance or scales", value, Real, _BY_OUTPUT)
        if not (math.isfinite(value) and value >= 0):
            msg = (
                f"tolerance={tolerance}, scales={scales}; give a number of at least 0, or one for "
                f"each output."
            )
            raise InvalidInputError(msg)
    if chosen is not None:
        return Limits(
            default=chosen, noise_to_signal=math.inf, slices=math.inf, outputs=own, scales=floors
        )
    return Limits(
        default=TOLERANCES[precision],
        noise_to_signal=NOISE_TO_SIGNAL[precision],
        slices=SLICE_NOISE_TO_SIGNAL[precision],
        outputs=own,
        scales=floors,
    )
