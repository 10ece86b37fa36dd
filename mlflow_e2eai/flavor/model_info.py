"""MLflow's description of a logged model, which shows at a prompt what was logged."""

from __future__ import annotations

from html import escape

from mlflow.models.model import ModelInfo  # noqa: TID253 - its subclass; imported when a model is logged

from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.report.description import fastest_text
from mlflow_e2eai.tracking.summary import summarize_evidence


class LoggedModelInfo(ModelInfo):
    """A `mlflow.models.model.ModelInfo` whose text is a line: its URI, version and variants.

    Args:
        info: MLflow's, whose values it has.
        manifest: The bundle's.
        name: The registered model; None where none was registered.
    """

    def __init__(self, info: ModelInfo, manifest: Manifest, name: str | None) -> None:
        self.__dict__.update(vars(info))
        version = info.registered_model_version
        registered = [] if version is None else [f"{name} version {version}"]
        counts = summarize_evidence(manifest.evidence)
        self._line = ", ".join([str(info.model_uri), *registered, *counts])
        self._fastest = fastest_text(manifest)

    def __repr__(self) -> str:
        """The model and its variants, for a prompt."""
        return f"<{self._line}; {self._fastest}>"

    def _repr_html_(self) -> str:
        """The same, for a notebook."""
        return f"<p>{escape(self._line)}<br>{escape(self._fastest)}</p>"
