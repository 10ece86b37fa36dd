"""Servers as teams run them, one of each for all tests of this folder."""

from __future__ import annotations

import mlflow
import pytest


@pytest.fixture(scope="session")
def over_postgres(tmp_path_factory):
    pytest.importorskip("psycopg2", reason="PostgreSQL is missing; `make .venv/servers`")
    from registry_servers import registry_server

    with registry_server("postgres", tmp_path_factory.mktemp("postgres")) as server:
        yield server


@pytest.fixture
def on_postgres(isolated, over_postgres):
    """An empty registry on PostgreSQL, with an experiment that is active."""
    over_postgres.empty()
    mlflow.set_tracking_uri(over_postgres.uri)
    mlflow.set_experiment("tests")
    return over_postgres
