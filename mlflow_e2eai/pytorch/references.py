"""Samples with the module's own outputs, which a graph is compared with.

They are the example at the corners of its axes and at sizes between, then with other values: what
an exporter froze shows only there.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts.axes import corners, few_sizes, inner_sizes, label_of
from mlflow_e2eai.artifacts.sampler import given_sizes, is_given, resample
from mlflow_e2eai.artifacts.values import Array, Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import InvalidInputError, brief
from mlflow_e2eai.parity.samples import Kinds, branch_samples, has_tie, nonfinite_kinds
from mlflow_e2eai.parity.variations import variations_by_label
from mlflow_e2eai.pytorch.flat_module import (
    FITTING,
    GIVE_SAMPLES,
    original,
    output_arrays,
    run_module,
)
from mlflow_e2eai.pytorch.state import ModuleState, fast_path, has_fast_path, save_random

if TYPE_CHECKING:
    import torch

_NUDGE = 2.0**-20
"""Of the largest number: 16 times the unit roundoff of fp32, as a few layers leave it."""

_REPEATABLE = 1e-5
"""Two calls for one input may differ by this share of the output's largest magnitude: sums of fp32
in another order, on a GPU for instance, differ by a tenth of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSample:
    """A sample with the module's outputs for it, in order.

    Attributes:
        label: Kind of sample, for people.
        inputs: Arrays by name.
        right: The module's outputs.
        varied: Names of the inputs whose values are not the example's.
        extreme: See `Variation`.
    """

    label: str
    inputs: Tensors
    right: tuple[np.ndarray, ...]
    varied: tuple[str, ...] = ()
    extreme: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedSizes:
    """Sizes of the dynamic axes that the module was run at, by axis name.

    Attributes:
        taken: Those that it took.
        refused: Those at which it raised an error, though the axes admit them.
    """

    taken: tuple[Mapping[str, int], ...] = ()
    refused: tuple[Mapping[str, int], ...] = ()

    def common(self, axis: str) -> int:
        """The largest number that divides each size of an axis that was taken; 1 if none was."""
        return math.gcd(*(sizes.get(axis, 0) for sizes in self.taken)) or 1

    @property
    def multiples(self) -> dict[str, int]:
        """By axis, the number that divides each size taken; empty where it explains no refusal.

        Only a refusal at one axis, all others being multiples, tells of that axis.
        """
        off = [
            {axis for axis, size in sizes.items() if size % self.common(axis)}
            for sizes in self.refused
        ]
        found = {axis: self.common(axis) for axes in off if len(axes) == 1 for axis in axes}
        return found if all(axes & found.keys() for axes in off) else {}

    @property
    def advice(self) -> str:
        """The way to axes that admit only sizes that the module takes, as sentences."""
        known = self.multiples.items()
        if not known:
            return "Narrow the axes, or declare Axis(..., multiple=...)."
        taken = " and of ".join(f"{number} along {axis}" for axis, number in known)
        declared = " and ".join(f"Axis({axis!r}, ..., multiple={number})" for axis, number in known)
        return (
            f"Every size that it took is a multiple of {taken}: declare {declared}, or narrow the "
            "axes."
        )


@dataclass(slots=True, kw_only=True)
class References:
    """Makes the samples of a module, and remembers those that it left out.

    Attributes:
        module: The module.
        example: One array for each input, and samples at sizes where the caller gave any.
        specs: Where the dynamic axes are.
        axes: The dynamic axes.
        state: Its state, which is put back after each run.
        samples: The samples.
        left_out: Reasons why other samples were not taken, by label.
        sizes: Sizes of the dynamic axes in samples of them, by label.
        failing: Labels of the samples that the module refuses.
        compared: Number of graphs that were compared with them.
        max_abs_error: Largest absolute error of the last graph that was right on them; None where
            it was not compared.
    """

    module: torch.nn.Module
    example: Tensors
    specs: tuple[TensorSpec, ...]
    axes: tuple[Axis, ...]
    state: ModuleState
    samples: list[ReferenceSample] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    sizes: dict[str, Mapping[str, int]] = field(default_factory=dict)
    failing: set[str] = field(default_factory=set)
    compared: int = 0
    max_abs_error: float | None = None

    def add_all(self) -> None:
        """Run the module at the corners of its axes, at sizes between, and on other values.

        Left out are samples that were made here and that the module refuses; ties, where a rounding
        error in the inputs changes an integer of the output, such as an argmax of zeros, and either
        is right; and NaN or infinities that come from other values alone.

        Raises:
            InvalidInputError: The module refuses the example at a corner of its axes, or one that
                the caller gave.
        """
        for label, sizes in corners(self.axes).items():
            self._add_given(label, sizes)
        natural = frozenset().union(
            *(nonfinite_kinds(each.inputs, each.right) for each in self.samples)
        )
        given = given_sizes(self.example, self.specs, self.axes)
        for label, sizes in given.items():
            self._add_given(label, sizes)
        for sizes in inner_sizes(self.axes).values():
            self.add_sizes(sizes)
        if self.tried.refused:
            self._add_multiples()
        opt = self._at({axis.name: axis.opt for axis in self.axes})
        for label, sample in branch_samples(opt).items():
            varied = tuple(name for name in sample if not np.array_equal(sample[name], opt[name]))
            self._add(label, sample, varied=varied, natural=natural)
        few = self._at(few_sizes(self.axes))
        infinite = {(f"{at}", "inf") for at in range(len(self.samples[0].right))}
        special = sorted(set(_paddings(self.module)))
        for label, variations in variations_by_label([few, opt], special).items():
            # Where the module refuses it at few sizes, the example's own may do.
            any(
                self._add(
                    label,
                    each.inputs,
                    varied=each.varied,
                    natural=natural | infinite,
                    extreme=each.extreme,
                )
                for each in variations
            )

    def add_sizes(self, sizes: Mapping[str, int]) -> ReferenceSample | None:
        """Run the module at further sizes; None where it refuses them, or they ran before."""
        label = label_of(sizes)
        if label in self.sizes:
            return None
        self.sizes[label] = dict(sizes)
        return self.samples[-1] if self._add(label, self._at(sizes)) else None

    @property
    def tried(self) -> TriedSizes:
        """The sizes so far, at the corners of the axes and between."""
        return TriedSizes(
            taken=tuple(sizes for label, sizes in self.sizes.items() if label not in self.failing),
            refused=tuple(sizes for label, sizes in self.sizes.items() if label in self.failing),
        )

    def leave_out(self, sample: ReferenceSample, reason: str) -> None:
        """Take a sample out again."""
        self.samples = [each for each in self.samples if each is not sample]
        self.left_out[sample.label] = reason

    def untried_inputs(self) -> list[str]:
        """Names of the inputs whose values no sample varies."""
        varied = {name for each in self.samples for name in each.varied}
        return [name for name, array in self.example.items() if array.size and name not in varied]

    def fast_path_difference(self, outputs: tuple[str, ...]) -> str | None:
        """The first output that PyTorch's fast path of attention changes, as a sentence."""
        if not has_fast_path(self.module):
            return None
        for sample in self.samples:
            try:
                with fast_path(enabled=True), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # PyTorch's, of its nested tensors
                    fast = self._run(sample.inputs, what=sample.label)
            except InvalidInputError as error:
                return f"With it the model fails on the sample {sample.label!r}: {error}"
            for name, right, other in zip(outputs, sample.right, fast, strict=True):
                if difference := _difference(right, other):
                    return (
                        f"With it output {name!r} {difference} on the sample {sample.label!r}; the "
                        f"numbers without it, as in training, are the reference."
                    )
        return None

    def _add_given(self, label: str, sizes: Mapping[str, int]) -> None:
        """Add the sample at sizes that the module must take: a corner, or one that was given."""
        sample = self._at(sizes)
        self.sizes[label] = {axis.name: sizes[axis.name] for axis in self.axes}
        if not is_given(self.example, self.specs, sizes):
            what = (
                f"the sample that was made of the example at the {label} size of its dynamic axes"
            )
            self._add(label, sample, refused={"what": what, "advice": GIVE_SAMPLES})
            return
        made = resample(dict(self.example), self.specs, sizes)
        varied = tuple(name for name in sample if not np.array_equal(sample[name], made[name]))
        what = f"the example of samples_at at {label_of(sizes)}"
        self._add(label, sample, varied=varied, refused={"what": what, "advice": FITTING})

    def _add_multiples(self) -> None:
        """Add the sizes that tell of which multiples the module takes, one axis after the other.

        Where it refuses all sizes next to the corners, it is compared between them at these.
        """
        from sympy import primefactors  # PyTorch needs it

        opt = {axis.name: axis.opt for axis in self.axes}
        for axis in self.axes:
            for divisor in primefactors(self.tried.common(axis.name)):
                is_taken = True
                while is_taken and not (common := self.tried.common(axis.name)) % divisor:
                    size = axis.min + common // divisor
                    is_taken = axis.admits(size) and self._takes({**opt, axis.name: size})

    def _takes(self, sizes: Mapping[str, int]) -> bool:
        self.add_sizes(sizes)
        return label_of(sizes) not in self.failing

    def _at(self, sizes: Mapping[str, int]) -> Tensors:
        return resample(self.example, self.specs, sizes)

    def _run(self, sample: Tensors, **words: str) -> tuple[Array, ...]:
        try:
            return tuple(output_arrays(run_module(self.module, sample, **words)).values())
        finally:
            self.state.restore()

    def _add(
        self,
        label: str,
        sample: Tensors,
        *,
        varied: tuple[str, ...] = (),
        natural: Kinds | None = None,
        extreme: bool = False,
        refused: Mapping[str, str] | None = None,
    ) -> bool:
        """Run a sample and add it, or the reason against it.

        Args:
            label: Kind of sample.
            sample: Arrays by name.
            varied: Names of the inputs with other values.
            natural: NaN and infinities that the sample may hold; None for any.
            extreme: See `Variation`.
            refused: Words for an error where the module refuses it; None leaves it out.
        """
        try:
            right = self._run(sample, **(refused or {"what": f"the sample {label!r}"}))
        except InvalidInputError as error:
            if refused is not None:
                raise
            self.failing.add(label)
            self.left_out[label] = f"the model fails on it: {brief(error.__cause__ or error, 120)}"
            return False
        reference = ReferenceSample(
            label=label, inputs=sample, right=right, varied=varied, extreme=extreme
        )
        if natural is not None and not nonfinite_kinds(sample, right) <= natural:
            self.left_out[label] = "its outputs are not finite, unlike those of the example"
        elif has_tie(partial(self._run, what=label), sample, right, share=_NUDGE):
            self.left_out[label] = "a rounding error in it changes an integer of the output"
        else:
            self.samples.append(reference)
            self.left_out.pop(label, None)
            return True
        return False


def _paddings(module: torch.nn.Module) -> Iterator[int]:
    """Indices that the embeddings of a module have for padding."""
    for part in module.modules():
        index = getattr(part, "padding_idx", None)
        if isinstance(index, int) and index >= 0:
            yield index


# A module whose outputs are no function of its inputs.


def check_repeatable(module: torch.nn.Module, example: Tensors, state: ModuleState) -> None:
    """Run a module twice on its example, and compare the outputs.

    Raises:
        InvalidInputError: They differ; the sentence names the cause: random numbers, or the state
            that forward moves.
    """

    def outputs() -> dict[str, Array]:
        return output_arrays(run_module(module, example))

    restore_random = save_random(module)
    try:
        first = outputs()
        moved = state.moved_names()
        change = _first_difference(first, outputs())
        if change is None:
            return
        state.restore()
        lost = state.lost_names()
        if lost or (moved and _first_difference(first, outputs()) is None):
            inside = "" if original(module) is module else "model."
            names = ", ".join(repr(name.removeprefix(inside)) for name in (lost or moved)[:3])
            cause = f"forward changes {names}, which is not an input"
            advice = "take it as an input and return it as an output, or change it in training only"
        else:
            state.restore()
            restore_random()
            drawn = _first_difference(first, outputs()) is None
            cause = (
                "forward draws random numbers in evaluation mode"
                if drawn
                else "forward computes it from something that is not an input"
            )
            advice = "take them as an input, or draw none in evaluation mode"
    finally:
        state.restore()
        restore_random()
    msg = (
        f"The model gives two outputs for the same input ({change}), but a graph has only one: "
        f"{cause}; {advice}."
    )
    raise InvalidInputError(msg)


def _first_difference(one: dict[str, Array], other: dict[str, Array]) -> str | None:
    if one.keys() != other.keys():
        return f"outputs {list(one)} and {list(other)}"
    differences = ((name, _difference(one[name], other[name])) for name in one)
    return next((f"{name!r} {words}" for name, words in differences if words), None)


def _difference(one: Array, other: Array) -> str | None:
    """How an output differs from another one of the same input; None where it does not."""
    if one.shape != other.shape:
        return f"has the shapes {list(one.shape)} and {list(other.shape)}"
    if one.dtype.kind != "f":
        return None if np.array_equal(one, other) else "has different values"
    finite = np.isfinite(one) & np.isfinite(other)
    if not np.array_equal(one[~finite], other[~finite], equal_nan=True):
        return "is not finite at different positions"
    numbers: Any = one[finite].astype(np.float64)
    error = float(np.abs(numbers - other[finite]).max(initial=0))
    limit = _REPEATABLE * float(np.abs(numbers).max(initial=0))
    return f"differs by {error:.2g}" if error > limit else None
