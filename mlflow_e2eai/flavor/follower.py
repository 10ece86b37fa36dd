"""The version that has an alias, loaded again when the alias moves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.bundle.choice import Choice
from mlflow_e2eai.bundle.manifest import Manifest
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.errors import InvalidInputError, TrackingError, brief, shown
from mlflow_e2eai.promotion.registry.drift import check_pause
from mlflow_e2eai.runtime.progress import LOGGER
from mlflow_e2eai.tracking.versions import split_version

PREFIX = "models:/"


class FollowedModel:
    """The version that has an alias: called as `Model` is, and replaced when the alias moves.

    A new version serves once it is loaded, has run its input example, and takes and returns what
    the version before did; calls that are under way end on the version that they began with. Until
    then, and where a look fails, the version before goes on serving, and `problem` says why.
    """

    def __init__(
        self,
        alias: str,
        *,
        every_s: float,
        look: Callable[[], str],
        load: Callable[[str], Model],
    ) -> None:
        """Load the version that has the alias now, and look again every so often.

        Args:
            alias: The registered model and the alias, such as ``digits@champion``.
            every_s: Seconds between two looks, each of which is one request.
            look: Returns the version that has the alias.
            load: Loads a version, and runs its input example.

        Raises:
            InvalidInputError: `every_s` is not above 0.
            E2EAIError: The version cannot be loaded.
        """
        check_pause(every_s)
        self.alias = alias
        self.problem: str | None = None
        self._look, self._load = look, load
        self._lock, self._checking, self._closed = (
            threading.Lock(),
            threading.Lock(),
            threading.Event(),
        )
        version = look()
        self._current = _Loaded(version, load(version))
        threading.Thread(target=self._follow, args=(every_s,), daemon=True).start()

    @property
    def version(self) -> str:
        """The version that serves."""
        return self._current.version

    @property
    def manifest(self) -> Manifest:
        """The manifest of the version that serves."""
        return self._current.model.manifest

    @property
    def variant(self) -> str:
        """The variant that runs."""
        return self._current.model.variant

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs, the same for every version that serves; see `Model.inputs`."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs; see `Model.outputs`."""
        return self.manifest.outputs

    def __call__(self, inputs: Any = None, /, *others: Any, **named: Any) -> dict[str, Any]:
        """Run the version that serves; see `Model`."""
        with self._in_use() as model:
            return model(inputs, *others, **named)

    def explain(self) -> Choice:
        """The choice of the variant of the version that serves; see `Model.explain`."""
        return self._current.model.explain()

    def structured(self, outputs: Mapping[str, Any]) -> Any:
        """Outputs as the PyTorch module returned them; see `Model.structured`."""
        return self._current.model.structured(outputs)

    def check(self) -> bool:
        """Look where the alias is, and load that version if it is another.

        Returns:
            Whether another version serves now.
        """
        with self._checking:
            before = self._current
            try:
                version = self._look()
                if version == before.version:
                    self.problem = None
                    return False
                model = self._load_like(version, before)
            except Exception as error:  # noqa: BLE001 - whatever it is, the version before goes on
                self._report(f"version {before.version} goes on: {brief(error)}")
                return False
            with self._lock:
                self._current = _Loaded(version, model)
                before.retired = True
                unused = before.users == 0
            self.problem = None
            LOGGER.info("%s: version %s serves, was %s", self.alias, version, before.version)
            if unused:
                before.close()
            return True

    def __repr__(self) -> str:
        """The alias, the version and its variant, for a prompt."""
        return f"<mlflow_e2eai.FollowedModel {self.alias} version {self.version} {self.variant}>"

    def __enter__(self) -> Self:
        """Use the model in a with block, which stops following at the end."""
        return self

    def __exit__(self, *_: object) -> None:
        """Stop following, and free the resources of the runner."""
        self._closed.set()
        with self._checking:
            self._current.close()

    def _follow(self, every_s: float) -> None:
        while not self._closed.wait(every_s):
            self.check()

    def _load_like(self, version: str, before: _Loaded) -> Model:
        """Load a version.

        Raises:
            TrackingError: It takes or returns something else than the version before.
        """
        model = self._load(version)
        old, new = before.model.manifest, model.manifest
        for kind, ours, theirs in (
            ("takes", old.inputs, new.inputs),
            ("returns", old.outputs, new.outputs),
        ):
            if [each.interface for each in ours] != [each.interface for each in theirs]:
                with model:  # frees it
                    msg = (
                        f"version {version} of {self.alias.partition('@')[0]} {kind} "
                        f"{_words(theirs)}, where {_words(ours)} is served; load it anew."
                    )
                raise TrackingError(msg)
        return model

    def _report(self, problem: str) -> None:
        if problem != self.problem:
            LOGGER.warning("%s: %s", self.alias, problem)
        self.problem = problem

    @contextmanager
    def _in_use(self) -> Iterator[Model]:
        with self._lock:
            loaded = self._current
            loaded.users += 1
        try:
            yield loaded.model
        finally:
            with self._lock:
                loaded.users -= 1
                last = loaded.retired and loaded.users == 0
            if last:
                loaded.close()


@dataclass(slots=True)
class _Loaded:
    """A version in memory, and how many calls use it."""

    version: str
    model: Model
    users: int = 0
    retired: bool = False

    def close(self) -> None:
        with self.model:
            pass


def parse_alias(uri: str) -> tuple[str, str]:
    """The registered model and the alias of ``models:/name@alias``.

    Raises:
        InvalidInputError: The URI names no alias.
    """
    name, version = split_version(str(uri)) or ("", "")
    if not version.startswith("@"):
        msg = (
            f"{shown(uri)} does not name an alias to follow; "
            "give one, such as models:/digits@champion."
        )
        raise InvalidInputError(msg)
    return name, version[1:]


def _words(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name}: {spec.dtype} of {len(spec.shape)} axes" for spec in specs)
