"""Tags of decisions: of their runs, of versions and of registered models."""

from __future__ import annotations

MODEL = "e2eai.registered_model"
"""Tag of a run: the registered model that its decision is about."""

VERSION = "e2eai.version"
"""Tag of a run: the version that its decision is about."""

ALIAS = "e2eai.alias"
"""Tag of a run and of a version: the aliases that the decision is about."""

REASON = "e2eai.reason"
"""Tag of a run and of a version: the reason of the decision."""

BY = "e2eai.by"
"""Tag of a run: who decided."""

KIND = "e2eai.move"
"""Tag of a run: the kind of its move; see `MoveKind`."""

MOVES = "e2eai.moves"
"""Tag of a run: what it is to move, as JSON: alias -> version before and after, null for none."""

PLANNED_AT = "e2eai.planned_at"
"""Tag of a run: when it was about to move them, in UTC."""

MOVED_AT = "e2eai.moved_at"
"""Tag of a run: when the move was done, in UTC; of a registered model: when the last one was."""

DECISION = "e2eai.decision"
"""Tag of a version and of a run: ``promoted`` or ``rejected``.

``withdrawn`` where the aliases could not be moved on a yes; of a run also ``superseded``.
"""

WITHDRAWN = "withdrawn"

DECIDED_BY = "e2eai.decision_run"
"""Tag of a version: the run of its last decision."""

DECISIONS_IN = "e2eai.decisions_in."
"""Prefix of tags of a registered model: experiments that have runs of decisions about it."""
