"""Targets: how people say them, how they are written, and which this machine can build for."""

import dataclasses
import sys
from types import ModuleType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlflow_e2eai.artifacts.values import Target
from mlflow_e2eai.engine import targets
from mlflow_e2eai.engine.targets import TARGETS, covers, parse, resolve
from mlflow_e2eai.errors import InvalidInputError, MissingDependencyError

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")


def rtx(*capabilities):
    return Target(backend="tensorrt_rtx", compute_capability="+".join(capabilities))


def trt(capability, version=None, *, compatible=False):
    return Target(
        backend="tensorrt",
        compute_capability=capability,
        version=version,
        compatible=compatible,
    )


RTX = st.lists(
    st.sampled_from(["sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]), unique=True
).map(lambda names: rtx(*sorted(names, key=lambda name: int(name[2:]))))
TRT = st.builds(
    trt, st.sampled_from(["sm80", "sm90", "sm103"]), st.sampled_from([None, 10, 11])
) | st.builds(
    trt,
    st.sampled_from(["", "sm80", "sm120"]),
    st.sampled_from([None, 10, 11]),
    compatible=st.just(value=True),
)


@given(RTX | TRT)
def test_what_a_target_is_written_as_is_read_as_that_target(target):
    assert parse(str(target)) == target


@given(st.text(alphabet="rtxens_10:-+m89 ", max_size=16) | st.text(max_size=6))
def test_any_text_is_a_target_or_is_refused(text):
    try:
        target = parse(text)
    except InvalidInputError:
        return
    assert parse(str(target)) == target


@pytest.mark.parametrize(
    ("said", "target"),
    [
        ("sm89", rtx("sm89")),
        ("rtx:sm89", rtx("sm89")),
        ("rtx:sm120+sm86+sm89+sm86", rtx("sm86", "sm89", "sm120")),
        ("sm86+sm89", rtx("sm86", "sm89")),
        ("rtx", rtx()),
        ("trt:sm90", trt("sm90")),
        ("trt10:sm80", trt("sm80", 10)),
        ("trt11:sm90+compatible", trt("sm90", 11, compatible=True)),
        ("trt11+compatible", trt("", 11, compatible=True)),
    ],
)
def test_a_target_as_people_say_it(said, target):
    assert parse(said) == target


@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("A100", rtx("sm80")),
        ("L4", rtx("sm89")),
        ("T4", rtx("sm75")),
        ("RTX 4090", rtx("sm89")),
        ("rtx4090", rtx("sm89")),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", rtx("sm89")),
        ("NVIDIA A100-SXM4-80GB", rtx("sm80")),
        ("Tesla T4", rtx("sm75")),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", rtx("sm120")),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", rtx("sm120")),
        ("NVIDIA RTX 4000 SFF Ada Generation", rtx("sm89")),
        ("A100+L4", rtx("sm80", "sm89")),
        ("rtx:A100", rtx("sm80")),
        ("H100", trt("sm90")),
        ("NVIDIA H100 80GB HBM3", trt("sm90")),
        ("orin", trt("sm87")),
        ("NVIDIA Jetson AGX Orin", trt("sm87")),
        ("trt11:H100+compatible", trt("sm90", 11, compatible=True)),
        ("A100+compatible", trt("sm80", compatible=True)),
    ],
)
def test_the_name_of_a_gpu_stands_for_its_compute_capability(name, target):
    assert parse(name) == target


def test_every_gpu_of_the_table_is_a_target_or_too_old_to_be_one():
    for name, capability in targets.gpu_capabilities():
        if int(capability.removeprefix("sm")) >= 75:
            assert parse(name).compute_capability == capability
        else:
            with pytest.raises(InvalidInputError, match=f"{capability} is before Turing"):
                parse(name)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("RTX 4091", "Did you mean RTX 4090"),
        ("H1000", "Did you mean H100"),
        ("V100", "sm70 is before Turing, sm75"),
        ("Tesla M60", "sm52 is before Turing, sm75"),
        ("rtx:H100", "TensorRT-RTX does not list sm90"),
        ("rtx:sm8", "Did you mean rtx:sm8[069]"),
        ("trt11:sm99", "Did you mean trt11:sm"),
        ("trt12:sm90", "Did you mean trt1[01]:sm90"),
        ("rtx:", "Did you mean rtx"),
        ("sm90", "TensorRT-RTX does not list sm90: for it there are trt11:sm90, which is built"),
        (
            "rtx:sm90",
            "does not list sm90: .* and local there or rtx, which are built and evaluated",
        ),
        ("SM86", "sm86"),
        ("", "one of local, rtx"),
        ("rtx:sm86,sm89", "Did you mean rtx:sm8"),
        ("rtx+compatible", "not tied to a GPU model; leave '.compatible' out"),
        ("trt11", "name it, or add '.compatible'"),
        ("trt11:sm80+sm90", "one compute capability; name one, or several targets"),
    ],
)
def test_what_is_no_target_is_refused_with_what_is_meant(text, hint):
    with pytest.raises(InvalidInputError, match=hint):
        parse(text)


def test_an_engine_covers_its_capabilities_or_all_from_ampere_on():
    assert [covers(rtx("sm86", "sm89"), name) for name in ("sm86", "sm89", "sm90")] == [1, 1, 0]
    assert [covers(rtx(), name) for name in ("sm75", "sm80", "sm121")] == [False, True, True]


# what this machine can build for


@no_gpu
@pytest.mark.parametrize("text", ["trt11:sm90", "trt:sm90+compatible", "trt11+compatible"])
def test_tensorrt_without_a_gpu_is_refused_with_where_it_is_built(text):
    with pytest.raises(InvalidInputError, match=r"on a GPU of sm.* there is no GPU; compile it on"):
        resolve(text)


@no_gpu
def test_local_without_a_gpu_is_refused_with_what_can_be_named_instead():
    with pytest.raises(InvalidInputError, match=r"none in this machine; name .*rtx, sm75"):
        resolve("local")


@pytest.mark.parametrize("text", TARGETS[1:])
def test_rtx_needs_no_gpu_and_is_what_it_was_parsed_as(text):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    assert resolve(text) == parse(text)


@pytest.fixture
def an_h100(monkeypatch):
    """A machine with a GPU, as PyTorch and the driver tell of it."""
    monkeypatch.setattr(targets, "local_compute_capability", lambda: "sm90")
    monkeypatch.setattr(targets, "gpu_name", lambda: "NVIDIA H100")


def installed(monkeypatch, **versions):
    monkeypatch.setattr(targets, "find_spec", versions.get)
    for name in ("tensorrt", "tensorrt_rtx"):
        module = ModuleType(name) if name in versions else None
        monkeypatch.setitem(sys.modules, name, module)
        if module is not None:
            monkeypatch.setattr(module, "__version__", versions[name], raising=False)


H100 = dataclasses.replace(trt("sm90", 11), gpu_name="NVIDIA H100")


@pytest.mark.usefixtures("an_h100")
@pytest.mark.parametrize("others", [{}, {"tensorrt_rtx": "1.6.1"}])
def test_local_is_for_tensorrt_where_it_is_installed_and_bound_to_the_gpu(others, monkeypatch):
    installed(monkeypatch, tensorrt="11.4.0.106", **others)
    assert resolve("local") == H100


@pytest.mark.usefixtures("an_h100")
def test_local_is_for_tensorrt_rtx_where_that_is_all_there_is(monkeypatch):
    installed(monkeypatch, tensorrt_rtx="1.6.1.120")
    assert resolve("local") == rtx("sm90")


@pytest.mark.usefixtures("an_h100")
def test_local_with_no_tensorrt_at_all_names_an_extra(monkeypatch):
    installed(monkeypatch)
    with pytest.raises(MissingDependencyError, match=r"pip install 'mlflow_e2eai\["):
        resolve("local")


@pytest.mark.usefixtures("an_h100")
@pytest.mark.parametrize("text", ["trt:sm90", "trt11:sm90"])
def test_tensorrt_is_bound_to_the_gpu_and_the_version_that_are_here(text, monkeypatch):
    installed(monkeypatch, tensorrt="11.4.0.106")
    assert resolve(text) == H100


@pytest.mark.usefixtures("an_h100")
@pytest.mark.parametrize("text", ["trt11:sm90+compatible", "trt11+compatible"])
def test_what_is_compatible_is_bound_to_no_gpu(text, monkeypatch):
    installed(monkeypatch, tensorrt="11.4.0.106")
    assert resolve(text) == parse(text)


@pytest.mark.usefixtures("an_h100")
def test_another_version_or_gpu_than_is_here_is_refused_with_where_to_build(monkeypatch):
    installed(monkeypatch, tensorrt="11.4.0.106")
    with pytest.raises(InvalidInputError, match=r"needs TensorRT 10, but 11.4.0.106 is installed"):
        resolve("trt10:sm90")
    with pytest.raises(InvalidInputError, match=r"GPU of sm80 only, but .* the GPU is sm90"):
        resolve("trt11:sm80")
