"""Two bundles -> the latency of one as a multiple of the other's, measured here in turns."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from mlflow_e2eai.artifacts.files import Real
from mlflow_e2eai.artifacts.machine import environment
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.manifest import read, read_example
from mlflow_e2eai.errors import E2EAIError, brief
from mlflow_e2eai.evaluation.evidence import machine_name
from mlflow_e2eai.latency.measure import BUDGET_S, items_of
from mlflow_e2eai.parity.samples import profile_samples
from mlflow_e2eai.runtime.isolation import isolated_together


@dataclass(frozen=True, slots=True, kw_only=True)
class SizeRatio:
    """How many times as long a call takes as the other bundle's, at one number of items.

    Attributes:
        items: Items in a call.
        high: Upper bound of the 99 % interval of paired rounds; NaN on a busy machine.
    """

    items: int
    high: Real


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """The ratios of two bundles by number of items, or the reason why there are none.

    Attributes:
        sizes: The ratios, the fewest items first.
        reason: Why there are none, as the rest of a sentence.
    """

    sizes: tuple[SizeRatio, ...] = ()
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SideBySide:
    """Two bundles, measured in turns on one machine.

    Attributes:
        machine: The machine, for people.
        environment: Its hardware, driver and versions; empty where nothing could be measured.
        overall: The variants that each loads there by default.
        by_variant: Variants that both have, each against itself; none that cannot run there.
    """

    machine: str
    environment: Mapping[str, str] = field(default_factory=dict)
    overall: Ratios
    by_variant: Mapping[str, Ratios] = field(default_factory=dict)


def measure_side_by_side(
    challenger: Path,
    champion: Path,
    *,
    variants: Collection[str] = (),
    allow_native: Sequence[str] = (),
) -> SideBySide:
    """Measure the latency of two bundles here, in turns.

    Each runs its own input example, resized to the corners that both profiles admit. Both fall back
    alike to a variant that runs here.

    Args:
        challenger: A bundle.
        champion: The bundle whose time is the unit.
        variants: Variants that both have, each to be measured against itself too.
        allow_native: Libraries in them that may be loaded.
    """
    measured = {
        variant: _ratios(challenger, champion, variant, allow_native) for variant in variants
    }
    here = environment()
    return SideBySide(
        machine=machine_name(here),
        environment=here,
        overall=_ratios(challenger, champion, None, allow_native),
        by_variant={name: ratios for name, ratios in measured.items() if ratios.sizes},
    )


def _ratios(
    challenger: Path, champion: Path, variant: str | None, allow_native: Sequence[str]
) -> Ratios:
    paths = {"challenger": challenger, "champion": champion}
    manifests = {role: read(path) for role, path in paths.items()}
    samples = {
        role: profile_samples(read_example(path), manifests[role].graphs[0])
        for role, path in paths.items()
    }
    shared = {
        label: items_of(samples["challenger"][label])
        for label in sorted(samples["challenger"].keys() & samples["champion"].keys())
        if items_of(samples["challenger"][label]) == items_of(samples["champion"][label])
    }
    if not shared:
        return Ratios(reason="not comparable, as the profiles of the two have no size in common")
    if manifests["challenger"].digests == manifests["champion"].digests:
        return _by_size(dict.fromkeys(shared.values(), 1.0))
    openers = {
        role: partial(load, path, variant=variant, allow_native=allow_native)
        for role, path in paths.items()
    }
    highs: dict[int, float] = {}
    try:
        with isolated_together(openers) as models:
            for label, items in shared.items():
                inputs = {role: samples[role][label] for role in paths}
                ratio = models.benchmark(inputs, budget_s=BUDGET_S).ratio(*paths)
                both = (ratio.high, highs.get(items, ratio.high))
                highs[items] = math.nan if any(map(math.isnan, both)) else max(both)
    except E2EAIError as error:
        return Ratios(reason=f"the two could not be measured there: {brief(error).rstrip('.')}")
    return _by_size(highs)


def _by_size(highs: Mapping[int, float]) -> Ratios:
    return Ratios(sizes=tuple(SizeRatio(items=at, high=highs[at]) for at in sorted(highs)))
