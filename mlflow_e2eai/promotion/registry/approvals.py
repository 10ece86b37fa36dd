"""Approvals: tags of a version, bound to its files, and signed where that is wanted.

The tag of the approval's name has the value ``Approved`` or ``Rejected``, as MLflow's users know
it. A second one says who, when and of which files, and may hold a signature.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from mlflow_e2eai.artifacts.files import Summary, Table, from_json, to_json
from mlflow_e2eai.bundle.attestation.signatures import is_signed, sign
from mlflow_e2eai.errors import ArtifactError, TrackingError, brief, shown
from mlflow_e2eai.evaluation.gates import Verdict
from mlflow_e2eai.promotion.policy import Policy, RequiredApproval, check_approval
from mlflow_e2eai.promotion.registry.actor import actor
from mlflow_e2eai.promotion.registry.timeline import past_of, registered_model
from mlflow_e2eai.promotion.registry.times import now_text
from mlflow_e2eai.promotion.requirements import signed_by
from mlflow_e2eai.report.formats import moment_text
from mlflow_e2eai.tracking.console import quiet_mlflow
from mlflow_e2eai.tracking.server import check_server, mlflow_errors, read_only_error

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_log = logging.getLogger(__name__)

Answer: TypeAlias = Literal["Approved", "Rejected"]

APPROVED: Answer = "Approved"
REJECTED: Answer = "Rejected"

METRIC = "approval/"
"""Begins the metric of the verdict on an approval, whose name follows."""

STATEMENT = "e2eai.approval."
"""Prefix of the tags of a version that say who approved it, when, and which files."""

REJECTION = "e2eai.rejection."
"""The same of who rejected it, in tags of their own, which `approve` never writes.

Older versions wrote both into tags of approvals, where rejections are read too.
"""

_NO_ANSWERS = ("e2eai.", "mlflow.")
"""Beginnings of the names of tags that are no approvals."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Statement(Summary):
    """A yes or a no of a person about a version.

    Attributes:
        name: The registered model.
        version: Its version.
        approval: Name of the approval, such as ``release``.
        answer: ``Approved`` or ``Rejected``.
        sha256: Digest of the version's MLmodel, which covers all of its files.
        by: Who said it.
        at: When, in UTC.
        signature: Ed25519 signature of all other fields, in base64; None where it is not signed.
    """

    name: str
    version: str
    approval: str
    answer: Answer
    sha256: str
    by: str
    at: str
    signature: str | None = None

    def message(self) -> bytes:
        """The signed text: all other fields, as JSON with sorted keys."""
        fields = dataclasses.asdict(self)
        del fields["signature"]
        return json.dumps(fields, sort_keys=True).encode()

    def __str__(self) -> str:
        signed = "" if self.signature is None else ", signed"
        at = moment_text(self.at)
        return f"{self.answer} as {self.approval!r} by {self.by} at {at}{signed}"

    def _line(self) -> str:
        return f"{self.name} {self.version} {self}"

    def _table(self) -> Table:
        return Statement, [self]


def approve(name: str, version: int | str, *, as_: str, key: str | Path | None = None) -> Statement:
    """Approve a version of a registered model, by the digest that its files were logged with.

    No file is read: `promote` compares each with that digest.

    Args:
        name: The registered model.
        version: Its version.
        as_: Name of the approval, which a gate asks for: ``{approval: release}``.
        key: Path of an Ed25519 private key in OpenSSH's or PEM format, to sign it with.

    Returns:
        What is on record.

    Raises:
        InvalidInputError: The name is no word, or the key cannot be read.
        ArtifactError: The version is no bundle of this package.
        TrackingError: There is no such version, it was rejected before, an approval that is signed
            would be replaced by one that is not, or the user may not change it.

    Examples:
        >>> statement = mlflow_e2eai.approve("digits", 2, as_="release")
    """
    return _state(name, version, as_, APPROVED, key)


def reject(name: str, version: int | str, *, as_: str, key: str | Path | None = None) -> Statement:
    """Reject a version of a registered model for good: no gates promote it afterwards.

    The arguments, result and errors are those of `approve`. Aliases stay where they are: a warning
    names those that point to it.

    Examples:
        >>> statement = mlflow_e2eai.reject("digits", 2, as_="release")
    """
    statement = _state(name, version, as_, REJECTED, key)
    registered = registered_model(name)
    aliases = registered.aliases
    pointing = sorted(alias for alias in aliases if str(aliases[alias]) == statement.version)
    if not pointing:
        return statement
    with quiet_mlflow(), mlflow_errors("the rejection is on record, and `guard` names its aliases"):
        past = past_of(registered)
    for alias in pointing:
        _log.warning(
            "@%s still points to version %s of %s, which is rejected now; %s.",
            alias,
            statement.version,
            name,
            past.way_back(alias, statement.version),
        )
    return statement


def _state(
    name: str, version: int | str, approval: str, answer: Answer, key: str | Path | None
) -> Statement:
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai import tracking
    from mlflow_e2eai.promotion.contenders import as_challenger, model_of
    from mlflow_e2eai.tracking._mlflow import registry_client
    from mlflow_e2eai.tracking.versions import find_version

    check_approval(approval)
    check_server()
    found = find_version(name, version)
    version = str(found.version)
    before = statement_of(found, approval)
    if answer == APPROVED or (before is not None and before.answer == REJECTED):
        _check_not_rejected(found)
    model = model_of(found, *as_challenger(found))
    if (sha256 := model.tags.get(tracking.MLMODEL_SHA256)) is None:
        msg = (
            f"Version {version} of {name!r} has no digests of its files, as it was logged by an "
            f"older mlflow_e2eai; log it again."
        )
        raise ArtifactError(msg)
    statement = Statement(
        name=name,
        version=version,
        approval=approval,
        answer=answer,
        sha256=sha256,
        by=actor(),
        at=now_text(),
    )
    if key is not None:
        statement = dataclasses.replace(statement, signature=sign(key, statement.message()))
    elif answer == APPROVED:
        _check_not_signed(found, statement)
    client = registry_client()
    try:
        # The statement first: a word without one does not count.
        prefix = STATEMENT if answer == APPROVED else REJECTION
        client.set_model_version_tag(name, version, f"{prefix}{approval}", to_json(statement))
        client.set_model_version_tag(name, version, approval, answer)
        if answer == APPROVED:  # somebody may have rejected it meanwhile
            now = find_version(name, version)
            if f"{REJECTION}{approval}" in now.tags:
                client.set_model_version_tag(name, version, approval, REJECTED)
            _check_not_rejected(now)
    except MlflowException as error:
        msg = f"Version {version} of {shown(name)} cannot be tagged: {brief(error)}"
        raise (read_only_error(error) or TrackingError(msg)) from error
    return statement


def _check_not_rejected(version: ModelVersion) -> None:
    """Check that nobody rejected a version, under whatever name.

    Raises:
        TrackingError: Somebody did.
    """
    if (reason := first_rejection(version)) is not None:
        msg = (
            f"Version {version.version} of {version.name!r} is rejected: {reason}. That is final; "
            f"log a new version."
        )
        raise TrackingError(msg)


def _check_not_signed(version: ModelVersion, statement: Statement) -> None:
    """Check that an approval without a signature replaces none that has one and still counts.

    Raises:
        TrackingError: It would.
    """
    before = statement_of(version, statement.approval)
    if before is None or before.signature is None:
        return
    if (before.name, before.version, before.sha256) == (
        statement.name,
        statement.version,
        statement.sha256,
    ):
        msg = (
            f"Version {statement.version} of {statement.name!r} is {before}, and an approval "
            f"without a signature does not replace that; sign it with a key (`--key`)."
        )
        raise TrackingError(msg)


def rejections_of(version: ModelVersion) -> dict[str, str]:
    """Why a version counts as rejected, by the name of the approval; empty where it does not.

    A statement that cannot be read may have been a no, and a hand may have written the word alone:
    both count.
    """
    found = {}
    for tag, text in sorted(version.tags.items()):
        prefix = next((each for each in (STATEMENT, REJECTION) if tag.startswith(each)), None)
        if prefix is not None:
            statement = _read(text)
            if statement is None or (prefix == REJECTION and statement.answer != REJECTED):
                found[tag.removeprefix(prefix)] = (
                    f"its tag {tag!r} cannot be read, which counts as a rejection"
                )
            elif statement.answer == REJECTED:
                found[tag.removeprefix(prefix)] = f"it was {statement}"
        elif not tag.startswith(_NO_ANSWERS) and text.strip().lower() == REJECTED.lower():
            found.setdefault(tag, f"its tag {tag!r} is {text!r}")
    return found


def first_rejection(version: ModelVersion) -> str | None:
    """Why a version counts as rejected, for people; None where it does not."""
    return next(iter(rejections_of(version).values()), None)


def statement_of(version: ModelVersion, approval: str) -> Statement | None:
    """The statement about a version; None where there is none that can be read."""
    texts = [version.tags.get(f"{prefix}{approval}") for prefix in (REJECTION, STATEMENT)]
    return next((_read(text) for text in texts if text is not None), None)


def _read(text: str) -> Statement | None:
    try:
        return from_json(Statement, text)
    except ArtifactError:
        return None


def why_not_approved(
    version: ModelVersion, approval: str, sha256: str | None, keys: Mapping[str, str]
) -> str | None:
    """Why a version does not count as approved; None where it does.

    Args:
        version: The version, with its tags.
        approval: Name of the approval.
        sha256: Digest of the version's MLmodel.
        keys: Public keys by name, one of which must have signed it; none where a signature is not
            wanted.
    """
    word, statement = version.tags.get(approval), statement_of(version, approval)
    if (rejection := rejections_of(version).get(approval)) is not None:
        reason = rejection
    elif word is None:
        reason = "it is not approved"
    elif word.strip().lower() != APPROVED.lower():
        reason = f"its tag {approval!r} is {word!r}"
    elif statement is None:
        reason = f"its tag {approval!r} does not say who approved which files, and when"
    elif (statement.name, statement.version, statement.approval) != (
        version.name,
        str(version.version),
        approval,
    ):
        reason = (
            f"the approval is for {statement.approval!r} of {statement.name} {statement.version}"
        )
    elif sha256 is None or statement.sha256 != sha256:
        reason = "the approval is for other files"
    elif not keys:
        return None
    elif statement.signature is None:
        reason = f"the approval by {statement.by} is not signed"
    elif _signing_key(statement, keys) is None:
        reason = f"the signature is not by any of the keys {', '.join(sorted(keys))}"
    else:
        return None
    return reason


def _signing_key(statement: Statement, keys: Mapping[str, str]) -> str | None:
    """The name of the key that signed a statement; None where none of them did."""
    message, signature = statement.message(), statement.signature or ""
    return next((name for name, key in keys.items() if is_signed(message, signature, key)), None)


def statements_of(version: ModelVersion) -> Sequence[Statement]:
    """Everything that people said about a version, in order of the approvals' names."""
    names = {
        tag.removeprefix(prefix)
        for tag in version.tags
        for prefix in (STATEMENT, REJECTION)
        if tag.startswith(prefix)
    }
    found = (statement_of(version, name) for name in sorted(names))
    return [statement for statement in found if statement is not None]


def approval_verdicts(
    policy: Policy, version: ModelVersion, sha256: str | None
) -> tuple[Verdict, ...]:
    """The verdict on each approval that a policy requires, and on each final rejection.

    Args:
        policy: The rules.
        version: The version, with its tags.
        sha256: Digest of its MLmodel.
    """
    wanted = {required.approval for required in policy.approvals}
    rejections = tuple(
        RequiredApproval(approval=name) for name in rejections_of(version) if name not in wanted
    )
    return tuple(
        _verdict(required, version, sha256, {name: policy.keys[name] for name in required.keys})
        for required in (*policy.approvals, *rejections)
    )


def _verdict(
    required: RequiredApproval, version: ModelVersion, sha256: str | None, keys: Mapping[str, str]
) -> Verdict:
    reason = why_not_approved(version, required.approval, sha256, keys)
    statement = statement_of(version, required.approval)
    signed = f", {signed_by(keys)}" if keys else ""
    words = ["approve", version.name, str(version.version), "--as", required.approval]
    remedy = shlex.join(["mlflow_e2eai", *words, *(["--key", "FILE"] if keys else [])])
    source = None
    if statement is not None and reason is None:
        key = _signing_key(statement, keys)
        source = str(statement) if key is None else f"{statement} by the key {key}"
    if is_rejected := required.approval in rejections_of(version):
        remedy = "A rejection is final: log a new version."
    return Verdict(
        metric=f"{METRIC}{required.approval}",
        found=None,
        wanted=f"{APPROVED}{signed}",
        passed=reason is None,
        severity="block" if is_rejected else required.severity,
        source=source,
        reason=reason,
        remedy=None if reason is None else remedy,
    )
