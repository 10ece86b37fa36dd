"""Engines: built here for GPUs that are not here, with TensorRT's refusals told in full."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from mlflow_e2eai import compile, convert
from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.build_settings import BuildSettings
from mlflow_e2eai.artifacts.files import from_json, sha256_of, to_json
from mlflow_e2eai.artifacts.values import Axis, EngineArtifact, Target
from mlflow_e2eai.engine import backends, builder
from mlflow_e2eai.engine.backends import UnlistedGPUWarning
from mlflow_e2eai.engine.runner import engine_runner, unsupported_here
from mlflow_e2eai.engine.targets import TARGETS
from mlflow_e2eai.errors import (
    ArtifactError,
    EngineBuildError,
    EngineMismatchError,
    InvalidInputError,
    MissingDependencyError,
    RunnerError,
)

trt = pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")

N = Axis("N", min=1, opt=2, max=4)
HEADER = '<ir_version: 8, opset_import: ["" : 18, "devtech" : 1, "acme" : 1]>'
CONV = """
main (float[N, 3, 8, 8] x) => (float[N, 4, 6, 6] y) {
    [first] a = Conv(x, w)
    [second] y = Relu(a)
}"""
WITH_FOO = CONV.replace("[second] y = Relu(a)", "[foo] b = devtech.FooOp(a)\n [second] y = Relu(b)")
WEIGHTS = {"w": np.random.default_rng(0).standard_normal((4, 3, 3, 3), dtype=np.float32)}

MASKS = {"sm75": 1 << 0, "sm80": 1 << 1, "sm86": 1 << 2, "sm89": 1 << 3, "sm120": 1 << 4}
"""Compute capabilities as TensorRT-RTX 1.6.1 writes them at byte 32 of a plan."""
LATER = 1 << 6
"""The same: every compute capability that comes after them."""

RTX86 = Target(backend="tensorrt_rtx", compute_capability="sm86")

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


@pytest.fixture
def graph(tmp_path):
    """Writes ONNX text as a file, with weights that the text names but does not hold."""

    def write(text, weights=None, axes=(N,)):
        model = onnx.parser.parse_model(HEADER + text)
        for name, array in (WEIGHTS if weights is None else weights).items():
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        graphs.write(model, tmp_path / "model.onnx")
        return graphs.describe(
            tmp_path / "model.onnx",
            stage="clean",
            precision="fp32",
            axes=axes,
            parent_sha256=None,
        )

    return write


@pytest.fixture
def out(tmp_path):
    return tmp_path / "model.engine"


def built_here(source, target, out):
    """Build in this process, where the test has its hands on TensorRT."""
    builder.write_plan(
        SimpleNamespace(
            note=SimpleNamespace(write_activity=lambda _: None), call_back=lambda *_: None
        ),
        source=source,
        target=target,
        tf32=False,
        libraries=(),
        settings=BuildSettings(),
        timing_cache=None,
        out=out,
    )


def mask_of(path):
    """The compute capabilities that a plan's header names."""
    return int.from_bytes(path.read_bytes()[32:40], "little")


# what is built


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["sm86", "sm89", "sm120"])
def test_an_engine_is_built_for_a_gpu_that_is_not_here(target, precision, graph, out, tmp_path):
    source, _ = convert(graph(CONV), precision, out=tmp_path / "converted.onnx")
    engine = compile(source, target, out=out)
    assert engine.target == Target(backend="tensorrt_rtx", compute_capability=target)
    assert str(engine.target) == f"tensorrt_rtx-{target}"
    assert mask_of(out) == MASKS[target]
    assert engine.precision == precision
    assert engine.backend_version == trt.__version__
    assert (engine.inputs, engine.outputs) == (source.inputs, source.outputs)
    assert engine.axes == (N,)
    assert engine.parent_sha256 == source.sha256
    assert engine.sha256 == sha256_of(out)
    assert engine.size_bytes == out.stat().st_size > 0
    assert engine.build_s > 0
    assert engine.checked == () or torch.cuda.is_available()


@pytest.mark.parametrize("target", [name for name in TARGETS if name.startswith("sm")])
def test_every_target_that_is_offered_can_be_built_for(target, graph, out):
    engine = compile(graph(CONV), target, out=out)
    assert mask_of(out).bit_count() == 1
    assert engine.target.gpu_name is None


def test_one_engine_is_for_several_compute_capabilities(graph, out):
    engine = compile(graph(CONV), "rtx:sm89+sm86", out=out)
    assert str(engine.target) == "tensorrt_rtx-sm86+sm89"
    assert mask_of(out) == MASKS["sm86"] | MASKS["sm89"]


def test_with_no_compute_capability_the_engine_is_for_later_gpus_too(graph, out):
    engine = compile(graph(CONV), "rtx", out=out)
    assert str(engine.target) == "tensorrt_rtx"
    assert mask_of(out) & LATER
    assert not mask_of(out) & MASKS["sm75"]
    assert all(mask_of(out) & MASKS[name] for name in ("sm80", "sm86", "sm89", "sm120"))


def test_a_target_may_be_given_as_a_value(graph, out):
    target = Target(backend="tensorrt_rtx", compute_capability="sm86")
    assert compile(graph(CONV), target, out=out).target == target


def test_an_engine_is_a_value_that_json_keeps(graph, out):
    engine = compile(graph(CONV), "sm86", out=out)
    assert from_json(EngineArtifact, to_json(engine)) == engine


def test_fp32_means_fp32_unless_tf32_is_asked_for(graph, tmp_path):
    source = graph(CONV)
    plain = compile(source, "sm86", out=tmp_path / "plain.engine")
    rounded = compile(source, "sm86", out=tmp_path / "tf32.engine", tf32=True)
    assert (plain.tf32, rounded.tf32) == (False, True)
    assert b"\n  tf32=0\n" in plain.path.read_bytes()
    assert b"\n  tf32=1\n" in rounded.path.read_bytes()


def test_weights_of_an_fp16_engine_take_half_the_space(graph, tmp_path):
    wide = np.random.default_rng(0).standard_normal((256, 512, 3, 3), dtype=np.float32)
    text = CONV.replace("[N, 3, 8, 8]", "[N, 512, 8, 8]").replace("[N, 4,", "[N, 256,")
    source = graph(text, {"w": wide})
    half, _ = convert(source, "fp16", out=tmp_path / "half.onnx")
    sizes = [
        compile(item, "sm86", out=tmp_path / f"{item.precision}.engine").size_bytes
        for item in (source, half)
    ]
    assert sizes[0] - sizes[1] == pytest.approx(wide.nbytes / 2, rel=0.2)


def test_the_profile_reaches_from_min_over_opt_to_max(graph, out, monkeypatch):
    seen = []

    class Builder(trt.Builder):  # type: ignore[name-defined]  # the module has no types
        def create_optimization_profile(self):
            profile = super().create_optimization_profile()
            seen.append(profile)
            return profile

    monkeypatch.setattr(trt, "Builder", Builder)
    width = Axis("W", min=3, opt=5, max=9)
    text = "main (float[N, 2, W] x) => (float[N, 2, W] y) { y = Relu(x) }"
    built_here(graph(text, {}, axes=(N, width)), RTX86, out)
    (profile,) = seen
    assert [tuple(shape) for shape in profile.get_shape("x")] == [(1, 2, 3), (2, 2, 5), (4, 2, 9)]


def test_every_bucket_has_a_profile_of_its_own_and_the_weights_are_there_once(graph, tmp_path):
    wide = np.random.default_rng(0).standard_normal((256, 512, 3, 3), dtype=np.float32)
    text = CONV.replace("[N, 3, 8, 8]", "[N, 512, 8, 8]").replace("[N, 4,", "[N, 256,")
    buckets = Axis("N", min=1, opt=2, max=4, buckets=(1, 2, 4))
    sizes = [
        compile(graph(text, {"w": wide}, axes=(axis,)), "sm86", out=tmp_path / "e").size_bytes
        for axis in (N, buckets)
    ]
    assert wide.nbytes < sizes[0] < sizes[1] < sizes[0] + wide.nbytes / 2


def test_buckets_reach_tensorrt_as_static_profiles(graph, out, monkeypatch):
    seen = []

    class Builder(trt.Builder):  # type: ignore[name-defined]  # the module has no types
        def create_optimization_profile(self):
            seen.append(super().create_optimization_profile())
            return seen[-1]

    monkeypatch.setattr(trt, "Builder", Builder)
    axis = Axis("N", min=1, opt=2, max=4, buckets=(1, 4))
    built_here(graph(CONV, axes=(axis,)), RTX86, out)
    leading = [[shape[0] for shape in profile.get_shape("x")] for profile in seen]
    assert leading == [[1, 1, 1], [4, 4, 4], [1, 2, 4]]


def test_settings_are_kept_with_the_engine(graph, tmp_path):
    source = graph(CONV)
    settings = BuildSettings(optimization_level=1, workspace_bytes=1 << 26, threads=2)
    engine = compile(source, "sm86", out=tmp_path / "set.engine", settings=settings)
    assert engine.settings == settings
    assert compile(source, "sm86", out=tmp_path / "plain.engine").settings == BuildSettings()


def test_a_workspace_that_is_too_small_is_tensorrts_reason(graph, out):
    with pytest.raises(EngineBuildError, match="within workspace limit"):
        compile(graph(CONV), "sm86", out=out, settings=BuildSettings(workspace_bytes=1 << 10))


def test_settings_reach_tensorrt():
    config = trt.Builder(trt.Logger()).create_builder_config()
    settings = BuildSettings(optimization_level=1, workspace_bytes=1 << 20, refit=True)
    builder.configure(config, trt, settings)
    assert config.builder_optimization_level == 1
    assert config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE) == 1 << 20
    assert config.get_flag(trt.BuilderFlag.REFIT)
    assert not config.get_flag(trt.BuilderFlag.STRIP_PLAN)


def test_weights_that_are_stripped_will_be_given_back_as_they_were():
    config = trt.Builder(trt.Logger()).create_builder_config()
    builder.configure(config, trt, BuildSettings(strip_weights=True))
    assert config.get_flag(trt.BuilderFlag.STRIP_PLAN)
    assert config.get_flag(trt.BuilderFlag.REFIT_IDENTICAL)


def test_the_default_settings_are_tensorrts_own():
    ours, theirs = (trt.Builder(trt.Logger()).create_builder_config() for _ in range(2))
    builder.configure(ours, trt, BuildSettings())
    for read in (
        lambda config: config.builder_optimization_level,
        lambda config: config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        lambda config: config.flags,
    ):
        assert read(ours) == read(theirs)


@no_gpu
@pytest.mark.parametrize("name", ["refit", "strip_weights"])
def test_weights_that_change_need_a_gpu_which_is_said_before_the_build(name, graph, out):
    with pytest.raises(EngineBuildError, match="need a GPU, and there is none") as caught:
        compile(graph(CONV), "sm86", out=out, settings=BuildSettings(**{name: True}))
    assert caught.value.node is None
    assert not out.exists()


def test_a_graph_with_no_dynamic_axes_needs_no_profile(graph, out):
    text = "main (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"
    engine = compile(graph(text, {}, axes=()), "sm86", out=out)
    assert engine.axes == ()


def test_the_source_is_left_alone(graph, out):
    source = graph(CONV)
    compile(source, "sm86", out=out)
    assert sha256_of(source.path) == source.sha256


# what is refused


def test_a_custom_operator_is_refused_with_node_domain_and_reason(graph, out):
    with pytest.raises(EngineBuildError) as caught:
        compile(graph(WITH_FOO), "sm86", out=out)
    error = caught.value
    assert error.node == "foo"
    assert error.operator == "devtech::FooOp"
    assert error.reason == "Op type FooOp is not supported in TensorRT-RTX."
    for part in (error.node, error.operator, error.reason, "surgery"):
        assert part in str(error)
    assert not out.exists()


def test_nodes_without_names_are_told_apart(graph, out):
    text = """
    main (float[N, 3] x) => (float[N, 3] y, float[N, 3] z) {
        a = devtech.FooOp(x)
        y = Relu(a)
        z = acme.BarOp(x)
    }"""
    with pytest.raises(EngineBuildError, match="and 1 more") as caught:
        compile(graph(text, {}), "sm86", out=out)
    assert caught.value.node is None
    assert caught.value.operator == "devtech::FooOp"


def test_an_operator_that_is_known_but_not_supported_gets_a_reason_in_words(graph, out):
    text = "main (float[N, 3, 3] x) => (float[N] y) { [det] y = Det(x) }"
    with pytest.raises(EngineBuildError) as caught:
        compile(graph(text, {}), "sm86", out=out)
    assert (caught.value.node, caught.value.operator) == ("det", "Det")
    assert caught.value.reason == "Det is not supported"


def test_a_graph_that_parses_but_cannot_be_built_is_refused_in_tensorrts_words(graph, out):
    text = "main (float[N, 3] x) => (float[2, 3] y) { y = Add(x, w) }"
    never_two = (Axis("N", min=3, opt=3, max=4),)
    with pytest.raises(
        EngineBuildError, match=r"cannot build model\.onnx for tensorrt_rtx-sm86"
    ) as caught:
        compile(
            graph(text, {"w": np.ones((2, 3), dtype=np.float32)}, axes=never_two), "sm86", out=out
        )
    assert "dimensions not compatible" in caught.value.reason
    assert not out.exists()


@pytest.mark.parametrize("target", ["sm87", "sm90", "SM86", "cuda", ""])
def test_an_unknown_target_is_refused_with_the_choices(target, graph, out):
    with pytest.raises(InvalidInputError, match=", ".join(TARGETS)):
        compile(graph(CONV), target, out=out)


def test_for_a_gpu_that_this_version_does_not_list_the_engine_is_portable_and_announced(graph, out):
    target = Target(backend="tensorrt_rtx", compute_capability="sm90")
    with pytest.warns(UnlistedGPUWarning, match=r"does not list this GPU \(sm90\) as supported"):
        engine = compile(graph(CONV), target, out=out)
    assert engine.target == target
    assert mask_of(out) not in MASKS.values()


@pytest.mark.parametrize(
    "target", ["sm86", Target(backend="tensorrt_rtx", compute_capability="sm86")]
)
def test_without_tensorrt_rtx_the_extra_is_named(target, graph, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(
        MissingDependencyError, match=r"pip install 'mlflow_e2eai\[rtx\]'"
    ) as caught:
        compile(graph(CONV), target, out=out)
    assert (caught.value.package, caught.value.extra) == ("tensorrt_rtx", "rtx")


def test_without_tensorrt_its_own_extra_is_named(graph, out, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    target = Target(backend="tensorrt", compute_capability="sm90", gpu_name="NVIDIA H100")
    with pytest.raises(MissingDependencyError, match=r"\[tensorrt\]") as caught:
        compile(graph(CONV), target, out=out)
    assert caught.value.extra == "tensorrt"


@pytest.fixture
def an_h100(monkeypatch):
    """A machine with a GPU, as the driver tells of it."""
    monkeypatch.setattr(backends, "local_compute_capability", lambda: "sm90")


# what may run here


@no_gpu
def test_no_engine_runs_on_a_machine_without_a_gpu(graph, out):
    engine = compile(graph(CONV), "sm86", out=out)
    reason = unsupported_here(engine)
    assert isinstance(reason, EngineMismatchError)
    assert (reason.wanted, reason.found) == ("a GPU of sm86", "no GPU")
    with pytest.raises(EngineMismatchError, match="this machine has no GPU"), engine_runner(engine):
        pass


def made_for(engine, **changes):
    fields = {"backend", "gpu_name", "compute_capability"} & changes.keys()
    target = {"compute_capability": "sm90", **{name: changes.pop(name) for name in fields}}
    return dataclasses.replace(
        engine, target=dataclasses.replace(engine.target, **target), **changes
    )


@pytest.mark.usefixtures("an_h100")
def test_an_engine_for_later_gpus_is_not_for_older_ones(graph, out, monkeypatch):
    engine = compile(graph(CONV), "rtx", out=out)
    assert unsupported_here(engine) is None
    monkeypatch.setattr(backends, "local_compute_capability", lambda: "sm75")
    reason = unsupported_here(engine)
    assert isinstance(reason, EngineMismatchError)
    assert (reason.wanted, reason.found) == ("a GPU of sm80 or later", "one of sm75")


@pytest.mark.usefixtures("an_h100")
def test_an_engine_fits_the_gpu_and_the_version_that_it_was_built_for(graph, out, monkeypatch):
    monkeypatch.setattr("mlflow_e2eai.engine.runner.gpu_name", lambda: "NVIDIA H100")
    engine = compile(graph(CONV), "sm86", out=out)
    assert unsupported_here(made_for(engine)) is None
    assert unsupported_here(made_for(engine, gpu_name="NVIDIA H100")) is None
    assert unsupported_here(made_for(engine, compute_capability="sm89+sm90")) is None
    assert unsupported_here(made_for(engine, compute_capability="")) is None
    for other, wanted, found in [
        (engine, "a GPU of sm86", "one of sm90"),
        (made_for(engine, compute_capability="sm86+sm89"), "a GPU of sm86+sm89", "one of sm90"),
        (made_for(engine, gpu_name="NVIDIA H200"), "NVIDIA H200", "NVIDIA H100"),
        (made_for(engine, settings=BuildSettings(strip_weights=True)), "weights", "none"),
        (made_for(engine, backend_version="1.5.0"), "TensorRT-RTX 1.5.0", trt.__version__),
    ]:
        reason = unsupported_here(other)
        assert isinstance(reason, EngineMismatchError)
        assert wanted in reason.wanted
        assert found in reason.found


@no_gpu
@pytest.mark.usefixtures("an_h100")
def test_an_engine_for_later_gpus_is_announced_on_one_that_its_backend_does_not_list(graph, out):
    engine = compile(graph(CONV), "rtx", out=out)
    with (
        pytest.warns(
            UnlistedGPUWarning, match=r"\(sm90\) as supported: .* may compute wrong outputs"
        ),
        pytest.raises(RunnerError, match=r"CUDA cannot be used here: .*nvidia-smi"),
        engine_runner(engine),
    ):
        pass


@pytest.mark.usefixtures("an_h100")
def test_an_engine_of_a_backend_that_is_not_installed_does_not_fit(graph, out, monkeypatch):
    engine = made_for(compile(graph(CONV), "sm86", out=out))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    reason = unsupported_here(engine)
    assert isinstance(reason, MissingDependencyError)
    assert reason.extra == "rtx"


@pytest.mark.parametrize("fault", ["changed", "cut", "gone"])
def test_an_engine_that_was_tampered_with_is_refused_before_anything_is_loaded(
    fault, graph, out, monkeypatch
):
    engine = compile(graph(CONV), "sm86", out=out)
    content = bytearray(out.read_bytes())
    content[len(content) // 2] ^= 1
    if fault == "gone":
        out.unlink()
    else:
        out.write_bytes(content if fault == "changed" else content[:-1])

    def load(_):
        pytest.fail("TensorRT was loaded before the digest was checked")

    monkeypatch.setattr(backends, "load", load)
    monkeypatch.setattr(trt, "Runtime", load)
    with pytest.raises(ArtifactError), engine_runner(engine):
        pass


def test_the_backend_says_why_a_plan_cannot_be_loaded():
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    rtx, full = backends.BACKENDS["tensorrt_rtx"], backends.BACKENDS["tensorrt"]
    assert backends.invalidity(rtx, trt, runtime, bytes(64)) == "MALFORMED_ENGINE"
    assert backends.invalidity(full, trt, runtime, bytes(64)) == ""


def test_a_builder_that_does_not_start_is_told_with_the_driver(graph, out, monkeypatch):
    def starts(log):
        log.log(trt.ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
        raise TypeError  # as pybind11 does of a null pointer that a factory returns

    monkeypatch.setattr(trt, "Builder", starts)
    with pytest.raises(
        RunnerError, match=r"does not start .* error: 35; check with `nvidia-smi` that the driver"
    ):
        built_here(graph(CONV), RTX86, out)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_a_graph_that_says_a_precision_and_computes_in_fp32_is_refused(precision, graph, out):
    source = dataclasses.replace(graph(CONV), precision=precision)
    with pytest.raises(EngineBuildError, match=f"none of its .* computes in {precision}"):
        built_here(source, RTX86, out)


# a builder that comes to grief


def builders():
    """Processes that work for this one: children of its fork server."""
    for server in children_of("self"):
        if b"fork_server" in Path("/proc", server, "cmdline").read_bytes():
            yield from map(int, children_of(server))


def children_of(process):
    for task in Path("/proc", process, "task").iterdir():
        yield from (task / "children").read_text().split()


def struck(sign):
    """Sends a signal to the builder as soon as it builds."""

    def step(_phase, _done, _of):
        for pid in builders():
            os.kill(pid, sign)

    return step


@pytest.mark.parametrize(
    ("sign", "limit_s", "how"),
    [
        (signal.SIGSEGV, 60, r"crashed \(SIGSEGV\)"),
        (signal.SIGKILL, 60, r"was killed \(SIGKILL, as Linux does when memory runs out\)"),
        (signal.SIGSTOP, 8, r"did not finish within 8 s"),
    ],
)
def test_a_builder_that_dies_or_hangs_is_an_error_of_the_build(sign, limit_s, how, graph, out):
    settings = BuildSettings(time_limit_s=limit_s)
    with pytest.raises(EngineBuildError, match=f"{how} in the phase '") as caught:
        compile(graph(CONV), "sm86", out=out, settings=settings, step=struck(sign))
    assert re.search(how, caught.value.reason)
    assert "tensorrt_rtx-sm86" in str(caught.value)
    assert list(builders()) == []
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]


def test_a_time_limit_holds_while_the_builder_tells_of_its_progress(graph, out):
    def slowly(_phase, _done, _of):
        time.sleep(0.2)

    settings = BuildSettings(time_limit_s=0.6)
    with pytest.raises(EngineBuildError, match="raise time_limit_s"):
        compile(graph(CONV), "sm86", out=out, settings=settings, step=slowly)


def test_a_build_tells_how_far_it_is(graph, out):
    told = []
    compile(graph(CONV), "sm86", out=out, step=lambda *words: told.append(words))
    assert all(0 <= done <= of for _, done, of in told)
    ends = {phase for phase, done, of in told if done == of}
    assert {phase for phase, _, _ in told} == ends
    assert len(ends) > 1


@pytest.mark.parametrize("error", [LookupError, KeyboardInterrupt])
def test_a_build_can_be_stopped_and_leaves_nothing(error, graph, out):
    def enough(_phase, _done, _of):
        raise error

    with pytest.raises(error):
        compile(graph(CONV), "sm86", out=out, step=enough)
    assert list(builders()) == []
    assert [path.name for path in out.parent.iterdir()] == ["model.onnx"]


def test_ctrl_c_ends_the_builder_at_once(graph, out):
    began = []

    def interrupt(_phase, _done, _of):
        began.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(100)

    # A shell's background jobs ignore Ctrl-C.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            compile(graph(CONV), "sm86", out=out, step=interrupt)
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert time.monotonic() - began[0] < 50
    assert list(builders()) == []


# the seam to TensorRT 10 and 11, whose names test_bindings.py holds


def test_an_engine_for_tensorrt_is_built_like_one_for_tensorrt_rtx_but_for_the_capability(
    graph, out, monkeypatch
):
    """TensorRT 10 and 11 have no compute capabilities to set: the GPU in the machine decides."""
    here = ModuleType("tensorrt")
    here.__dict__.update(
        {name: value for name, value in vars(trt).items() if name != "ComputeCapability"}
    )
    monkeypatch.setitem(sys.modules, "tensorrt", here)
    target = Target(backend="tensorrt", compute_capability="sm90", gpu_name="NVIDIA H100")
    built_here(graph(CONV), target, out)
    assert mask_of(out) not in MASKS.values()


def test_an_input_whose_values_are_sizes_is_refused_by_its_name(tmp_path):
    text = """
        main (float[N, 4] x, int64 n) => (float[N, M] y) <int64[1] zero = {0}, int64[1] one = {1}> {
            end = Reshape(n, one)
            y = Slice(x, zero, end, one)
        }"""
    graphs.write(onnx.parser.parse_model(HEADER + text), tmp_path / "slice.onnx")
    source = graphs.describe(
        tmp_path / "slice.onnx", stage="clean", precision="fp32", axes=(N,), parent_sha256=None
    )
    with pytest.raises(EngineBuildError, match=r"reads the values of input 'n' .* as sizes"):
        compile(source, "sm89", out=tmp_path / "slice.engine")
