"""Servers as teams run them, one of each for all tests of this folder."""

from __future__ import annotations

import mlflow
import pytest
from cryptography.fernet import Fernet


@pytest.fixture(scope="session")
def over_postgres(tmp_path_factory):
    pytest.importorskip("psycopg2", reason="PostgreSQL is missing; `make .venv/servers`")
    from registry_servers import registry_server

    webhooks = {  # they may call this machine
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "http,https",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
        "MLFLOW_WEBHOOK_CACHE_TTL": "1",
    }
    with registry_server("postgres", tmp_path_factory.mktemp("postgres"), **webhooks) as server:
        yield server


@pytest.fixture
def on_postgres(isolated, over_postgres):
    """An empty registry on PostgreSQL, with an experiment that is active."""
    over_postgres.empty()
    mlflow.set_tracking_uri(over_postgres.uri)
    mlflow.set_experiment("tests")
    return over_postgres
