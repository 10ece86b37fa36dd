"""Named arrays: as a model wants them, and from DataFrames."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlflow_e2eai.artifacts.arrays import feed, from_frame
from mlflow_e2eai.artifacts.values import TensorSpec
from mlflow_e2eai.errors import InvalidInputError

X = np.array([[1, -2, 3]], dtype=np.float32)


def spec(dtype, shape=("N", 3), name="x"):
    return TensorSpec(name=name, dtype=dtype, shape=shape)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[1.5, 2, 3]], dtype=np.float64), "float32"),
        (np.array([[1.5, 2, 3]], dtype=np.float64), "float16"),
        (np.array([[1, 2, 3]], dtype=np.int64), "int32"),
        (np.array([[0, 2, 255]], dtype=np.int64), "uint8"),
        (np.array([[1, 2, 3]], dtype=np.int32), "int64"),
        (np.array([[1, 2, 255]], dtype=np.uint8), "int16"),
        (np.array([[1, 2, 2**63 - 1]], dtype=np.uint64), "int64"),
        (np.zeros((0, 3), dtype=np.int64), "int8"),
        (np.array([[True, False, True]]), "bool"),
    ],
)
def test_numbers_that_the_model_s_dtype_holds_are_converted(array, dtype):
    fed = feed({"x": array}, [spec(dtype)])["x"]
    assert fed.dtype == dtype
    np.testing.assert_array_equal(fed, array)


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.array([[1, 2, 256]], dtype=np.int64), "uint8"),
        (np.array([[1, 2, -1]], dtype=np.int64), "uint32"),
        (np.array([[1, 2, 3]], dtype=np.int64), "float32"),
        (np.array([[1.0, 2.0, 3.0]]), "int64"),
        (np.array([[1, 2, 2**63]], dtype=np.uint64), "int64"),
        (np.array([[1, 2, 3]], dtype=np.uint8), "float32"),
        (np.array([[1, 2, 3]], dtype=np.float16), "float32"),
        (np.array([[True, False, True]]), "int64"),
        (np.array([[1, 2, 3]], dtype=np.float32), "float16"),
        (np.array([[1, 0, 1]], dtype=np.int64), "bool"),
        (np.array([["1", "2", "3"]]), "float32"),
    ],
)
def test_any_other_difference_of_dtype_is_refused_with_the_way_out(array, dtype):
    with pytest.raises(InvalidInputError, match=rf"is {array.dtype}, but {dtype} is expected"):
        feed({"x": array}, [spec(dtype)])


@pytest.mark.parametrize("shape", [(3,), (1, 2), (1, 1, 3), ()])
def test_a_shape_that_does_not_fit_is_refused(shape):
    with pytest.raises(InvalidInputError, match=r"but \['N', 3\] is expected"):
        feed({"x": np.ones(shape, dtype=np.float32)}, [spec("float32")])


@pytest.mark.parametrize("names", [(), ("y",), ("x", "y")])
def test_names_that_are_missing_or_strange_are_refused(names):
    with pytest.raises(InvalidInputError, match=r"the model expects \['x'\]"):
        feed(dict.fromkeys(names, X), [spec("float32")])


def test_arrays_are_handed_over_in_the_models_order_and_in_one_piece():
    columns = np.asfortranarray(np.ones((2, 3), dtype=np.float32))
    given = {"b": columns, "a": [[1.0, 2.0, 3.0]]}
    fed = feed(given, [spec("float32", name="a"), spec("float32", name="b")])
    assert list(fed) == ["a", "b"]
    assert fed["b"].flags.c_contiguous
    assert fed["a"].dtype == np.float32


def test_a_scalar_stays_a_scalar():
    assert feed({"x": 3.0}, [spec("float32", shape=())])["x"].shape == ()


# DataFrames

TABLE = pd.DataFrame({"a": [1, 2], "b": [3, 4], "c": [5, 6]})


def test_a_column_of_its_name_is_an_input_and_other_columns_are_left_alone():
    found = from_frame(TABLE, [spec("float32", ("N",), "b"), spec("int64", ("N",), "a")])
    assert list(found) == ["b", "a"]
    np.testing.assert_array_equal(found["b"], [3, 4])


def test_all_columns_are_the_numbers_of_the_only_input():
    found = from_frame(TABLE, [spec("float32")])["x"]
    np.testing.assert_array_equal(found, [[1, 3, 5], [2, 4, 6]])


def test_flat_rows_get_the_shape_of_the_only_input():
    assert from_frame(TABLE, [spec("float32", ("N", 1, 3))])["x"].shape == (2, 1, 3)


@pytest.mark.parametrize("name", ["x", "image"])
def test_cells_that_hold_tensors_are_stacked(name):
    images = [np.ones((2, 2), np.float32), [[1, 2], [3, 4]]]
    found = from_frame(pd.DataFrame({name: images}), [spec("float32", ("N", 2, 2))])["x"]
    np.testing.assert_array_equal(found, np.stack([np.ones((2, 2)), [[1, 2], [3, 4]]]))


def test_a_column_of_numbers_may_be_an_axis_of_length_one():
    assert from_frame(TABLE[["a"]], [spec("float32", ("N", 1))])["x"].shape == (2, 1)
    assert from_frame(TABLE[["a"]], [spec("float32", ("N",))])["x"].shape == (2,)


@pytest.mark.parametrize(
    ("frame", "specs", "words"),
    [
        (TABLE, [spec("float32"), spec("float32", name="y")], "column for each of"),
        (pd.DataFrame({"x": [[1, 2], [1]]}), [spec("float32")], "'x' differ in shape; give cells"),
        (
            pd.DataFrame({"x": [np.ones((2, 2)), np.ones((2, 3))]}),
            [spec("float32", ("N", 2, 2))],
            "'x' differ in shape; give cells",
        ),
        (pd.DataFrame({"x": []}), [spec("float32")], "'x' is empty; give at least one row"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_with_the_way_out(frame, specs, words):
    with pytest.raises(InvalidInputError, match=words):
        from_frame(frame, specs)
