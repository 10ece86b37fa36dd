"""A decision as it is stored: everything that it was made of, readable from MLflow alone."""

from __future__ import annotations

import dataclasses
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlflow_e2eai._version import __version__
from mlflow_e2eai.artifacts.files import Summary, Table, from_json, to_json
from mlflow_e2eai.artifacts.machine import PASSING
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.side_by_side import SideBySide
from mlflow_e2eai.errors import ArtifactError, TrackingError, brief
from mlflow_e2eai.evaluation.gates import Decision, MetricValue, Verdict
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry.actor import actor, host
from mlflow_e2eai.promotion.registry.tags import DECIDED_BY, DECISION, REASON, WITHDRAWN
from mlflow_e2eai.promotion.registry.timeline import (
    Move,
    check_alias_is_known,
    last_moves,
    past_of,
    registered_model,
)
from mlflow_e2eai.promotion.registry.times import now_text
from mlflow_e2eai.report.formats import aliases_text, moment_text
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server

if TYPE_CHECKING:
    from mlflow.entities.model_registry import RegisteredModel

FILE = "decision.json"
"""File of a decision's run."""

FORMAT_VERSION = 1
"""Version of the file. Raise it when a reader of the version before would misread a new one.

1 (2026-12): the first with a version; before, the file had verdicts only.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """A version that a decision is about.

    Attributes:
        version: Its number.
        model_id: Its LoggedModel; None where it is no bundle of this package.
        sha256: Digest of its MLmodel, which covers all of its files.
        evidence_sha256: Digest of its manifest, which holds the evidence.
        aliases: Those of the decision that it had.
        environments: By machine, the environment of its evidence: hardware, driver, versions.
    """

    version: str
    model_id: str | None
    sha256: str | None
    evidence_sha256: str | None
    aliases: tuple[str, ...] = ()
    environments: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DecisionRecord(Summary):
    """A decision with what it was made of.

    Attributes:
        format_version: See `FORMAT_VERSION`.
        package_version: Version of this package that decided.
        name: The registered model.
        aliases: The aliases that it is about, which move together.
        challenger: The version that is to get them.
        incumbents: The versions that had them.
        policy: The gates and other rules.
        policy_sha256: Digest of these rules.
        values: The values of all metrics that a gate could read.
        measured: What was measured for the decision, the challenger next to an incumbent.
        differences: How the machines that measured the challenger and the incumbents differ.
        decision: The verdicts.
        by: Who decided.
        host: The machine where that was.
        at: When, in UTC.
        withdrawn: Why the aliases could not be moved on a yes; not in the file, but a tag of the
            version.
        rollbacks: The rollbacks since, by which aliases stand at the version now; not in the file.
    """

    format_version: int
    package_version: str
    name: str
    aliases: tuple[str, ...]
    challenger: Contender
    incumbents: tuple[Contender, ...]
    policy: Policy
    policy_sha256: str
    values: tuple[MetricValue, ...]
    measured: tuple[SideBySide, ...] = ()
    differences: tuple[str, ...] = ()
    decision: Decision
    by: str
    host: str
    at: str
    withdrawn: str | None = None
    rollbacks: tuple[Move, ...] = ()

    @property
    def outcome(self) -> str:
        """``promoted``, ``rejected`` or ``withdrawn``."""
        return self.decision.outcome if self.withdrawn is None else WITHDRAWN

    def text(self) -> str:
        """The decision in lines, for a terminal."""
        return "\n".join(_lines(self))

    def _line(self) -> str:
        aliases = aliases_text(self.aliases)
        version, at = self.challenger.version, moment_text(self.at)
        return f"{self.name} {version} {self.outcome} for {aliases} at {at}"

    def _table(self) -> Table:
        return Verdict, self.decision.verdicts


@dataclass(frozen=True, slots=True, kw_only=True)
class _Format:
    """The part that every version of the file has."""

    format_version: int
    package_version: str


def record_of(
    name: str,
    aliases: Sequence[str],
    challenger: Contender,
    incumbents: Sequence[Contender],
    *,
    policy: Policy,
    values: Sequence[MetricValue],
    measured: Sequence[SideBySide],
    decision: Decision,
) -> DecisionRecord:
    """Put a decision of this moment on record."""
    return DecisionRecord(
        format_version=FORMAT_VERSION,
        package_version=__version__,
        name=name,
        aliases=tuple(aliases),
        challenger=challenger,
        incumbents=tuple(incumbents),
        policy=policy,
        policy_sha256=digest_of(policy),
        values=tuple(values),
        measured=tuple(measured),
        differences=tuple(line for each in incumbents for line in _differences(challenger, each)),
        decision=decision,
        by=actor(),
        host=host(),
        at=now_text(),
    )


def digest_of(policy: Policy) -> str:
    """Digest of the rules of a promotion, whatever file they were read from."""
    return hashlib.sha256(to_json(policy).encode()).hexdigest()


def environments_of(manifest: Manifest) -> dict[str, Mapping[str, str]]:
    """By machine, the environment of a bundle's evidence; a name that comes twice is numbered."""
    found: dict[str, Mapping[str, str]] = {}
    for there in manifest.by_machine:
        name, at = there.machine, 2
        while name in found:
            name, at = f"{there.machine} ({at})", at + 1
        found[name] = there.environment
    return found


def read_record(run_id: str) -> DecisionRecord:
    """Read the decision of a run.

    Raises:
        TrackingError: The run or its file is not there.
        ArtifactError: Another version of this package wrote it.
    """
    from mlflow_e2eai.tracking.downloads import fetch_text

    text = fetch_text(f"runs:/{run_id}/{FILE}")
    try:
        version = from_json(_Format, text)
    except ArtifactError as error:
        msg = (
            f"The decision of run {run_id} was written by an mlflow_e2eai that kept verdicts only; "
            f"promote the version again to have it on record."
        )
        raise ArtifactError(msg) from error
    if version.format_version != FORMAT_VERSION:
        msg = (
            f"The decision of run {run_id} has format {version.format_version}, written by "
            f"mlflow_e2eai {version.package_version}, but this version reads format "
            f"{FORMAT_VERSION}; install that version."
        )
        raise ArtifactError(msg)
    return from_json(DecisionRecord, text)


def explain(name: str, version: int | str, *, alias: str | None = None) -> DecisionRecord:
    """The last decision about a version, as it was stored: `DecisionRecord.text` is for people.

    Args:
        name: The registered model.
        version: The version.
        alias: The decision that gave it this alias, or confirmed it there, whatever was decided
            about others since.

    Raises:
        TrackingError: There is none, or its run is gone.
        ArtifactError: Another version of this package wrote it.

    Examples:
        >>> record = mlflow_e2eai.explain("digits", 2)
        >>> record.outcome
        'promoted'
    """
    check_server()
    with quiet_mlflow():
        registered = registered_model(name)
        if alias is None:
            record, _ = last_record(name, version)
        else:
            record = _record_at(registered, version, alias)
        return dataclasses.replace(record, rollbacks=_rollbacks(registered, record))


def _rollbacks(registered: RegisteredModel, record: DecisionRecord) -> tuple[Move, ...]:
    """The rollbacks since a decision, by which aliases stand at its version now."""
    number, aliases = record.challenger.version, registered.aliases
    there = sorted(alias for alias in aliases if str(aliases[alias]) == number)
    last = [move for alias in there for move in last_moves(registered, [alias], 1)]
    return tuple(
        move
        for move in last
        if move.kind == "rollback" and move.after == number and move.at > record.at
    )


def _record_at(registered: RegisteredModel, version: int | str, alias: str) -> DecisionRecord:
    """The decision by which an alias came to a version last, or had it on a yes."""
    from mlflow_e2eai.tracking.versions import find_version

    name, past = registered.name, past_of(registered)
    number = str(find_version(name, version).version)
    check_alias_is_known(alias, registered, past.moves)
    for move in reversed(past.moves):
        if (move.alias, move.after, move.kind) == (alias, number, "promotion"):
            return read_record(move.run_id)
    msg = (
        f"No decision gave version {number} of {name!r} the alias {alias!r}; see "
        f"`{shlex.join(['mlflow_e2eai', 'history', name])}`."
    )
    raise TrackingError(msg)


def last_record(name: str, version: int | str) -> tuple[DecisionRecord, str]:
    """The last decision about a version, and its run.

    Raises:
        TrackingError: There is none, or its run is gone.
    """
    from mlflow_e2eai.tracking.versions import find_version

    found = find_version(name, version)
    version = str(found.version)
    run_id = found.tags.get(DECIDED_BY)
    if run_id is None:
        msg = (
            f"Nothing was decided about version {version} of {name!r} yet; promote it with "
            f"`{shlex.join(['mlflow_e2eai', 'promote', name, version])}`."
        )
        raise TrackingError(msg)
    try:
        record = read_record(run_id)
    except TrackingError as error:
        msg = (
            f"The decision about version {version} of {name!r} is no longer in run "
            f"{run_id}: {brief(error)}"
        )
        raise TrackingError(msg) from error
    if found.tags.get(DECISION) == WITHDRAWN:
        record = dataclasses.replace(record, withdrawn=found.tags.get(REASON, "not known why"))
    return record, run_id


def _differences(challenger: Contender, incumbent: Contender) -> list[str]:
    """Differences of the environments of two versions, machine by machine.

    A line for each key: both values, and whose they are.
    """
    shared = challenger.environments.keys() & incumbent.environments.keys()
    pairs = [
        (name, challenger.environments[name], incumbent.environments[name])
        for name in sorted(shared)
    ]
    if not pairs and challenger.environments and incumbent.environments:
        one, other = next(iter(challenger.environments)), next(iter(incumbent.environments))
        title = f"{one} and {other}"
        pairs = [(title, challenger.environments[one], incumbent.environments[other])]
    return [
        f"{key} on {machine}: {mine.get(key, 'none')} (version {challenger.version}), "
        f"{theirs.get(key, 'none')} (version {incumbent.version})"
        for machine, mine, theirs in pairs
        for key in sorted({*mine, *theirs}.difference(PASSING))
        if mine.get(key) != theirs.get(key)
    ]


def _lines(record: DecisionRecord) -> list[str]:
    decision, challenger = record.decision, record.challenger
    aliases = aliases_text(record.aliases)
    at = moment_text(record.at)
    lines = [
        f"Version {challenger.version} of {record.name}: {record.outcome} for {aliases}",
        f"  at {at}, by {record.by} on {record.host}, mlflow_e2eai {record.package_version}",
        f"  {_digests(challenger)}, gates {_short(record.policy_sha256)}",
    ]
    if record.withdrawn is not None:
        lines.append(f"  withdrawn: {record.withdrawn}")
    for incumbent in record.incumbents:
        aliases_then = aliases_text(incumbent.aliases)
        lines.append(
            f"  before: version {incumbent.version} at {aliases_then}, {_digests(incumbent)}"
        )
    if not record.incumbents:
        lines.append(f"  before: no version at {aliases}")
    lines += [
        f"  rolled back: @{move.alias} points to it since {moment_text(move.at)}, by {move.by}, "
        f"before version {move.before or 'none'}"
        for move in record.rollbacks
    ]
    lines += [f"  {_mark(verdict)}  {verdict}" for verdict in decision.verdicts]
    lines += [f"  n/a     {reason}" for reason in decision.inapplicable]
    lines += [f"  not loaded by default: {variant}" for variant in decision.excluded]
    lines += [f"  measured on {name}" for name in challenger.environments]
    lines += [f"  measured side by side on {one.machine}" for one in record.measured]
    lines += [f"  differs: {difference}" for difference in record.differences]
    return lines


def _mark(verdict: Verdict) -> str:
    if verdict.passed:
        return "passed"
    return "warned" if verdict.severity == "warn" else "FAILED"


def _digests(contender: Contender) -> str:
    evidence = _short(contender.evidence_sha256)
    return f"files {_short(contender.sha256)}, evidence {evidence}"


def _short(digest: str | None) -> str:
    return "not known" if digest is None else f"sha256 {digest[:12]}…"
