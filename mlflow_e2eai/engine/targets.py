"""Targets: their text form, and which of them this machine can build."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from typing import Any, Literal, TypeAlias

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.machine import gpu_name, local_compute_capability
from mlflow_e2eai.artifacts.values import Library, OnnxArtifact, Target
from mlflow_e2eai.engine import backends
from mlflow_e2eai.engine.backends import BACKENDS, load
from mlflow_e2eai.engine.plugins import check_plugins
from mlflow_e2eai.errors import InvalidInputError, nearest

_Backend: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]

_BACKENDS_BY_PREFIX: dict[str, tuple[_Backend, int | None]] = {
    "rtx": ("tensorrt_rtx", None),
    "trt": ("tensorrt", None),
    "trt10": ("tensorrt", 10),
    "trt11": ("tensorrt", 11),
}
"""Backend and its major version by the prefix of a target's text."""

_PREFIXES = {
    f"{backend}{version or ''}": prefix
    for prefix, (backend, version) in _BACKENDS_BY_PREFIX.items()
}
"""Prefix by the backend as `Target.__str__` writes it."""

_CAPABILITIES: dict[_Backend, tuple[str, ...]] = {
    # `tensorrt_rtx.ComputeCapability` of TensorRT-RTX 1.6.1, less NONE and CURRENT.
    "tensorrt_rtx": ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121"),
    # Turing and newer of https://developer.nvidia.com/cuda/gpus, as TensorRT's support matrix.
    "tensorrt": (
        "sm75",
        "sm80",
        "sm86",
        "sm87",
        "sm88",
        "sm89",
        "sm90",
        "sm100",
        "sm103",
        "sm110",
        "sm120",
        "sm121",
    ),
}

_OLDEST = 80
"""Ampere, the oldest that an engine for no certain compute capability runs on: see
`IBuilderConfig.num_compute_capabilities` of TensorRT-RTX, and `HardwareCompatibilityLevel`."""

TARGETS: tuple[str, ...] = ("local", "rtx", *_CAPABILITIES["tensorrt_rtx"])
"""Examples of targets: valid on any machine, ``local`` on one with a GPU. For all see `parse`."""

_SUGGESTIONS = (
    *TARGETS,
    *(
        f"{prefix}:{name}"
        for prefix in _BACKENDS_BY_PREFIX
        for name in _CAPABILITIES[_BACKENDS_BY_PREFIX[prefix][0]]
    ),
    *(f"{prefix}:{name}+compatible" for prefix in ("trt10", "trt11") for name in ("sm80", "sm90")),
    "trt10+compatible",
    "trt11+compatible",
)


def parse(text: str) -> Target:
    """Read a target, whether this machine can build for it or not.

    Args:
        text: One of

            - ``sm89`` or ``rtx:sm89``: TensorRT-RTX, every GPU of one compute capability;
            - ``rtx:sm86+sm89``: of several;
            - ``rtx``: every GPU from Ampere on, later ones too;
            - ``trt11:sm90``, ``trt10:sm80``: TensorRT of that major version, for the GPU model
              that builds it; ``trt:sm90``: of the version that is installed;
            - ``trt11:sm90+compatible``: every GPU of that compute capability, at some cost in
              speed; ``trt11+compatible``: every GPU from Ampere on;
            - a GPU in place of a compute capability, ``A100``, ``RTX 4090``, ``trt11:H100``: its
              own name, or as the driver reports it; see `canonical`;
            - what `Target` is written as, for example ``tensorrt11-sm90``.

    Returns:
        The target; its `gpu_name` is known only where it is built.

    Raises:
        InvalidInputError: It is something else, or names something that the backend lacks.
    """
    return _parse(canonical(text))


def _parse(text: str) -> Target:
    """Read a target whose GPUs are compute capabilities."""
    bare = text.removesuffix("+compatible")
    prefix, separator, capability = re.fullmatch(r"([^:-]*)([:-]?)(.*)", bare, re.DOTALL).groups()  # type: ignore[union-attr]
    if re.fullmatch(r"sm\d.*", bare, re.DOTALL):
        prefix, separator, capability = "rtx", ":", bare
    prefix = _PREFIXES.get(prefix, prefix)
    if prefix not in _BACKENDS_BY_PREFIX or bool(separator) != bool(capability):
        raise _unknown(text)
    backend, version = _BACKENDS_BY_PREFIX[prefix]
    names = sorted(set(capability.split("+")) if capability else (), key=lambda n: (len(n), n))
    if not set(names) <= set(_CAPABILITIES[backend]):
        raise _unknown(text)
    target = Target(
        backend=backend,
        compute_capability="+".join(names),
        version=version,
        compatible=bare != text,
    )
    if (reason := _reason_impossible(target)) is not None:
        msg = f"There is no target {text!r}: {reason}."
        raise InvalidInputError(msg)
    return target


def canonical(text: str) -> str:
    """Put compute capabilities in place of the names of GPUs in a target's text.

    A GPU alone is for TensorRT-RTX where that builds for it, as ``sm80`` for ``A100``; else for
    TensorRT, as ``trt:sm90`` for ``H100``.

    Raises:
        InvalidInputError: The text names no target on any machine.
    """
    if text == "local":
        return text
    bare = text.removesuffix("+compatible")
    prefix, _, names = bare.rpartition(":")
    capabilities = [capability_of(name) or name for name in names.split("+")]
    if not prefix and len(capabilities) == 1 and capabilities != [names]:
        listed = capabilities[0] in _CAPABILITIES["tensorrt_rtx"] and bare == text
        prefix = "" if listed else "trt"
    changed = f"{prefix}{':' if prefix else ''}{'+'.join(capabilities)}{text[len(bare) :]}"
    result = text if capabilities == names.split("+") else changed
    _parse(result)
    return result


# What the driver adds to the name of a GPU, which does not change its compute capability.
_DECORATIONS = re.compile(
    r"\b(nvidia|geforce|tesla|jetson|agx|blackwell|generation|laptop|gpu|server|workstation|"
    r"edition|max q|sff|sxm\d*|pcie|nvl|hbm\w*|\d+ ?gb)\b"
)


def _key(name: str) -> str:
    words = _DECORATIONS.sub("", re.sub(r"[\s_-]+", " ", name.lower()))
    return words.replace(" ", "")


@functools.cache
def _gpus() -> dict[str, tuple[str, str]]:
    """Name and compute capability of each GPU of ``gpus.yaml``, by the key of its name."""
    import yaml

    table = yaml.safe_load((files("mlflow_e2eai.engine") / "gpus.yaml").read_text("utf-8"))
    return {_key(name): (name, sm) for sm, names in table.items() for name in names}


def capability_of(gpu: str) -> str | None:
    """Compute capability of a GPU by its name, such as ``sm80`` of ``A100``; None if unknown."""
    return _gpus().get(_key(gpu), ("", None))[1]


def gpu_capabilities() -> list[tuple[str, str]]:
    """Name and compute capability of each GPU that is known by name, the newest first."""
    return sorted(_gpus().values(), key=lambda each: -int(each[1].removeprefix("sm")))


def _reason_impossible(target: Target) -> str | None:
    """Return the reason why a target is impossible; None if it is possible."""
    if target.backend == "tensorrt_rtx":
        if target.compatible:
            return "TensorRT-RTX engines are not tied to a GPU model; leave '+compatible' out"
        return None
    if len(target.capabilities) > 1:
        return "TensorRT builds for one compute capability; name one, or several targets"
    if not target.capabilities and not target.compatible:
        return "TensorRT builds for one compute capability; name it, or add '+compatible'"
    return None


def _unknown(text: str) -> InvalidInputError:
    near = nearest(text, (*_SUGGESTIONS, *(name for name, _ in _gpus().values())))
    hint = f" Did you mean {near}?" if near else ""
    capability = text.rpartition(":")[2]
    if re.fullmatch(r"sm([5-6]\d|7[0-4])", capability):
        hint = f" {capability} is before Turing, sm75, the oldest supported."
    capability = text.removeprefix("rtx:")
    if capability in _CAPABILITIES["tensorrt"]:  # and not in TensorRT-RTX's
        hint = (
            f" TensorRT-RTX does not list {capability}: for it there are trt11:{capability}, which "
            f"is built on such a GPU, and local there or rtx, which are built and evaluated on it."
        )
    return InvalidInputError(
        f"The target is {text!r}, but one of {', '.join(TARGETS)} is expected, a GPU such as A100 "
        "or RTX 4090, several as rtx:sm86+sm89, or TensorRT's own as trt11:sm90 or "
        f"trt11:sm90+compatible.{hint}"
    )


def resolve(text: str) -> Target:
    """Resolve a target on this machine, which must be able to build it.

    Args:
        text: A text of `parse`; or ``local``, the GPU in this machine, with TensorRT where that is
            installed, else with TensorRT-RTX.

    Raises:
        InvalidInputError: There is no such target, or this machine cannot build for it.
        MissingDependencyError: The backend that it needs is not installed.
    """
    if text == "local":
        target = _local()
    else:
        target = parse(text)
        if target.backend == "tensorrt":
            _check_gpu(text, target)
    module = load(BACKENDS[target.backend])
    if target.backend == "tensorrt_rtx":
        return target
    return _with_builder(text, target, str(module.__version__))


def _local() -> Target:
    name = local_compute_capability()
    if name is None:
        msg = (
            "The target 'local' needs a GPU, and there is none in this machine; name a target "
            f"that TensorRT-RTX builds without a GPU: {', '.join(TARGETS[1:])}."
        )
        raise InvalidInputError(msg)
    rtx = find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is not None
    return Target(backend="tensorrt_rtx" if rtx else "tensorrt", compute_capability=name)


def _check_gpu(text: str, target: Target) -> None:
    """Refuse a target that TensorRT builds only on another GPU."""
    here = local_compute_capability()
    fits = here is not None and covers(target, here)
    if not fits:
        actual = "there is no GPU" if here is None else f"the GPU is {here}"
        wanted = target.compute_capability or f"sm{_OLDEST} or later"
        msg = (
            f"TensorRT builds {text!r} on a GPU of {wanted} only, but in this machine {actual}; "
            "compile it on a machine with that GPU, or take a TensorRT-RTX target, which needs "
            f"none: {', '.join(TARGETS[1:])}."
        )
        raise InvalidInputError(msg)


def _with_builder(text: str, target: Target, version: str) -> Target:
    """A target of TensorRT with the GPU model and version of this machine."""
    major = int(version.split(".", maxsplit=1)[0])
    if target.version not in (None, major):
        msg = (
            f"The target {text!r} needs TensorRT {target.version}, but {version} is installed; "
            f"compile it where 'tensorrt-cu13=={target.version}.*' is installed."
        )
        raise InvalidInputError(msg)
    return Target(
        backend=target.backend,
        compute_capability=target.compute_capability,
        gpu_name=None if target.compatible else gpu_name(),
        version=major,
        compatible=target.compatible,
    )


def covers(target: Target, capability: str) -> bool:
    """Whether engines for a target are for GPUs of a compute capability."""
    if target.capabilities:
        return capability in target.capabilities
    return int(capability.removeprefix("sm")) >= _OLDEST


# Engines that TensorRT is known not to build, refused before the build.


_FIRST_WITH_FP8 = 89
"""Compute capability 8.9; TensorRT-RTX 1.6.1 says that sm86 has no fp8_e4m3."""

_FIRST_WITH_INT8_CONVOLUTIONS = (1, 7)
"""Version of TensorRT-RTX: 1.6.1 fails an assertion on every one, 1.7.1 builds them."""


def unbuildable_here(
    source: OnnxArtifact, target: Target, settings: BuildSettings = DEFAULT_BUILD
) -> str | None:
    """Return the reason why this machine cannot build an engine; None if none is known.

    Raises:
        MissingDependencyError: The target's TensorRT is not installed.
    """
    if (
        reason := unbuildable_settings(settings) or unbuildable_anywhere(source, target)
    ) is not None:
        return reason
    if source.precision != "int8" or target.backend != "tensorrt_rtx":
        return None
    trt: Any = backends.load(backends.BACKENDS[target.backend])
    version = str(trt.__version__)
    release = tuple(int(part) for part in version.split(".")[:2])
    if release >= _FIRST_WITH_INT8_CONVOLUTIONS or not _convolves_in_int8(source):
        return None
    return (
        f"TensorRT-RTX {version} cannot build convolutions in int8; install 1.7 or later, take fp8 "
        f"(sm89 or later) or keep the Conv nodes in fp32"
    )


def unbuildable_settings(settings: BuildSettings) -> str | None:
    """Return the reason why this machine cannot build with some settings; None if none is known."""
    # TensorRT-RTX 1.6.1 and 1.7.1 end such builds with CHECK(status == CUDA_SUCCESS).
    if (settings.refit or settings.strip_weights) and backends.local_compute_capability() is None:
        return (
            "refit and strip_weights need a GPU, and there is none in this machine; leave them "
            "out, or compile it on a machine that has one"
        )
    return None


def unbuildable_anywhere(source: OnnxArtifact, target: Target) -> str | None:
    """Return the reason why no machine can build an engine of a graph; None if none is known."""
    if source.precision != "fp8":
        return None
    # Without a named capability TensorRT-RTX 1.6.1 builds it, and says that it is for sm80 too.
    for name in target.capabilities or ("sm80",):
        if int(name.removeprefix("sm")) < _FIRST_WITH_FP8:
            return f"{name} does not support fp8; leave it out, or take sm89 or later"
    return None


def check_here(
    texts: Sequence[str],
    *,
    settings: BuildSettings = DEFAULT_BUILD,
    libraries: Sequence[Library] = (),
) -> None:
    """Refuse targets that this machine cannot build.

    Args:
        texts: As `resolve` takes them.
        settings: How they are to be built.
        libraries: Libraries with plugins.

    Raises:
        InvalidInputError: There is no such target, this machine cannot build for it or not with
            these settings, or it takes no plugins.
        MissingDependencyError: The target's TensorRT is not installed.
    """
    for text in texts:
        check_plugins(resolve(text), libraries)
    if texts and (reason := unbuildable_settings(settings)) is not None:
        msg = f"The build settings are {settings}, but {reason}."
        raise InvalidInputError(msg)


def check_anywhere(texts: Sequence[str], *, libraries: Sequence[Library] = ()) -> None:
    """Refuse targets that no machine can build.

    Raises:
        InvalidInputError: There is no such target, or it takes no plugins.
    """
    for text in texts:
        if text != "local":
            check_plugins(parse(text), libraries)


def _convolves_in_int8(source: OnnxArtifact) -> bool:
    nodes = graphs.read(source.path).graph.node
    dequantised = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    return any(
        node.op_type in ("Conv", "ConvTranspose") and node.input[0] in dequantised for node in nodes
    )
