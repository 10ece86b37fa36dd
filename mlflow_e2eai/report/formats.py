"""Values as text for people: numbers, sizes, names and sentences.

What is no text for people (control characters, halves of surrogate pairs) is replaced, and folders
of a machine are cut from sentences.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

from mlflow_e2eai.latency.ratios import Ratio

# Among them the marks that turn the direction of writing, with which a name can pose as another.
_UNPRINTABLE = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)

# A name such as `/features/conv1/Conv` is a node of a graph, so only what starts as a folder of a
# machine does is taken for one.
_HERE = {Path(path).absolute().as_posix().split("/")[1] for path in (sys.prefix, __file__)}
_ROOTS = "|".join(
    sorted(
        map(
            re.escape,
            {"home", "media", "mnt", "opt", "private", "root", "srv", "tmp", "usr", "var"}
            | {"Users", "Volumes", "workspace"}
            | (_HERE - {""}),
        )
    )
)
_FOLDERS = re.compile(
    rf"(?:file://)?(?<![\w:/.])/(?:{_ROOTS})/(?:[^\s'\"<>:;,()/]+/)*|\b[A-Za-z]:\\(?:[^\s'\"<>\\]+\\)*"
)

NONE = "\N{EN DASH}"
"""Text for a missing number."""

NOISY_TEXT = "too noisy to tell"
"""Text for a number that was measured on a busy machine."""

WIDE = 2.0
"""Factor between the bounds of a ratio beyond which only the bounds are stated."""

TIMES, MINUS = "\N{MULTIPLICATION SIGN}", "\N{MINUS SIGN}"

_PLAIN_FROM, _PLAIN_BELOW = 1e-3, 1e5
_UNIT_STEP = 1000
_SMALLEST_PERCENT = 0.01
_THREE_DIGITS = 100


def printable(text: object) -> str:
    """Replace characters that cannot be shown."""
    return _UNPRINTABLE.sub("\ufffd", str(text))


def one_line(text: object) -> str:
    """Printable text in one line: in a command, a new line would be a new command."""
    return re.sub(r"[\n\t]", "\ufffd", printable(text))


def sentence(text: object) -> str:
    """A sentence of another program, without the folders of the machine where it ran."""
    return _FOLDERS.sub("…/", printable(text))


def shorten(text: str, most: int = 34) -> str:
    """A name of at most `most` letters; the middle goes first, as the ends tell names apart."""
    if len(text) <= most:
        return text
    head = most // 2
    return f"{text[:head]}…{text[head + 1 - most :]}"


def error_text(value: float | None) -> str:
    """An error for people."""
    if value is None:
        return NONE
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else "infinite"
    return "0" if value == 0 else f"{value:.1e}"


def time_text(value: float | None) -> str:
    """Milliseconds, or a ratio, with three digits that count."""
    if value is None:
        return NONE
    if not math.isfinite(value) or value == 0:
        return f"{value:g}"
    digits = 2 - math.floor(math.log10(abs(value)))
    return f"{value:,.{min(max(digits, 0), 6)}f}"


def rate_text(value: float) -> str:
    """Items a second with at least three digits that count."""
    return f"{value:,.0f}" if abs(value) >= _THREE_DIGITS else time_text(value)


def size_text(size_bytes: float) -> str:
    """A size in bytes for people."""
    for unit in ("B", "KB", "MB"):
        if size_bytes < _UNIT_STEP:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= _UNIT_STEP
    return f"{size_bytes:.3g} GB"


def change_text(before: int, after: int) -> str:
    """The change from one count to another in percent."""
    if not before or before == after:
        return "unchanged" if before == after else ""
    percent = 100 * (after - before) / before
    form = "+.0f" if abs(percent) >= 1 else "+.1g"
    return f"{percent:{form}} %".replace("-", MINUS)


def share_text(value: float | None) -> str:
    """A share of a whole; nearly all and nearly none are not rounded to 100 % and 0 %."""
    if value is None or math.isnan(value):
        return NONE
    if value in (0, 1):
        return f"{value:.0%}"
    percent = 100 * value
    if percent < _SMALLEST_PERCENT:
        return f"{percent:.0e}%"
    return f"{min(percent, 99.99):.2f}%"


def decibels_text(value: float) -> str:
    """A ratio of signal to noise in decibels."""
    if math.isnan(value):
        return NONE
    text = f"{value:.0f}" if math.isfinite(value) else f"{'-' * (value < 0)}infinite"
    return text.replace("-", MINUS)


def gate_text(value: float | None) -> str:
    """The number that a gate compared with its limit."""
    if value is None:
        return "not measured"
    if math.isnan(value):
        return "NaN (not comparable)"
    return f"{value:.4g}" if math.isfinite(value) else "infinite"


def task_text(value: float | None) -> str:
    """A task metric."""
    return NONE if value is None else f"{value:.4f}"


def whole_text(value: float | None) -> str:
    """A number without a fraction."""
    return NONE if value is None else f"{value:.0f}"


def factor_text(value: float) -> str:
    """A ratio for people; NaN is that of a busy machine."""
    return NOISY_TEXT if math.isnan(value) else f"{time_text(value)} {TIMES}"


def speed_text(ratio: Ratio) -> str:
    """A ratio of times as a speed: how many times faster or slower.

    It is the interval's bounds where these are more than a factor of `WIDE` apart, as no single
    number was measured then.
    """
    if ratio.noisy or ratio.value <= 0:
        return factor_text(ratio.value)
    wide = ratio.high > WIDE * ratio.low
    if ratio.equal:
        return NOISY_TEXT if wide else "the same"
    word, numbers = "slower", (ratio.low, ratio.value, ratio.high)
    if ratio.value < 1:
        most = 1 / ratio.low if ratio.low > 0 else math.inf
        word, numbers = "faster", (1 / ratio.high, 1 / ratio.value, most)
    low, factor, high = map(time_text, numbers)
    return f"{low} to {high} {TIMES} {word}" if wide else f"{factor} {TIMES} {word}"


def bounds_text(ratio: Ratio) -> str:
    """The bounds of a ratio's interval, in words where the two are not told apart."""
    if ratio.noisy:
        return "the machine was busy"
    text = f"{time_text(ratio.low)} to {time_text(ratio.high)}"
    return f"{text}, within the noise" if ratio.equal else text


def aliases_text(aliases: Iterable[str]) -> str:
    """Aliases as MLflow's URIs write them: ``@champion, @canary``."""
    return ", ".join(f"@{alias}" for alias in aliases)


def moment_text(at: str | None) -> str:
    """A time that is stored as ISO 8601, such as ``2026-11-30 12:00:05 UTC``."""
    if at is None:
        return NONE
    try:
        moment = datetime.fromisoformat(at)
    except ValueError:
        return printable(at)
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def tick_text(value: float) -> str:
    """The number at a tick of an axis: plain where that is short."""
    plain = _PLAIN_FROM <= value < _PLAIN_BELOW
    return f"{value:g}" if plain else f"{value:.0e}".replace("e-0", "e-")


def items_text(count: int) -> str:
    """A number of items in a call."""
    return f"{count} item" if count == 1 else f"{count} items"
