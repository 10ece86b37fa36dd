"""The rules of a promotion: gates, targets that it needs, engines that nobody measured."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from mlflow_e2eai.artifacts.values import EngineArtifact, precision_of
from mlflow_e2eai.bundle.attestation.signatures import public_key
from mlflow_e2eai.bundle.coverage import every_target, missing_gpus, targets_of
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.targets import capability_of, parse
from mlflow_e2eai.errors import InvalidInputError, nearest
from mlflow_e2eai.evaluation.gates import (
    AGAINST_CHAMPION,
    COUNTS,
    Decision,
    Gate,
    MetricValue,
    Severity,
    Verdict,
    decide,
)
from mlflow_e2eai.evaluation.variants import engine_variant
from mlflow_e2eai.promotion.incumbent import DIFFERENCE, LATENCY_RATIO, RATIO, TASK_DROP
from mlflow_e2eai.promotion.metrics import age_days
from mlflow_e2eai.promotion.requirements import (
    RequiredApproval,
    RequiredSigner,
    RequiredTarget,
)
from mlflow_e2eai.tracking.metrics import LARGE_IS_GOOD, SMALL_IS_GOOD

Unmeasured: TypeAlias = Literal["block", "warn", "exclude"]

UNMEASURED = "evidence/unmeasured"
"""Metric of the verdict on engines that nobody measured on a GPU of theirs: their number."""

REQUIRED = "required/"
"""Begins the metric of the verdict on a required target, whose name follows."""

GOAL = "goal/"
"""Begins the metric of the verdict on a goal, whose metric follows."""

_LONGEST_NAME = 50
"""Letters of an approval's name."""

FIGURES = (*SMALL_IS_GOOD, *LARGE_IS_GOOD, "nonfinite_count", "passed")
"""Figures of parity; of one output with its name between: ``parity/logits/cosine``."""

SIZED = (
    *("latency/p50_ms", "latency/p90_ms", "latency/p95_ms", "latency/p99_ms", "latency/mean_ms"),
    *("latency/device_p50_ms", "latency/throughput_items_per_s", "latency/ratio"),
    *("concurrency/items_per_s", LATENCY_RATIO),
)
"""Metrics that depend on the number of items in a call, or of callers."""

_WHOLE = (
    *("evidence/unverified", "evidence/quick", "evidence/assumptions"),
    *("evidence/refused_sizes", "evidence/frozen", "evidence/zero_scores"),
)
"""Metrics of all variants together."""

INCOMPARABLE = (*COUNTS, *_WHOLE, TASK_DROP, LATENCY_RATIO)
"""Metrics that are no number of one variant of one version, by which two could be compared."""

METRICS = (
    *COUNTS,
    *_WHOLE,
    "evidence/age_days",
    *("task/drop", TASK_DROP, *SIZED),
    *("cold_start/load_s", "cold_start/first_call_ms"),
    *("cold_start/peak_memory_bytes", "cold_start/device_memory_bytes", "file/size_bytes"),
    *(f"parity/{figure}" for figure in FIGURES),
)
"""Every metric with a fixed name; see `metrics.values_of` and `incumbent.champion_values`. Besides
there are ``task/<name>``, ``parity/<output>/<figure>`` and the relative ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All rules of a promotion.

    Attributes:
        gates: Bounds on metrics.
        required_targets: Targets that the version must have evidence of.
        unmeasured: What an engine does that nobody measured on a GPU of its target. ``block``: the
            version is not promoted. ``warn``: it is shown. ``exclude``: no gate is about it, and
            the decision names it; `load_model` takes it by name only, as it does each variant
            without evidence where others have some.
        given: Verdicts of rules that are about more than one version, such as a goal.
        approvals: People who must agree.
        signers: Keys that must have signed the files.
        keys: Public keys by name, of those who sign.
    """

    gates: tuple[Gate, ...]
    required_targets: tuple[RequiredTarget, ...] = ()
    unmeasured: Unmeasured = "block"
    given: tuple[Verdict, ...] = ()
    approvals: tuple[RequiredApproval, ...] = ()
    signers: tuple[RequiredSigner, ...] = ()
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def compares(self) -> bool:
        """Whether a gate compares with the version that holds the alias."""
        return any(gate.compares for gate in self.gates)

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics that the gates read."""
        return frozenset(gate.metric for gate in self.gates)


def decide_on(
    policy: Policy,
    manifest: Manifest,
    values: Sequence[MetricValue],
    *,
    has_champion: bool,
    now: datetime | None = None,
) -> Decision:
    """Decide on a version by all rules of a policy.

    Args:
        policy: The rules.
        manifest: The version's manifest.
        values: The values of its metrics; see `metrics.values_of` and `incumbent.champion_values`.
        has_champion: Whether another version holds the alias.
        now: The time that ages count to; by default this moment.
    """
    lacking = missing_gpus(manifest)
    names = tuple(
        _engine_name(engine, lacking[variant])
        for engine in manifest.engines
        if (variant := engine_variant(engine)) in lacking
    )
    is_excluding = policy.unmeasured == "exclude"
    considered = [value for value in values if not (is_excluding and _is_lacking(value, lacking))]
    decision = decide(policy.gates, considered, has_champion=has_champion)
    required = [_requirement(each, manifest, now) for each in policy.required_targets]
    verdicts = [*decision.verdicts, *required, *policy.given]
    if names and policy.unmeasured != "exclude":
        verdicts.append(_unmeasured_verdict(names, policy.unmeasured))
    excluded = names if is_excluding else ()
    return dataclasses.replace(decision, verdicts=tuple(verdicts), excluded=excluded)


def _engine_name(engine: EngineArtifact, missing: tuple[str, ...]) -> str:
    """An engine that was not measured, with the GPUs where that is so if it was on others."""
    variant = engine_variant(engine)
    is_whole = missing == engine.target.capabilities
    return variant if is_whole else f"{variant} ({', '.join(missing)})"


def _is_lacking(value: MetricValue, lacking: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether a value says that an engine was not measured, on a GPU or at all."""
    missing = lacking.get(value.variant or "")
    return missing is not None and value.metric in COUNTS and set(value.targets[1:]) <= {*missing}


def _unmeasured_verdict(names: Sequence[str], severity: Severity) -> Verdict:
    whose = "its" if len(names) == 1 else "their"
    return Verdict(
        metric=UNMEASURED,
        found=float(len(names)),
        wanted="at most 0",
        passed=False,
        severity=severity,
        reason=f"nobody measured {', '.join(names)} on a GPU of {whose} target",
    )


def _requirement(required: RequiredTarget, manifest: Manifest, now: datetime | None) -> Verdict:
    """Whether an engine for a target passed there, of the version and the age that are wanted."""
    reasons = [_why_not_met(required, engine, manifest, now) for engine in manifest.engines]
    met = sum(reason is None for reason in reasons)
    closest = min(filter(None, reasons), default=(0, "the version has no engine"))[1]
    return Verdict(
        metric=f"{REQUIRED}{required.target}",
        found=float(met),
        wanted=str(required),
        passed=met > 0,
        severity=required.severity,
        reason=None if met else closest,
    )


def _why_not_met(
    required: RequiredTarget, engine: EngineArtifact, manifest: Manifest, now: datetime | None
) -> tuple[int, str] | None:
    """Why an engine does not meet a requirement, after how far it is from that; None if it does."""
    name, version = engine_variant(engine), engine.backend_version
    fits_all = not engine.target.capabilities  # an engine for every GPU, wherever it was measured
    if required.target not in every_target(engine) and not fits_all:
        return 9, f"the version has no engine for {required.target}"
    if required.precision not in (None, engine.arithmetic):
        return 8, f"{name} is in {engine.arithmetic}"
    if required.tensorrt is not None and not fnmatchcase(version, required.tensorrt):
        return 7, f"{name} was built by TensorRT {version}"
    return _lacking_evidence(required, engine, manifest, now)


def _lacking_evidence(
    required: RequiredTarget, engine: EngineArtifact, manifest: Manifest, now: datetime | None
) -> tuple[int, str] | None:
    """The evidence of an engine that a requirement misses, as `_why_not_met`."""
    name = engine_variant(engine)
    entries = [
        (there, entry)
        for there in manifest.by_machine
        for entry in there.evidence
        if entry.sha256 == engine.sha256
        and entry.measured
        and required.target in targets_of(engine, there.environment)
    ]
    if not entries:
        return 6, f"nobody measured {name} on such a GPU"
    if required.target == str(engine.target) and (missing := missing_gpus(manifest).get(name)):
        return 6, f"nobody measured {name} on a GPU of {', '.join(missing)}"
    if not all(entry.passed for _, entry in entries):
        return 5, f"{name} failed its comparison with the {manifest.subject}"
    if required.max_age_days is None:
        return None
    ages = [age_days(there.measured_at, now) for there, _ in entries]
    known = [days for days, reason in ages if reason is None]
    if not known:
        return 4, f"of {name}, {ages[0][1]}"
    newest = min(known)
    return (
        (3, f"{name} was measured {newest:.3g} days ago")
        if newest > required.max_age_days
        else None
    )


# What may be written


def check_policy(policy: Policy) -> Policy:
    """The policy with targets as engines have them, after its names were checked.

    Raises:
        InvalidInputError: A metric, target, precision or key is not known, or a metric has no size.
    """
    for required in policy.approvals:
        check_approval(required.approval)
    named = [(f"The approval {each.approval!r}", each.keys) for each in policy.approvals]
    for subject, keys in (*named, *(("The gate signed_by", each.keys) for each in policy.signers)):
        if unknown := [name for name in keys if name not in policy.keys]:
            known = f"there are {', '.join(policy.keys)}" if policy.keys else "there are none"
            msg = f"{subject} names the key {unknown[0]!r}, which is not under 'keys': {known}."
            raise InvalidInputError(msg)
    for text in policy.keys.values():
        public_key(text)
    return dataclasses.replace(
        policy,
        gates=tuple(map(check_gate, policy.gates)),
        required_targets=tuple(map(check_target, policy.required_targets)),
    )


def check_approval(approval: str) -> None:
    """Check that an approval has a name that is a word.

    Raises:
        InvalidInputError: It has not.
    """
    is_word = isinstance(approval, str) and approval.replace("-", "").replace("_", "").isalnum()
    if not is_word or not approval.isascii() or len(approval) > _LONGEST_NAME:
        msg = (
            f"{approval!r} is no name of an approval; give letters, digits, '-' and '_', such as "
            f"'release'."
        )
        raise InvalidInputError(msg)


def check_gate(gate: Gate) -> Gate:
    """One gate of `check_policy`."""
    check_metric(gate.metric)
    if gate.at is not None and base_metric(gate.metric) not in SIZED:
        msg = (
            f"The gate on {gate.metric!r} is at {gate.at} items, but only {', '.join(SIZED)} and "
            f"what compares them depend on that; leave 'at' out."
        )
        raise InvalidInputError(msg)
    if gate.selection and gate.metric in _WHOLE:
        msg = f"The gate on {gate.metric!r} is about {gate.selection}, but it is of all variants."
        raise InvalidInputError(msg)
    return dataclasses.replace(
        gate,
        target=None if gate.target is None else target_name(gate.target),
        precision=None if gate.precision is None else precision_of(gate.precision),
    )


def check_target(required: RequiredTarget) -> RequiredTarget:
    """One required target of `check_policy`."""
    days = required.max_age_days
    if days is not None and not (math.isfinite(days) and days > 0):
        msg = f"max_age_days of {required.target} is {days}; give a number of days above 0."
        raise InvalidInputError(msg)
    return dataclasses.replace(
        required,
        target=target_name(required.target),
        precision=None if required.precision is None else precision_of(required.precision),
    )


def is_better_high(metric: str) -> bool:
    """Whether more of a metric is better."""
    end = metric.rpartition("/")[2]
    return end in (
        *LARGE_IS_GOOD,
        "items_per_s",
        "throughput_items_per_s",
        "measured",
        "passed",
    ) or (metric.startswith("task/") and metric != "task/drop")


def base_metric(name: str) -> str:
    """The metric that a relative one compares; any other name itself."""
    if name.startswith(AGAINST_CHAMPION) and name.endswith((RATIO, DIFFERENCE)):
        return name.removeprefix(AGAINST_CHAMPION).removesuffix(RATIO).removesuffix(DIFFERENCE)
    return name


def check_metric(name: str) -> None:
    """Check that a metric can exist.

    Raises:
        InvalidInputError: It cannot.
    """
    base = base_metric(name)
    if base != name and base in INCOMPARABLE:
        msg = (
            f"{name!r} has no value: {base} is not a number of a variant that two versions have. "
            f"Write a gate on {base} itself."
        )
        raise InvalidInputError(msg)
    if base in METRICS or re.fullmatch(r"task/.+", base, re.DOTALL):
        return
    if re.fullmatch(rf"parity/.+/({'|'.join(FIGURES)})", base, re.DOTALL):
        return
    near = nearest(name, _similar(name, METRICS))
    hint = f"did you mean {near}?" if near else f"there are {', '.join(METRICS)}, and task/<name>."
    msg = f"There is no metric {name!r} that a gate could read; {hint}"
    raise InvalidInputError(msg)


def _similar(name: str, known: Collection[str]) -> list[str]:
    """Names that a name may be meant for: with the ends of relative ones, if it has such an end."""
    ends = [end for end in (RATIO, DIFFERENCE) if name.endswith(end)]
    relative = [f"{AGAINST_CHAMPION}{each}{end}" for each in known for end in ends]
    return [*relative, *known]


def target_name(text: str) -> str:
    """A compute capability or a target's text, by which engines are selected.

    Args:
        text: ``sm89``; a GPU, such as ``L4``; or a target, such as ``rtx:sm89``; see
            `engine.targets.parse`.

    Raises:
        InvalidInputError: It is none of these.
    """
    capability = capability_of(text) or text
    if not re.fullmatch(r"sm\d+", capability):
        return str(parse(text))
    try:
        parse(f"trt:{capability}")  # which lists every compute capability
    except InvalidInputError as error:
        msg = (
            f"No engine is for {capability}; give a compute capability such as sm89, a GPU such as "
            f"L4, or a target such as trt11:sm90."
        )
        raise InvalidInputError(msg) from error
    return capability
