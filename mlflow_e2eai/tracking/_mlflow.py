"""The private helpers of MLflow that every flavor needs and that have no public form.

All of them are imported here and nowhere else, so that a new MLflow breaks one file.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
from mlflow.exceptions import MlflowException
from mlflow.models.utils import _save_example as save_example
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from mlflow.tracking._model_registry.client import ModelRegistryClient
from mlflow.tracking._tracking_service.client import TrackingServiceClient
from mlflow.tracking.artifact_utils import (
    _download_artifact_from_uri as download_artifact_from_uri,
)
from mlflow.tracking.fluent import _active_run_stack
from mlflow.tracking.fluent import _get_experiment_id as active_experiment_id
from mlflow.utils.credentials import get_default_host_creds, read_mlflow_creds
from mlflow.utils.environment import (
    _CONDA_ENV_FILE_NAME as CONDA_ENV_FILE,
)
from mlflow.utils.environment import (
    _CONSTRAINTS_FILE_NAME as CONSTRAINTS_FILE,
)
from mlflow.utils.environment import (
    _PYTHON_ENV_FILE_NAME as PYTHON_ENV_FILE,
)
from mlflow.utils.environment import (
    _REQUIREMENTS_FILE_NAME as REQUIREMENTS_FILE,
)
from mlflow.utils.environment import (
    _mlflow_conda_env as mlflow_conda_env,
)
from mlflow.utils.environment import (
    _process_conda_env as process_conda_env,
)
from mlflow.utils.environment import (
    _process_pip_requirements as process_pip_requirements,
)
from mlflow.utils.environment import (
    _PythonEnv as PythonEnv,
)
from mlflow.utils.environment import (
    _validate_env_arguments as validate_env_arguments,
)
from mlflow.utils.model_utils import (
    _add_code_from_conf_to_system_path as add_code_to_system_path,
)
from mlflow.utils.model_utils import (
    _copy_extra_files as copy_extra_files,
)
from mlflow.utils.model_utils import (
    _validate_and_copy_code_paths as validate_and_copy_code_paths,
)
from mlflow.utils.model_utils import (
    _validate_and_prepare_target_save_path as prepare_target_path,
)
from mlflow.utils.name_utils import _GENERATOR_NOUNS, _GENERATOR_PREDICATES
from mlflow.utils.rest_utils import http_request
from mlflow.utils.validation import (
    _validate_logged_model_name as validate_logged_model_name,
)
from mlflow.utils.validation import (
    _validate_model_alias_name as validate_alias,
)
from mlflow.utils.validation import (
    _validate_model_alias_name_reserved as validate_alias_is_free,
)
from mlflow.utils.validation import (
    _validate_model_name as validate_registered_model_name,
)

from mlflow_e2eai.artifacts import yaml_nodes
from mlflow_e2eai.artifacts.files import read_text
from mlflow_e2eai.bundle.digests import refuse_links
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, brief
from mlflow_e2eai.tracking.server import as_mlflow_error

__all__ = [
    "CONDA_ENV_FILE",
    "CONSTRAINTS_FILE",
    "PYTHON_ENV_FILE",
    "REQUIREMENTS_FILE",
    "PythonEnv",
    "active_experiment_id",
    "add_code_to_system_path",
    "copy_extra_files",
    "download_artifact_from_uri",
    "forget_active_run",
    "get_flavor_configuration",
    "is_generated_name",
    "mlflow_conda_env",
    "prepare_target_path",
    "process_conda_env",
    "process_pip_requirements",
    "registry_client",
    "request_health",
    "save_example",
    "set_model_tags",
    "validate_alias",
    "validate_alias_is_free",
    "validate_and_copy_code_paths",
    "validate_env_arguments",
    "validate_logged_model_name",
    "validate_registered_model_name",
]


_AWAY = (502, 503, 504)
"""Statuses by which a gateway says that the server behind it does not respond."""

_MLMODEL_CHARACTERS = 1 << 20
"""An MLmodel file with 10,000 columns in its signature has three quarters of it."""


def get_flavor_configuration(folder: Path, flavor: str) -> Mapping[str, Any]:
    """The configuration of a flavor in the MLmodel file of a folder.

    MLflow's own reader has no limit, and raises the errors of YAML as they are.

    Raises:
        ArtifactError: There is no such file, it is a link, or it describes no model; or the model
            has other flavors, which is a `mlflow.exceptions.MlflowException` too.
    """
    refuse_links(folder, ["MLmodel"])
    path = Path(folder, "MLmodel")
    try:
        content = yaml_nodes.load(read_text(path), str(path), most=_MLMODEL_CHARACTERS)
    except InvalidInputError as error:
        msg = f"{brief(error).rstrip('.')}; log the model again."
        raise ArtifactError(msg) from error
    flavors = content.get("flavors") if isinstance(content, Mapping) else None
    if not isinstance(flavors, Mapping) or not isinstance(flavors.get(flavor, {}), Mapping):
        msg = f"{path} describes no model: it has no flavors by name; log the model again."
        raise ArtifactError(msg)
    if flavor not in flavors:
        others = ", ".join(map(str, flavors)) or "none"
        msg = f'The model does not have the "{flavor}" flavor, but {others}; give one that has it.'
        like = MlflowException(msg, RESOURCE_DOES_NOT_EXIST)
        raise as_mlflow_error(ArtifactError(msg), like) from like
    found: Mapping[str, Any] = flavors[flavor]
    return found


def registry_client() -> ModelRegistryClient:
    """The client that writes to the registry; MlflowClient would read each model first.

    It does so before each write, to see that the registered model is no prompt.
    """
    return ModelRegistryClient(mlflow.get_registry_uri(), mlflow.get_tracking_uri())


def set_model_tags(model_id: str, tags: Mapping[str, str], tracking_uri: str) -> None:
    """Put tags on a LoggedModel; MlflowClient would request the model first, each time."""
    TrackingServiceClient(tracking_uri).set_logged_model_tags(model_id, dict(tags))


def is_generated_name(name: str) -> bool:
    """Whether MLflow made up a run's name, such as ``marvelous-zebra-619``."""
    predicate, _, rest = name.partition("-")
    noun, _, number = rest.rpartition("-")
    return predicate in _GENERATOR_PREDICATES and noun in _GENERATOR_NOUNS and number.isdigit()


def request_health(uri: str, *, retries: int | None, timeout_s: float | None) -> None:
    """Request a server's health as MLflow requests all: with its certificate, user and proxy.

    Args:
        uri: Address of the server.
        retries: How often to repeat; None for MLflow's own setting.
        timeout_s: Seconds to wait for a response; None for MLflow's own setting.

    Raises:
        mlflow.exceptions.MlflowException: There is no response of the server. Any is enough, also a
            refusal, but for those of a gateway that does not reach it.
    """
    response = http_request(
        get_default_host_creds(uri),
        "/health",
        "GET",
        max_retries=retries,
        timeout=timeout_s,
        raise_on_status=False,
    )
    if response.status_code in _AWAY:
        msg = f"status {response.status_code} {response.reason}"
        raise MlflowException(msg)


def account() -> str | None:
    """The account at the tracking server; None where there is no server, or none was given."""
    if not str(mlflow.get_tracking_uri()).startswith("http"):
        return None
    return read_mlflow_creds().username


def forget_active_run() -> None:
    """Leave the active run without a request, which `mlflow.end_run` would retry for minutes."""
    runs = _active_run_stack.get()
    if runs:
        runs.pop()
