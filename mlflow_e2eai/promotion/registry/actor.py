"""The user who decides, as MLflow knows them."""

from __future__ import annotations

import socket


def actor() -> str:
    """The user of this process: the account at the server, where it has accounts, else the OS's."""
    from mlflow.tracking.context.registry import resolve_tags

    from mlflow_e2eai.tracking import _mlflow

    account = _mlflow.account()
    return account or str(resolve_tags().get("mlflow.user", "unknown"))


def host() -> str:
    """The machine of this process."""
    return socket.gethostname()
