"""The forms of evaluation data, and their arrays."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts.arrays import check_columns, from_frame
from mlflow_e2eai.artifacts.axes import input_specs
from mlflow_e2eai.artifacts.values import Array, Tensors
from mlflow_e2eai.errors import InvalidInputError, shown, shown_all
from mlflow_e2eai.pytorch.flat_module import as_arrays
from mlflow_e2eai.pytorch.pytree import flatten

if TYPE_CHECKING:
    import pandas as pd

_ROWS = 4096
"""Rows of a DataFrame that are converted to arrays at one time."""


def pairs_of(given: Any) -> Callable[[], Iterator[tuple[Any, Any]]]:
    """A function that starts a pass over evaluation data of any form: inputs and labels.

    Raises:
        InvalidInputError: Its form is unknown, or it can be read only once.
    """
    if hasattr(given, "to_pyfunc"):  # an MLflow dataset
        both, predicted = given.to_pyfunc(), getattr(given, "predictions", None)
        inputs = both.inputs if predicted is None else both.inputs.drop(columns=predicted)
        return pairs_of((inputs, both.outputs))
    if _is_batch(given):
        inputs, labels = _pair(given)
        if _is_frame(inputs):
            return lambda: _pieces(inputs, labels)
        return lambda: iter([(inputs, labels)])
    is_iterable = isinstance(given, Iterable) and not isinstance(given, str)
    if callable(given) and not is_iterable:
        return lambda: map(_pair, _batches_of(given))
    if not is_iterable:
        msg = (
            f"The evaluation data is a {type(given).__name__}; give (inputs, labels), a DataFrame, "
            f"a DataLoader or an MLflow dataset."
        )
        raise InvalidInputError(msg)
    if iter(given) is given:
        msg = (
            f"The evaluation data is a {type(given).__name__}, which can be read only once; give a "
            f"DataLoader, a list of batches, or a callable that makes a new iterator."
        )
        raise InvalidInputError(msg)
    return lambda: map(_pair, given)


def arrays_of(inputs: Any, labels: Any, example: Tensors) -> tuple[tuple[Array, ...], Array | None]:
    """Inputs in the example's order, and labels, as arrays.

    Raises:
        InvalidInputError: An input is missing, unknown or no array, or the labels are a mapping.
    """
    if isinstance(labels, str):
        inputs, labels = _split(inputs, labels)
    if _is_frame(inputs):
        columns = from_frame(inputs, input_specs(example, {}))
        named: Mapping[str, Any] = {
            name: _numbers(name, column, example[name]) for name, column in columns.items()
        }
    elif isinstance(inputs, Mapping):
        named = flatten(inputs)[1]
        check_names(list(named), list(example))
    else:
        values = tuple(flatten(inputs)[1].values())
        if len(values) != len(example):
            msg = (
                f"The evaluation data has {len(values)} inputs, but {list(example)} are expected; "
                "give one array for each."
            )
            raise InvalidInputError(msg)
        named = dict(zip(example, values, strict=True))
    arrays = as_arrays({name: named[name] for name in example})
    return tuple(arrays.values()), _labels(labels)


def check_names(names: Sequence[str], wanted: Sequence[str]) -> None:
    """Refuse inputs of other names than those wanted.

    Raises:
        InvalidInputError: A name is missing or unknown.
    """
    if set(names) != set(wanted):
        msg = (
            f"The evaluation data has {shown_all(sorted(names))}, but {list(wanted)} are expected; "
            "rename it."
        )
        raise InvalidInputError(msg)


def check_lengths(columns: Iterable[Any]) -> None:
    """Refuse columns that differ in length, or have none.

    Raises:
        InvalidInputError: They differ in length, or there is none.
    """
    lengths = {np.shape(column)[:1] for column in columns}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        counts = sorted(length[0] if length else 1 for length in lengths)
        msg = (
            f"The evaluation data has {counts} items; give inputs and labels of one length, "
            f"and at least one item."
        )
        raise InvalidInputError(msg)


def _batches_of(make: Callable[[], Any]) -> Iterable[Any]:
    batches = make()
    if not isinstance(batches, Iterable) or isinstance(batches, str | bytes):
        msg = (
            f"The evaluation data is a callable that returned {shown(batches)}; let it return an "
            "iterator of batches."
        )
        raise InvalidInputError(msg)
    return batches


def _is_batch(given: Any) -> bool:
    return isinstance(given, tuple | Mapping) or hasattr(given, "__array__")


def _is_frame(given: Any) -> bool:
    import pandas as pd

    return isinstance(given, pd.DataFrame)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, tuple | list):
        return batch, None
    match batch:
        case [inputs, labels]:
            return inputs, labels
        case [inputs]:
            return inputs, None
    msg = (
        f"A batch of the evaluation data has {len(batch)} parts; give (inputs, labels), in which "
        f"inputs may be a tuple."
    )
    raise InvalidInputError(msg)


def _pieces(frame: pd.DataFrame, labels: Any) -> Iterator[tuple[Any, Any]]:
    """A DataFrame in batches, with its labels: the name of a column, an array, or None."""
    column_or_labels = labels if labels is None or isinstance(labels, str) else _labels(labels)
    if not isinstance(column_or_labels, str | None):
        check_lengths((frame, column_or_labels))
    for start in range(0, len(frame), _ROWS):
        rows = slice(start, start + _ROWS)
        yield (
            frame.iloc[rows],
            column_or_labels[rows]
            if isinstance(column_or_labels, np.ndarray)
            else column_or_labels,
        )


def _split(frame: Any, column: str) -> tuple[Any, Any]:
    """A DataFrame without the column that has the labels, and that column."""
    if not _is_frame(frame) or column not in frame.columns:
        columns = shown_all(frame.columns) if _is_frame(frame) else type(frame).__name__
        msg = f"The label column is {shown(column)}, but the data has {columns}; name a column."
        raise InvalidInputError(msg)
    check_columns(frame)
    return frame.drop(columns=column), frame[column]


def _numbers(name: str, column: Array, like: Array) -> Array:
    """A column in the dtype of the input: a table may have 1 for 1.0."""
    if like.dtype.kind != "f" or column.dtype.kind == "f":
        return column
    if column.dtype.hasobject and None in column.ravel().tolist():
        msg = f"The columns for {name!r} have None, but numbers are expected; leave those rows out."
        raise InvalidInputError(msg)
    try:
        return column.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        msg = f"The columns for {name!r} are not numbers: {error}; leave other columns out."
        raise InvalidInputError(msg) from error


def _labels(values: Any) -> Array | None:
    """Labels as one array with an entry for each item, of Python objects where they are ragged."""
    if values is None:
        return None
    if isinstance(values, Mapping):
        msg = f"The labels are a mapping of {shown_all(values)}; give one array or list of them."
        raise InvalidInputError(msg)
    if isinstance(values, set | frozenset | bytes | np.ma.MaskedArray):
        msg = (
            f"The labels are a {type(values).__name__}, which has no order, or no number for each "
            "item; give an array or list of them."
        )
        raise InvalidInputError(msg)
    if hasattr(values, "detach"):  # a tensor, perhaps on a GPU
        values = values.detach().cpu()
    if hasattr(values, "__array__") or not isinstance(values, Iterable):
        array = np.asarray(values)
        if not array.dtype.hasobject:
            return array
    try:
        return np.asarray(list(values))
    except ValueError:  # their shapes differ
        ragged = np.empty(len(values), dtype=object)
        ragged[:] = list(values)
        return ragged
