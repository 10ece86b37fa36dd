"""Named arrays: checked against a model's inputs, read from DataFrames, stored on disk."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai.artifacts.files import atomic_write, open_file, reading_error
from mlflow_e2eai.artifacts.values import Array, Tensors, TensorSpec
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, shown, shown_all

if TYPE_CHECKING:
    import pandas as pd

_ON_GPU = (2, 13)
"""kDLCUDA and kDLCUDAManaged of DLPack's DLDeviceType, see dlpack.h."""


def from_frame(frame: pd.DataFrame, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Arrays from a DataFrame whose rows are items.

    Args:
        frame: A column for each input, of numbers or, as MLflow stores tensors, of arrays or lists;
            other columns are left alone. For the only input of a model, all columns will do: one
            column of whatever name is it, several are the numbers of each item in order, which get
            the input's shape.
        specs: The inputs.

    Raises:
        InvalidInputError: A column is missing, is there twice, or holds something else.
    """
    check_columns(frame)
    if all(spec.name in frame.columns for spec in specs):
        return {spec.name: _column(frame[spec.name], spec) for spec in specs}
    if len(specs) != 1:
        names = [spec.name for spec in specs]
        msg = (
            f"The DataFrame has {shown_all(frame.columns)}, but a column for each of {names} is "
            "expected."
        )
        raise InvalidInputError(msg)
    (spec,) = specs
    if len(frame.columns) == 1:
        return {spec.name: _column(frame[frame.columns[0]], spec)}
    values = frame.to_numpy()
    sizes = [size for size in spec.shape[1:] if isinstance(size, int)]
    if len(sizes) == len(spec.shape) - 1 and math.prod(sizes) == values.shape[1]:
        # Rows of flat items, as a table holds images.
        values = values.reshape(len(frame), *sizes)
    return {spec.name: values}


def check_columns(frame: pd.DataFrame) -> None:
    """Refuse a DataFrame in which a name stands for two columns.

    Raises:
        InvalidInputError: One does.
    """
    if not frame.columns.is_unique:  # which pandas caches: each prediction asks
        twice = frame.columns[frame.columns.duplicated()]
        msg = f"The DataFrame has more than one column {shown(twice[0])}; rename them."
        raise InvalidInputError(msg)


def _column(cells: pd.Series[Any], spec: TensorSpec) -> Array:
    if not len(cells):
        msg = f"The column for {spec.name!r} is empty; give at least one row."
        raise InvalidInputError(msg)
    try:
        # For 64 arrays of 64 numbers np.stack takes 25 us, and this 11.
        array = np.array([np.asarray(cell) for cell in cells.to_list()])
    except ValueError as error:
        msg = f"The cells of the column for {spec.name!r} differ in shape; give cells of one shape."
        raise InvalidInputError(msg) from error
    # One number a row is how a table shows an axis of length one.
    is_flat = array.ndim == 1 and len(spec.shape) == 2  # noqa: PLR2004
    return array.reshape(-1, 1) if is_flat else array


def feed(tensors: Tensors, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    """Check named arrays against a model's inputs, and convert them to its dtypes.

    float64, which NumPy and JSON make of everything, is narrowed to float32 and float16, and
    integers come in any dtype of integers if the model's holds all their values; any other
    difference is an error.

    Raises:
        InvalidInputError: A name is missing or unknown, or a dtype or rank does not fit.
    """
    check_names(tensors, specs)
    return {spec.name: _fit(np.asarray(tensors[spec.name]), spec) for spec in specs}


def exactly(specs: Sequence[TensorSpec]) -> Callable[[Mapping[str, Any]], bool]:
    """Return a test whether named values are arrays that `feed` would pass on unchanged.

    It takes half a microsecond an input, and returns only a bool: on False, call `feed`, whose
    error names the input.
    """
    wanted = [
        (
            spec.name,
            np.dtype(spec.dtype),
            len(spec.shape),
            [(at, size) for at, size in enumerate(spec.shape) if isinstance(size, int)],
        )
        for spec in specs
    ]
    array_type, count = np.ndarray, len(wanted)

    def test(tensors: Mapping[str, Any]) -> bool:
        if len(tensors) != count:
            return False
        for name, dtype, rank, fixed in wanted:
            array = tensors.get(name)
            if (
                type(array) is not array_type
                or array.dtype != dtype
                or array.ndim != rank
                or not array.flags.c_contiguous
            ):
                return False
            shape = array.shape
            for at, size in fixed:
                if shape[at] != size:
                    return False
        return True

    return test


def check_names(tensors: Mapping[str, Any], specs: Sequence[TensorSpec]) -> None:
    """Refuse inputs that are not named as a model's.

    Raises:
        InvalidInputError: A name is missing or unknown.
    """
    names = [spec.name for spec in specs]
    if set(tensors) != set(names):
        found = sorted(map(str, tensors))
        msg = f"The inputs are {found}, but the model expects {names}; rename them."
        raise InvalidInputError(msg)


def check_shape(shape: Sequence[int], spec: TensorSpec) -> None:
    """Refuse an input whose rank or fixed sizes are not a model's.

    Raises:
        InvalidInputError: The rank or a fixed size differs.
    """
    rank = len(spec.shape)
    wrong = [
        f"the size {size} along axis {at}, not {shape[at]}"
        for at, size in enumerate(spec.shape if len(shape) == rank else ())
        if isinstance(size, int) and shape[at] != size
    ]
    if wrong or len(shape) != rank:
        axes = f"{rank} ax{'i' if rank == 1 else 'e'}s, not {len(shape)}"
        msg = (
            f"Input {spec.name!r} has shape {list(shape)}, but {list(spec.shape)} is expected; "
            f"give it {' and '.join(wrong) or axes}."
        )
        raise InvalidInputError(msg)


def is_on_gpu(value: Any) -> bool:
    """Whether a value lies in the memory of an NVIDIA GPU, by its own attributes."""
    if (is_cuda := getattr(value, "is_cuda", None)) is not None:
        return bool(is_cuda)  # PyTorch's, which is quicker
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and device()[0] in _ON_GPU


def _fit(array: Array, spec: TensorSpec) -> Array:
    check_shape(array.shape, spec)
    wanted = np.dtype(spec.dtype)
    if array.dtype == wanted:
        return np.asarray(array, order="C")
    if array.dtype == np.float64 and wanted.kind == "f":
        return array.astype(wanted)
    if array.dtype.kind in "iu" and wanted.kind in "iu" and _holds(wanted, array):
        return array.astype(wanted)
    msg = (
        f"Input {spec.name!r} is {array.dtype}, but {spec.dtype} is expected; convert it, for "
        f"example with .astype('{spec.dtype}')."
    )
    raise InvalidInputError(msg)


def _holds(dtype: np.dtype[Any], array: Array) -> bool:
    """Whether a dtype of integers holds all values of an array of integers."""
    limits = np.iinfo(dtype)
    return not array.size or (limits.min <= int(array.min()) and int(array.max()) <= limits.max)


SAMPLE_BYTES = 4 << 30
"""Of one input of one sample: a hundred images of 3,000 by 3,000 pixels in fp32."""


def check_bytes(name: str, shape: Sequence[int], itemsize: int, advice: str) -> None:
    """Check, before an input is made, that it fits into memory.

    Raises:
        InvalidInputError: It takes more than `SAMPLE_BYTES`.
    """
    if (size := math.prod(shape) * itemsize) > SAMPLE_BYTES:
        msg = (
            f"Input {name!r} of shape {list(shape)} would take {size / 1e9:.4g} GB, and "
            f"{SAMPLE_BYTES / 1e9:.2g} at most are made; {advice}."
        )
        raise InvalidInputError(msg)


def save_arrays(path: Path, arrays: Tensors) -> None:
    """Write arrays as NumPy's npz, whole or not at all, with equal bytes for equal arrays.

    Not by `numpy.savez`: an array may be named as one of its parameters.
    """
    with atomic_write(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def save_several(path: Path, several: Sequence[Tensors]) -> None:
    """Write arrays by name, several times over, as `save_arrays` does."""
    save_arrays(
        path,
        {f"{at}/{name}": array for at, each in enumerate(several) for name, array in each.items()},
    )


def load_several(path: Path) -> tuple[dict[str, Array], ...]:
    """Read what `save_several` wrote, in its order.

    Raises:
        ArtifactError: The file is missing or broken.
    """
    several: dict[str, dict[str, Array]] = {}
    for key, array in load_arrays(path).items():
        at, _, name = key.partition("/")
        several.setdefault(at, {})[name] = array
    return tuple(several.values())


_RATIO = 200
"""Bytes for one of a packed file that holds numbers; zeros alone give a thousand."""


def _check_unpacked(archive: zipfile.ZipFile) -> None:
    """Refuse a file that takes far more memory than it has bytes."""
    size = sum(member.file_size for member in archive.infolist())
    packed = sum(member.compress_size for member in archive.infolist())
    if size > SAMPLE_BYTES or (size > SAMPLE_BYTES >> 4 and size > _RATIO * packed):
        msg = f"its arrays take {size / 1e9:.4g} GB"
        raise ValueError(msg)


def _as_array(value: object, name: str) -> Array:
    """A member of an npz file; NumPy returns the bytes of one that is no array."""
    if not isinstance(value, np.ndarray):
        msg = f"{name!r} in it is no array"
        raise TypeError(msg)
    return value


def load_arrays(path: Path) -> dict[str, Array]:
    """Read arrays; pickled objects are refused.

    Raises:
        ArtifactError: The file is missing or broken.
    """
    try:
        with open_file(path) as file, np.load(file, allow_pickle=False) as arrays:
            _check_unpacked(arrays.zip)
            return {name: _as_array(arrays[name], name) for name in arrays.files}
    except Exception as error:  # NumPy reads a header as Python, which may raise anything
        reason = "it is empty" if isinstance(error, EOFError) else reading_error(error)
        msg = (
            f"Cannot read {path.name} in {path.parent}: {reason}; give an npz file of arrays, or "
            f"download it again."
        )
        raise ArtifactError(msg) from error
