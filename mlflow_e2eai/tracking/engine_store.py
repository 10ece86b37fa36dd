"""Engines that several may want: each is built once, by one of them.

A claim is the engine's own LoggedModel, made before the engine is: PENDING, with the engine's key,
while its builder lives and its heart beats. MLflow has no lock, but it keeps what it is told: all
who want an engine put their claim first and look at the others' then, so that of two at least one
sees the other. Whoever sees an earlier claim says that it waits, and waits. Whoever sees later ones
waits too, until each of them says so: one that does not may have begun before the earlier claim,
though that was made first, came to be stored. So whoever sees no other claim builds after one look,
and no two ever build. (It is Lamport's bakery, https://doi.org/10.1145/361082.361093, in which a
number is a time that the server gives; all interleavings of four were tried, with deaths.)
"""

from __future__ import annotations

import contextlib
import threading
import time
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts.values import EngineArtifact
from mlflow_e2eai.engine.request import key_of
from mlflow_e2eai.engine.timing_cache import SUFFIX as TIMINGS_SUFFIX
from mlflow_e2eai.errors import ArtifactError, TrackingError
from mlflow_e2eai.tracking.lineage import ERROR, fetch_engine
from mlflow_e2eai.tracking.server import address, experiments

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel


KEY = "e2eai.engine_key"
"""Tag of an engine's model: what it is known by before it is built; see `engine.key_for`."""

FOUND = "e2eai.engine_found"
"""Tag of a run that built no engine: id of the model that held it already."""

HEARTBEAT = "e2eai.heartbeat"
"""Tag of a claim: a number that grows while its builder lives."""

WAITS = "e2eai.waits"
"""Tag of a claim: ``yes`` while it gives way to an earlier one."""

BEAT_S = 30.0
"""Seconds between two heartbeats: most builds end before the first, which each cost a request."""

DEAD_S = 120.0
"""Seconds without a heartbeat, by the watch of who waits, after which a builder is taken for dead:
several beats, as a server may be slow to take one."""

LOOK_S = 1.0
"""Seconds between two looks at others' claims."""


class Claim:
    """A claim on an engine; its heart beats until it is `close`d.

    Args:
        key: The engine's key; among the tags too.
        name: Name of its model.
        run_id: The run that is to build it.
        params: Parameters of the model.
        tags: Tags of the model.
    """

    def __init__(
        self,
        key: str,
        *,
        name: str,
        run_id: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> None:
        import mlflow

        self._key = key
        self._refused: set[str] = set()
        self._heard: dict[str, tuple[str, float]] = {}
        self._waits = "no"
        self.model: LoggedModel = mlflow.initialize_logged_model(
            name=name,
            source_run_id=run_id,
            model_type="tensorrt",
            params=dict(params),
            tags={**tags, HEARTBEAT: "0"},
        )
        self._closed = threading.Event()
        threading.Thread(target=self._beat, args=(address(),), daemon=True).start()

    def settled(self, folder: Path) -> tuple[EngineArtifact, str] | None:
        """Wait until it is known who builds the engine.

        A finished one that cannot be had, or is not what its record says, is announced as a
        warning and passed over; so is a claim whose builder is dead, which is marked FAILED.

        Args:
            folder: Where to put the engine; made if need be.

        Returns:
            The engine, verified, and the id of its model, where another has built it: the claim is
            then withdrawn. None where it is for this one to build.
        """
        from mlflow import MlflowClient

        while True:
            models = _with_key(self._key)
            for model in (each for each in models if str(each.status) == "READY"):
                if (engine := self._taken(model, folder)) is not None:
                    self.close()
                    MlflowClient().delete_logged_model(self.model.model_id)
                    return engine, str(model.model_id)
            others = [model for model in models if self._rivals(model) and self._lives(model)]
            if any(_order(model) < _order(self.model) for model in others):
                self._say("yes")
            elif all(model.tags.get(WAITS) == "yes" for model in others):
                if self._waits == "no":
                    return None
                self._say("no")
                continue  # somebody may have relied on it meanwhile
            time.sleep(LOOK_S)

    def _say(self, waits: str) -> None:
        """Say whether it gives way, unless that is said."""
        from mlflow_e2eai.tracking import _mlflow

        if waits != self._waits:
            _mlflow.set_model_tags(str(self.model.model_id), {WAITS: waits}, address())
            self._waits = waits

    def failed(self, error: BaseException) -> None:
        """Give it up, and say why."""
        self.close()
        _fail(str(self.model.model_id), str(error))

    def close(self) -> None:
        """Let its heart stop: it is finished, or given up."""
        self._closed.set()

    def _taken(self, model: LoggedModel, folder: Path) -> EngineArtifact | None:
        """A finished engine, unless it was refused before, or is now."""
        if model.model_id in self._refused:
            return None
        place = folder / str(model.model_id)
        place.mkdir(parents=True)
        try:
            return _fetched(model, place, self._key)
        except (ArtifactError, TrackingError) as error:
            self._refused.add(model.model_id)
            warnings.warn(
                f"The engine that was built before ({model.model_id}) cannot be taken: {error}",
                stacklevel=3,
            )
            return None

    def _rivals(self, model: LoggedModel) -> bool:
        """Whether a model is another's claim."""
        return (
            str(model.status) == "PENDING"
            and HEARTBEAT in model.tags
            and model.model_id != self.model.model_id
        )

    def _lives(self, model: LoggedModel) -> bool:
        """Whether a claim's heart still beats; it is marked FAILED where it does not."""
        beat, now = model.tags[HEARTBEAT], time.monotonic()
        before, since = self._heard.setdefault(model.model_id, (beat, now))
        if beat != before:
            self._heard[model.model_id] = beat, now
        elif now - since > DEAD_S:
            _fail(model.model_id, f"Its builder gave no sign of life for {DEAD_S:g} s.")
            return False
        return True

    def _beat(self, uri: str) -> None:
        from mlflow_e2eai.tracking import _mlflow

        beats = 0
        while not self._closed.wait(BEAT_S):
            beats += 1
            with contextlib.suppress(Exception):  # the next one may arrive
                _mlflow.set_model_tags(self.model.model_id, {HEARTBEAT: str(beats)}, uri)


def fail_claims(run_id: str, experiment_id: str, error: str) -> None:
    """Give up the claims of a run whose process is gone."""
    from mlflow import MlflowClient

    found = MlflowClient().search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    for model in found:
        if str(model.status) == "PENDING" and HEARTBEAT in model.tags:
            _fail(model.model_id, error)


def _fail(model_id: str, error: str) -> None:
    from mlflow import MlflowClient

    from mlflow_e2eai.tracking import _mlflow

    _mlflow.set_model_tags(model_id, {ERROR: error}, address())
    MlflowClient().finalize_logged_model(model_id, "FAILED")


def _order(model: LoggedModel) -> tuple[int, str]:
    return int(model.creation_timestamp), str(model.model_id)


def _fetched(model: LoggedModel, folder: Path, key: str) -> EngineArtifact:
    engine = fetch_engine(model, folder)
    if (found := key_of(engine)) != key:
        msg = f"it is the engine of another key, {found[:12]}…"
        raise ArtifactError(msg)
    return engine


def _with_key(key: str) -> list[LoggedModel]:
    """All with a key, in any experiment of the tracking server, the newest first."""
    import mlflow

    # MLflow's filter knows `status`, but finds nothing by it.
    found: list[LoggedModel] = mlflow.search_logged_models(
        experiment_ids=list(experiments()),
        filter_string=f"tags.`{KEY}` = '{key}'",
        order_by=[{"field_name": "creation_timestamp", "ascending": False}],
        output_format="list",
    )
    return found


# Timings of kernels, kept with the runs of the builds that measured them.
#
# A run's timings are never changed: who builds takes those of all runs and keeps them with its own
# as new ones, so that two builders at once lose nothing. A run says whose timings its own hold, and
# those are not fetched again.
#


TIMINGS = "e2eai.timings"
"""Tag of a run with timings: what they are for; see `engine.timings_key`."""

HELD = "e2eai.timings_held"
"""The same: ids of the runs whose timings are in them, with commas between."""

_FILE = f"kernels{TIMINGS_SUFFIX}"

_MOST = 200
"""Runs that are looked at, the newest first: what is in an older one is held by them."""


def fetch_timings(key: str, folder: Path) -> tuple[str, ...]:
    """Put all timings of a kind that the tracking server has into a folder.

    Those that cannot be had are announced as a warning and left out.

    Returns:
        Ids of the runs whose they are; each file is named by its run.
    """
    import mlflow
    from mlflow import MlflowClient

    runs = MlflowClient().search_runs(
        list(experiments()),
        f"tags.`{TIMINGS}` = '{key}'",
        order_by=["attributes.start_time DESC"],
        max_results=_MOST,
    )
    held = {run_id for run in runs for run_id in run.data.tags[HELD].split(",")}
    found = []
    for run_id in (run.info.run_id for run in runs if run.info.run_id not in held):
        try:
            place = mlflow.artifacts.download_artifacts(
                run_id=run_id, artifact_path=_FILE, dst_path=str(folder / run_id)
            )
        except Exception as error:  # noqa: BLE001 - whatever a store raises, the build goes on
            warnings.warn(f"The timings of run {run_id} cannot be had: {error}", stacklevel=2)
            continue
        Path(place).rename(folder / f"{run_id}{TIMINGS_SUFFIX}")
        found.append(run_id)
    return tuple(found)


def log_timings(key: str, folder: Path, *, run_id: str, fetched: Collection[str]) -> None:
    """Keep the timings that a build left in a folder with its run.

    Args:
        key: What they are for.
        folder: As `engine.compile` leaves it: what was fetched and is gone is in the new file.
        run_id: The run.
        fetched: What `fetch_timings` gave.
    """
    from mlflow import MlflowClient
    from mlflow.entities import RunTag

    left = {path.name.removesuffix(TIMINGS_SUFFIX): path for path in folder.iterdir()}
    for path in (path for name, path in left.items() if path.is_file() and name not in fetched):
        client = MlflowClient()
        kept = path.rename(folder / _FILE)
        client.log_artifact(run_id, str(kept))
        held = ",".join(name for name in fetched if not left.get(name, folder).is_file())
        # After the file, and both at once: whoever finds the one finds all.
        client.log_batch(run_id, tags=[RunTag(HELD, held), RunTag(TIMINGS, key)])
