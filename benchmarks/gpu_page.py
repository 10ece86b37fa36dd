"""What benchmarks/gpu.py measured -> tables, the goals, and by how much one falls short."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlflow_e2eai.latency.ratios import Ratio

EAGER = "PyTorch, eager"
COMPILED = "torch.compile, reduce-overhead"
ORT = "ONNX Runtime CUDA, I/O binding"
BARE = "bare engine"
GRAPH = "bare engine, CUDA graph"
OURS = "ours, device tensors"
CHOSEN = "ours, as load_model chooses"
PINNED = "loop by hand over pinned buffers"
NUMPY = "ours, NumPy"

DEVICE = (EAGER, COMPILED, ORT, BARE, GRAPH, OURS, CHOSEN)
"""Ways from device tensors to device tensors."""

HOST = (PINNED, NUMPY)
"""Ways from NumPy to NumPy, copies to the GPU and back included."""

PEERS = (EAGER, COMPILED, ORT)


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to an answer.

    Attributes:
        name: It.
        note: What it ran, or why there are no figures of it; empty where the name says it all.
        first_ms: Its first call, in which kernels may be compiled; None where it failed.
        p50_ms: Median of its calls; None where it failed or was wrong.
        asked: Calls whose answers were checked.
        wrong: How many of them were wrong.
        worst: The largest error, as a share of the reference's largest magnitude.
    """

    name: str
    note: str = ""
    first_ms: float | None = None
    p50_ms: float | None = None
    asked: int = 0
    wrong: int = 0
    worst: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """How many times as long one way takes as another, by rounds in which both were called.

    Attributes:
        way: The one in question.
        against: What it is divided by.
        ratio: The typical ratio of a round, and the bounds of its 99 % interval.
        extra_us: Difference of the medians, in microseconds a call.
    """

    way: str
    against: str
    ratio: Ratio
    extra_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One model in one precision at one batch size, all ways in turns.

    Attributes:
        model: The model.
        precision: The precision.
        batch: Items in a call.
        at_bucket: Whether the engine has a static profile for that size.
        ways: What was tried.
        pairs: The comparisons that the goals are about.
        findings: What makes the times mean less than they seem to.
        reason: Why nothing was measured; empty where it was.
    """

    model: str
    precision: str
    batch: int
    at_bucket: bool = True
    ways: tuple[Way, ...] = ()
    pairs: tuple[Pair, ...] = ()
    findings: tuple[str, ...] = ()
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.model} {self.precision}, batch {self.batch}"

    def way(self, name: str) -> Way | None:
        """One of its ways; None where it was not tried."""
        return next((way for way in self.ways if way.name == name), None)

    def pair(self, way: str, against: str) -> Pair | None:
        """One of its comparisons; None where a side of it failed or was wrong."""
        found = (pair for pair in self.pairs if (pair.way, pair.against) == (way, against))
        return next(found, None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """A whole run.

    Attributes:
        command: What was run.
        machine: What on.
        versions: Of the packages that matter.
        seconds: What it took.
        cells: What was measured, in order.
    """

    command: str
    machine: str
    versions: Mapping[str, str]
    seconds: float
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """What a way must not take longer than.

    Attributes:
        sentence: The goal.
        way: The way in question.
        against: What it is held against: the fastest of these.
        limit: Times as long at most.
        at_bucket: Whether it is about the sizes with a static profile, or those without; None for
            both.
    """

    sentence: str
    way: str
    against: tuple[str, ...]
    limit: float
    at_bucket: bool | None = None

    def is_about(self, cell: Cell) -> bool:
        """Whether it says something of a cell."""
        return not cell.reason and self.at_bucket in (None, cell.at_bucket)


GOALS = (
    Goal(
        sentence="on device tensors at most 1.02 times the bare engine in a CUDA graph",
        way=OURS,
        against=(GRAPH,),
        limit=1.02,
    ),
    Goal(
        sentence="on NumPy at most 1.05 times a loop by hand over pinned buffers",
        way=NUMPY,
        against=(PINNED,),
        limit=1.05,
    ),
    Goal(
        sentence="what is chosen at most 1.02 times the fastest peer that is right",
        way=CHOSEN,
        against=PEERS,
        limit=1.02,
    ),
    Goal(
        sentence="at a bucket at least 1.1 times faster than torch.compile",
        way=OURS,
        against=(COMPILED,),
        limit=1 / 1.1,
        at_bucket=True,
    ),
    Goal(
        sentence="between buckets never slower than torch.compile",
        way=OURS,
        against=(COMPILED,),
        limit=1.0,
        at_bucket=False,
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a goal holds in a cell.

    Attributes:
        holds: Whether; None where that was not found out.
        against: What it was held against.
        says: The ratio and by how much it falls short, or why nothing is known.
    """

    holds: bool | None
    against: str
    says: str


def judged(goal: Goal, cell: Cell) -> Verdict:
    """Hold a cell to a goal, by the bound of the interval and not by its point."""
    if (reason := _left_out(cell, goal.way)) is not None:
        return Verdict(holds=None, against="", says=reason)
    rivals = [way for name in goal.against if (way := cell.way(name)) and way.p50_ms is not None]
    if not rivals:
        reasons = (_left_out(cell, name) for name in goal.against)
        says = "; ".join(reason for reason in reasons if reason is not None)
        return Verdict(holds=None, against="", says=says)
    fastest = min(rivals, key=lambda way: way.p50_ms or 0.0).name
    pair = cell.pair(goal.way, fastest)
    if pair is None:
        return Verdict(holds=None, against=fastest, says="they were not compared")
    ratio = pair.ratio
    numbers = f"{ratio.value:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"
    if ratio.high <= goal.limit:
        return Verdict(holds=True, against=fastest, says=numbers)
    over = f"{100 * (ratio.high / goal.limit - 1):.1f} %"
    if ratio.low > goal.limit:
        short = 100 * (ratio.value / goal.limit - 1)
        says = f"{numbers}: falls short by {short:.1f} %, {pair.extra_us:+.0f} µs a call"
        return Verdict(holds=False, against=fastest, says=says)
    says = f"{numbers}: not decided, the interval ends {over} beyond the limit"
    return Verdict(holds=None, against=fastest, says=says)


def _left_out(cell: Cell, name: str) -> str | None:
    """Why a way has no part in the ratios; None where it has."""
    way = cell.way(name)
    if way is None:
        return f"{name}: not tried"
    if way.wrong:
        return f"{name}: {way.wrong} of {way.asked} answers wrong"
    return f"{name}: {way.note}" if way.p50_ms is None else None


def section(results: Results) -> str:
    """The section of BENCHMARKS.md."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions.items())
    lines = [
        f"`{results.command}`, {results.seconds / 60:.1f} minutes. {versions}.",
        "",
        "Random weights. All ways of a cell took turns, call by call; times are medians on the",
        "host's clock, until the answer is there, with the first call in brackets. fp32 is without",
        "TF32 everywhere; every way takes and gives float32. Answers were checked again and again,",
        "with what was handed out before overwritten by NaN; a way with a wrong answer has no time",
        "and no part in a ratio.",
        "",
        *_times(results),
        "### Goals",
        "",
        "A goal is decided on the bound of the ratio's 99 % interval.",
        "",
        *_goals(results),
    ]
    if findings := [f"- {cell}: {said}" for cell in results.cells for said in cell.findings]:
        lines += ["", "### What makes times doubtful", "", *findings]
    return "\n".join(lines)


def _times(results: Results) -> list[str]:
    lines = []
    for model, precision in dict.fromkeys((cell.model, cell.precision) for cell in results.cells):
        cells = [c for c in results.cells if (c.model, c.precision) == (model, precision)]
        heads = [f"{c.batch}{'' if c.at_bucket else ' (no bucket)'}" for c in cells]
        lines += [
            f"### {model}, {precision}, ms",
            "",
            f"| way | batch {' | batch '.join(heads)} |",
            f"|---|{'---|' * len(cells)}",
        ]
        for name in (*DEVICE, *HOST):
            lines.append(f"| {name} | {' | '.join(_time(cell, name) for cell in cells)} |")
        lines.append("")
    return lines


def _time(cell: Cell, name: str) -> str:
    if cell.reason:
        return cell.reason
    way = cell.way(name)
    if way is None:
        return "not tried"
    if way.wrong:
        return f"**wrong**, {way.wrong} of {way.asked}, by up to {way.worst:.1e}"
    if way.p50_ms is None:
        return way.note
    first = "" if way.first_ms is None else f" ({way.first_ms:.0f})"
    return f"{way.p50_ms:.3f}{first}{f', {way.note}' if way.note else ''}"


def _goals(results: Results) -> list[str]:
    words = {True: "holds", False: "**does not hold**", None: "not known"}
    table = ["| goal | cell | against | ratio | |", "|---|---|---|---|---|"]
    summary = []
    for goal in GOALS:
        verdicts = [(cell, judged(goal, cell)) for cell in results.cells if goal.is_about(cell)]
        held = sum(verdict.holds is True for _, verdict in verdicts)
        failed = sum(verdict.holds is False for _, verdict in verdicts)
        summary.append(
            f"- {goal.sentence}: holds in {held} of {len(verdicts)} cells, does not in {failed}."
        )
        table += [
            f"| {goal.sentence} | {cell} | {verdict.against} | {verdict.says} | "
            f"{words[verdict.holds]} |"
            for cell, verdict in verdicts
        ]
    return [*summary, "", *table]
