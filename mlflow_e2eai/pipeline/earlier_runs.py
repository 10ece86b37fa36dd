"""The results of earlier runs, for a pipeline that does nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.pipeline.keys import UNKNOWN, data_digest
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.tracking.recorder import EngineCache, NotReusable, Reused


@dataclass(frozen=True, slots=True)
class SourceDigest:
    """The content of a PyTorch model.

    Attributes:
        sha256: Its digest; None where its content is not known.
        why: Why it is not known.
    """

    sha256: str | None
    why: str = ""


NO_DIGEST = SourceDigest(None, "the content of the PyTorch model is not known")

_ANEW = "the code of a rule, an operator or a metric is not known"
"""Why a stage has no key, where its source has a digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EarlierRuns:
    """Results of earlier runs, and the parts of keys that all stages of a pipeline have.

    Attributes:
        cache: Finds results; None where nothing is to be reused.
        folder: A folder for their files.
        source: Digest of the PyTorch model; `UNKNOWN` where its content is not known.
        why: Why it is not known.
        data: Digest of the evaluation data, or `UNKNOWN`.
        evidence_days: Days after which evidence is not reused.
    """

    cache: EngineCache | None
    folder: Path
    source: Any = UNKNOWN
    why: str = ""
    data: Any = None
    evidence_days: int = 30

    @classmethod
    def of(
        cls,
        cache: EngineCache | None,
        settings: Settings,
        evaluation: EvaluationData | None,
        *,
        folder: Path,
        digest: SourceDigest,
    ) -> EarlierRuns:
        """Describe the source of a pipeline, and read its evaluation data once."""
        return cls(
            cache=cache,
            folder=folder / "reused",
            source=UNKNOWN if digest.sha256 is None else digest.sha256,
            why=digest.why,
            data=None if cache is None else data_digest(evaluation),
            evidence_days=settings.evidence_days,
        )

    def take(self, log: Callable[[Any], None], key: str | None, report: type[Any]) -> Reused | None:
        """Find the result of a stage, and log it in its place; None where it is to be done."""
        if self.cache is None:
            return None
        if key is None:
            log(NotReusable(reason=self.why if self.source is UNKNOWN else _ANEW))
            return None
        found = self.cache.find(key, report, folder=self.folder)
        if found is not None:
            log(found)
        return found

    def evidence(self, key: str | None, report: type[Any]) -> Reused | None:
        """Find evidence that is not too old."""
        if self.cache is None or key is None:
            return None
        found = self.cache.find(key, report, folder=self.folder)
        if found is None:
            return None
        age = datetime.now(UTC) - datetime.fromisoformat(found.ended_at)
        return found if age / timedelta(days=1) <= self.evidence_days else None
