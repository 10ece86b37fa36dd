"""Keys that must have signed the files of a version, and whether one of them has."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.bundle.attestation.envelope import require_signature
from mlflow_e2eai.bundle.attestation.signatures import public_key
from mlflow_e2eai.errors import ArtifactError, brief
from mlflow_e2eai.evaluation.gates import Verdict
from mlflow_e2eai.promotion.policy import Policy
from mlflow_e2eai.promotion.requirements import RequiredSigner, signed_by

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

METRIC = "signed_by/"
"""Begins the metric of the verdict on a required signature; the names of the keys follow."""


def signer_verdicts(policy: Policy, model: Path, version: ModelVersion) -> tuple[Verdict, ...]:
    """The verdict on each signature that a policy requires.

    Args:
        policy: The rules.
        model: The version's files, each of which was compared with its digest.
        version: The version.
    """
    uri = f"models:/{version.name}/{version.version}"
    return tuple(_verdict(each, policy, model, uri) for each in policy.signers)


def _verdict(required: RequiredSigner, policy: Policy, model: Path, uri: str) -> Verdict:
    reason = None
    try:
        require_signature(model, uri, [public_key(policy.keys[name]) for name in required.keys])
    except ArtifactError as error:
        reason = brief(error).partition(";")[0].rstrip(".")
    return Verdict(
        metric=f"{METRIC}{'-'.join(required.keys)}",
        found=None,
        wanted=signed_by(required.keys),
        passed=reason is None,
        severity=required.severity,
        reason=reason,
        remedy=None
        if reason is None
        else shlex.join(["mlflow_e2eai", "sign", uri, "--key", "FILE"]),
    )
