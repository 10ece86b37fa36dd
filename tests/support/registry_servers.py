"""Tracking servers as teams run them: over PostgreSQL, with artifacts in S3, with users.

Their packages are those of `make .venv/servers`.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from postgres import empty, postgres
from tracking_servers import Server, tracking_server

BUCKET = "models"
KEYS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing"}
ADMIN = ("admin", "password1234567")


@dataclass(frozen=True, slots=True)
class RegistryServer:
    """A server over PostgreSQL whose clients' artifacts pass through it."""

    server: Server
    database: str
    artifacts: Folder | Bucket

    @property
    def uri(self) -> str:
        """The tracking URI."""
        return self.server.uri

    def empty(self) -> None:
        """Forget everything; artifacts stay, where nothing leads to them."""
        empty(self.database)


@dataclass(frozen=True, slots=True)
class Folder:
    """Artifacts in a folder of the server."""

    path: Path

    @contextmanager
    def edited(self, model_id: str) -> Iterator[Path]:
        """The files of a logged model, to be changed in the block."""
        (listing,) = self.path.rglob(f"*{model_id}*/artifacts/SHA256SUMS")
        yield listing.parent


@dataclass(frozen=True, slots=True)
class Bucket:
    """Artifacts in a bucket of S3."""

    client: Any

    @contextmanager
    def edited(self, model_id: str) -> Iterator[Path]:
        """The files of a logged model, to be changed in the block, and uploaded after it."""
        listed = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET)
        names = [item["Key"] for page in listed for item in page.get("Contents", ())]
        (listing,) = (n for n in names if n.endswith(f"{model_id}/artifacts/SHA256SUMS"))
        root = listing.removesuffix("SHA256SUMS")
        with tempfile.TemporaryDirectory() as place:
            for name in (name for name in names if name.startswith(root)):
                path = Path(place, name.removeprefix(root))
                path.parent.mkdir(parents=True, exist_ok=True)
                self.client.download_file(BUCKET, name, str(path))
            before = _contents(Path(place))
            yield Path(place)
            after = _contents(Path(place))
            for name in before.keys() - after.keys():
                self.client.delete_object(Bucket=BUCKET, Key=root + name)
            for name, content in after.items() - before.items():
                self.client.put_object(Bucket=BUCKET, Key=root + name, Body=content)


@contextmanager
def registry_server(kind: str, folder: Path, **settings: str) -> Iterator[RegistryServer]:
    """Run a server for the block: ``postgres``, or ``s3`` with its artifacts in a bucket.

    Args:
        kind: Which.
        folder: Where its artifacts and its log are.
        **settings: Environment variables of the server.
    """
    with postgres() as database:
        if kind == "postgres":
            with tracking_server(folder, database=database, **settings) as server:
                yield RegistryServer(server, database, Folder(folder / "artifacts"))
        else:
            with (
                _s3() as (address, client),
                tracking_server(
                    folder,
                    database=database,
                    artifacts=f"s3://{BUCKET}",
                    MLFLOW_S3_ENDPOINT_URL=address,
                    **KEYS,
                    **settings,
                ) as server,
            ):
                yield RegistryServer(server, database, Bucket(client))


@contextmanager
def server_with_users(folder: Path, *, default: str = "READ") -> Iterator[Server]:
    """Run a server with MLflow's basic-auth app for the block; ``ADMIN`` may do everything.

    Args:
        folder: Where its stores are.
        default: The permission that everybody has.
    """
    name, password = ADMIN
    (folder / "users.ini").write_text(
        f"[mlflow]\ndefault_permission = {default}\nadmin_username = {name}\n"
        f"database_uri = sqlite:///{folder}/users.db\nadmin_password = {password}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
    )
    settings = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "users.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "key",
    }
    with tracking_server(folder, "--app-name", "basic-auth", **settings) as server:
        _hash_quickly(folder, name, password)
        yield server


def create_user(server: Server, folder: Path, name: str, password: str) -> None:
    """Create a user of a server with users."""
    from mlflow.server.auth.client import AuthServiceClient

    AuthServiceClient(server.uri).create_user(name, password)
    _hash_quickly(folder, name, password)


def _hash_quickly(folder: Path, name: str, password: str) -> None:
    """Store a hash that is checked at once; MLflow's own takes 0.1 s of each request."""
    from werkzeug.security import generate_password_hash

    value = generate_password_hash(password, method="pbkdf2:sha256:1")
    with closing(sqlite3.connect(folder / "users.db")) as database, database:
        database.execute("UPDATE users SET password_hash = ? WHERE username = ?", (value, name))
        assert database.total_changes == 1


@contextmanager
def _s3() -> Iterator[tuple[str, Any]]:
    """A server of S3 with an empty bucket: its address and a client."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        client = boto3.client(
            "s3",
            endpoint_url=address,
            region_name="us-east-1",
            aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        client.create_bucket(Bucket=BUCKET)
        yield address, client
    finally:
        server.stop()


def _contents(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
