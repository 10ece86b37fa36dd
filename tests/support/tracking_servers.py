"""`mlflow server` on this machine, as its users start it."""

from __future__ import annotations

import os
import signal
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from free_ports import free_port

_START_S = 120


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs."""

    uri: str
    process: subprocess.Popen

    def kill(self) -> None:
        """End it at once, as a machine that is switched off."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@contextmanager
def tracking_server(
    folder, *words, scheme="http", database=None, artifacts=None, port=None, **environment
) -> Iterator[Server]:
    """Start a server for the block, which hands its clients' artifacts on.

    Args:
        folder: The folder of its log, and of its store unless that is elsewhere.
        words: Further words of the command.
        scheme: How it is reached.
        database: URI of a database in place of a file in the folder.
        artifacts: URI of a place for artifacts in place of the folder.
        port: By default a free one.
        environment: Variables of its environment.
    """
    port = free_port() if port is None else port
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--workers", "1"]
    command += ["--backend-store-uri", database or f"sqlite:///{folder}/mlflow.db"]
    command += ["--artifacts-destination", artifacts or f"{folder}/artifacts", *words]
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    log = folder / "server.log"
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **quiet, **environment},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # it has children, and they end with it
        )
        server = Server(f"{scheme}://127.0.0.1:{port}", process)
        try:
            _wait_for(server, log)
            yield server
        finally:
            if process.poll() is None:
                server.kill()


def _wait_for(server, log) -> None:
    anyone = ssl.create_default_context()
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    deadline = time.monotonic() + _START_S
    while True:
        assert server.process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, f"it did not start: {log.read_text()}"
        try:
            context = anyone if server.uri.startswith("https") else None
            with urllib.request.urlopen(f"{server.uri}/health", timeout=5, context=context):  # noqa: S310 - http(s), as above
                return
        except OSError:
            time.sleep(0.2)
