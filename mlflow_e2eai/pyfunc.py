"""A bundle as `mlflow.pyfunc` wants it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.arrays import from_frame
from mlflow_e2eai.artifacts import Array
from mlflow_e2eai.errors import E2EAIError, InvalidInputError
from mlflow_e2eai.variants import Model

if TYPE_CHECKING:
    import pandas as pd


class PyFunc:
    """What `mlflow.pyfunc` wraps: arrays, mappings, lists and DataFrames in, named arrays out."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def get_raw_model(self) -> Model:
        """The native callable, without MLflow's checks on the way."""
        return self._model

    def predict(self, data: Any, params: Mapping[str, Any] | None = None) -> Any:  # noqa: ARG002 - MLflow's signature
        """Run the model.

        Args:
            data: A mapping of names to arrays; one array, or a list of the same, where the model
                has one input; or a DataFrame, whose rows are items, or a list of such rows.
            params: None are known.

        Returns:
            Outputs by name; for rows, a DataFrame with a column for each output.

        Raises:
            E2EAIError: As `variants.Model` does; each is a `mlflow.exceptions.MlflowException` too.
        """
        try:
            return self._predict(data)
        except E2EAIError as error:
            raise _mlflows(error) from error

    def _predict(self, data: Any) -> Any:
        import pandas as pd

        specs = self._model.manifest.inputs
        if isinstance(data, list) and data and isinstance(data[0], Mapping):
            data = pd.DataFrame(data)
        if isinstance(data, pd.DataFrame):
            return _as_frame(self._model(from_frame(data, specs)))
        if isinstance(data, np.ndarray | list):
            if len(specs) != 1:
                names = [spec.name for spec in specs]
                msg = (
                    f"Unable to map one array to the inputs {names}; give a mapping of names to "
                    f"arrays, or a DataFrame with a column for each."
                )
                raise InvalidInputError(msg)
            return self._model(data)
        if isinstance(data, Mapping):
            return self._model({name: np.asarray(value) for name, value in data.items()})
        msg = f"The input is a {type(data).__name__}, but a mapping, array or DataFrame is wanted."
        raise TypeError(msg)


def _mlflows(error: E2EAIError) -> E2EAIError:
    """The same error as one of MLflow's too.

    Of those, MLflow's scoring server answers with the sentence, and of any other error that
    something unexpected happened. Both are answers with HTTP status 400.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST

    bases: tuple[type, ...] = (type(error), MlflowException)
    # As its class cannot be found by name, another process gets the error that it was.
    kind: Any = type(type(error).__name__, bases, {"__reduce__": lambda _: error.__reduce__()})
    both: Any = kind.__new__(kind)
    MlflowException.__init__(both, str(error), error_code=BAD_REQUEST)
    both.__dict__.update(error.__dict__)
    said: E2EAIError = both
    return said


def _as_frame(answer: Mapping[str, Array]) -> pd.DataFrame:
    import pandas as pd

    columns = {}
    for name, value in answer.items():
        array = np.asarray(value)
        is_flat = array.ndim == 1 or array.shape[1:] == (1,)
        columns[name] = array.reshape(-1) if is_flat else list(array)
    return pd.DataFrame(columns)
