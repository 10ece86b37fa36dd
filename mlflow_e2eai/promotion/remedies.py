"""A decision -> advice about each gate that did not pass, as commands where there are any."""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.values import PRECISIONS, Axis
from mlflow_e2eai.bundle.coverage import every_target, unmeasured_engines
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.targets import canonical, parse
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.gates import (
    AGAINST_CHAMPION,
    COUNTS,
    FAILED,
    MEASURED,
    Decision,
    Gate,
    Verdict,
)
from mlflow_e2eai.evaluation.variants import engine_variant
from mlflow_e2eai.latency.concurrency import THREADS
from mlflow_e2eai.promotion.incumbent import LATENCY_RATIO, TASK_DROP
from mlflow_e2eai.promotion.metrics import NOISY, measured_evidence, values_of
from mlflow_e2eai.promotion.policy import GOAL, REQUIRED, SIZED, UNMEASURED, Policy, base_metric
from mlflow_e2eai.promotion.requirements import RequiredTarget
from mlflow_e2eai.pytorch.references import TriedSizes

_DEFAULT_PRECISIONS = frozenset({"fp32", "fp16"})
"""Of `mlflow_e2eai pipeline`; so is the level of evidence below."""

_DEFAULT_LEVEL = "standard"

_BISECTED = ("fp16", "bf16")
"""Precisions that `bisect` takes."""

_CALLERS = "concurrency/items_per_s"
_OF_GPU = ("latency/device_p50_ms", "cold_start/device_memory_bytes")
"""Metrics that engines alone have, on a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A promotion as it was called, which advice repeats.

    Attributes:
        name: The registered model.
        aliases: The aliases that a version is to get.
        gates: The gates as they were given.
        goal: The goal as it was given; None of one challenger.
        versions: The challengers, where there are several.
        dry_run: Whether nothing is to be written.
        executor: See `mlflow_e2eai.promote`.
        allow_native: Libraries that may be loaded.
    """

    name: str
    aliases: tuple[str, ...] = ("champion",)
    gates: Any = None
    goal: Any = None
    versions: tuple[str, ...] = ()
    dry_run: bool = False
    executor: str | None = None
    allow_native: Sequence[str] = ()

    def measure_again(self, version: str) -> str:
        """The same call about a version, but that the latency of both is measured for it."""
        if not isinstance(self.gates, str | Path | None) or not isinstance(self.goal, str | None):
            option = "remeasure=True" if self.executor is None else f"executor={self.executor!r}"
            return f"call promote as before, with {option}"
        words = ["promote", self.name, ",".join(self.versions) or version]
        options = {
            "--alias": "" if self.aliases == ("champion",) else ",".join(self.aliases),
            "--gates": str(self.gates or ""),
            "--goal": self.goal or "",
            "--allow-native": ",".join(self.allow_native),
            "--executor": self.executor or "",
        }
        words += [word for name, text in options.items() if text for word in (name, text)]
        words += ["--remeasure"] if self.executor is None else []
        return _command(*words, *(["--dry-run"] if self.dry_run else []))


def with_remedies(
    decision: Decision, policy: Policy, manifest: Manifest, call: Call, version: str
) -> Decision:
    """The decision, with what to do about each gate that did not pass.

    Args:
        decision: The decision.
        policy: The rules that it was made by.
        manifest: The version's manifest.
        call: The promotion as it was called.
        version: The version.
    """
    advice = _Advice(policy=policy, manifest=manifest, call=call, version=version)
    verdicts = tuple(
        verdict
        if verdict.passed or verdict.remedy is not None
        else dataclasses.replace(verdict, remedy=advice.on(verdict))
        for verdict in decision.verdicts
    )
    return dataclasses.replace(decision, verdicts=verdicts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Needs:
    """Settings that a new version needs besides those that the version has."""

    targets: tuple[str, ...] = ()
    gpus: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Advice:
    """Advice on the verdicts of one decision."""

    policy: Policy
    manifest: Manifest
    call: Call
    version: str

    def on(self, verdict: Verdict) -> str | None:
        """Advice on a verdict that did not pass; None where the evidence is there, and bad."""
        metric, reason = verdict.metric, verdict.reason
        lacks = verdict.found is None or math.isnan(verdict.found) or reason is not None
        if metric.startswith(GOAL):  # a version that is behind the best has nothing to do
            return f"Measure all of them on one machine: {self._pipeline()}" if reason else None
        if metric in (UNMEASURED, MEASURED, "evidence/age_days") or metric.startswith(REQUIRED):
            return self._measure(verdict)
        if metric == FAILED and not lacks:
            return self._look_into(verdict)
        if metric == LATENCY_RATIO and verdict.found is not None and lacks:
            return self._compare_latency(verdict)
        words = {
            "evidence/quick": self._pipeline(level=_DEFAULT_LEVEL),
            "evidence/assumptions": "Log the model with input_example= and dynamic_axes=.",
            "evidence/unverified": "Log the PyTorch model, not its ONNX file.",
            "evidence/refused_sizes": self._narrow_axes(),
            "evidence/frozen": "Compute it with tensors in forward, or export with 'dynamo'.",
            "evidence/zero_scores": "Check the labels and the metric, unless 0 is its best value.",
        }.get(metric)
        if words is not None or not lacks:
            return words
        return self._in_words(verdict) or self._measure(verdict)

    def _narrow_axes(self) -> str:
        sizes = None if self.manifest.export is None else self.manifest.export.sizes
        return (sizes or TriedSizes()).advice

    def _look_into(self, verdict: Verdict) -> str:
        """Where the reason of a failed variant is, and what finds the cause of one in half."""
        uri = f"models:/{self.call.name}/{self.version}"
        failed = [text.rpartition("/")[2] for text in (verdict.source or "").split(", ")]
        ways = [f"Read why: {_command('report', uri)}"]
        ways += [
            f"find what must stay in fp32: {_command('bisect', uri, '--precision', precision)}; "
            f"or log the model without {precision}"
            for precision in _BISECTED
            if precision in failed
        ]
        return "; ".join(ways)

    def _compare_latency(self, verdict: Verdict) -> str:
        here = "" if self.call.executor else " here, for this machine only"
        when = ", when it is quiet" if verdict.reason == NOISY else ""
        again = self.call.measure_again(self.version)
        where = f"or where the champion was measured: {self._pipeline(self._needs(verdict))}"
        return f"Measure both{here}{when}: {again}; {where}"

    def _in_words(self, verdict: Verdict) -> str | None:
        """Advice where no measurement helps; None where one may."""
        metric, gate = base_metric(verdict.metric), self._gate(verdict)
        if verdict.reason is not None and not verdict.reason.startswith("not measured; did you"):
            return None
        if metric == TASK_DROP and verdict.found is None:
            return "Log both versions with evaluation_data=, or give the gate optional: true."
        if metric in (TASK_DROP, "task/drop"):
            return "Log the model with evaluation_data=."
        if metric.startswith("task/"):
            name = metric.removeprefix("task/")
            return f"Log the model with evaluation_data= and a metric {name!r} in metrics=."
        if metric.startswith("parity/") and self._has_no_such(metric):
            return "No output of this version has that: correct the gate, or make it optional."
        return None if gate.at is None else self._size_in_words(metric, gate.at)

    def _has_no_such(self, metric: str) -> bool:
        """Whether no variant has a metric, though some were measured."""
        known = {*COUNTS, *(value.metric for value in values_of(self.manifest))}
        return metric not in known and bool(measured_evidence(self.manifest))

    def _size_in_words(self, metric: str, at: int) -> str | None:
        if metric == _CALLERS:
            known = ", ".join(map(str, THREADS))
            return None if at in THREADS else f"Give the gate another at: {known} are measured."
        axis = self._leading
        if axis is not None and axis.admits(at):
            return None
        return f"Log the model with dynamic_axes= whose first axis admits {at} items."

    def _measure(self, verdict: Verdict) -> str:
        """To measure a new version, and where."""
        needs = self._needs(verdict)
        level = _DEFAULT_LEVEL if base_metric(verdict.metric) == _CALLERS else None
        if verdict.reason == NOISY:
            return f"Measure when the machine is quiet: {self._pipeline(needs, level=level)}"
        gpus = dict.fromkeys(
            [*needs.gpus, *(gpu for text in needs.targets for gpu in _gpus_of(text))]
        )
        if len(gpus) > 1:
            command = self._pipeline(needs, level=level, executor="ray")
            return f"With a Ray cluster that has GPUs of {' and '.join(gpus)}: {command}"
        if needs.targets:
            gpu = "".join(f" of {each}" for each in gpus)
            command = self._pipeline(needs, level=level)
            return f"On a machine with a GPU{gpu}, or with --executor ray: {command}"
        compares = verdict.metric.startswith(AGAINST_CHAMPION)
        where = "Where the champion was measured: " if compares else ""
        return where + self._pipeline(needs, level=level)

    def _needs(self, verdict: Verdict) -> _Needs:
        """The targets, precisions and sizes whose evidence a verdict misses."""
        unmeasured = unmeasured_engines(self.manifest)
        if verdict.metric == UNMEASURED:
            return _Needs(targets=tuple(dict.fromkeys(str(each.target) for each in unmeasured)))
        if verdict.metric.startswith(REQUIRED):
            rule = self._rule(verdict)
            precisions = () if rule.precision is None else (rule.precision,)
            targets, gpus = self._targets(rule.target), _capability(rule.target)
            return _Needs(targets=targets, gpus=gpus, precisions=precisions)
        gate, metric = self._gate(verdict), base_metric(verdict.metric)
        runner, _, precision = (gate.variant or "").partition("/")
        variant = (verdict.source or "").partition(" ")[0]
        named = [str(e.target) for e in unmeasured if engine_variant(e) == variant]
        targets = (*self._targets(gate.target), *self._targets(runner), *named)
        if metric in _OF_GPU and not targets:
            targets = tuple(str(engine.target) for engine in self.manifest.engines) or ("rtx",)
        is_sized = metric in SIZED and metric != _CALLERS
        return _Needs(
            targets=tuple(dict.fromkeys(targets)),
            gpus=_capability(gate.target),
            precisions=tuple(p for p in (gate.precision, precision) if p in PRECISIONS),
            sizes=(gate.at,) if is_sized and gate.at is not None else (),
        )

    def _gate(self, verdict: Verdict) -> Gate:
        """The gate of a verdict; one that selects nothing where it is none of the rules."""
        other = Gate(metric=verdict.metric, bound="at_most", limit=0)
        mine = (verdict.metric, verdict.wanted, verdict.scope)
        gates = (g for g in self.policy.gates if (g.metric, g.limits, g.scope) == mine)
        return next(gates, other)

    def _rule(self, verdict: Verdict) -> RequiredTarget:
        target = verdict.metric.removeprefix(REQUIRED)
        rules = (
            rule
            for rule in self.policy.required_targets
            if (rule.target, str(rule)) == (target, verdict.wanted)
        )
        return next(rules, RequiredTarget(target=target))

    def _targets(self, name: str | None) -> tuple[str, ...]:
        """Targets as `--targets` takes them, of what a gate names: those of the version first."""
        if name is None or not name or name.startswith(("onnxruntime", "torch", "*")):
            return ()
        here = _capability(name)
        mine = [
            str(engine.target)
            for engine in self.manifest.engines
            if name in every_target(engine) or (here and not engine.target.capabilities)
        ]
        return tuple(dict.fromkeys(mine)) or (_target(name),)

    @property
    def _leading(self) -> Axis | None:
        """The axis whose sizes are batch sizes."""
        shape = self.manifest.inputs[0].shape
        return next((axis for axis in self.manifest.axes if shape[:1] == (axis.name,)), None)

    def _pipeline(
        self, needs: _Needs | None = None, *, level: str | None = None, executor: str = ""
    ) -> str:
        """The command that makes such a version again, with what it has and what it needs.

        Args:
            needs: What it needs besides.
            level: Another level of evidence.
            executor: Where engines are built and evaluated.
        """
        needs = needs or _Needs()
        engines, name = self.manifest.engines, self.call.name
        precisions = {graph.precision for graph in self.manifest.graphs} | set(needs.precisions)
        precisions |= {engine.arithmetic for engine in engines}
        is_default = precisions == _DEFAULT_PRECISIONS and not needs.precisions
        targets = dict.fromkeys([*(str(engine.target) for engine in engines), *needs.targets])
        level = level or self.manifest.level or _DEFAULT_LEVEL
        remade = level != (self.manifest.level or _DEFAULT_LEVEL)  # there is none to be linked
        options = {
            "--precisions": () if is_default else [p for p in PRECISIONS if p in precisions],
            "--targets": targets,
            "--batch-sizes": map(str, sorted({*self._sizes(), *needs.sizes})),
            "--evidence": (level,) if remade or level != _DEFAULT_LEVEL else (),
            "--evidence-days": () if remade else ("0",),
            "--executor": (executor,) if executor else (),
        }
        words = ["pipeline", f"models:/{name}/{self.version}", "--registered-model-name", name]
        for option, texts in options.items():
            text = ",".join(texts)
            words += [option, text] if text else []
        return f"{_command(*words)}; then promote the version that it makes"

    def _sizes(self) -> Iterable[int]:
        """The batch sizes that the version was measured at."""
        axis = self._leading
        for label in self.manifest.latency:
            name, _, size = label.partition("=")
            if axis is not None and name == axis.name and size.isdecimal():
                yield int(size)


def _command(*words: str) -> str:
    return shlex.join(["mlflow_e2eai", *words])


def _gpus_of(target: str) -> tuple[str, ...]:
    """Compute capabilities that a target as `--targets` takes it is for; none for all."""
    return parse(target).capabilities


def _capability(name: str | None) -> tuple[str, ...]:
    """The compute capability that a gate names, if it does."""
    return (name,) if name is not None and re.fullmatch(r"sm\d+", name) else ()


def _target(name: str) -> str:
    """The target that a gate names; a compute capability is TensorRT's where RTX lacks it."""
    if _capability(name):
        try:
            return canonical(name)
        except InvalidInputError:
            return f"trt:{name}"
    try:
        return str(parse(name))
    except InvalidInputError:  # a pattern of variants
        return "rtx"
