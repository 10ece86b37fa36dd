"""A registry of a thousand models against an empty one: time and requests of four calls."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

import mlflow
import page
import requests
from ranked_versions import GATES, register
from registry_servers import registry_server
from sqlalchemy import Connection, create_engine, text

import mlflow_e2eai

NAME, SEED = "net", "seed"
EMPTY, FULL = "empty", "full"

LOG_RUN, DECISION_RUN, MODEL = "md5('l' || {at})", "md5('d' || {at})", "'m-' || md5('m' || {at})"
AT = "m || '-' || v"


def fill(database: str, models: int, versions: int) -> int:
    """Copy the rows of a version that was logged and promoted; the number of rows of all tables.

    Each copy has its runs, logged model, tags, metrics and links, as those of the original.
    """
    client = mlflow.MlflowClient()
    seed = client.get_model_version(SEED, "1")
    old = {
        "log": seed.run_id,
        "decision": seed.tags["e2eai.decision_run"],
        "model": str(seed.source).removeprefix("models:/"),
    }
    new = {
        "log": LOG_RUN.format(at=AT),
        "decision": DECISION_RUN.format(at=AT),
        "model": MODEL.format(at=AT),
    }
    name = "'model-' || m"

    def renamed(column: str) -> str:
        """A column in which an id of the original becomes that of a copy."""
        cases = " ".join(f"WHEN '{old[each]}' THEN {new[each]}" for each in old)
        return f"CASE {column} {cases} ELSE {column} END"

    value = (
        f"CASE key WHEN 'e2eai.registered_model' THEN {name} WHEN 'e2eai.version' THEN v::text "
        f"WHEN 'e2eai.decision_run' THEN {new['decision']} ELSE value END"
    )
    runs = f"IN ('{old['log']}', '{old['decision']}')"
    of_runs = {"run_uuid": renamed("run_uuid")}
    of_model = {"model_id": new["model"]}
    of_version = {"name": name, "version": "v"}
    engine = create_engine(database)
    with engine.begin() as connection:
        each = f"generate_series(1, {models}) m, generate_series(1, {versions}) v"
        of_each_model = f"generate_series(1, {models}) m"

        def copy(table: str, where: str, by: str = each, **columns: str) -> None:
            _copy(connection, table, where, by, columns)

        copy("registered_models", f"name = '{SEED}'", of_each_model, name=name)
        copy("registered_model_tags", f"name = '{SEED}'", of_each_model, name=name)
        copy("runs", f"run_uuid {runs}", **of_runs)
        for table in ("metrics", "latest_metrics", "params"):
            copy(table, f"run_uuid {runs}", **of_runs)
        copy("tags", f"run_uuid {runs}", **of_runs, value=value)
        copy("logged_models", f"model_id = '{old['model']}'", **of_model, source_run_id=new["log"])
        for table in ("logged_model_tags", "logged_model_params"):
            copy(table, f"model_id = '{old['model']}'", **of_model)
        links = {
            "input_uuid": f"md5(input_uuid || {AT})",
            "source_id": renamed("source_id"),
            "destination_id": renamed("destination_id"),
        }
        copy("inputs", f"source_id {runs} OR destination_id {runs}", **links)
        source = f"'models:/' || {new['model']}"
        of_seed = f"name = '{SEED}'"
        copy("model_versions", of_seed, **of_version, source=source, run_id=new["log"])
        copy("model_version_tags", of_seed, **of_version, value=value)
        last = {"name": name, "version": str(versions)}
        copy("registered_model_aliases", of_seed, of_each_model, **last)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
        rows = connection.execute(text("SELECT sum(reltuples) FROM pg_class WHERE relkind = 'r'"))
        count = int(rows.scalar() or 0)
    engine.dispose()
    return count


def _copy(connection: Connection, table: str, where: str, by: str, columns: dict[str, str]) -> None:
    """Insert copies of rows, with other expressions for some columns."""
    found = connection.execute(
        text("SELECT column_name FROM information_schema.columns WHERE table_name = :table"),
        {"table": table},
    )
    names = [str(name) for name in found.scalars()]
    values = ", ".join(columns.get(name, f"t.{name}") for name in names)
    insert = f"INSERT INTO {table} ({', '.join(names)}) "
    insert += f"SELECT {values} FROM {table} t, {by} WHERE {where}"  # noqa: S608 - of this file
    connection.execute(text(insert))


@contextlib.contextmanager
def counted() -> Iterator[list[str]]:
    """Count the requests of the block."""
    sent: list[str] = []
    send = requests.Session.send

    def count(self: Any, request: Any, **options: Any) -> Any:
        sent.append(f"{request.method} {request.path_url}")
        return send(self, request, **options)

    requests.Session.send = count  # type: ignore[method-assign]
    try:
        yield sent
    finally:
        requests.Session.send = send  # type: ignore[method-assign]


def calls() -> dict[str, Callable[[], Any]]:
    """What is measured, on a model of two versions that take the alias from each other."""

    def promote() -> None:
        now = mlflow.MlflowClient().get_model_version_by_alias(NAME, "champion").version
        _promote(NAME, "1" if str(now) == "2" else "2")

    return {
        "promote": promote,
        "explain": lambda: mlflow_e2eai.explain(NAME, 1),
        "history": lambda: mlflow_e2eai.history(NAME),
        "load by alias": lambda: mlflow_e2eai.load_model(f"models:/{NAME}@champion"),
    }


def measure(uris: dict[str, str], rounds: int) -> dict[str, dict[str, list[tuple[float, int]]]]:
    """Seconds and requests of each call, by registry, in turns."""
    found: dict[str, dict[str, list[tuple[float, int]]]] = {
        name: {registry: [] for registry in uris} for name in calls()
    }
    for at in range(rounds):
        for name, call in calls().items():
            for registry in sorted(uris, reverse=bool(at % 2)):
                mlflow.set_tracking_uri(uris[registry])
                mlflow.set_experiment("benchmark")
                with counted() as sent:
                    began = time.perf_counter()
                    call()
                    taken = time.perf_counter() - began
                found[name][registry].append((taken, len(sent)))
    return found


def _promote(name: str, version: str) -> None:
    decision = mlflow_e2eai.promote(name, version, gates=GATES)
    if not decision.promoted:
        msg = f"{name} {version} was rejected: {decision.reasons}"
        raise RuntimeError(msg)


def prepare(uri: str) -> None:
    """Register two models of which one is promoted, and is what a full registry is made of."""
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("benchmark")
    register((0.9, 0.9), NAME)
    register((0.9,), SEED)
    for name in (NAME, SEED):
        _promote(name, "1")


def main() -> None:
    """Measure, and write the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--versions", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--print", action="store_true", help="print the section, do not write it")
    given = parser.parse_args()
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.INFO)
    with (
        tempfile.TemporaryDirectory() as one,
        tempfile.TemporaryDirectory() as two,
        registry_server("postgres", Path(one)) as empty,
        registry_server("postgres", Path(two)) as full,
    ):
        uris = {EMPTY: empty.uri, FULL: full.uri}
        for uri in uris.values():
            prepare(uri)
        rows = fill(full.database, given.models, given.versions)
        measure(uris, 1)
        found = measure(uris, given.rounds)
    section = text_of(found, given, rows)
    print(section)
    if not given.print:
        page.write("registry", "A registry of a thousand models", section)


def text_of(found: dict[str, Any], given: argparse.Namespace, rows: int) -> str:
    """The section."""
    head = (
        f"`mlflow server` over PostgreSQL 16 with {given.models:,} models of {given.versions} "
        f"versions, each logged and promoted ({rows:,} rows), against one with two models; "
        f"{given.rounds} rounds in turns, medians, from a client on the same machine. Wanted: at "
        f"most 3 times. `promote` compares with the version that has the alias, and moves it."
    )
    lines = [
        head,
        "",
        "| call | empty, s | full, s | ratio | requests, empty | requests, full |",
        "|---|---|---|---|---|---|",
    ]
    for name, by_registry in found.items():
        seconds = {r: statistics.median(s for s, _ in of) for r, of in by_registry.items()}
        sent = {r: sorted({n for _, n in of}) for r, of in by_registry.items()}
        counts = {r: " to ".join(map(str, dict.fromkeys((n[0], n[-1])))) for r, n in sent.items()}
        lines.append(
            f"| {name} | {seconds[EMPTY]:.2f} | {seconds[FULL]:.2f} | "
            f"{seconds[FULL] / seconds[EMPTY]:.2f} | {counts[EMPTY]} | {counts[FULL]} |"
        )
    foot = (
        "The number of requests does not grow with the registry; a promotion that takes longer "
        "renews its lease, every ten seconds."
    )
    return "\n".join([*lines, "", foot]) + "\n"


if __name__ == "__main__":
    main()
