"""PyTorch models as files of mlflow.pytorch; one whose files are logged already is linked."""

from __future__ import annotations

import logging
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.weight_files import weight_bytes
from mlflow_e2eai.errors import TrackingError
from mlflow_e2eai.pytorch.consent import permit
from mlflow_e2eai.pytorch.exporters import prints_logged
from mlflow_e2eai.pytorch.state import state_restored
from mlflow_e2eai.runtime.storage import check_room
from mlflow_e2eai.tracking.lineage import ASSUMED, SHA256, fetch, link_output
from mlflow_e2eai.tracking.store.artifact_store import finished_models
from mlflow_e2eai.tracking.store.source_digest import EVALUATION, source_digest
from mlflow_e2eai.tracking.store.uploads import log_with_flavor

_log = logging.getLogger(__name__)


_PROGRAM_BYTES = 8 << 20
"""Room for the program and the example, next to the weights."""


class SavedSource(NamedTuple):
    """A PyTorch model in files: their folder, and MLflow's description of them."""

    folder: Path
    description: Any


@contextmanager
def saved_source(*, scripted: bool, **arguments: Any) -> Iterator[SavedSource]:
    """Save a PyTorch model for the block, in pt2 where that works, else pickled.

    Args:
        scripted: Whether it is a ScriptModule, which is always pickled.
        **arguments: Those of `mlflow.pytorch.save_model`.
    """
    from mlflow.models import Model

    with tempfile.TemporaryDirectory() as folder:
        path, description = Path(folder, "model"), Model()
        _save(str(path), description, scripted=scripted, **arguments)
        yield SavedSource(path, description)


def _save(path: str, mlflow_model: Any, *, scripted: bool, **kwargs: Any) -> None:
    import mlflow.pytorch

    arrays = tuple((kwargs.pop("input_example") or {}).values())
    example = arrays[0] if len(arrays) == 1 else arrays
    requirements = [f"torch=={version('torch').partition('+')[0]}"]
    common = {**kwargs, "path": path, "mlflow_model": mlflow_model}
    common["pip_requirements"] = requirements
    check_room(Path(path).parent, weight_bytes(kwargs["pytorch_model"]) + _PROGRAM_BYTES)
    if arrays and not scripted:
        try:
            # Export has warnings of its own about the model.
            with (
                warnings.catch_warnings(action="ignore"),
                prints_logged(),
                state_restored(kwargs["pytorch_model"]),
            ):
                mlflow.pytorch.save_model(
                    **common, input_example=example, serialization_format="pt2"
                )
        except Exception as error:  # noqa: BLE001 - torch.export may raise anything
            _log.debug("Logged as a pickle, because torch.export cannot save it: %s", error)
            shutil.rmtree(path, ignore_errors=True)
            mlflow_model.saved_input_example_info = None  # it went with the folder
        else:
            return
    with _without_advice():
        mlflow.pytorch.save_model(**common, serialization_format="pickle")
    permit(Path(path, "data", "model.pth"))


@contextmanager
def _without_advice() -> Iterator[None]:
    """Hide MLflow's advice to save a model as pt2: that is not for this one, or was tried."""
    logger = logging.getLogger("mlflow.pytorch")

    def is_other(record: logging.LogRecord) -> bool:
        return not str(record.msg).startswith("Saving pytorch model by Pickle")

    logger.addFilter(is_other)
    try:
        yield
    finally:
        logger.removeFilter(is_other)


def log_saved(
    saved: SavedSource, *, name: str, run_id: str, tags: Mapping[str, str], fresh: bool
) -> tuple[str, list[str]]:
    """Log a saved model, or link the one of the run's experiment with the same name and files.

    Returns:
        Its id; and words for the line of the stage where it is linked.
    """
    digest = source_digest(saved.folder)
    if digest is not None and not fresh:
        found = _find(digest, saved.folder, name=name, run_id=run_id, assumed=tags.get(ASSUMED))
        if found is not None:
            link_output(run_id, found)
            return found, ["logged already"]
    info = log_with_flavor(
        _Saved(saved),
        name=name,
        run_id=run_id,
        model_type="pytorch",
        tags={**tags, **({} if digest is None else {SHA256: digest})},
        validate_serving_input=False,
    )
    return str(info.model_id), []


def _find(digest: str, folder: Path, *, name: str, run_id: str, assumed: str | None) -> str | None:
    from mlflow import MlflowClient

    experiment_id = str(MlflowClient().get_run(run_id).info.experiment_id)
    for model in finished_models(SHA256, digest, [experiment_id]):
        if (model.name, model.tags.get(ASSUMED)) != (name, assumed):
            continue
        with tempfile.TemporaryDirectory() as there:
            try:
                path = fetch(model, Path(there))
            except TrackingError:
                continue
            if source_digest(path) == digest and _data_of(path) == _data_of(folder):
                return str(model.model_id)
    return None


def _data_of(folder: Path) -> str | None:
    path = folder / EVALUATION
    return sha256_of(path) if path.is_file() else None


class _Saved:
    """The flavor of a model that is saved already: its files are moved."""

    __name__ = "mlflow.pytorch"

    def __init__(self, saved: SavedSource) -> None:
        self._saved = saved

    def save_model(self, *, path: str, mlflow_model: Any, **_: Any) -> None:
        """Move the files, and describe them in the model that is logged."""
        Path(path).mkdir(exist_ok=True)
        for entry in self._saved.folder.iterdir():
            if entry.name != "MLmodel":
                shutil.move(entry, path)
        for name in ("flavors", "signature", "saved_input_example_info", "model_size_bytes"):
            setattr(mlflow_model, name, getattr(self._saved.description, name))
        mlflow_model.save(str(Path(path, "MLmodel")))
