"""Small pictures of ratios, next to their words in the tables of variants and of steps."""

from __future__ import annotations

from collections.abc import Mapping

from mlflow_e2eai.latency.ratios import Ratio
from mlflow_e2eai.report.scale import LogScale, drawable, log_scale

_START, _LENGTH = 4, 112
"""Where the scale begins in a picture, and how long it is, in pixels."""


def interval_signs(ratios: Mapping[str, Ratio]) -> dict[str, dict[str, str]]:
    """Positions of a ratio, of its interval and of 1, for each name; all on one scale."""
    bounds = [bound for ratio in ratios.values() for bound in (ratio.low, ratio.high)]
    scale = log_scale([1.0, *bounds])
    return {
        name: _sign(ratio, scale)
        for name, ratio in ratios.items()
        if scale is not None and all(map(drawable, (ratio.low, ratio.value, ratio.high)))
    }


def _sign(ratio: Ratio, scale: LogScale) -> dict[str, str]:
    one, low, value, high = (
        _START + _LENGTH * scale.position(number)
        for number in (1, ratio.low, ratio.value, ratio.high)
    )
    positions = {"one": one, "low": low, "value": value, "high": max(high, low + 1)}
    side = "equal" if ratio.equal else ("faster" if ratio.high < 1 else "slower")
    return {"side": side, **{name: f"{position:.1f}" for name, position in positions.items()}}
