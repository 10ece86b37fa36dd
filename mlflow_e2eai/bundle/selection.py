"""Choice of the variant of a bundle that is best on this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from mlflow_e2eai.artifacts.machine import gpu_name, local_compute_capability, processor_name
from mlflow_e2eai.artifacts.values import EngineArtifact, OnnxArtifact
from mlflow_e2eai.bundle.choice import Aim, Choice, Goal, PassedOver
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.runner import unsupported_here
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, RunnerError, nearest, require_kind
from mlflow_e2eai.evaluation.evidence import Evidence
from mlflow_e2eai.evaluation.variants import engine_variant, graph_variant, is_emulated
from mlflow_e2eai.latency.report import LatencyReport
from mlflow_e2eai.runtime.ort import onnxruntime_devices

_UNITS: Mapping[Aim, str] = {"latency": "ms", "throughput": "items/s", "memory": "MB"}


class RankedVariants:
    """The variants of a bundle, ranked for this machine.

    Attributes:
        names: All variants: engines, graphs with ONNX Runtime on a GPU, on the CPU.
        errors: The error of each variant that is chosen here by its name only.
        ranked: The others, the best one first.
        subject: What they were compared with, in words.
    """

    def __init__(self, manifest: Manifest, goal: Goal) -> None:
        self._goal = goal
        self.subject = manifest.subject
        self._machines = manifest.by_machine
        self._runners = [
            [engine_variant(engine) for engine in manifest.engines],
            [graph_variant(graph, "cuda") for graph in manifest.graphs],
            [graph_variant(graph, "cpu") for graph in manifest.graphs],
        ]
        self.names = [name for names in self._runners for name in names]
        self.errors = _errors(manifest, self._machines, self.names)
        # Variants that were measured on such a machine come before others.
        fitting = [name for name in self.names if name not in self.errors]
        fitting.sort(key=lambda name: not self._counts_here(name))
        self.ranked = _rank(fitting, functools.cache(self._is_better))

    def choice(self, variant: str, failures: Mapping[str, E2EAIError]) -> Choice:
        """The explanation why a variant was opened, and not the others.

        Args:
            variant: The opened variant.
            failures: Errors of the variants that were tried before it.
        """
        errors = {**self.errors, **failures}
        others = tuple(
            PassedOver(variant=name, reason=str(errors[name]), error=errors[name])
            if name in errors
            else PassedOver(variant=name, reason=self._behind(name, variant))
            for name in self.names
            if name != variant
        )
        rivals = {
            other.variant: there
            for other in others
            if other.error is None
            and (there := self._machine_for(other.variant, variant)) is not None
        }
        if rivals:
            reason = self._best_of(variant, rivals)
        elif any(other.error is None for other in others):
            reason = (
                "the first in order; no other variant that can run here was measured against it "
                "on such a machine."
            )
        else:
            reason = "no other variant can run here."
        return Choice(variant=variant, reason=reason, goal=self._goal, others=others)

    def choose(self, variant: str) -> Choice:
        """The explanation of a variant that the caller named.

        Raises:
            InvalidInputError: There is no such variant.
        """
        if require_kind("variant", variant, str, "the name of a variant") not in self.names:
            near = nearest(variant, self.names)
            hint = f" Did you mean {near}?" if near else ""
            msg = f"There is no variant {variant!r}; this bundle has {', '.join(self.names)}.{hint}"
            raise InvalidInputError(msg)
        others = tuple(
            PassedOver(
                variant=name,
                reason=str(self.errors.get(name, "another variant was requested.")),
                error=self.errors.get(name),
            )
            for name in self.names
            if name != variant
        )
        reason = "it was requested by name."
        return Choice(variant=variant, reason=reason, goal=None, others=others)

    def _best_of(self, variant: str, rivals: Mapping[str, Manifest]) -> str:
        """The reason for a variant by what was measured of it and of its rivals."""
        known = {
            name: there
            for name, there in rivals.items()
            if not self._is_noisy(there, name, variant)
        }
        if not known:
            return (
                f"the first in order; the measurements of {self._goal} are too noisy to tell, "
                "because the machine was busy."
            )
        value = self._of(next(iter(known.values())), variant)
        count = len(rivals) - len(known)
        noisy = f"; {count} more {'is' if count == 1 else 'are'} too noisy to tell" if count else ""
        if all(self._is_within_noise(there, name, variant) for name, there in known.items()):
            others = "the other" if len(known) == 1 else f"the {len(known)} others"
            return (
                f"the first in order, within the noise of {others} measured for {self._goal}{value}"
                f"{noisy}."
            )
        return f"the best of {1 + len(known)} measured for {self._goal}{value}{noisy}."

    def _behind(self, name: str, chosen: str) -> str:
        there = self._machine_for(name, chosen)
        if there is None:
            return (
                f"it was not measured against {chosen} on such a machine for {self._goal}, and "
                "ranks below it."
            )
        if self._is_noisy(there, name, chosen):
            return (
                f"too noisy to tell from {chosen} for {self._goal}, because the machine was busy; "
                "it ranks below it."
            )
        if self._is_within_noise(there, name, chosen):
            values = f"{self._of(there, name)}{self._of(there, chosen)}"
            return f"within the noise of {chosen} for {self._goal}, and ranks below it{values}."
        verdict = "worse" if self._is_better(chosen, name) else "no better"
        values = f"{self._of(there, name)}{self._of(there, chosen)}"
        return f"measured to be {verdict} for {self._goal}{values}."

    def _of(self, there: Manifest, name: str) -> str:
        value = self._measurement_of(there, name)
        return "" if value is None else f", {name} {value:.4g} {_UNITS[self._goal.aim]}"

    def _counts_here(self, name: str) -> bool:
        """Whether a variant was measured for the goal on this GPU, or on this CPU without one.

        A measure on a busy machine is none.
        """
        return any(
            there.environment.get("gpu") == gpu_name()
            and _is_alike(there, on_cpu=gpu_name() is None)
            and self._measurement_of(there, name) is not None
            and not self._is_noisy(there, name, name)
            for there in self._machines
        )

    def _machine_for(self, one: str, other: str) -> Manifest | None:
        """The bundle with the evidence of a machine like this one that ran both variants.

        It must have this GPU, or this processor where both variants run on one. Evidence without
        their names, as some kernels do not name the processor, counts among variants of one runner
        only.
        """
        is_on_cpu = {one, other} <= set(self._runners[-1])
        is_one_runner = any({one, other} <= set(names) for names in self._runners)
        for there in self._machines:
            is_alike = _is_alike(there, on_cpu=is_on_cpu)
            counts = is_one_runner if is_alike is None else is_alike
            ran = self._measurement_of(there, one, other), self._measurement_of(there, other, one)
            if counts and None not in ran:
                return there
        return None

    def _is_better(self, one: str, other: str) -> bool:
        """Whether one variant is better than another by the evidence, significantly."""
        there = self._machine_for(one, other)
        if there is None or self._is_noisy(there, one, other):
            return False
        mine, theirs = (
            self._measurement_of(there, one, other),
            self._measurement_of(there, other, one),
        )
        if mine is None or theirs is None:
            return False
        if self._goal.aim != "latency":
            return mine > theirs if self._goal.aim == "throughput" else mine < theirs
        report = self._report(there)
        return mine < theirs and report is not None and report.ratio(one, other).high < 1

    def _is_noisy(self, there: Manifest, one: str, other: str) -> bool:
        """Whether a machine was too busy for what the goal compares of two variants."""
        if self._goal.aim == "memory":
            return False
        both = {one, other}
        if self._goal.aim == "latency":
            reports = [self._report(there)]
        else:
            reports = [*there.latency.values()]
            if any(entry.variant in both and _has_busy_loads(entry) for entry in there.evidence):
                return True
        return any(report is not None and any(map(report.is_busy, both)) for report in reports)

    def _is_within_noise(self, there: Manifest, one: str, other: str) -> bool:
        """Whether the latencies of two variants on a machine are indistinguishable."""
        report = self._report(there) if self._goal.aim == "latency" else None
        return report is not None and report.ratio(one, other).equal

    def _report(self, there: Manifest) -> LatencyReport | None:
        """The latency report for the goal."""
        reports = there.latency
        if self._goal.items is None:
            return reports.get("opt") or reports.get("static")
        fitting = [report for report in reports.values() if report.items == self._goal.items]
        return fitting[0] if fitting else None

    def _measurement_of(self, there: Manifest, name: str, other: str | None = None) -> float | None:
        """One variant's measurement for the goal on a machine, comparable with another's."""
        if self._goal.aim == "latency":
            report = self._report(there)
            return None if report is None else _p50_ms(report, name)
        evidence = {entry.variant: entry for entry in there.evidence}
        if self._goal.aim == "throughput":
            return _most_items_per_s(evidence.get(name), there.latency, name)
        return _memory_mb(evidence.get(name), evidence.get(other or name))


def _is_alike(there: Manifest, *, on_cpu: bool) -> bool | None:
    """Whether a machine has this GPU, or this processor; None where that is not recorded."""
    known = there.environment.get("processor" if on_cpu else "gpu")
    return None if known is None else known == (processor_name() if on_cpu else gpu_name())


def _errors(
    manifest: Manifest, machines: Sequence[Manifest], names: Sequence[str]
) -> dict[str, E2EAIError]:
    """The error of each variant that is chosen here only by its name, among all of the names."""
    errors: dict[str, E2EAIError] = {}
    devices = onnxruntime_devices()
    has_evidence = any(
        entry.variant in names and entry.passed and not entry.rejected
        for there in machines
        for entry in there.evidence
    )
    for engine in manifest.engines:
        name = engine_variant(engine)
        error = unsupported_here(engine, manifest.graphs) or _distrust(
            name, engine, machines, needs_evidence=has_evidence
        )
        if error is not None:
            errors[name] = error
    for graph in manifest.graphs:
        for device in ("cuda", "cpu"):
            name = graph_variant(graph, device)
            if device not in devices:
                errors[name] = RunnerError("ONNX Runtime finds no GPU on this machine.")
            elif is_emulated(graph, device):
                msg = (
                    f"ONNX Runtime only emulates {graph.precision} on the CPU; request it by name "
                    "to run it."
                )
                errors[name] = RunnerError(msg)
            elif (
                error := _distrust(
                    name, graph, machines, on_cpu=device == "cpu", needs_evidence=has_evidence
                )
            ) is not None:
                errors[name] = error
    return errors


def _distrust(
    variant: str,
    file: OnnxArtifact | EngineArtifact,
    machines: Sequence[Manifest],
    *,
    on_cpu: bool = False,
    needs_evidence: bool,
) -> RunnerError | None:
    """Reason against a variant by its evidence: of machines like this one, else of any.

    Where some variant of the bundle passed its comparison, one that nobody measured is chosen by
    its name only: it might compute anything. So might an engine for several GPUs on one that it was
    not measured on.
    """
    every = [
        (there, entry) for there in machines for entry in there.evidence if entry.variant == variant
    ]
    here = [
        (there, entry)
        for there, entry in every
        if entry.measured and _is_alike(there, on_cpu=on_cpu)
    ]
    for there, entry in here or every:
        if entry.rejected:
            return RunnerError(
                f"{variant} did not pass the gates for quantised variants; request it by name to "
                "run it."
            )
        if entry.measured and not entry.passed:
            return RunnerError(f"{variant} failed its comparison with the {there.subject}.")
    if needs_evidence and not any(
        entry.measured and _is_of_this_gpu(file, there) for there, entry in every
    ):
        return RunnerError(
            f"{variant} was not measured; evaluate the model on such a machine, or request it by "
            "name to run it."
        )
    return None


def _is_of_this_gpu(file: OnnxArtifact | EngineArtifact, there: Manifest) -> bool:
    """Whether evidence of an engine is of this GPU's compute capability; always, of a graph."""
    if not isinstance(file, EngineArtifact) or len(file.target.capabilities) == 1:
        return True  # which runs on no other
    return there.environment.get("compute_capability") == local_compute_capability()


def _rank(names: Sequence[str], is_better: Callable[[str, str], bool]) -> list[str]:
    """The names in order, but each only after those that are better."""
    left, ranked = list(names), []
    while left:
        first = next(
            (name for name in left if not any(is_better(other, name) for other in left)), left[0]
        )
        left.remove(first)
        ranked.append(first)
    return ranked


def _p50_ms(report: LatencyReport, name: str) -> float | None:
    return next((entry.p50_ms for entry in report.variants if entry.name == name), None)


def _has_busy_loads(evidence: Evidence) -> bool:
    return evidence.loads is not None and any(load.busy for load in evidence.loads.loads)


def _most_items_per_s(
    evidence: Evidence | None, latency: Mapping[str, LatencyReport], name: str
) -> float | None:
    rates = [
        entry.throughput_items_per_s
        for report in latency.values()
        for entry in report.variants
        if entry.name == name
    ]
    if evidence is not None and evidence.loads is not None:
        rates += [load.items_per_s for load in evidence.loads.loads]
    return max(rates, default=None)


def _memory_mb(evidence: Evidence | None, other: Evidence | None) -> float | None:
    """Memory in MB: of the GPU where both took some, of the process where neither did."""
    if evidence is None or evidence.cold_start is None or other is None or other.cold_start is None:
        return None
    on_gpu = evidence.cold_start.device_memory_bytes
    if (on_gpu is None) != (other.cold_start.device_memory_bytes is None):
        return None
    return (evidence.cold_start.peak_memory_bytes if on_gpu is None else on_gpu) / 1e6
