"""The background of a decision: who made it, who approved, and what stood before."""

from __future__ import annotations

from dataclasses import dataclass

from mlflow_e2eai.bundle.manifest import Manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """A version that a decision is to replace.

    Attributes:
        version: Its number.
        aliases: The aliases that point to it.
        manifest: Its manifest; None where no gate compared with it.
    """

    version: str
    aliases: tuple[str, ...]
    manifest: Manifest | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasMove:
    """An alias that was moved.

    Attributes:
        at: When, for people.
        alias: The alias.
        version: The version that it points to since; None where to none.
        kind: Why: promotion, rollback or restoration.
        by: Who.
        reason: The reason.
    """

    at: str
    alias: str
    version: str | None
    kind: str
    by: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Background:
    """The registry's part of a decision.

    Attributes:
        by: Who decided.
        at: When, for people.
        aliases: The aliases that it is about.
        approvals: Approvals and rejections of the version by people, a sentence each.
        before: The versions that the aliases pointed to.
        moves: The moves of these aliases until then, the newest first.
    """

    by: str
    at: str
    aliases: tuple[str, ...]
    approvals: tuple[str, ...] = ()
    before: tuple[Before, ...] = ()
    moves: tuple[AliasMove, ...] = ()
