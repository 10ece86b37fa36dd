"""Which variant is chosen for a goal, and what is said of the others."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiplying_bundles import (
    CPU16,
    CPU32,
    ENGINE16,
    ENGINE32,
    FAILED,
    PASSED,
    TIMES,
    engine,
    fitting,
    graph,
    manifest,
    timed,
)

from mlflow_e2eai.bundle import selection
from mlflow_e2eai.bundle.choice import Goal
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.selection import RankedVariants
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.evidence import Evidence, MachineEvidence
from mlflow_e2eai.latency.report import ColdStart, LatencyFinding, LatencyReport, Load, Throughput

GPU, OTHER_GPU = "NVIDIA L4", "NVIDIA H100 PCIe"
CPU, OTHER_CPU = "Xeon", "EPYC"
CUDA32 = "onnxruntime-cuda/fp32"


@pytest.fixture(autouse=True)
def a_machine_with_a_gpu(monkeypatch):
    fitting(monkeypatch)
    monkeypatch.setattr(selection, "onnxruntime_devices", lambda: ("cuda", "cpu"))
    monkeypatch.setattr(selection, "gpu_name", lambda: GPU)
    monkeypatch.setattr(selection, "processor_name", lambda: CPU)


@pytest.fixture
def made(tmp_path):
    """A manifest of two graphs and two engines."""

    def make(gpu: str | None = GPU, cpu: str | None = CPU, **settings: object) -> Manifest:
        text = TIMES.format(factor=2)
        graphs = [graph(tmp_path, text), graph(tmp_path, text, "fp16")]
        engines = [engine(tmp_path), engine(tmp_path, "fp16")]
        where = {"gpu": gpu, "processor": cpu}
        found = manifest(graphs, engines, **settings)
        return dataclasses.replace(
            found, environment={name: value for name, value in where.items() if value is not None}
        )

    return make


def best(found: Manifest, goal: str = "latency") -> str:
    return RankedVariants(found, Goal.parse(goal)).ranked[0]


def always(**p50_ms: float) -> dict[str, list[float]]:
    names = {"engine": ENGINE32, "half": ENGINE16, "cuda": CUDA32, "cpu": CPU32, "cpu16": CPU16}
    return {names[name]: 20 * [value] for name, value in p50_ms.items()}


# Goals


@pytest.mark.parametrize("text", ["latency", "latency@8", "throughput", "memory"])
def test_a_goal_is_read_as_it_is_written(text):
    assert str(Goal.parse(text)) == text


@pytest.mark.parametrize("text", ["", "speed", "latency@0", "latency@", "memory@8", "Latency"])
def test_a_goal_that_is_not_known_is_refused_with_those_that_are(text):
    with pytest.raises(InvalidInputError, match="give 'latency', 'latency@8'"):
        Goal.parse(text)


# The order


def test_without_evidence_engines_come_first_then_a_gpu_then_the_cpu(made):
    candidates = RankedVariants(made(), Goal())

    runners = [name.partition("/")[0] for name in candidates.ranked]
    assert runners == [
        *2 * ["tensorrt_rtx-sm00"],
        *2 * ["onnxruntime-cuda"],
        *2 * ["onnxruntime-cpu"],
    ]
    assert candidates.ranked[0] == ENGINE32


def test_what_was_measured_on_such_a_gpu_to_be_faster_comes_before_an_engine(made):
    assert best(made(latency=always(engine=2, cuda=1))) == CUDA32
    assert best(made(latency=always(engine=2, cuda=3))) == ENGINE32
    assert best(made(latency=always(engine=2, cuda=2))) == ENGINE32


def test_what_was_measured_on_such_a_gpu_comes_before_an_engine_that_never_was(made):
    assert best(made(latency=always(cuda=1, cpu=2))) == CUDA32
    assert best(made(OTHER_GPU, latency=always(cuda=1, cpu=2))) == ENGINE32


@pytest.mark.parametrize("gpu", [OTHER_GPU, None])
def test_what_was_measured_on_another_gpu_is_no_evidence(made, gpu):
    assert best(made(gpu, latency=always(engine=2, cuda=1))) == ENGINE32


def test_what_another_processor_was_good_at_is_no_evidence(made, monkeypatch):
    monkeypatch.setattr(selection, "onnxruntime_devices", lambda: ("cpu",))
    fitting(monkeypatch, precisions=[])
    faster = always(cpu=2, cpu16=1)

    assert best(made(None, CPU, latency=faster)) == CPU16
    assert best(made(None, OTHER_CPU, latency=faster)) == CPU32
    assert best(made(None, None, latency=faster)) == CPU16  # from before it was recorded


def found_elsewhere(evidence=(), latency=(), **environment: str) -> MachineEvidence:
    reports = {"opt": timed(latency)} if latency else {}
    return MachineEvidence(environment=environment, evidence=tuple(evidence), latency=reports)


def test_evidence_of_another_machine_counts_where_its_gpu_is_this_one(made):
    launcher = made(None, CPU, latency=always(cpu=1))
    faster = always(engine=2, cuda=1)
    here = found_elsewhere(latency=faster, gpu=GPU)
    there = found_elsewhere(latency=always(engine=1, cuda=2), gpu=OTHER_GPU)

    assert best(dataclasses.replace(launcher, elsewhere=(there,))) == ENGINE32  # the first in order
    both = dataclasses.replace(launcher, elsewhere=(there, here))
    assert best(both) == CUDA32
    assert "2 ms" in RankedVariants(both, Goal()).choice(CUDA32, {}).others[0].reason


def test_times_of_two_machines_are_never_compared(made):
    launcher = made(GPU, CPU, latency=always(engine=2))
    there = found_elsewhere(latency=always(cuda=1), gpu=GPU)

    candidates = RankedVariants(dataclasses.replace(launcher, elsewhere=(there,)), Goal())

    assert candidates.ranked[0] == ENGINE32
    behind = {each.variant: each.reason for each in candidates.choice(ENGINE32, {}).others}
    assert "was not measured against" in behind[CUDA32]


def test_a_variant_is_trusted_by_what_such_a_machine_found(made):
    passed = proof(ENGINE32)
    failed = dataclasses.replace(passed, parity={"profile": FAILED})
    launcher = made(None, CPU)
    there, here = (
        found_elsewhere([one], gpu=gpu) for one, gpu in ((failed, OTHER_GPU), (passed, GPU))
    )

    both = dataclasses.replace(launcher, elsewhere=(there, here))
    assert ENGINE32 not in RankedVariants(both, Goal()).errors
    only_there = dataclasses.replace(launcher, elsewhere=(there,))
    assert "failed its comparison" in str(RankedVariants(only_there, Goal()).errors[ENGINE32])


def test_a_variant_that_failed_on_one_of_several_such_machines_is_not_trusted(made):
    passed = proof(ENGINE32)
    failed = dataclasses.replace(passed, parity={"profile": FAILED})
    machines = tuple(found_elsewhere([one], gpu=GPU) for one in (passed, failed))

    found = dataclasses.replace(made(None, CPU), elsewhere=machines)
    assert "failed its comparison" in str(RankedVariants(found, Goal()).errors[ENGINE32])


@pytest.mark.parametrize("capabilities", ["sm86+sm89", ""])
def test_an_engine_for_several_gpus_is_trusted_on_those_that_measured_it(
    made, monkeypatch, capabilities
):
    found = made(None, CPU, evidence={CPU32: PASSED})
    own, half = found.engines
    target = dataclasses.replace(own.target, compute_capability=capabilities)
    wide = dataclasses.replace(own, target=target)
    variant = f"{target}/fp32"
    a10 = found_elsewhere([proof(variant)], gpu="NVIDIA A10", compute_capability="sm86")
    found = dataclasses.replace(found, engines=(wide, half), elsewhere=(a10,))

    monkeypatch.setattr(selection, "local_compute_capability", lambda: "sm86")
    assert variant not in RankedVariants(found, Goal()).errors
    monkeypatch.setattr(selection, "local_compute_capability", lambda: "sm89")
    assert "was not measured" in str(RankedVariants(found, Goal()).errors[variant])


def test_latency_is_looked_up_at_the_number_of_items_that_was_asked_for(made):
    found = made(latency=always(engine=1, cuda=2))
    at_8 = dataclasses.replace(timed(always(engine=3, cuda=2)), items=8)
    found = dataclasses.replace(found, latency={**found.latency, "8": at_8})

    assert best(found, "latency@2") == ENGINE32
    assert best(found, "latency@8") == CUDA32
    assert best(found, "latency@5") == ENGINE32  # nobody measured it: the order


def cold(device: int | None, peak: int) -> ColdStart:
    return ColdStart(
        load_s=1,
        first_call_ms=1,
        second_call_ms=1,
        peak_memory_bytes=peak,
        peak_memory_growth_bytes=0,
        device_memory_bytes=device,
    )


def with_evidence(found: Manifest, **evidence: Evidence) -> Manifest:
    return dataclasses.replace(found, evidence=tuple(evidence.values()))


def proof(variant: str, **fields: object) -> Evidence:
    return Evidence(
        variant=variant, sha256="ab", measured=True, parity={"profile": PASSED}, **fields
    )


def test_the_least_memory_of_the_gpu_wins_and_a_processors_is_not_held_against_it(made):
    found = with_evidence(
        made(),
        engine=proof(ENGINE32, cold_start=cold(3_000_000, 9)),
        half=proof(ENGINE16, cold_start=cold(2_000_000, 9)),
        cpu=proof(CPU32, cold_start=cold(None, 1_000_000)),
    )

    assert best(found, "memory") == ENGINE16
    assert best(found, "latency") == ENGINE32


def test_the_most_items_a_second_win_whoever_called(made):
    several = Throughput(items=1, loads=(Load(threads=4, calls=9, seconds=1.0, items_per_s=500.0),))
    found = with_evidence(
        made(latency=always(engine=1, cuda=1)),
        engine=proof(ENGINE32),
        cuda=proof(CUDA32, loads=several),
    )

    assert best(found, "throughput") == CUDA32
    assert best(found, "latency") == ENGINE32


@pytest.mark.parametrize("busy", [False, True])
def test_a_rate_of_a_busy_machine_chooses_nothing(made, busy):
    load = Load(threads=4, calls=9, seconds=1.0, items_per_s=500.0, busy=busy)
    found = with_evidence(
        made(latency=always(engine=1, cuda=1)),
        engine=proof(ENGINE32),
        cuda=proof(CUDA32, loads=Throughput(items=1, loads=(load,))),
    )

    assert best(found, "throughput") == (ENGINE32 if busy else CUDA32)


def test_a_variant_without_evidence_is_not_preferred_to_one_that_passed(made):
    found = with_evidence(made(), cpu=proof(CPU32))
    ranked = RankedVariants(found, Goal())

    assert ranked.ranked == [CPU32]
    assert str(ranked.errors[ENGINE32]) == (
        f"{ENGINE32} was not measured; evaluate the model on such a machine, or request it by name "
        "to run it."
    )
    assert (
        "was not measured"
        in {o.variant: o.reason for o in ranked.choice(CPU32, {}).others}[ENGINE32]
    )
    assert ranked.choose(ENGINE32).variant == ENGINE32


def test_evidence_of_the_exported_graph_alone_is_none_of_a_variant(made):
    found = with_evidence(made(), raw=proof("onnxruntime-cpu/raw"))

    assert best(found) == ENGINE32


def while_busy(found: Manifest, *variants: str | None) -> Manifest:
    """The same, with variants whose times are those of a busy machine."""
    findings = tuple(
        LatencyFinding(kind="busy", variant=variant, sentence="It waited.") for variant in variants
    )
    latency = {
        label: dataclasses.replace(report, findings=findings)
        for label, report in found.latency.items()
    }
    return dataclasses.replace(found, latency=latency)


@pytest.mark.parametrize("busy", [CUDA32, None])
@pytest.mark.parametrize("goal", ["latency", "throughput"])
def test_times_of_a_busy_machine_choose_nothing(made, busy, goal):
    found = made(latency=always(engine=188, cuda=0.2))
    found = dataclasses.replace(found, latency={"opt": with_rates(found.latency["opt"])})

    assert best(found, goal) == CUDA32
    assert best(while_busy(found, busy), goal) == ENGINE32  # the order


def with_rates(report: LatencyReport) -> LatencyReport:
    variants = tuple(
        dataclasses.replace(entry, throughput_items_per_s=2e3 / entry.p50_ms)
        for entry in report.variants
    )
    return dataclasses.replace(report, variants=variants)


def test_a_variant_timed_on_a_busy_machine_comes_after_those_timed_on_a_quiet_one(made):
    assert best(while_busy(made(latency=always(engine=0.1, cuda=2)), ENGINE32)) == CUDA32


def test_two_that_were_timed_while_it_was_quiet_are_compared_though_a_third_was_not(made):
    found = while_busy(made(latency=always(engine=2, half=3, cuda=1)), ENGINE16)

    assert best(found) == CUDA32


@given(st.lists(st.integers(1, 30), min_size=6, max_size=6, unique=True))
def test_a_shorter_time_never_loses_its_place(tmp_path_factory, times):
    work = tmp_path_factory.mktemp("law")
    graphs = [graph(work, TIMES.format(factor=2)), graph(work, TIMES.format(factor=3), "fp16")]
    found = manifest(graphs, [engine(work), engine(work, "fp16")])
    names = RankedVariants(found, Goal()).names
    latency = {name: 20 * [float(ms)] for name, ms in zip(names, times, strict=True)}
    found = dataclasses.replace(
        found, latency={"opt": timed(latency)}, environment={"gpu": GPU, "processor": CPU}
    )

    ranked = RankedVariants(found, Goal()).ranked
    assert [latency[name][0] for name in ranked] == sorted(map(float, times))


# What is said


def test_a_choice_says_why_each_other_variant_was_not_taken(made, monkeypatch):
    fitting(monkeypatch, precisions=["fp32"])
    found = made(latency=always(engine=1, cuda=2), evidence={CPU16: FAILED})
    candidates = RankedVariants(found, Goal())
    choice = candidates.choice(candidates.ranked[0], {})

    reasons = {each.variant: each.reason for each in choice.others}
    assert choice.variant == ENGINE32
    assert choice.reason == f"the best of 2 measured for latency, {ENGINE32} 1 ms."
    assert set(reasons) == set(candidates.names) - {ENGINE32}
    assert "a GPU of sm00" in reasons[ENGINE16]
    assert reasons[CUDA32] == (f"measured to be worse for latency, {CUDA32} 2 ms, {ENGINE32} 1 ms.")
    assert reasons[CPU16] == f"{CPU16} failed its comparison with the PyTorch module."
    assert reasons[CPU32] == (
        f"it was not measured against {ENGINE32} on such a machine for latency, and ranks below it."
    )
    assert str(choice).splitlines() == [
        f"{ENGINE32} was chosen: {choice.reason}",
        *(f"not {each.variant}: {each.reason}" for each in choice.others),
    ]


def said(found: Manifest) -> tuple[str, dict[str, str]]:
    """The reason for the variant that comes first, and those against the others."""
    candidates = RankedVariants(found, Goal())
    choice = candidates.choice(candidates.ranked[0], {})
    return choice.reason, {each.variant: each.reason for each in choice.others}


def test_a_choice_that_a_busy_machine_could_not_make_says_so_and_quotes_no_time(made):
    reason, others = said(while_busy(made(latency=always(engine=188, cuda=0.2)), CUDA32))

    assert reason == (
        "the first in order; the measurements of latency are too noisy to tell, because the "
        "machine was busy."
    )
    assert others[CUDA32] == (
        f"too noisy to tell from {ENGINE32} for latency, because the machine was busy; it ranks "
        "below it."
    )


def test_a_choice_counts_those_that_are_too_noisy_to_tell_apart_from_those_it_beats(made):
    reason, _ = said(while_busy(made(latency=always(engine=1, half=3, cuda=2)), ENGINE16))

    assert reason == (
        f"the best of 2 measured for latency, {ENGINE32} 1 ms; 1 more is too noisy to tell."
    )


def test_a_choice_among_equals_says_that_they_are_within_the_noise(made):
    reason, others = said(made(latency=always(engine=2, cuda=2)))

    assert reason == (
        f"the first in order, within the noise of the other measured for latency, {ENGINE32} 2 ms."
    )
    assert others[CUDA32] == (
        f"within the noise of {ENGINE32} for latency, and ranks below it, {CUDA32} 2 ms, "
        f"{ENGINE32} 2 ms."
    )


def test_what_failed_to_open_is_said_with_its_error(made):
    candidates = RankedVariants(made(), Goal())
    broken = InvalidInputError("It broke.")
    choice = candidates.choice(CUDA32, {ENGINE32: broken, ENGINE16: broken})

    assert [each.error for each in choice.others[:2]] == [broken, broken]
    assert choice.reason.startswith("the first in order")


def test_a_variant_that_was_named_is_said_to_be(made):
    choice = RankedVariants(made(), Goal()).choose(CPU16)

    assert (choice.variant, choice.goal) == (CPU16, None)
    assert choice.reason == "it was requested by name."
    assert {each.reason for each in choice.others} == {"another variant was requested."}
