"""MLflow's own files of a bundle: MLmodel, the example, the environment."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import bundle
from mlflow_e2eai._version import __version__
from mlflow_e2eai.bundle.digests import check_names, write_digests
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.engine.backends import BACKENDS
from mlflow_e2eai.errors import InvalidInputError, brief, warn_caller
from mlflow_e2eai.flavor import wheel as wheels
from mlflow_e2eai.flavor.wheel import origin
from mlflow_e2eai.tracking import _mlflow
from mlflow_e2eai.tracking.downloads import FLAVOR as FLAVOR_NAME
from mlflow_e2eai.tracking.mlflow_names import check_storable
from mlflow_e2eai.tracking.models import signature_of

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

_log = logging.getLogger(__name__)

LOADER_MODULE = "mlflow_e2eai.flavor"

MODEL_CONFIG: dict[str, Any] = {
    "variant": None,
    "goal": "latency",
    "split": False,
    "fallback": True,
    "follow": None,
    "allow_native": [],
}
"""Options of `mlflow.pyfunc.load_model` with defaults; MLflow drops keys that are not here."""


def get_default_pip_requirements(manifest: Manifest | None = None) -> list[str]:
    """Requirements of a serving environment, pinned to the versions installed here.

    Written out and never inferred: inference loads the model in another process, misses this
    package, and reads a uv.lock that happens to lie in the working folder.

    Args:
        manifest: The bundle; with engines in it, the TensorRT that built them is needed, and
            cuda-core for memory and streams; not PyTorch.
    """
    names = [_onnxruntime_distribution(), "numpy"]
    if manifest and manifest.engines:
        names += ["cuda-core", "cuda-bindings"]
    requirements = [origin().requirement, *(f"{name}=={_version(name)}" for name in names)]
    for engine in manifest.engines if manifest else ():
        backend = BACKENDS[engine.target.backend]
        requirements.append(f"{backend.requirement}=={engine.backend_version}")
    return list(dict.fromkeys(requirements))


def get_default_conda_env() -> dict[str, Any]:
    """The default conda environment, with `get_default_pip_requirements` in it."""
    env: dict[str, Any] = _mlflow.mlflow_conda_env(
        additional_pip_deps=get_default_pip_requirements()
    )
    return env


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Content of MLflow's own files of a model: arguments of all of MLflow's flavors.

    Raises:
        mlflow.exceptions.MlflowException: The arguments for the environment contradict each other.
        InvalidInputError: A file or folder is not there, a requirement cannot be read, or MLmodel
            cannot hold the metadata.
    """

    signature: ModelSignature | bool | None = None
    conda_env: Mapping[str, Any] | str | None = None
    pip_requirements: Sequence[str] | str | None = None
    extra_pip_requirements: Sequence[str] | str | None = None
    code_paths: Sequence[str] | None = None
    extra_files: Sequence[str] | None = None
    metadata: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Description:
        """Take the fields out of the arguments of a function, its `locals`."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        _mlflow.validate_env_arguments(
            self.conda_env, self.pip_requirements, self.extra_pip_requirements
        )
        self._check_environment()
        for argument in ("code_paths", "extra_files"):
            self._check_paths(argument)
        if self.metadata is not None:
            self._check_metadata(self.metadata)
        if not (self.signature is None or isinstance(self.signature, bool)):
            self._check_signature(self.signature)

    def environment(self, default: list[str]) -> tuple[Any, list[str], list[str]]:
        """The conda environment, requirements and constraints; `default` where none are given."""
        if self.conda_env is not None:
            return _mlflow.process_conda_env(self.conda_env)  # type: ignore[no-any-return]
        given = self.pip_requirements
        return _mlflow.process_pip_requirements(  # type: ignore[no-any-return]
            None if given is not None else default, given, self.extra_pip_requirements
        )

    def _check_environment(self) -> None:
        from mlflow.exceptions import MlflowException

        given = {
            name: value
            for name in ("conda_env", "pip_requirements", "extra_pip_requirements")
            if (value := getattr(self, name)) is not None
        }
        if not given:
            return
        try:
            self.environment([])
        except (MlflowException, OSError, ValueError, TypeError, AttributeError) as error:
            named = " and ".join(f"{name}={value!r}" for name, value in given.items())
            msg = (
                f"MLflow cannot read {named}: {brief(error)}; give what MLflow's own flavors take."
            )
            raise InvalidInputError(msg) from error

    def _check_paths(self, argument: str) -> None:
        paths = getattr(self, argument)
        if paths is None:
            return
        if isinstance(paths, str) or not isinstance(paths, Sequence):
            msg = f"{argument}={paths!r} is a {type(paths).__name__}; give a list of paths."
            raise InvalidInputError(msg)
        for path in paths:
            if ":/" not in str(path) and not Path(path).exists():
                msg = f"{argument} has {str(path)!r}, which does not exist; check the path."
                raise InvalidInputError(msg)
            if ":/" not in str(path):
                place = Path(path).absolute()
                files = [place, *place.rglob("*")]
                check_names(each.relative_to(place.parent).as_posix() for each in files)

    @staticmethod
    def _check_metadata(metadata: Mapping[str, Any]) -> None:
        import yaml

        check_storable(metadata=metadata)
        try:
            yaml.safe_dump(dict(metadata))
        except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
            msg = (
                f"The metadata cannot be written to MLmodel: {brief(error)}; give a mapping of "
                "names to plain values."
            )
            raise InvalidInputError(msg) from error

    @staticmethod
    def _check_signature(signature: object) -> None:
        from mlflow.models import ModelSignature

        if not isinstance(signature, ModelSignature):
            msg = f"signature is a {type(signature).__name__}; give a ModelSignature, or leave it."
            raise InvalidInputError(msg)


def describe(path: Path, content: Description, *, mlflow_model: Model | None) -> None:
    """Write MLflow's own files next to the bundle in ``path / bundle.FOLDER``.

    Args:
        path: The model directory.
        content: Their content.
        mlflow_model: MLflow's description to add the flavors to.
    """
    import onnx
    from mlflow import pyfunc
    from mlflow.models import Model

    manifest, example = bundle.read(path / bundle.FOLDER), bundle.read_example(path / bundle.FOLDER)
    wheel = _write_environment(path, manifest, content)
    code = _mlflow.validate_and_copy_code_paths(content.code_paths, str(path))
    description = Model() if mlflow_model is None else mlflow_model
    if content.signature is None:
        description.signature = signature_of(manifest.inputs, manifest.outputs)
    elif not isinstance(content.signature, bool):
        description.signature = content.signature
    _mlflow.save_example(description, dict(example), str(path))
    if content.metadata is not None:
        description.metadata = dict(content.metadata)
    extra = _mlflow.copy_extra_files(content.extra_files, str(path))
    pyfunc.add_to_model(
        description,
        loader_module=LOADER_MODULE,
        data=bundle.FOLDER,
        conda_env=_mlflow.CONDA_ENV_FILE,
        python_env=_mlflow.PYTHON_ENV_FILE,
        code=code,
        model_config=MODEL_CONFIG,
    )
    if names := [library.path.name for library in manifest.graphs[0].libraries]:
        _log.warning(
            "The model has no flavor 'onnx': MLflow's own could not run its graph, which needs %s.",
            ", ".join(names),
        )
    else:
        description.add_flavor(
            "onnx",
            onnx_version=onnx.__version__,
            data=f"{bundle.FOLDER}/{manifest.graphs[0].path.as_posix()}",
            providers=["CUDAExecutionProvider", "CPUExecutionProvider"],
            code=code,
        )
    description.add_flavor(
        FLAVOR_NAME,
        data=bundle.FOLDER,
        format_version=manifest.format_version,
        package_version=__version__,
        code=code,
        digests=write_digests(path),  # all but MLmodel is there now
        **wheel,
        **extra,
    )
    description.model_size_bytes = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
    description.save(str(path / "MLmodel"))


def _write_environment(path: Path, manifest: Manifest, content: Description) -> dict[str, str]:
    """Write the files with requirements, and a wheel of this package where no index has it.

    Returns:
        The digest of the wheel, for the MLmodel file; nothing where there is none.
    """
    import yaml

    default = get_default_pip_requirements(manifest)
    environment, requirements, constraints = content.environment(default)
    wheel = {}
    own = origin()
    if own.local is not None and own.requirement in requirements:
        # pip and uv read it relative to the file that it is in, a path of a wheel to their folder.
        option = f"--find-links {wheels.FOLDER}"
        requirements = [option, *requirements]
        environment = _with_pip_option(environment, option)
        wheel["wheel_sha256"] = wheels.write_wheel(path / wheels.FOLDER)
        _report_wheel(own.requirement)
    (path / _mlflow.CONDA_ENV_FILE).write_text(yaml.safe_dump(environment, sort_keys=False))
    (path / _mlflow.REQUIREMENTS_FILE).write_text("\n".join(requirements))
    if constraints:
        (path / _mlflow.CONSTRAINTS_FILE).write_text("\n".join(constraints))
    _mlflow.PythonEnv.current().to_yaml(str(path / _mlflow.PYTHON_ENV_FILE))
    return wheel


@functools.cache
def _report_wheel(requirement: str) -> None:
    """Warn once in a process that the models contain this package, which is on no index."""
    _log.warning(
        "requirements.txt takes %s from %s/, and needs that folder next to it",
        requirement,
        wheels.FOLDER,
    )


def _with_pip_option(environment: Mapping[str, Any], option: str) -> dict[str, Any]:
    """A conda environment whose packages from pip are installed with an option."""
    dependencies = [
        {"pip": [option, *item["pip"]]} if isinstance(item, dict) and "pip" in item else item
        for item in environment["dependencies"]
    ]
    return {**environment, "dependencies": dependencies}


def _onnxruntime_distribution() -> str:
    """Either distribution brings the same module; the GPU one is named where both are missing."""
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            version(name)
        except PackageNotFoundError:
            continue
        return name
    return "onnxruntime-gpu"


def _version(name: str) -> str:
    try:
        # Registries have no local version label, the part after a plus.
        return version(name).partition("+")[0]
    except PackageNotFoundError:
        warn_caller(f"{name} is not installed; its version is unknown.")
        return "*"
