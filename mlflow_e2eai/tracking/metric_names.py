"""Names of users -> names that MLflow takes."""

from __future__ import annotations

import re

_LONGEST = 250
"""Characters of a metric's name at most, MLflow's own limit."""


def metric_name(name: str) -> str:
    """A name as MLflow takes it for a metric, which names a path on its side.

    Characters that it refuses, and parts that lead nowhere or elsewhere, become underscores.
    """
    safe = re.sub(r"[^A-Za-z0-9_. :/-]", "_", name)
    parts = [part if part.strip(".") else "_" for part in safe.split("/")]
    return "/".join(parts)[:_LONGEST].rstrip("/")
