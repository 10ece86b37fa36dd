"""The canvas that pictures are drawn on: sizes, colours, labels, and the files made of it.

Positions are fixed and known before anything is drawn, so that labels can be set apart without a
layout that measures every text.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.report.formats import printable, shorten, tick_text
from mlflow_e2eai.report.scale import LogScale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# A shape and a colour for the runner of a variant, hollow and dashed for lesser precisions, so that
# no colour alone has a meaning.
_STYLES = {
    "torch": ("#4b5560", "s"),
    "onnxruntime-cpu": ("#0b63c4", "o"),
    "onnxruntime-cuda": ("#0a7c7c", "D"),
    "tensorrt_rtx": ("#7c3aed", "v"),
    "tensorrt": ("#4d7c0f", "^"),
}
_OTHER = ("#a84b00", "X")
_DASHES: Mapping[str, tuple[float, ...]] = {"tf32": (5, 2), "fp16": (3, 2), "bf16": (1, 1.5)}
_OTHER_DASHES = (0.5, 1.5)
QUIET, SOFT, _LINE, FAILED, STEP = "#b9bfc6", "#59626b", "#dcdfe2", "#b3261e", "#0b63c4"

_WIDTH, _HEIGHT = 860, 430
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 40, 56
"""A picture's size and margins in pixels."""

_PIXELS_PER_INCH, _PNG_PIXELS_PER_INCH = 100, 150
_POINTS_PER_PIXEL = 72 / _PIXELS_PER_INCH

LETTER, _LINE_HEIGHT = 7.2, 17
"""Pixels that an average letter of a label is wide, and that two labels stand apart."""

TEXT: Mapping[str, Any] = {"fontsize": 9, "parse_math": False}
"""A label's letters, in points; a name is no formula."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A drawn picture.

    Attributes:
        title: Its subject.
        description: A full description, as alternative text.
        figure: Matplotlib's figure.
    """

    title: str
    description: str
    figure: Figure


def draw_axes(
    title: str, names: tuple[str, str], *, left: float = _LEFT, right: float = _RIGHT
) -> tuple[Figure, Axes]:
    """Axes on a figure of its own: pyplot would keep every figure, and take the caller's window."""
    from matplotlib.figure import Figure

    size = _WIDTH / _PIXELS_PER_INCH, _HEIGHT / _PIXELS_PER_INCH
    figure = Figure(figsize=size, dpi=_PIXELS_PER_INCH)
    right = max(right, _RIGHT)
    axes = figure.add_axes(
        (
            left / _WIDTH,
            _BOTTOM / _HEIGHT,
            (_WIDTH - left - right) / _WIDTH,
            (_HEIGHT - _TOP - _BOTTOM) / _HEIGHT,
        )
    )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(names[0], color=SOFT)
    axes.set_ylabel(names[1], color=SOFT)
    axes.set_title(printable(title), loc="left", fontsize=11, parse_math=False)
    axes.grid(visible=True, which="major", color=_LINE, linewidth=0.8)
    axes.minorticks_off()
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=SOFT)
    return figure, axes


def set_vertical(axes: Axes, scale: LogScale) -> None:
    """Round numbers up the side: matplotlib's own ticks may be one or none."""
    axes.set_ylim(scale.low, scale.high)
    axes.set_yticks(scale.ticks(), list(map(tick_text, scale.ticks())))


def _family(variant: str) -> tuple[str, str]:
    """Colour and mark of a variant's runner."""
    runner = variant.partition("/")[0]
    for name, style in _STYLES.items():
        if runner == name or runner.startswith(f"{name}-"):
            return style
    return _OTHER


def style_of(variant: str) -> dict[str, Any]:
    """How matplotlib draws a variant: colour, mark and dashes."""
    colour, mark = _family(variant)
    precision = variant.rpartition("/")[2]
    full = precision == "fp32"
    return {
        "color": colour,
        "marker": mark,
        "linestyle": "-" if full else (0, _DASHES.get(precision, _OTHER_DASHES)),
        "markerfacecolor": colour if full else "white",
        "markersize": 6,
        "linewidth": 1.6,
    }


def label_of(variant: str) -> str:
    """A variant's name as a label."""
    return shorten(printable(variant))


@dataclass(frozen=True, slots=True)
class Image:
    """A picture inside a page, which runs no scripts and needs no styles.

    Attributes:
        title: Its subject.
        description: A full description, as alternative text.
        uri: The picture as a ``data:`` URI.
    """

    title: str
    description: str
    uri: str


def image(picture: Picture) -> Image:
    """A picture as an image inside a page."""
    content = base64.b64encode(svg(picture).encode()).decode()
    return Image(picture.title, picture.description, f"data:image/svg+xml;base64,{content}")


def svg(picture: Picture) -> str:
    """A picture as SVG, the same bytes for the same evidence; its letters are the reader's."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "mlflow_e2eai", "svg.fonttype": "none"}):
        text = _save(picture, format="svg", metadata={"Date": None, "Creator": None}).decode()
    return text[text.index("<svg") :]


def png(picture: Picture) -> bytes:
    """A picture as PNG, the same bytes for the same evidence."""
    # Without the version of matplotlib the same evidence gives the same bytes for longer.
    metadata = {"Software": None}
    return _save(picture, format="png", dpi=_PNG_PIXELS_PER_INCH, metadata=metadata)


def _save(picture: Picture, **options: Any) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # A name may have letters that matplotlib's font lacks; the user can do nothing about it.
        warnings.filterwarnings("ignore", "Glyph ", UserWarning)
        picture.figure.savefig(file, **options)
    return file.getvalue()


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], scale: LogScale) -> None:
    """A name next to the end of each line, moved apart where lines end together."""
    heights = [scale.position(y) for _, y in ends.values()]
    gap = _LINE_HEIGHT / (_HEIGHT - _TOP - _BOTTOM)
    for variant, height in zip(ends, _spread(heights, gap), strict=True):
        colour, _ = _family(variant)
        axes.annotate(
            label_of(variant),
            ends[variant],
            (1.015, height),
            textcoords="axes fraction",
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": _LINE,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 6,
            },
            **TEXT,
        )


def _spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights from 0 to 1, moved as little as need be to stand a gap apart."""
    order = sorted(range(len(heights)), key=lambda at: heights[at])
    moved = list(heights)
    floor = 0.0
    for at in order:
        moved[at] = floor = max(moved[at], floor)
        floor += gap
    ceiling = 1.0
    for at in reversed(order):
        moved[at] = ceiling = min(moved[at], ceiling)
        ceiling -= gap
    return moved


def label_spots(axes: Axes, spots: Mapping[str, tuple[float, float]], named: set[str]) -> None:
    """A name next to each mark where there is room for it."""
    middles = dict(zip(spots, axes.transData.transform(list(spots.values())), strict=True))
    taken = [(x - 9, y - 9, x + 9, y + 9) for x, y in middles.values()]
    for variant in (variant for variant in spots if variant in named):
        (x, y), text = middles[variant], label_of(variant)
        wide = LETTER * len(text)
        offers = [(x + 13, y), (x - 13 - wide, y)]
        offers += [(left, y + up) for up in (19, -19) for left in (x - wide / 2, x - wide + 9)]
        for left, middle in offers:
            box = (left, middle - 8, left + wide, middle + 8)
            inside = left >= _LEFT and box[2] <= _WIDTH
            if inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                offset = (left - x) * _POINTS_PER_PIXEL, (middle - y) * _POINTS_PER_PIXEL
                _text_at(axes, text, spots[variant], offset, _family(variant)[0])
                break


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _text_at(
    axes: Axes,
    text: str,
    spot: tuple[float, float],
    offset_points: tuple[float, float],
    colour: str,
) -> None:
    axes.annotate(
        text,
        spot,
        offset_points,
        textcoords="offset points",
        color=colour,
        va="center",
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        **TEXT,
    )
