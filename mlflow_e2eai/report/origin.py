"""Where a report's model stands in MLflow; a report needs none of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Names and ids for a report to show, and the address to link them to.

    Attributes:
        name: The registered model, or the logged one.
        version: Its version, where it is registered.
        model_id: Id of the model that holds the bundle.
        run_id: The run that the report belongs to.
        experiment_id: The experiment of that run; models are linked through it.
        model_ids: Ids of the stages' models by the digest of their file.
        tracking_uri: Address of the tracking server. Only http and https are linked, without a
            user or password that they may hold.
        machine: The machine that a page is of, where each of several has one.
    """

    name: str | None = None
    version: str | None = None
    model_id: str | None = None
    run_id: str | None = None
    experiment_id: str | None = None
    model_ids: Mapping[str, str] = field(default_factory=dict)
    tracking_uri: str | None = None
    machine: str | None = None

    @property
    def title(self) -> str:
        """What the report is of."""
        name = "Model report" if self.name is None else self.name
        version = "" if self.name is None or self.version is None else f" version {self.version}"
        return f"{name}{version}{'' if self.machine is None else f' on {self.machine}'}"

    @property
    def uri(self) -> str | None:
        """How MLflow finds the model."""
        if self.name is not None and self.version is not None:
            return f"models:/{self.name}/{self.version}"
        return None if self.model_id is None else f"models:/{self.model_id}"

    @property
    def _page(self) -> str | None:
        """The first page of MLflow's UI, for a fragment to follow."""
        try:
            parts = urlsplit(self.tracking_uri or "")
            host = parts.netloc.rpartition("@")[2]
        except ValueError:
            return None
        if parts.scheme not in ("http", "https") or not host:
            return None
        return f"{parts.scheme}://{host}{parts.path.rstrip('/')}/#"

    def model_link(self, model_id: str) -> str | None:
        """Address of a logged model's page."""
        if self._page is None or self.experiment_id is None:
            return None
        return f"{self._page}/experiments/{_part(self.experiment_id)}/models/{_part(model_id)}"

    def run_link(self) -> str | None:
        """Address of the run's page."""
        if self._page is None or self.experiment_id is None or self.run_id is None:
            return None
        return f"{self._page}/experiments/{_part(self.experiment_id)}/runs/{_part(self.run_id)}"

    def version_link(self) -> str | None:
        """Address of the registered version's page."""
        if self._page is None or self.name is None or self.version is None:
            return None
        return f"{self._page}/models/{_part(self.name)}/versions/{_part(self.version)}"


def _part(text: str) -> str:
    return quote(text.encode("utf-8", "replace"), safe="")
