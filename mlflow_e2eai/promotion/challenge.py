"""A version that is to get aliases, and the decision about it, with all that it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.side_by_side import SideBySide
from mlflow_e2eai.errors import E2EAIError
from mlflow_e2eai.evaluation.gates import AGAINST_CHAMPION, Decision, MetricValue, Verdict
from mlflow_e2eai.promotion.appraisal import Appraisal, Measure, appraise
from mlflow_e2eai.promotion.contenders import (
    as_challenger,
    as_champion,
    fetch_bundle,
    model_of,
)
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.registry.approvals import approval_verdicts
from mlflow_e2eai.promotion.registry.record import (
    Contender,
    DecisionRecord,
    environments_of,
    record_of,
)
from mlflow_e2eai.promotion.remeasurement import Remeasurement
from mlflow_e2eai.promotion.remedies import Call, with_remedies
from mlflow_e2eai.promotion.signers import signer_verdicts
from mlflow_e2eai.report.formats import aliases_text
from mlflow_e2eai.tracking.versions import find_version

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """A version that is to get aliases, by some rules.

    Attributes:
        version: The version.
        model: Its LoggedModel.
        path: Its bundle, of which every file was compared with its digest.
        call: The promotion as it was called, with the aliases.
        policy: The rules.
        folder: A folder for the bundles that it is compared with.
        remeasurement: How the latency of both is measured again; None where evidence counts.
        fetched: By version, the bundles that it was compared with; None of one that is damaged.
        measured: By version and the digest of its MLmodel, what was measured next to it.
    """

    version: ModelVersion
    model: LoggedModel
    path: Path
    call: Call
    policy: Policy
    folder: Path
    remeasurement: Remeasurement | None = None
    fetched: dict[str, Path | None] = dataclasses.field(default_factory=dict)
    measured: dict[tuple[str, str | None], Sequence[SideBySide]] = dataclasses.field(
        default_factory=dict
    )

    @classmethod
    def open(
        cls,
        call: Call,
        version: int | str,
        policy: Policy,
        folder: Path,
        *,
        remeasurement: Remeasurement | None = None,
    ) -> Challenge:
        """Fetch a version, and compare every file with its digest.

        Raises:
            ArtifactError: It is no bundle of this package, or a file has changed.
            TrackingError: There is no such version.
        """
        found = find_version(call.name, version)
        about = as_challenger(found)
        model = model_of(found, *about)
        path = fetch_bundle(model, folder / "challenger", *about)
        return cls(
            version=found,
            model=model,
            path=path,
            call=call,
            policy=policy,
            folder=folder,
            remeasurement=remeasurement,
        )

    @property
    def aliases(self) -> tuple[str, ...]:
        """The aliases that it is to get."""
        return self.call.aliases

    def decide(self, stands: Mapping[str, str | None]) -> Outcome:
        """Decide, given the version that each alias stands at.

        Raises:
            ArtifactError: A version that a gate compares with is no bundle, or has changed.
            TrackingError: Such a version is not there any more.
        """
        mine = str(self.version.version)
        by_version: dict[str, list[str]] = {}
        for alias in self.aliases:
            version = stands[alias]
            if version is not None and version != mine:  # what has it already compares with none
                by_version.setdefault(version, []).append(alias)
        others = [self._incumbent(version, its) for version, its in by_version.items()]
        appraisals = [self._appraise(other) for other in others] or [self._appraise(None)]
        verdicts = _verdicts_on_people(self.policy, self.path, self.version, self.model)
        decision = _combine([each.decision for each in appraisals], others)
        decision = dataclasses.replace(decision, verdicts=(*decision.verdicts, *verdicts))
        manifest = appraisals[0].manifest
        return Outcome(
            challenge=self,
            stands=dict(stands),
            incumbents=tuple(others),
            manifest=manifest,
            values=tuple(dict.fromkeys(v for each in appraisals for v in each.values)),
            measured=tuple(one for each in appraisals for one in each.measured),
            decision=with_remedies(decision, self.policy, manifest, self.call, mine),
        )

    def _incumbent(self, version: str, aliases: Sequence[str]) -> Incumbent:
        found = find_version(self.version.name, version)
        about = as_champion(found, aliases[0])
        model = path = None
        try:
            model = model_of(found, *about)
            if version not in self.fetched:  # else it was decided before
                place = self.folder / f"version-{version}"
                self.fetched[version] = None
                self.fetched[version] = fetch_bundle(model, place, *about)
            path = self.fetched[version]
        except E2EAIError:
            if self.policy.compares:  # else the page alone shows what changed against it
                raise
        return Incumbent(version=found, aliases=tuple(aliases), model=model, path=path)

    def _appraise(self, incumbent: Incumbent | None) -> Appraisal:
        return appraise(
            self.policy,
            self.path,
            None if incumbent is None else incumbent.path,
            has_champion=incumbent is not None,
            measure=None if incumbent is None else self._measure_against(incumbent),
        )

    def _measure_against(self, incumbent: Incumbent) -> Measure | None:
        """Measures next to a version, or gives what was measured before."""
        if incumbent.path is None or incumbent.model is None:
            return None
        number = str(incumbent.version.version)
        key = number, incumbent.model.tags.get(tracking.MLMODEL_SHA256)
        if key in self.measured:
            return lambda _: self.measured[key]
        if self.remeasurement is None:
            return None
        measure = partial(
            self.remeasurement.measure,
            f"measure {self.version.name} {self.version.version} against {number}",
            (self.path, incumbent.path),
            (str(self.model.model_id), str(incumbent.model.model_id)),
        )

        def measure_once(names: Sequence[str]) -> Sequence[SideBySide]:
            self.measured[key] = measure(names)
            return self.measured[key]

        return measure_once


@dataclass(frozen=True, slots=True, kw_only=True)
class Incumbent:
    """A version that has some of the aliases.

    Attributes:
        version: The version.
        aliases: Those of the aliases that it has.
        model: Its LoggedModel; None where it is no bundle, and no gate compares with it.
        path: Its bundle; None where no gate compares with it.
    """

    version: ModelVersion
    aliases: tuple[str, ...]
    model: LoggedModel | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Promotion(Decision):
    """A decision on whether a version gets aliases.

    Attributes:
        name: Name of the registered model.
        version: The version.
        aliases: The aliases that the decision is about.
        before: By alias, the version that had it; None where none had.
        run_id: The run that the decision is; None where nothing was written.
    """

    name: str
    version: str
    aliases: tuple[str, ...]
    before: Mapping[str, str | None]
    run_id: str | None = None

    def _line(self) -> str:
        places = [
            f"@{alias} (before: {'no version' if before is None else f'version {before}'})"
            for alias, before in self.before.items()
        ]
        line = super(Promotion, self)._line()  # super() alone fails in a class with slots
        return f"{self.name} {self.version} for {' and '.join(places)}: {line}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A decision, and what it was made of.

    Attributes:
        challenge: What was decided.
        stands: By alias, the version that had it.
        incumbents: Those of these versions that are not the challenger.
        manifest: The challenger's manifest.
        values: The values of its metrics.
        measured: What was measured side by side for the decision.
        decision: The decision.
    """

    challenge: Challenge
    stands: Mapping[str, str | None]
    incumbents: tuple[Incumbent, ...]
    manifest: Manifest
    values: tuple[MetricValue, ...]
    measured: tuple[SideBySide, ...] = ()
    decision: Decision

    @property
    def models(self) -> list[LoggedModel]:
        """The LoggedModels that the decision is about, the challenger's first."""
        others = (each.model for each in self.incumbents)
        return [self.challenge.model, *(model for model in others if model is not None)]

    @property
    def moves(self) -> dict[str, tuple[str | None, str | None]]:
        """The moves of a yes: by alias, the version before and after."""
        mine = str(self.challenge.version.version)
        return {alias: (before, mine) for alias, before in self.stands.items() if before != mine}

    def promotion(self, run_id: str | None = None) -> Promotion:
        """The decision as it is returned.

        Args:
            run_id: The run that it is.
        """
        return Promotion(
            verdicts=self.decision.verdicts,
            inapplicable=self.decision.inapplicable,
            excluded=self.decision.excluded,
            name=self.challenge.version.name,
            version=str(self.challenge.version.version),
            aliases=self.challenge.aliases,
            before=self.stands,
            run_id=run_id,
        )

    def record(self) -> DecisionRecord:
        """The decision as it is stored."""
        challenge = self.challenge
        return record_of(
            challenge.version.name,
            challenge.aliases,
            _contender(challenge.version, challenge.model, challenge.path, self.stands),
            [
                _contender(each.version, each.model, each.path, self.stands)
                for each in self.incumbents
            ],
            policy=challenge.policy,
            values=self.values,
            measured=self.measured,
            decision=self.decision,
        )


def _verdicts_on_people(
    policy: Policy, path: Path, version: ModelVersion, model: LoggedModel
) -> tuple[Verdict, ...]:
    """Whether the people agree that the rules require, and the keys of whom signed the files."""
    approvals = approval_verdicts(policy, version, model.tags.get(tracking.MLMODEL_SHA256))
    return (*approvals, *signer_verdicts(policy, path.parent, version))


def _contender(
    version: ModelVersion,
    model: LoggedModel | None,
    path: Path | None,
    stands: Mapping[str, str | None],
) -> Contender:
    tags = {} if model is None else model.tags
    number = str(version.version)
    return Contender(
        version=number,
        model_id=None if model is None else str(model.model_id),
        sha256=tags.get(tracking.MLMODEL_SHA256),
        evidence_sha256=tags.get(tracking.SHA256),
        aliases=tuple(alias for alias, holder in stands.items() if holder == number),
        environments={} if path is None else environments_of(bundle.read(path)),
    )


def _combine(decisions: Sequence[Decision], incumbents: Sequence[Incumbent]) -> Decision:
    """One decision about several incumbents: what does not compare with them is in it once."""
    if len(incumbents) > 1:
        decisions = [
            dataclasses.replace(each, verdicts=tuple(_against(v, other) for v in each.verdicts))
            for each, other in zip(decisions, incumbents, strict=True)
        ]
    verdicts = tuple(dict.fromkeys(v for each in decisions for v in each.verdicts))
    inapplicable = tuple(dict.fromkeys(r for each in decisions for r in each.inapplicable))
    return dataclasses.replace(decisions[0], verdicts=verdicts, inapplicable=inapplicable)


def _against(verdict: Verdict, incumbent: Incumbent) -> Verdict:
    """The verdict, whose source names the version that it compares with."""
    if not verdict.metric.startswith(AGAINST_CHAMPION):
        return verdict
    version = f"against version {incumbent.version.version} at {aliases_text(incumbent.aliases)}"
    source = " ".join(filter(None, (verdict.source, version)))
    return dataclasses.replace(verdict, source=source)
