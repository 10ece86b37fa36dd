"""Scales, marks and labels: what pictures in the page are made of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from mlflow_e2eai.report.html import Markup, element, join

Tick: TypeAlias = tuple[float, str]

WIDTH, HEIGHT = 860.0, 420.0
"""Size of a picture in its own units, which are pixels where there is room."""

LETTER = 7.6
"""Width of an average letter of a label; labels are set in 13 units."""

_MOST_TICKS = 9


@dataclass(frozen=True, slots=True)
class LogScale:
    """Positive numbers to places, a decade as far as any other.

    Attributes:
        low: The number at `start`.
        high: The number at `end`.
        start: First place.
        end: Last place.
    """

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where a number goes; one beyond an end goes to the end."""
        value = min(max(value, self.low), self.high)
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def numbers(self) -> list[float]:
        """Round numbers within the scale, not too many."""
        first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
        for digits in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            round_ = [float(f"{d}e{power}") for power in range(first, last + 1) for d in digits]
            inside = [number for number in round_ if self.low <= number <= self.high]
            if len(inside) <= _MOST_TICKS:
                break
        return inside[:: math.ceil(len(inside) / _MOST_TICKS) or 1]

    def ticks(self) -> list[Tick]:
        """The round numbers' places, and how they are written."""
        return [(self(number), number_text(number)) for number in self.numbers()]


def number_text(value: float) -> str:
    """A tick's number: plain where that is short."""
    return f"{value:g}" if 1e-3 <= value < 1e5 else f"{value:.0e}".replace("e-0", "e-")  # noqa: PLR2004


def log_scale(values: Iterable[float], start: float, end: float) -> LogScale | None:
    """A scale that holds all finite positive numbers with some air; None when there are none."""
    held = [value for value in values if drawable(value)]
    if not held:
        return None
    low, high = math.log10(min(held)), math.log10(max(held))
    # At least half a decade, else noise looks like a difference.
    air = max(0.06 * (high - low), (0.5 - (high - low)) / 2, 0.05)
    return LogScale(10 ** max(low - air, -300), 10 ** min(high + air, 300), start, end)


def drawable(value: float | None) -> bool:
    """Whether a number has a place on a logarithmic scale."""
    return value is not None and math.isfinite(value) and 1e-290 < value < 1e290  # noqa: PLR2004


# Marks: a shape and a colour for what runs a variant, hollow and dashed for lesser precisions, so
# that no colour says anything alone.

_SHAPES: Mapping[str, str] = {
    "torch": "M{l} {t}H{r}V{b}H{l}Z",
    "onnxruntime-cpu": "M{l} {y}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0Z",
    "onnxruntime-cuda": "M{x} {T}L{R} {y}L{x} {B}L{L} {y}Z",
    "tensorrt": "M{x} {T}L{R} {b}H{L}Z",
    "tensorrt_rtx": "M{x} {B}L{L} {t}H{R}Z",
    "other": "M{x} {T}L{R} {y}L{x} {B}L{L} {y}Z",
}
_DASHES: Mapping[str, str | None] = {"fp32": None, "tf32": "9 4", "fp16": "5 4", "bf16": "2 3"}


def family(variant: str) -> str:
    """What runs a variant, as far as a picture tells it apart."""
    runner = variant.partition("/")[0]
    for name in ("torch", "onnxruntime-cpu", "onnxruntime-cuda", "tensorrt_rtx", "tensorrt"):
        if runner == name or runner.startswith(f"{name}-"):
            return name
    return "other"


def dash(variant: str) -> str | None:
    """The dashes of a variant's line, by precision; None for a solid line."""
    return _DASHES.get(variant.rpartition("/")[2], "1 3")


def mark(
    variant: str, x: float, y: float, *, failed: bool, title: str, quiet: bool = False
) -> Markup:
    """A variant's mark, with a text for the pointer; a cross over what failed."""
    name = family(variant)
    edges = {"l": x - 4.5, "r": x + 4.5, "t": y - 4.5, "b": y + 4.5}
    edges |= {"L": x - 6, "R": x + 6, "T": y - 6, "B": y + 6, "x": x, "y": y}
    if name == "onnxruntime-cpu":
        edges["l"] = x - 5
    path = _SHAPES[name].format(**{key: f"{value:.1f}" for key, value in edges.items()})
    hollow = "" if dash(variant) is None else " hollow"
    cross = f"M{x - 8:.1f} {y - 8:.1f}l16 16m0 -16l-16 16"
    return element(
        "g",
        element("title", title),
        element("path", d=path, class_=f"mark {name}{hollow}"),
        element("path", d=cross, class_="cross") if failed else None,
        class_="quiet" if quiet else None,
    )


def picture(key: str, title: str, description: str, *parts: Markup, height: float) -> Markup:
    """An SVG with a name and a description for who does not see it."""
    return element(
        "svg",
        element("title", title, id=f"{key}-title"),
        element("desc", description, id=f"{key}-desc"),
        *parts,
        viewBox=f"0 0 {WIDTH:.0f} {height:.0f}",
        role="img",
        aria_labelledby=f"{key}-title",
        aria_describedby=f"{key}-desc",
        class_="chart",
    )


def axes(
    box: tuple[float, float, float, float],
    across: Sequence[Tick],
    up: Sequence[Tick],
    names: tuple[str, str],
) -> Markup:
    """Grid lines, their numbers, and the name of each axis.

    Args:
        box: Left, top, right and bottom of the field.
        across: Ticks of the horizontal axis.
        up: Ticks of the vertical axis.
        names: What is along the horizontal axis, and along the vertical one.
    """
    left, top, right, bottom = box
    grid = [f"M{left:.1f} {y:.1f}H{right:.1f}" for y, _ in up]
    stubs = [f"M{x:.1f} {bottom:.1f}v5" for x, _ in across]
    return join(
        (
            element("path", d="".join(grid), class_="grid") if grid else "",
            element(
                "path", d=f"M{left:.1f} {bottom:.1f}H{right:.1f}{''.join(stubs)}", class_="axis"
            ),
            *(label(x, bottom + 21, text, anchor="middle", kind="tick") for x, text in across),
            *(label(left - 9, y + 4.5, text, anchor="end", kind="tick") for y, text in up),
            label((left + right) / 2, bottom + 45, names[0], anchor="middle", kind="name"),
            label(left - 9, top - 14, names[1], kind="name", anchor="start"),
        )
    )


def label(
    x: float, y: float, text: str, *, kind: str = "label", anchor: str | None = None
) -> Markup:
    """A text in a picture."""
    return element("text", text, x=x, y=y, text_anchor=anchor, class_=kind)


def shortened(text: str, most: int = 34) -> str:
    """A name that fits beside a picture; the middle goes first, as the ends tell names apart."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places moved as little as need be for labels to stand a gap apart, within bounds."""
    order = sorted(range(len(places)), key=lambda at: places[at])
    moved = list(places)
    floor = low
    for at in order:
        moved[at] = floor = max(moved[at], floor)
        floor += gap
    ceiling = high
    for at in reversed(order):
        moved[at] = ceiling = min(moved[at], ceiling)
        ceiling -= gap
    return moved
