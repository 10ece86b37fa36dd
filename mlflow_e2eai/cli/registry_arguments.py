"""Options of the verbs about a registered model: its versions, aliases, gates and approvals."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline.options import Option, parse_or, parse_whole, parse_yes
from mlflow_e2eai.tracking.versions import LATEST


def _parse_version(text: str) -> str | int:
    return text if text == LATEST or text.startswith("@") else parse_whole(text)


def _parse_versions(text: str) -> str | int | list[int]:
    parts = text.split(",")
    return [parse_whole(part) for part in parts] if len(parts) > 1 else _parse_version(text)


def _parse_aliases(text: str) -> str | list[str]:
    aliases = [part.strip() for part in text.split(",")]
    return aliases if len(aliases) > 1 else text


def _parse_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        msg = f"{text!r} is not a number of seconds above 0"
        raise InvalidInputError(msg)
    return seconds


def _parse_rollback_gates(text: str) -> Any:
    return {"gates": text} if text == "default" else None if text == "recorded" else text


REGISTRY_OPTIONS: dict[str, Option] = {
    "registered_model": Option(
        name="name",
        parse=str,
        default=LATEST,
        metavar="NAME",
        help="the registered model, or 'latest', that of the experiment's newest version",
    ),
    "version_model": Option(
        name="name",
        parse=str,
        default=LATEST,
        metavar="NAME",
        help="the registered model, with a version after it; or both in one, as models:/digits/7 "
        "or models:/digits@champion; or 'latest'",
    ),
    "required_model": Option(
        name="name",
        parse=str,
        metavar="NAME",
        help="the registered model",
    ),
    "approved_model": Option(
        name="name",
        parse=str,
        metavar="NAME",
        help="the registered model, with a version after it; or both in one, as models:/digits/7",
    ),
    "version": Option(
        name="version",
        parse=_parse_versions,
        default=LATEST,
        metavar="VERSION",
        help="its version, 'latest' or '@alias'; or several with commas, and a goal",
    ),
    "one_version": Option(
        name="version",
        parse=_parse_version,
        default=LATEST,
        metavar="VERSION",
        help="its version, 'latest' or '@alias'",
    ),
    "approved_version": Option(
        name="version",
        parse=parse_or("none", parse_whole),
        default="none",
        metavar="VERSION",
        help="its version; or 'none' where the name has it",
    ),
    "compared_versions": Option(
        name="versions",
        parse=lambda text: [part.strip().removeprefix("@") for part in text.split(",")],
        default="champion,latest",
        metavar="VERSIONS",
        help="its versions: numbers, aliases and 'latest', comma-separated",
    ),
    "promotion_goal": Option(
        name="goal",
        parse=parse_or("none", str),
        default="none",
        metavar="METRIC",
        help="what the best of several versions is best at, such as latency/p50_ms; or 'none'",
    ),
    "alias": Option(
        name="alias",
        parse=_parse_aliases,
        default="champion",
        metavar="NAME",
        help="the alias to give; or several, comma-separated, which move together or not at all",
    ),
    "rollback_alias": Option(
        name="alias",
        parse=_parse_aliases,
        default="champion",
        metavar="NAME",
        help="the alias to put back; or several, comma-separated, which move together to one "
        "version or not at all",
    ),
    "any_alias": Option(
        name="alias",
        parse=parse_or("all", str),
        default="all",
        metavar="NAME",
        help="only the moves of this alias; or 'all'",
    ),
    "explained_alias": Option(
        name="alias",
        parse=parse_or("any", str),
        default="any",
        metavar="NAME",
        help="the decision that gave it this alias; or 'any' for its last decision",
    ),
    "on": Option(
        name="on",
        parse=parse_or("now", str),
        default="now",
        metavar="DATE",
        help="where each alias stood at the end of this day in UTC, such as 2026-11-30, or at a "
        "time, such as 2026-11-30T12:00; or 'now' for all moves",
    ),
    "as": Option(
        name="as",
        argument="as_",
        parse=str,
        metavar="NAME",
        help="name of the approval, which a gate requires: {approval: release}",
    ),
    "key": Option(
        name="key",
        parse=parse_or("none", Path),
        default="none",
        metavar="FILE",
        help="sign it with this private key of ssh-keygen -t ed25519; or 'none'",
    ),
    "signing_key": Option(
        name="key",
        parse=Path,
        metavar="FILE",
        help="the private key, such as ssh-keygen -t ed25519 makes",
    ),
    "public_key": Option(
        name="key",
        parse=parse_or("none", str),
        default="none",
        metavar="FILE",
        help="the public key that must have signed it, a file or the key's line; or 'none' to "
        "check the digests only",
    ),
    "restore": Option(
        name="restore",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="put each alias that was moved by hand back where the last decision put it",
    ),
    "watch_restore": Option(
        name="restore",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="put each alias that was moved by hand back, and go on until Ctrl-C",
    ),
    "every_s": Option(
        name="every",
        argument="every_s",
        parse=_parse_seconds,
        default="30",
        metavar="SECONDS",
        help="seconds between two looks",
    ),
    "to": Option(
        name="to",
        parse=parse_or("previous", parse_whole),
        default="previous",
        metavar="VERSION",
        help="the version to go back to, or 'previous': the one that the alias pointed to before",
    ),
    "rollback_gates": Option(
        name="gates",
        parse=_parse_rollback_gates,
        default="recorded",
        metavar="FILE",
        help="the gates that the version must pass today, a YAML file; 'recorded' for those of its "
        "promotion, or 'default'",
    ),
    "gates": Option(
        name="gates",
        parse=parse_or("default", str),
        default="default",
        metavar="FILE",
        help="the gates, a YAML file, or 'default'",
    ),
    "remeasure": Option(
        name="remeasure",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="measure the latency of both versions here, in turns, for this machine",
    ),
    "dry_run": Option(
        name="dry_run",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="decide, and write nothing",
    ),
}
"""The options by a key of their own; see `arguments.OPTIONS`."""
