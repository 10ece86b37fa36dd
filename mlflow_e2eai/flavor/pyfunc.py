"""A bundle as a model of `mlflow.pyfunc`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import tracking
from mlflow_e2eai.artifacts.arrays import from_frame
from mlflow_e2eai.artifacts.values import Array
from mlflow_e2eai.bundle.load import load
from mlflow_e2eai.bundle.model import Model
from mlflow_e2eai.errors import E2EAIError, InvalidInputError
from mlflow_e2eai.flavor.follower import FollowedModel, parse_alias
from mlflow_e2eai.flavor.mlmodel import MODEL_CONFIG
from mlflow_e2eai.flavor.native import follow_alias, signer
from mlflow_e2eai.tracking.server import as_mlflow_error

if TYPE_CHECKING:
    import pandas as pd


class PyFunc:
    """A pyfunc model: arrays, mappings, lists and DataFrames in, named arrays out."""

    def __init__(self, model: Model | FollowedModel) -> None:
        self._model = model
        self._columns: pd.Index[str] | None = None

        def predict(data: Any, params: Mapping[str, Any] | None = None) -> Any:
            return self._predict(data, params)

        # MLflow reads the signature of `predict` on every call, which takes a third of its own time
        # for a method; a function with `__signature__` takes none.
        predict.__signature__ = inspect.signature(predict)  # type: ignore[attr-defined]
        self.predict = predict

    def get_raw_model(self) -> Model | FollowedModel:
        """The native callable, without MLflow's checks on the way."""
        return self._model

    def _predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002 - MLflow's signature
        """Run the model.

        Args:
            data: A mapping of names to arrays; one array, or a list of the same, where the model
                has one input; or a DataFrame, whose rows are items, or a list of such rows.
            params: None are known.

        Returns:
            Outputs by name; for rows, a DataFrame with a column for each output.

        Raises:
            E2EAIError: See `Model`; each is a `mlflow.exceptions.MlflowException` too.
        """
        try:
            return self._run(data)
        except E2EAIError as error:
            raise as_mlflow_error(error) from error

    def _run(self, data: Any) -> Any:
        specs = self._model.manifest.inputs
        if isinstance(data, Mapping):
            return self._model({name: np.asarray(value) for name, value in data.items()})
        is_rows = isinstance(data, list) and bool(data) and isinstance(data[0], Mapping)
        if isinstance(data, np.ndarray | list) and not is_rows:
            if len(specs) != 1:
                names = [spec.name for spec in specs]
                msg = (
                    f"Unable to map one array to the inputs {names}; give a mapping of names to "
                    f"arrays, or a DataFrame with a column for each."
                )
                raise InvalidInputError(msg)
            return self._model(data)
        import pandas as pd

        frame = pd.DataFrame(data) if is_rows else data
        if isinstance(frame, pd.DataFrame):
            return self._as_frame(self._model(from_frame(frame, specs)))
        msg = (
            f"The input is a {type(data).__name__}, but a mapping, array or DataFrame is expected."
        )
        raise TypeError(msg)

    def _as_frame(self, outputs: Mapping[str, Array]) -> pd.DataFrame:
        import pandas as pd

        if self._columns is None:
            self._columns = pd.Index(list(outputs))
        columns = [_cells(array) for array in outputs.values()]
        if len({column.dtype for column in columns}) == 1:
            # One block under an index that is made once: pandas takes 50 us for a mapping, and 10
            # for this; to put one column into a block of its own took 6.
            one = columns[0].reshape(-1, 1)
            block = one if len(columns) == 1 else np.stack(columns, axis=1)
            return pd.DataFrame(block, columns=self._columns, copy=False)
        return pd.DataFrame(dict(zip(self._columns, columns, strict=True)))


def _cells(array: Array) -> Array:
    """One cell for each item: a number, or an array where an item is more than that."""
    if array.ndim == 1 or array.shape[1:] == (1,):
        return array.reshape(-1)
    return np.fromiter(array, dtype=object, count=len(array))


def _load_pyfunc(path: str, model_config: Mapping[str, Any] | None = None) -> PyFunc:
    """Load the bundle for `mlflow.pyfunc.load_model`, which calls this."""
    options = {**MODEL_CONFIG, **(model_config or {})}  # by the names of the arguments of `load`
    every_s = options.pop("follow")
    if every_s is None:
        place = Path(path)
        sha256 = tracking.manifest_sha256(place, signer())
        return PyFunc(load(place, sha256=sha256, fetch=tracking.fetcher(place), **options))
    alias = tracking.alias_of(Path(path).parent)
    if alias is None:
        msg = "follow needs the URI of an alias, by this package: e2eai:/digits@champion."
        raise InvalidInputError(msg)
    return PyFunc(
        follow_alias(*parse_alias(alias), every_s=every_s, require_signature=None, **options)
    )
