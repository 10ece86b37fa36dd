"""How much is compared and measured, by the level of evidence that the caller wants.

No level judges more mildly than another: limits, gates and findings are the same, and what a level
leaves out is missing, not passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from mlflow_e2eai.latency.concurrency import LOAD_S
from mlflow_e2eai.latency.measure import BUDGET_S, ENOUGH, FIRST_LOOK, ROUNDS
from mlflow_e2eai.parity.comparison import REPEATS

EvidenceLevel: TypeAlias = Literal["quick", "standard", "thorough"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much an evaluation compares and measures.

    Attributes:
        exported: Whether the graph as it was exported is a variant too, to tell errors of export
            from those of cleaning.
        repeats: Calls of each variant on each sample at the corners of the profile.
        threads: Callers at once in the same comparison.
        all_sizes: Whether latency is measured at every corner; else at opt, and at the sizes that
            the caller gives.
        rounds: Rounds of latency at the first size, at most.
        other_rounds: The same at each other size.
        enough: See `latency.measure.benchmark`.
        latency_s: Seconds for the rounds of each size.
        load_s: Seconds for each number of callers at once, at most; with 0 there is no such
            measure.
    """

    exported: bool
    repeats: int
    threads: int
    all_sizes: bool
    rounds: int
    other_rounds: int
    enough: float
    latency_s: float
    load_s: float


EFFORTS: Mapping[EvidenceLevel, Effort] = {
    "quick": Effort(
        exported=False,
        repeats=2,
        threads=1,
        all_sizes=False,
        rounds=FIRST_LOOK,
        other_rounds=FIRST_LOOK,
        enough=ENOUGH,
        latency_s=2.0,
        load_s=0.0,
    ),
    "standard": Effort(
        exported=True,
        repeats=REPEATS,
        threads=2,
        all_sizes=True,
        rounds=ROUNDS,
        other_rounds=FIRST_LOOK,
        enough=ENOUGH,
        latency_s=BUDGET_S,
        load_s=LOAD_S / 5,
    ),
    "thorough": Effort(
        exported=True,
        repeats=4 * REPEATS,
        threads=4,
        all_sizes=True,
        rounds=1000,
        other_rounds=1000,
        enough=1.0,
        latency_s=4 * BUDGET_S,
        load_s=LOAD_S,
    ),
}
