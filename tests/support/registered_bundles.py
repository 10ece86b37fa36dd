"""Bundles as versions of the registered model ``net``."""

import json

import mlflow

from mlflow_e2eai import bundle, tracking
from mlflow_e2eai.artifacts.files import from_json, to_json
from mlflow_e2eai.flavor import api


def altered(place, tmp_path, change):
    """A copy of a saved model with other evidence in its manifest."""
    directory = bundle.find(place)
    manifest = bundle.audit(directory)
    data = json.loads(to_json(manifest))
    change(data)
    made = from_json(bundle.Manifest, json.dumps(data))
    bundle.write(tmp_path / "altered", made, bundle.read_example(directory))
    return tmp_path / "altered"


def register(place, name="net"):
    return str(api.log_model(place, name, registered_model_name=name).registered_model_version)


def holder(client, alias="champion"):
    try:
        return str(client.get_model_version_by_alias("net", alias).version)
    except mlflow.exceptions.MlflowException:
        return None


def model_of(version):
    """The LoggedModel of a version."""
    return tracking.model_of_version(mlflow.MlflowClient().get_model_version("net", version))
