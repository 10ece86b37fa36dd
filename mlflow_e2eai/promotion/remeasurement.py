"""Two versions, measured again in turns, here or by a fleet, in place of evidence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mlflow_e2eai import bundle, fleet, tracking
from mlflow_e2eai.artifacts.libraries import native_allowed, require_file_names
from mlflow_e2eai.bundle.side_by_side import Ratios, SideBySide, measure_side_by_side
from mlflow_e2eai.errors import InvalidInputError, require_flags
from mlflow_e2eai.evaluation.gates import MetricValue
from mlflow_e2eai.fleet.run import check_executor
from mlflow_e2eai.promotion.incumbent import LATENCY_RATIO
from mlflow_e2eai.promotion.metrics import NOISY
from mlflow_e2eai.tracking.remote_jobs import fetch_side_by_side


def with_measured(values: Sequence[MetricValue], measured: SideBySide) -> list[MetricValue]:
    """Put the latency ratios of one machine in place of what evidence says of machines like it.

    The values of other machines stay, and those of variants that could not run there.

    Args:
        values: The values by evidence; see `incumbent.champion_values`.
        measured: What was measured.
    """
    result = [
        value
        for value in values
        if value.metric != LATENCY_RATIO
        or value.machine not in (None, measured.machine)
        or (value.variant is not None and value.variant not in measured.by_variant)
    ]
    whole = MetricValue(
        metric=LATENCY_RATIO,
        value=math.nan,
        machine=measured.machine,
        reason=measured.overall.reason,
    )
    result += _values_at(whole, measured.overall) or [whole]
    for variant, ratios in measured.by_variant.items():
        like = next(value for value in values if value.variant == variant)
        result += _values_at(
            replace(like, metric=LATENCY_RATIO, machine=measured.machine, reason=None), ratios
        )
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class Remeasurement:
    """How the latency of two versions is measured again, in turns.

    Attributes:
        executor: None for this machine; else see `fleet.run`: ``ray`` measures on a machine of each
            target of the challenger's engines.
        workers: See `fleet.run`.
        allow_native: Libraries in either version that may be loaded.
    """

    executor: fleet.Executor | None = None
    workers: int | None = None
    allow_native: tuple[str, ...] = ()

    @classmethod
    def of_arguments(
        cls,
        *,
        remeasure: bool = False,
        executor: fleet.Executor | None = None,
        workers: int | None = None,
        dry_run: bool = False,
        allow_native: Sequence[str] = (),
    ) -> Remeasurement | None:
        """The measurement that the arguments of `promote` ask for; None where evidence counts.

        Raises:
            InvalidInputError: There is no such executor, or its runs are not to be written.
        """
        require_flags(remeasure=remeasure, dry_run=dry_run)
        check_executor("local" if executor is None else executor, workers)
        allowed = require_file_names(allow_native)
        if executor is None and not remeasure:
            return None
        if executor is not None and dry_run:
            msg = (
                f"dry_run writes nothing, but jobs of the executor {executor!r} are runs; give "
                f"remeasure= to measure here, or leave dry_run out."
            )
            raise InvalidInputError(msg)
        return cls(executor=executor, workers=workers, allow_native=allowed)

    def measure(
        self, title: str, paths: tuple[Path, Path], model_ids: tuple[str, str], names: Sequence[str]
    ) -> list[SideBySide]:
        """Measure two bundles.

        A target whose machine could not measure them is in the result, with the reason.

        Args:
            title: Name of the run of a fleet's jobs.
            paths: The challenger's bundle, and the champion's.
            model_ids: Their LoggedModels.
            names: Variants that both have, each to be measured against itself too.
        """
        if self.executor is None:
            return [measure_side_by_side(*paths, variants=names, allow_native=self.allow_native)]
        engines = {engine.sha256: engine.target for engine in bundle.read(paths[0]).engines}
        challenger, champion = model_ids
        jobs = fleet.remeasurements(
            challenger, engines, executor=self.executor, champion=champion, variants=list(names)
        )
        with tracking.run(title), native_allowed(self.allow_native):
            outcomes = fleet.run(jobs, executor=self.executor, workers=self.workers)
        return [_side_by_side(outcome) for outcome in outcomes]


def _side_by_side(outcome: fleet.Outcome) -> SideBySide:
    if outcome.error is None:
        return fetch_side_by_side(str(outcome.run_id))
    reason = f"the two were not measured there: {outcome.error.rstrip('.')}"
    machine = f"a machine of {outcome.job.gpu}" if outcome.job.gpu else "a machine of the fleet"
    return SideBySide(machine=machine, overall=Ratios(reason=reason))


def _values_at(value: MetricValue, ratios: Ratios) -> list[MetricValue]:
    return [
        replace(
            value,
            value=each.high,
            at=each.items,
            usual=True,
            reason=NOISY if math.isnan(each.high) else None,
        )
        for each in ratios.sizes
    ]
