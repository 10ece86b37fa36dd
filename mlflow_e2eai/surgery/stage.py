"""ONNX -> cleaner ONNX, by rules.

A plan is data: a list of rules with arguments, as YAML or Python writes it. Whatever it does, the
result keeps its interface, but for the names and outputs that the plan itself changes, and its
numbers, which ONNX Runtime checks on samples.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.arrays import feed
from mlflow_e2eai.artifacts.files import atomic_write
from mlflow_e2eai.artifacts.graphs import only_new_garbage
from mlflow_e2eai.artifacts.values import Array, Infer, OnnxArtifact, Tensors, require_graph
from mlflow_e2eai.artifacts.weight_files import staging_path, weights_linked
from mlflow_e2eai.errors import (
    ArtifactError,
    RunnerError,
    SurgeryError,
    require_function,
    require_path,
    require_samples,
    require_several,
)
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.storage import storage_errors
from mlflow_e2eai.surgery import interface
from mlflow_e2eai.surgery.interface import Interface
from mlflow_e2eai.surgery.mapping import full_reference, input_mapper
from mlflow_e2eai.surgery.outline import outline_of
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step, plan_text, step_name
from mlflow_e2eai.surgery.report import SurgeryReport
from mlflow_e2eai.surgery.rules import Rule
from mlflow_e2eai.surgery.simplify import LIBRARIES, simplify

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


@only_new_garbage()
@storage_errors()
def clean(
    source: OnnxArtifact,
    plan: Sequence[Step] = DEFAULT_PLAN,
    *,
    out: Path,
    samples: Sequence[Tensors] = (),
    reference: Infer | None = None,
    keep: Path | None = None,
) -> tuple[OnnxArtifact, SurgeryReport]:
    """Apply a surgery plan to a graph.

    Args:
        source: The graph; its file is not changed.
        plan: The rules, in order.
        out: The file to write.
        samples: Inputs on which the result must compute the same numbers as before. With none, the
            numbers are not checked.
        reference: Computes the numbers before; by default ONNX Runtime on `source`, which must be
            able to run it (an operator that nothing implements needs a reference).
        keep: A folder. Where the plan is refused, the graphs before and after the failing step
            are saved there, as ``before.onnx`` and ``after.onnx``, and named in the error's
            `graphs`. A step that failed outright has no graph after it.

    Returns:
        The cleaned graph, and the report.

    Raises:
        InvalidInputError: The plan names an unknown rule or argument, or a sample does not fit.
        SurgeryError: A rule failed or a required one found nothing, or the result has another
            interface or other numbers; then the plan is replayed to find the failing step.

    Examples:
        >>> cleaned, report = mlflow_e2eai.clean(raw, out=folder / "model.onnx", samples=[{"x": x}])
        >>> report.nodes_after <= report.nodes_before
        True
    """
    source = require_graph(source)
    plan = require_several("plan", plan, Step, "steps, such as those of read_plan, as a list")
    samples = tuple(feed(each, source.inputs) for each in require_samples(samples))
    out = require_path("out", out)
    if reference is not None:
        require_function("reference", reference)
    keep = None if keep is None else require_path("keep", keep, "the path of a folder")
    run = partial(attempt, source, out=out, samples=samples, reference=reference)
    try:
        return run(plan)
    except SurgeryError as error:
        if error.rule is None or keep is not None:
            _name_failing_step(error, source, plan, samples=samples, reference=reference, keep=keep)
        if error.rule == simplify.__name__:
            for libraries in _FEWER_LIBRARIES:
                with suppress(SurgeryError):
                    artifact, report = run(_simplified_by(plan, libraries))
                    note = f"simplify ran with {' and '.join(libraries) or 'no library'}: {error}"
                    return artifact, replace(report, notes=(*report.notes, note))
        raise


_FEWER_LIBRARIES: tuple[tuple[str, ...], ...] = (
    *(tuple(name for name in LIBRARIES if name != left_out) for left_out in LIBRARIES),
    (),
)
"""The libraries that simplify is tried with where all of them make the graph wrong."""


def _simplified_by(plan: Sequence[Step], libraries: Sequence[str]) -> tuple[Step, ...]:
    """A plan whose simplifications run these libraries only; those that are required stay."""
    return tuple(
        replace(step, arguments={"libraries": [*libraries]})
        if step.resolve() is simplify and not step.required and not step.arguments
        else step
        for step in plan
    )


def attempt(
    source: OnnxArtifact,
    plan: Sequence[Step],
    *,
    out: Path,
    samples: Sequence[Tensors],
    reference: Infer | None,
) -> tuple[OnnxArtifact, SurgeryReport]:
    """Apply a plan as `clean` does, without a search for the failing step."""
    text = plan_text(plan)
    for step in plan:
        step.bound()  # refused before anything is read
    before = graphs.read(source.path)
    with ExitStack() as stack:
        edited = _apply_plan(source, before, plan)
        after, wanted = edited.after, edited.interface
        inputs, outputs = graphs.interface(after)
        interface.check(source, inputs, outputs, wanted)
        temporary = stack.enter_context(staging_path(out))
        try:
            graphs.write(after, temporary)
        except ArtifactError as broken:
            msg = f"The plan broke the graph: {broken}"
            raise SurgeryError(msg) from broken
        artifact = graphs.describe(
            temporary,
            stage="clean",
            precision=source.precision,
            axes=wanted.axes,
            parent_sha256=source.sha256,
            origins=wanted.origins(outputs),
            libraries=source.libraries,
            model=after,
        )
        error = _keep_numbers(source, artifact, samples, reference)
    artifact = replace(artifact, path=out)
    report = SurgeryReport(
        edits=edited.edits,
        nodes_before=len(before.graph.node),
        nodes_after=len(after.graph.node),
        operators_before=graphs.operators(before),
        operators_after=graphs.operators(after),
        size_before_bytes=graphs.size_of(source),
        size_after_bytes=graphs.size_of(artifact),
        max_abs_error=error,
        outline=outline_of(before, after),
        plan=text,
        seconds=edited.seconds,
        notes=edited.notes,
    )
    return artifact, report


@dataclass(frozen=True, slots=True, kw_only=True)
class _Edited:
    """A graph after a plan, not checked yet."""

    after: onnx.ModelProto
    interface: Interface
    edits: Mapping[str, int]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def _apply_plan(source: OnnxArtifact, before: onnx.ModelProto, plan: Sequence[Step]) -> _Edited:
    rules = [(step, step.bound()) for step in plan]
    graph = graphs.to_graph(before)
    for each in (graph, *graph.subgraphs(recursive=True)):
        graphs.name_nodes(each)
    edits: dict[str, int] = {}
    seconds: dict[str, float] = {}
    notes: list[str] = []
    wanted = Interface.of(source)
    for position, (step, rule) in enumerate(rules):
        name = step_name(plan, position)
        began = time.perf_counter()
        count = _apply(step, rule, graph)
        edits[name] = int(count)
        notes += getattr(count, "notes", ())
        seconds[name] = time.perf_counter() - began
        wanted = interface.after(step.resolve(), wanted, step.arguments, graph)
    after = graphs.to_onnx(graph, like=before)
    return _Edited(
        after=after,
        interface=wanted,
        edits=edits,
        seconds=seconds,
        notes=tuple(dict.fromkeys(notes)),
    )


def _save_graphs(
    source: OnnxArtifact, plan: Sequence[Step], failing: int, keep: Path
) -> tuple[Path, ...]:
    """Write the graphs before and after a step, however broken they are."""
    keep.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, steps in (("before.onnx", plan[:failing]), ("after.onnx", plan[: failing + 1])):
        with suppress(SurgeryError):
            edited = _apply_plan(source, graphs.read(source.path), steps).after
            with weights_linked(edited, keep), atomic_write(keep / name) as temporary:
                temporary.write_bytes(edited.SerializeToString(deterministic=True))
            paths.append(keep / name)
    return tuple(paths)


def _name_failing_step(
    error: SurgeryError,
    source: OnnxArtifact,
    plan: Sequence[Step],
    *,
    samples: Sequence[Tensors],
    reference: Infer | None,
    keep: Path | None,
) -> None:
    """Add the failing step of the plan to an error, where it can be found."""
    with TemporaryDirectory() as folder:

        def replay(steps: Sequence[Step]) -> SurgeryError | None:
            if len(steps) == len(plan):
                return error
            out = Path(folder, "replayed.onnx")
            try:
                attempt(source, steps, out=out, samples=samples, reference=reference)
            except SurgeryError as found:
                return found
            return None

        try:
            failing = failing_step(plan, replay)
        except SurgeryError:
            return  # the graph was wrong before the first step
    if failing is None:
        return
    if keep is not None:
        error.graphs = _save_graphs(source, plan, failing, keep)
    if error.rule is None:
        error.rule = plan[failing].rule
        error.args = (f"{error} Step {step_name(plan, failing)!r} is to blame.",)


def _apply(step: Step, rule: Rule, graph: gs.Graph) -> int:
    try:
        edits = rule(graph)
    except SurgeryError as error:
        error.rule = step.rule
        raise
    except Exception as error:  # errors of GraphSurgeon and its libraries
        reason = f"{type(error).__name__}: {str(error).rstrip('.')}"
        msg = f"Surgery rule {step.rule!r} failed: {reason}. Leave the rule out of the plan."
        raise SurgeryError(msg, rule=step.rule) from error
    if step.required and not edits:
        given = ", ".join(f"{name}={value!r}" for name, value in step.arguments.items())
        msg = (
            f"Rule {step.rule!r} ({given or 'no arguments'}) found nothing to change, but is "
            "required; check its arguments, or leave out required: true."
        )
        raise SurgeryError(msg, rule=step.rule)
    return edits


def _keep_numbers(
    source: OnnxArtifact,
    cleaned: OnnxArtifact,
    samples: Sequence[Tensors],
    reference: Infer | None,
) -> float | None:
    """Largest difference between before and after; None when there are no samples.

    The graph runs in a process of its own: after a rule it may crash ONNX Runtime.
    """
    if not samples:
        return None
    with ExitStack() as stack:
        before, mapped_samples = _reference_and_samples(source, cleaned, samples, reference, stack)
        try:
            after = stack.enter_context(
                isolated_onnxruntime(cleaned.path, libraries=source.libraries)
            )
            # ONNX Runtime is no suspect here, the rules are.
            report = after.compare(before, mapped_samples, precision=source.precision, repeats=1)
        except RunnerError as error:
            msg = f"The graph does not run after surgery: {error}"
            raise SurgeryError(msg) from error
    if not report.passed:
        wrong = report.findings[0].sentence
        msg = (
            _export_was_wrong(source, samples, reference)
            or f"The plan changed the numbers: {wrong}"
        )
        raise SurgeryError(msg)
    return max((output.max_abs_error for output in report.outputs), default=0.0)


def _reference_and_samples(
    source: OnnxArtifact,
    cleaned: OnnxArtifact,
    samples: Sequence[Tensors],
    reference: Infer | None,
    stack: ExitStack,
) -> tuple[Infer, list[dict[str, Array]]]:
    """The reference and the samples under the names of the cleaned graph."""
    try:
        raw_reference = reference or stack.enter_context(
            isolated_onnxruntime(source.path, libraries=source.libraries)
        )
        before = stack.enter_context(full_reference(raw_reference, source, cleaned))
        fit = stack.enter_context(input_mapper(source, cleaned))
        return before, [fit(sample) for sample in samples]
    except RunnerError as error:
        msg = f"The graph before surgery cannot be run: {error} Give a reference."
        raise SurgeryError(msg) from error


def _export_was_wrong(
    source: OnnxArtifact, samples: Sequence[Tensors], reference: Infer | None
) -> str | None:
    """Reason why the export was wrong and not the plan; None otherwise."""
    if reference is None:
        return None
    try:
        with isolated_onnxruntime(source.path, libraries=source.libraries) as exported:
            report = exported.compare(reference, samples, precision=source.precision, repeats=1)
    except RunnerError:
        return None
    if report.passed:
        return None
    return (
        "The graph differed from the model before any surgery, so the export is wrong: "
        f"{report.findings[0].sentence}"
    )


# Which step of a plan made a graph wrong.


def failing_step(
    plan: Sequence[Step], replay: Callable[[Sequence[Step]], SurgeryError | None]
) -> int | None:
    """Position of the step that makes the plan fail; None when the plan is right.

    The plan is replayed, one step shorter each time, until the graph is right. A shortened plan
    whose graph does not run is skipped.

    Args:
        plan: The plan.
        replay: Applies the first steps of a plan; returns the error of the graph, or None.

    Raises:
        SurgeryError: The graph was wrong before the first step, or no shortened plan could be
            checked.
    """
    wrong = 0
    error: SurgeryError | None = None
    for length in range(len(plan), -1, -1):
        error = replay(plan[:length])
        if error is None:
            return None if length == len(plan) else length
        if not isinstance(error.__cause__, RunnerError):
            wrong = length
    if error is not None and not wrong:
        raise error
    return wrong - 1
