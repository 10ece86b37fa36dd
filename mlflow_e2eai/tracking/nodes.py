"""Lists of nodes <-> artifacts of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Any

from mlflow_e2eai.bisection import Bisection
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.files import to_json
from mlflow_e2eai.tracking.texts import fetch_text

KEEP_FP32 = "e2eai.keep_fp32"
"""Tag of a run that converts: the nodes that stayed in fp32."""

_SHOWN = 250
"""Characters of a list of nodes in a tag; MLflow admits more than anybody reads."""


def log_bisection(found: Bisection, *, run_id: str, variant: str) -> None:
    """Write what a bisection found on its run: ``bisection.json``, metrics and tags.

    Args:
        found: The nodes; the artifact is one that `fetch_nodes` reads.
        run_id: The run.
        variant: What failed, as `variant_name` writes it.
    """
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_text(run_id, to_json(found), "bisection.json")
    client.log_metric(run_id, "bisect/nodes", len(found.nodes))
    client.log_metric(run_id, "bisect/suspects", found.suspects)
    client.log_metric(run_id, "bisect/evaluations", found.evaluations)
    tags = {
        "e2eai.variant": variant,
        "e2eai.nodes": _brief(found.nodes),
        "e2eai.minimal": str(found.minimal).lower(),
        "e2eai.reason": found.sentence,
    }
    for key, value in tags.items():
        client.set_tag(run_id, key, value)


def log_kept(nodes: Collection[str], *, run_id: str) -> None:
    """Write the nodes that stay in fp32 on a run: ``keep_fp32.json``, and the tag `KEEP_FP32`."""
    from mlflow import MlflowClient

    client = MlflowClient()
    client.log_dict(run_id, {"nodes": list(nodes)}, "keep_fp32.json")
    client.set_tag(run_id, KEEP_FP32, _brief(nodes))


def fetch_nodes(uri: str) -> list[str]:
    """Read the nodes of a ``bisection.json`` or ``keep_fp32.json``.

    Args:
        uri: A path, or what MLflow takes for the URI of an artifact, as
            ``runs:/run_id/bisection.json``.

    Raises:
        TrackingError: There is no such file.
        ArtifactError: It holds something else.
    """
    try:
        data = json.loads(fetch_text(uri))
    except ValueError as error:
        msg = f"{uri} is not JSON ({error}); give a bisection.json or keep_fp32.json."
        raise ArtifactError(msg) from error
    nodes: Any = data.get("nodes") if isinstance(data, dict) else None
    if not isinstance(nodes, list) or not all(isinstance(name, str) for name in nodes):
        msg = f"{uri} holds no list of 'nodes'; give a bisection.json or keep_fp32.json."
        raise ArtifactError(msg)
    return nodes


def _brief(nodes: Collection[str]) -> str:
    """The names where they fit into a tag, else their number and a digest of all."""
    text = ", ".join(nodes)
    if len(text) <= _SHOWN:
        return text
    return f"{len(nodes)} nodes, sha256 {hashlib.sha256(text.encode()).hexdigest()}"
