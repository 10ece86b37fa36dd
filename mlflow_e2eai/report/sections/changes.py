"""A version against the one that it is to replace: variants, numbers, environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlflow_e2eai.artifacts.machine import PASSING
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.report.background import Background, Before
from mlflow_e2eai.report.facts import (
    OUTCOMES,
    Row,
    Section,
    fastest_row,
    rows_of,
    task_names,
    worst_outcomes,
)
from mlflow_e2eai.report.formats import (
    NOISY_TEXT,
    NONE,
    aliases_text,
    error_text,
    task_text,
    time_text,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One thing that is not what it was.

    Attributes:
        subject: A variant, or a machine.
        name: The property.
        before: Its text in the version before.
        now: Its text in this one.
    """

    subject: str
    name: str
    before: str
    now: str


def changes_section(manifest: Manifest, background: Background | None) -> Section | None:
    """The changes against each version before that a gate compared with."""
    known = () if background is None else background.before
    versions = [
        {"version": each.version, "changes": changes(manifest, each.manifest)}
        for each in known
        if each.manifest is not None
    ]
    if not any(each["changes"] for each in versions):
        return None
    numbers = ", ".join(str(each["version"]) for each in versions)
    title = f"Against version{'s' if len(versions) > 1 else ''} {numbers}"
    return Section("changes", title, {"versions": versions})


def history_section(background: Background | None) -> Section | None:
    """The moves of the aliases until the decision."""
    if background is None or not background.moves:
        return None
    return Section("history", "History", {"moves": background.moves, "at": background.at})


def background_facts(
    manifest: Manifest, background: Background | None
) -> list[tuple[str, str, str | None]]:
    """The background in a few lines: the name of each, its text, and the section with the rest."""
    if background is None:
        return []
    aliases = aliases_text(background.aliases)
    moves = "history" if background.moves else None
    facts: list[tuple[str, str, str | None]] = [
        ("Decided", f"{background.at} by {background.by}, for {aliases}", None)
    ]
    if background.approvals:
        facts.append(("Approvals", "; ".join(background.approvals), None))
    facts += [("Before", _before_text(each, background), moves) for each in background.before]
    if not background.before:
        facts.append(("Before", f"no other version at {aliases}", moves))
    facts += [
        (
            "Changed",
            summary(manifest, each.manifest),
            "changes" if changes(manifest, each.manifest) else None,
        )
        for each in background.before
        if each.manifest is not None
    ]
    return facts


def _before_text(before: Before, background: Background) -> str:
    aliases = aliases_text(before.aliases)
    text = f"version {before.version} at {aliases}"
    since = next((move for move in background.moves if move.alias in before.aliases), None)
    if since is None or since.version != before.version:
        return f"{text}, put there by hand"
    return f"{text} since {since.at}, {since.kind} by {since.by}"


def summary(now: Manifest, before: Manifest) -> str:
    """The changes in one line: files, the worst task metrics, the fastest times, environment."""
    old, new = _digests(before), _digests(now)
    changed = sum(old.get(variant) != digest for variant, digest in new.items())
    parts = [f"{changed} of {len(new)} variants have a new file" if changed else "the same files"]
    if lost := [variant for variant in old if variant not in new]:
        parts.append(f"without {', '.join(lost)}")
    for name in task_names(now):
        values = [_worst_task(each, name) for each in (before, now)]
        if values[0] != values[1]:
            parts.append(f"{name} {task_text(values[0])} → {task_text(values[1])}")
    keys: set[str] = set()
    for there, old_there in _machine_pairs(now, before):
        times = [_fastest(each) for each in (old_there, there)]
        if old != new and None not in times and times[0] != times[1]:
            parts.append(f"fastest {times[0]} → {times[1]} on {there.machine}")
        keys |= {change.name for change in _environment_changes(there, old_there)}
    if keys:
        parts.append(f"another {', '.join(sorted(keys))}")
    return "; ".join(parts)


def _worst_task(manifest: Manifest, name: str) -> float | None:
    shipped = [entry for entry in manifest.all_evidence if entry.sha256 is not None]
    return min((entry.task[name] for entry in shipped if name in entry.task), default=None)


def _fastest(manifest: Manifest) -> str | None:
    """The shortest median of a variant of the bundle that passed; None where none is known."""
    row = fastest_row(manifest)
    return None if row is None else f"{time_text(row.p50_ms)} ms"


def changes(now: Manifest, before: Manifest) -> list[Change]:
    """The changes of one version against another.

    Numbers are of machines that measured both, and of variants whose file is another: two
    measurements of one file differ by noise only.
    """
    old, new = _digests(before), _digests(now)
    found = list(_outcome_changes(now, before))
    pairs = _machine_pairs(now, before)
    for there, old_there in pairs:
        rows = {row.variant: row for row in rows_of(old_there)}
        for row in rows_of(there):
            is_new = row.variant in new and old.get(row.variant) != new[row.variant]
            if row.variant in rows and is_new:
                found += _number_changes(row, rows[row.variant])
    for there, old_there in pairs or [(now, before)]:
        found += _environment_changes(there, old_there)
    return found


def _environment_changes(now: Manifest, before: Manifest) -> list[Change]:
    """The properties of a machine, and of what was installed there, that differ."""
    mine, theirs = now.environment, before.environment
    return [
        Change(subject=now.machine, name=key, before=theirs.get(key, NONE), now=mine.get(key, NONE))
        for key in sorted({*mine, *theirs}.difference(PASSING))
        if mine.get(key) != theirs.get(key)
    ]


def _digests(manifest: Manifest) -> dict[str, str]:
    """Digests of the files of the bundle's variants."""
    return {
        entry.variant: entry.sha256
        for entry in manifest.all_evidence
        if entry.sha256 is not None and entry.is_shipped
    }


def _machine_pairs(now: Manifest, before: Manifest) -> list[tuple[Manifest, Manifest]]:
    old = {there.machine: there for there in before.by_machine}
    return [(each, old[each.machine]) for each in now.by_machine if each.machine in old]


def _outcome_changes(now: Manifest, before: Manifest) -> Iterator[Change]:
    old, new = worst_outcomes(before.all_evidence), worst_outcomes(now.all_evidence)
    for variant in dict.fromkeys([*old, *new]):
        if old.get(variant) != new.get(variant):
            texts = [
                "not in the version" if variant not in each else OUTCOMES[each[variant]]
                for each in (old, new)
            ]
            yield Change(subject=variant, name="outcome", before=texts[0], now=texts[1])


def _number_changes(now: Row, before: Row) -> Iterator[Change]:
    names = sorted({*now.task, *before.task})
    texts: Sequence[tuple[str, str, str]] = (
        *(
            (name, task_text(before.task.get(name)), task_text(now.task.get(name)))
            for name in names
        ),
        ("p50", _time(before), _time(now)),
        ("largest error", error_text(before.max_abs_error), error_text(now.max_abs_error)),
    )
    for name, old, new in texts:
        if old != new:
            yield Change(subject=now.variant, name=name, before=old, now=new)


def _time(row: Row) -> str:
    if row.p50_ms is None:
        return NONE
    return NOISY_TEXT if row.busy else f"{time_text(row.p50_ms)} ms"
