"""Many promoters at once on a real server: no alias without a yes against its true predecessor."""

from __future__ import annotations

import json

import mlflow
import pytest
from promoters import (
    NAME,
    Plan,
    broken_laws,
    install_witness,
    numbers_on_record,
    reasons,
    run_promoters,
)
from ranked_versions import GATES, register
from tracking_servers import tracking_server

import mlflow_e2eai
from mlflow_e2eai.promotion.registry.lease import LEASE

pytestmark = pytest.mark.system

# The better ones may follow all, and each the one that is better by a step.
ACCURACIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.55)


@pytest.fixture
def ranked(on_postgres):
    """Versions by number, with the accuracy of each."""
    accuracies = dict(zip(register(ACCURACIES), ACCURACIES, strict=True))
    install_witness(on_postgres.database)
    return accuracies


@pytest.fixture
def uris(on_postgres, tmp_path):
    """The server, and another over the same database and artifacts."""
    folder = tmp_path / "second"
    folder.mkdir()
    with tracking_server(
        folder, database=on_postgres.database, artifacts=str(on_postgres.artifacts.path)
    ) as second:
        yield [on_postgres.uri, second.uri]


def run(server, accuracies, folder, count, rounds, uris=(), **options):
    """Let promoters run, check the laws, and print the numbers."""
    plan = Plan(
        uris=uris or [server.uri],
        versions=list(accuracies),
        rounds=rounds,
        folder=folder,
        **options,
    )
    numbers = run_promoters(plan, count)
    wrong = broken_laws(server.database, accuracies, plan)
    refused = reasons(plan)
    numbers |= numbers_on_record(server.database) | {"refused": refused}
    print(f"{count} promoters x {rounds} rounds:", json.dumps(numbers))  # noqa: T201 - with -s
    assert wrong == []
    assert [why for why in refused if "stood still for too long" not in why] == []
    assert numbers["promotions"] == count * rounds
    return numbers


def test_four_promoters_move_an_alias_only_by_a_yes_against_what_stood_there(
    on_postgres, ranked, tmp_path
):
    numbers = run(on_postgres, ranked, tmp_path, 4, 5)
    assert numbers["moves"] > 0
    tags = mlflow.MlflowClient().get_registered_model(NAME).tags
    assert not any(tag.startswith(LEASE) for tag in tags)


def test_promoters_that_are_killed_in_the_middle_finish_when_they_are_started_again(
    on_postgres, ranked, tmp_path
):
    run(on_postgres, ranked, tmp_path, 4, 4, kill_share=0.5, lease_s=6.0)


@pytest.mark.slow
def test_sixteen_promoters_of_two_hundred_rounds_over_two_servers(
    on_postgres, ranked, uris, tmp_path
):
    run(on_postgres, ranked, tmp_path, 16, 200, uris)


@pytest.mark.slow
def test_sixteen_promoters_of_whom_some_are_killed(on_postgres, ranked, tmp_path):
    run(on_postgres, ranked, tmp_path, 16, 25, kill_share=0.2, lease_s=20.0)
    version = next(iter(ranked))  # the best: it may follow every other
    assert mlflow_e2eai.promote(NAME, version, gates=GATES).promoted
    tags = mlflow.MlflowClient().get_registered_model(NAME).tags
    assert not any(tag.startswith(LEASE) for tag in tags)
