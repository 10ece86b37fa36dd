"""Evaluation data that is none: one sentence before anything is measured."""

from __future__ import annotations

import mlflow.data
import numpy as np
import pandas as pd
import pytest
import torch

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.evaluation.data import EvaluationData

X, Y = np.ones((8, 3), np.float32), np.arange(8) % 3
EXAMPLE = {"x": X}
MILLION = "x" * 10**6


def frame(column: object, **more: object) -> pd.DataFrame:
    return pd.DataFrame({"x": column, "y": Y, **more})


def list_in_itself() -> list[object]:
    cyclic: list[object] = []
    cyclic.append(cyclic)
    return cyclic


def nested(depth: int) -> object:
    value: object = X
    for _ in range(depth):
        value = [value]
    return value


BAD: dict[str, object] = {
    "a list that holds itself": ({"x": list_in_itself()}, Y),
    "5000 lists in each other": (nested(5000), Y),
    "a column of numbers of 400 digits": (frame([10**400] * 8), "y"),
    "a callable that returns nothing": lambda: None,
    "a callable that returns a number": lambda: 5,
    "labels without an order": (X, set(range(8))),
    "labels of bytes": (X, b"abcdefgh"),
    "an input with a mask": (np.ma.masked_array(X, X > 0), Y),
    "a column of None": (frame([None] * 8), "y"),
    "a column of lists with None": (frame([[1.0, None, 2.0]] * 8), "y"),
    "an input whose name has NUL": ({"x\0": X}, Y),
    "labels with a mask": (X, np.ma.masked_array(Y, Y > 0)),
    "nothing": None,
    "a number": 5,
    "a text": "abc",
    "bytes": b"abc",
    "an empty tuple": (),
    "an empty list": [],
    "an empty mapping": {},
    "three parts": (X, Y, Y),
    "a set": {1, 2},
    "a module": np,
    "an iterator": iter([(X, Y)]),
    "a batch of None": [None],
    "numbers for batches": [1, 2],
    "labels of another length": (X, Y[:3]),
    "no items": (X[:0], Y[:0]),
    "one number": (np.float32(1), np.float32(1)),
    "objects": (np.array([object()] * 8), Y),
    "texts": (np.array(["a"] * 8), Y),
    "ragged lists": ([[1, 2], [3]], Y),
    "complex numbers": (X.astype(np.complex64), Y),
    "dates": (np.array(["2020-01-01"] * 8, "M8[D]"), Y),
    "extended precision": (X.astype(np.longdouble), Y),
    "a structured array": (np.zeros(8, dtype=[("a", "f4"), ("b", "f4")]), Y),
    "labels by name": (X, {"a": Y}),
    "one label": (X, 3),
    "an input of another name": ({"z": X}, Y),
    "an input too many": ({"x": X, "z": X}, Y),
    "a batch without labels": [(X, Y), (X, None)],
    "a repeated number of 12 TB": (np.broadcast_to(np.float32(0), (10**12, 3)), None),
    "a tensor without values": (torch.empty(8, 3, device="meta"), Y),
    "a sparse tensor": (torch.eye(8).to_sparse(), Y),
    "a table without its labels": (frame(list(X)), "nothing"),
    "a table with two columns of a name": (pd.DataFrame(np.c_[X, Y], columns=[*"xxxy"]), "y"),
    "a table with two columns of labels": (pd.DataFrame(np.c_[X, Y], columns=[*"abyy"]), "y"),
    "an empty table": (pd.DataFrame(), "y"),
    "a table of objects": (frame([object()] * 8), "y"),
    "a table of ragged lists": (frame([[1, 2]] * 4 + [[1]] * 4), "y"),
    "a table of categories": (frame(pd.Categorical(["a"] * 8)), "y"),
    "a table of dates": (frame([pd.Timestamp("2020-01-01")] * 8), "y"),
    "a label column that is a number": (frame(list(X)), 5),
    "a column's name of a million letters": (frame(list(X), **{MILLION: Y}), "q"),
    "a column of pandas": pd.Series([1, 2]),
    "a dataset of another input": mlflow.data.from_numpy({"q": X}),
}


@pytest.mark.filterwarnings("ignore")  # of MLflow and torch, about the data
@pytest.mark.parametrize("kind", BAD)
def test_evaluation_data_that_is_none_is_one_sentence(kind):
    with pytest.raises(InvalidInputError) as raised:
        list(EvaluationData.of(BAD[kind], example=EXAMPLE).batches())

    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 600


def test_an_error_in_the_callers_own_code_is_the_callers_own():
    def batches():
        yield X, Y
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        list(EvaluationData.of(batches, example=EXAMPLE).batches())
