"""`doctor`: what this machine can do, what is missing for what, and how to install it."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal, TypeAlias

from mlflow_e2eai._version import __version__
from mlflow_e2eai.artifacts import machine
from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.engine.backends import BACKENDS, Backend, lists_capabilities, load
from mlflow_e2eai.errors import E2EAIError, MissingDependencyError, brief, without_secrets

State: TypeAlias = Literal["ok", "missing", "broken"]

_PACKAGES = (
    ("torch", "torch", "taking PyTorch models from export to package"),
    ("nvidia-ml-py", "nvml", "clock, power and throttling of the GPU while it is measured"),
    ("ray", "ray", "compiling and evaluating on a Ray cluster"),
    ("cryptography", "sign", "signing models and approvals, and checking the signatures"),
    ("cyclonedx-python-lib", "sign", "the bill of materials of a signed model"),
    ("netron", "show", "opening a graph in a browser"),
    ("transformers", "transformers", "loading folders of Hugging Face weights"),
)
"""Optional packages besides TensorRT: the distribution, the extra that brings it, its purpose."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that this machine has or lacks.

    Attributes:
        name: The thing.
        state: ``ok``, ``missing``, or ``broken`` where it is there and does not work.
        found: Its version or what is known of it; why not, where it is missing or broken.
        purpose: What it is for.
        command: The command that brings it; None where there is none, or none is needed.
    """

    name: str
    state: State
    found: str
    purpose: str
    command: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Diagnosis(Summary):
    """Abilities of this machine, without any user name, password, token or key.

    Attributes:
        package: Version of this package.
        system: Operating system and architecture.
        checks: One for each thing that steps need.
    """

    package: str
    system: str
    checks: tuple[Check, ...]

    def _line(self) -> str:
        lacking = [check.name for check in self.checks if check.state != "ok"]
        return f"mlflow_e2eai {self.package} on {self.system}; lacking: {', '.join(lacking) or '-'}"

    def _table(self) -> Table:
        return Check, self.checks


def diagnose() -> Diagnosis:
    """Find out what this machine can do, without changing anything."""
    checks = (
        Check(name="Python", state="ok", found=platform.python_version(), purpose="all"),
        *(_package(name, None, "all") for name in ("mlflow", "onnx")),
        _onnxruntime(),
        _gpu(),
        *map(_backend, BACKENDS.values()),
        *(_package(*each) for each in _PACKAGES),
        _server(),
        *_settings(),
    )
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    return Diagnosis(package=__version__, system=system, checks=checks)


def _install(extra: str) -> str:
    return f"pip install 'mlflow_e2eai[{extra}]'"


def _package(name: str, extra: str | None, purpose: str) -> Check:
    try:
        found = version(name)
    except PackageNotFoundError:
        command = f"pip install {name}" if extra is None else _install(extra)
        return Check(
            name=name, state="missing", found="not installed", purpose=purpose, command=command
        )
    return Check(name=name, state="ok", found=found, purpose=purpose)


def _onnxruntime() -> Check:
    name, purpose = "ONNX Runtime", "running ONNX graphs"
    try:
        import onnxruntime
    except ImportError as error:
        return Check(
            name=name,
            state="missing",
            found=brief(error),
            purpose=purpose,
            command="pip install onnxruntime-gpu",
        )
    providers = ", ".join(onnxruntime.get_available_providers())
    # Without a GPU the CUDA provider is listed and cannot start.
    unused = "" if machine.has_gpu() else "; only the CPU's can run, as there is no GPU"
    return Check(
        name=name,
        state="ok",
        found=f"{onnxruntime.__version__}, {providers}{unused}",
        purpose=purpose,
    )


def _gpu() -> Check:
    name, capability = machine.gpu_name(), machine.local_compute_capability()
    purpose = "running engines, building those of TensorRT, ONNX Runtime on CUDA"
    driver = machine.driver_version()
    if capability is not None:
        found = f"{name or 'NVIDIA'}, {capability}, driver {driver or 'unknown'}"
        return Check(name="GPU", state="ok", found=found, purpose=purpose)
    if name is not None:
        found = f"{name} with driver {driver or 'unknown'}, which fails to start"
        return Check(name="GPU", state="broken", found=found, purpose=purpose, command="nvidia-smi")
    return Check(name="GPU", state="missing", found="no NVIDIA GPU", purpose=purpose)


def _backend(backend: Backend) -> Check:
    is_rtx = backend.capability_targets is not None
    purpose = "engines for many GPUs, built anywhere" if is_rtx else "engines for the GPU here"
    try:
        found = version(backend.requirement)
    except PackageNotFoundError:
        return Check(
            name=backend.title,
            state="missing",
            found="not installed",
            purpose=purpose,
            command=_install(backend.extra),
        )
    try:
        module = load(backend)
    except MissingDependencyError as error:
        found = f"{found}, which does not load: {brief(error.__cause__ or error, 120)}"
        return Check(
            name=backend.title,
            state="broken",
            found=found,
            purpose=purpose,
            command=_install(backend.extra),
        )
    here = machine.local_compute_capability()
    if here is not None and not lists_capabilities(backend, module, (here,)):
        found += f", which does not list {here}, the GPU here"
    return Check(name=backend.title, state="ok", found=found, purpose=purpose)


def _server() -> Check:
    from mlflow_e2eai.tracking.server import address, check_server

    name, purpose = "tracking server", "logging, the registry, promotion"
    uri = public_address(address())
    try:
        check_server()
    except E2EAIError:
        # Its sentence names the address as it was given, and so perhaps a password.
        found = f"{uri} does not respond"
        command = "mlflow server, or set MLFLOW_TRACKING_URI to a running server"
        return Check(name=name, state="broken", found=found, purpose=purpose, command=command)
    return Check(name=name, state="ok", found=uri, purpose=purpose)


def _settings() -> Iterator[Check]:
    """The names of MLflow's settings in the environment, without their values."""
    names = sorted(name for name in os.environ if name.startswith("MLFLOW_"))
    if names:
        yield Check(name="settings", state="ok", found=", ".join(names), purpose="MLflow")


def public_address(uri: str) -> str:
    """A URI without user, password and query, also where it is mistyped.

    `errors.without_secrets` keeps the query, which an issue report need not have.
    """
    bare = uri.partition("?")[0].partition("#")[0]
    if "@" not in bare:
        return without_secrets(bare)
    scheme = bare.partition("://")[0] + "://" if "://" in bare else ""
    return scheme + bare.rpartition("@")[2]
