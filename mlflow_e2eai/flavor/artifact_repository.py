"""``e2eai:/`` URIs for `mlflow.pyfunc.load_model`: only the needed files are downloaded.

MLflow downloads whole models, by the repository that is registered for the scheme of their URI. It
loads this module while it is being imported itself, so that only the standard library is imported
until a model is downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any


class OnDemand:
    """An MLflow artifact repository (entry-point group ``mlflow.artifact_repository``).

    ``e2eai:/`` replaces ``models:/``. A model that is downloaded by it lacks graphs and engines,
    and records their origin: loading it downloads those of the variant that is run. For all of
    them, as in an image that is to start without a tracking server, use ``models:/``.

    MLflow calls only the method below where it loads a model; deriving from its class would
    import MLflow.
    """

    def __init__(
        self, artifact_uri: str, tracking_uri: str | None = None, registry_uri: str | None = None
    ) -> None:
        """Create it as MLflow does; the servers are those of MLflow's settings.

        Args:
            artifact_uri: ``e2eai:/`` and a prefix of the name of a model or of a file of it.
            tracking_uri: Ignored.
            registry_uri: Ignored.
        """
        del tracking_uri, registry_uri
        self._uri = artifact_uri

    def download_artifacts(self, artifact_path: str, dst_path: str | None = None, **_: Any) -> str:
        """Download a model, or one file or folder of it, into a folder.

        Args:
            artifact_path: The rest of the name.
            dst_path: The folder, which exists; by default a new temporary one.

        Returns:
            Its path.

        Raises:
            E2EAIError: It cannot be downloaded.
        """
        from mlflow_e2eai.tracking.downloads import download

        name = f"{self._uri.rstrip('/')}/{artifact_path}".partition(":")[2].strip("/")
        return str(download(f"models:/{name}", Path(dst_path or tempfile.mkdtemp())))
