"""A team's registry, from a logged model to a rollback: the registry decides at every step.

It needs a tracking server whose webhooks may call this machine, MLFLOW_TRACKING_URI to name it, and
two minutes:

    export MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY=$(python -c \
        "from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())")
    MLFLOW_WEBHOOK_ALLOWED_SCHEMES=http,https MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS=true mlflow server
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import queue
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import mlflow
from digits import build, data
from mlflow import MlflowClient

import mlflow_e2eai
from mlflow_e2eai.flavor.repackage import package
from mlflow_e2eai.pipeline.jobs import log

SOURCES, NAME = "digits-torch", "digits"
GATES = Path(__file__).parent / "registry_gates.yaml"
WAIT_S = 120


def main() -> None:
    """Tell the story."""
    with webhook(["model_version.created", "model_version_alias.created"]) as events:
        step("A PyTorch model is registered, and its webhook starts the pipeline")
        champion = export(events, "first")

        step("The gates want a person's yes")
        promote(champion)
        print(mlflow_e2eai.approve(NAME, champion, as_="release"))
        promote(champion)
        # Who hears of the alias finds its reason: both were written before the alias moved.
        moved = next_event(events, "alias", version=champion)
        print(f"webhook: @{moved['alias']} is at version {moved['version']}")
        print(mlflow_e2eai.explain(NAME, champion).text())

        step("A process serves the champion, whichever that is")
        _, images, _, _ = data()
        served = mlflow_e2eai.load_model(f"models:/{NAME}@champion", follow=1.0)
        print(served, served(images[:8])["output"].argmax(1))

        step("A challenger that was trained too little is refused, though somebody approved it")
        bad = export(events, "hasty")
        mlflow_e2eai.approve(NAME, bad, as_="release")
        promote(bad)

        step("A good one takes its place, and the process follows")
        good = export(events, "second")
        mlflow_e2eai.approve(NAME, good, as_="release")
        promote(good)
        served.check()
        print(served)

        step("An alias that a hand moved is caught and put back")
        MlflowClient().set_registered_model_alias(NAME, "champion", bad)
        report = mlflow_e2eai.guard(NAME, restore=True)
        print(*report.drifted, sep="\n")

        step("Back to the version before, if that still passes")
        print(mlflow_e2eai.rollback(NAME, gates=GATES))
        served.check()
        print(served)
        with served:  # stops following
            pass

        step("Who stood where, when and why")
        print(*mlflow_e2eai.history(NAME).moves, sep="\n")


def export(events: Events, factory: str) -> str:
    """Log and register a PyTorch model, and do what a service does on its webhook; the version."""
    model_id = log(f"{__file__}:{factory}", name=SOURCES)
    source = mlflow.register_model(f"models:/{model_id}", SOURCES)
    event = next_event(events, "created", name=SOURCES, version=str(source.version))
    info = package(f"models:/{event['name']}/{event['version']}", registered_model_name=NAME)
    version = str(info.registered_model_version)
    print(f"webhook: {event['name']} {event['version']} became {NAME} {version}")
    return version


def first() -> dict[str, Any]:
    """The first model."""
    return build(epochs=12, seed=1)


def hasty() -> dict[str, Any]:
    """One that was trained too little."""
    return build(epochs=1, seed=3)


def second() -> dict[str, Any]:
    """Another good one."""
    return build(epochs=12, seed=2)


def promote(version: str) -> None:
    """Promote a version, and print the verdicts."""
    decision = mlflow_e2eai.promote(NAME, version, gates=GATES)
    for verdict in decision.verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict}")
    for remedy in decision.remedies:
        print(f"to do: {remedy}")
    print(f"version {version} was {'promoted' if decision.promoted else 'rejected'}")


def step(title: str) -> None:
    """Print the title of a step."""
    print(f"\n== {title}")


# MLflow's webhooks, as a service receives them.


Events = queue.Queue[dict[str, Any]]


class Receiver(BaseHTTPRequestHandler):
    """Puts what MLflow signed into a queue, and refuses everything else."""

    secret: ClassVar[str] = secrets.token_hex()

    def __init__(self, events: Events, *arguments: Any) -> None:
        self.events = events
        super().__init__(*arguments)

    def do_POST(self) -> None:
        """Take a delivery."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        signed = ".".join(
            [
                self.headers["X-MLflow-Delivery-Id"],
                self.headers["X-MLflow-Timestamp"],
                body.decode(),
            ]
        )
        digest = hmac.digest(self.secret.encode(), signed.encode(), hashlib.sha256)
        signature = f"v1,{base64.b64encode(digest).decode()}"
        genuine = hmac.compare_digest(signature, self.headers["X-MLflow-Signature"])
        if genuine:
            event = json.loads(body)
            self.events.put({"action": event["action"], "entity": event["entity"], **event["data"]})
        self.send_response(200 if genuine else 401)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Keep quiet."""


@contextmanager
def webhook(kinds: list[Any]) -> Iterator[Events]:
    """Have the tracking server call this process at some events, for the block."""
    events: Events = queue.Queue()
    client = MlflowClient()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Receiver, events)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        made = client.create_webhook(f"{NAME}-example", url, kinds, secret=Receiver.secret)
        try:
            yield events
        finally:
            client.delete_webhook(made.webhook_id)
            server.shutdown()


def next_event(events: Events, kind: str, **wanted: str) -> dict[str, Any]:
    """The next event of a kind that has these values; others are passed over."""
    while True:
        event = events.get(timeout=WAIT_S)
        if kind in f"{event['entity']}.{event['action']}" and wanted.items() <= event.items():
            return event


if __name__ == "__main__":
    main()
