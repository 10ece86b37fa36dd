"""Two bundles -> the ratio of their latencies, measured here in turns."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts.machine import environment
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.errors import E2EAIError, brief
from mlflow_e2eai.evaluation.evidence import machine_name
from mlflow_e2eai.evaluation.gates import MetricValue
from mlflow_e2eai.latency.measure import BUDGET_S, items_of
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.promotion.incumbent import LATENCY_RATIO, digests_of
from mlflow_e2eai.promotion.metrics import NOISY
from mlflow_e2eai.runtime.isolation import isolated_together


def remeasure(
    values: Sequence[MetricValue],
    challenger: Path,
    champion: Path,
    *,
    variants: Collection[str] = (),
    allow_native: Sequence[str] = (),
) -> list[MetricValue]:
    """Measure the latency of two bundles here, in turns, and put it in place of this machine's.

    The values that stored evidence gives for machines of this name go; those of other machines
    stay. The number is the upper bound of a 99 % interval of paired rounds, NaN on a busy machine.
    Both bundles fall back alike to a variant that runs here.

    Args:
        values: The values by evidence; see `incumbent.champion_values`.
        challenger: A bundle.
        champion: The bundle that it would replace.
        variants: Variants that both have, each to be measured against itself too where it can run
            here.
        allow_native: Libraries in them that may be loaded.
    """
    machine = machine_name(environment())
    measured = {
        variant: _ratios(challenger, champion, variant, allow_native) for variant in variants
    }
    for variant, (found, _) in list(measured.items()):
        if not found:  # it cannot run here, and what is stored of it stays
            del measured[variant]
    result = [
        value
        for value in values
        if value.metric != LATENCY_RATIO
        or value.machine not in (None, machine)
        or (value.variant is not None and value.variant not in measured)
    ]
    found, reason = _ratios(challenger, champion, None, allow_native)
    whole = MetricValue(metric=LATENCY_RATIO, value=math.nan, machine=machine, reason=reason)
    result += [_at(whole, items, high) for items, high in found.items()] or [whole]
    for variant, (found, _) in measured.items():
        like = next(value for value in values if value.variant == variant)
        one = replace(like, metric=LATENCY_RATIO, value=math.nan, machine=machine, reason=None)
        result += [_at(one, items, high) for items, high in found.items()]
    return result


def _at(value: MetricValue, items: int, high: float) -> MetricValue:
    reason = NOISY if math.isnan(high) else None
    return replace(value, value=high, at=items, usual=True, reason=reason)


def _ratios(
    challenger: Path, champion: Path, variant: str | None, allow_native: Sequence[str]
) -> tuple[dict[int, float], str | None]:
    """Upper bound of the ratio by number of items; without any, the reason.

    Each runs its own input example, resized to the corners that both profiles admit.
    """
    paths = {"challenger": challenger, "champion": champion}
    manifests = {role: bundle.read(path) for role, path in paths.items()}
    samples = {
        role: profile_samples(bundle.read_example(path), manifests[role].graphs[0])
        for role, path in paths.items()
    }
    shared = {
        label: items_of(samples["challenger"][label])
        for label in sorted(samples["challenger"].keys() & samples["champion"].keys())
        if items_of(samples["challenger"][label]) == items_of(samples["champion"][label])
    }
    if not shared:
        return {}, "not comparable, as the profiles of the two have no size in common"
    if digests_of(manifests["challenger"]) == digests_of(manifests["champion"]):
        return dict.fromkeys(shared.values(), 1.0), None
    openers = {
        role: partial(load, path, variant=variant, allow_native=allow_native)
        for role, path in paths.items()
    }
    ratios: dict[int, float] = {}
    try:
        with isolated_together(openers) as models:
            for label, items in shared.items():
                inputs = {role: samples[role][label] for role in paths}
                ratio = models.benchmark(inputs, budget_s=BUDGET_S).ratio(*paths)
                highs = (ratio.high, ratios.get(items, ratio.high))
                ratios[items] = math.nan if any(map(math.isnan, highs)) else max(highs)
    except E2EAIError as error:
        return {}, f"the two could not be measured here: {brief(error).rstrip('.')}"
    return ratios, None
