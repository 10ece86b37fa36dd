"""Evidence and people that the rules of a promotion require of a version."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mlflow_e2eai.evaluation.gates import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredTarget:
    """A target for which the version must have an engine that passed there.

    Attributes:
        target: A compute capability, or a target's text; see `target_name`.
        precision: Precision of the engine; None for any.
        tensorrt: Pattern of the version of TensorRT that built it, such as ``1.6*``.
        max_age_days: Days since that evidence was measured, at most.
        severity: See `Gate`.
    """

    target: str
    precision: str | None = None
    tensorrt: str | None = None
    max_age_days: float | None = None
    severity: Severity = "block"

    def __str__(self) -> str:
        """The whole requirement, for people."""
        words = [f"an engine for {self.target}"]
        if self.precision is not None:
            words.append(f"in {self.precision}")
        words.append("that passed there")
        if self.tensorrt is not None:
            words.append(f"of TensorRT {self.tensorrt}")
        if self.max_age_days is not None:
            words.append(f"at most {self.max_age_days:g} days ago")
        return " ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredApproval:
    """A person's yes that the version must have.

    Attributes:
        approval: Its name, such as ``release``.
        keys: Names of keys, one of which must have signed it; none where it need not be signed.
        severity: See `Gate`.
    """

    approval: str
    keys: tuple[str, ...] = ()
    severity: Severity = "block"

    def __str__(self) -> str:
        """The whole requirement, for people."""
        signed = f", {signed_by(self.keys)}" if self.keys else ""
        return f"the approval {self.approval}{signed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequiredSigner:
    """A signature that the files of the version must have.

    Attributes:
        keys: Names of keys, one of which must have signed them.
        severity: See `Gate`.
    """

    keys: tuple[str, ...]
    severity: Severity = "block"

    def __str__(self) -> str:
        """The whole requirement, for people."""
        return f"files {signed_by(self.keys)}"


def signed_by(keys: Iterable[str]) -> str:
    """Names of keys, one of which must have signed, for people."""
    return f"signed by {' or '.join(sorted(keys))}"
