"""Named arrays: at the sizes that a profile admits, and on disk."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mlflow_e2eai.artifacts import Array, Axis, Tensors, TensorSpec
from mlflow_e2eai.errors import ArtifactError
from mlflow_e2eai.files import written


def corners(axes: tuple[Axis, ...]) -> dict[str, dict[str, int]]:
    """The corners of a profile: each axis at its min, all at opt, each axis at its max.

    Returns:
        Sizes by axis name, under a label. Two axes give ``min``, ``opt``, ``max`` and the mixed
        corners; a profile with no axes gives ``static``.
    """
    if not axes:
        return {"static": {}}
    found: dict[str, dict[str, int]] = {
        bound: {axis.name: getattr(axis, bound) for axis in axes} for bound in ("opt", "min", "max")
    }
    for axis in axes:
        if len(axes) > 1:
            found[f"max {axis.name}, min others"] = {**found["min"], axis.name: axis.max}
    unique: dict[str, dict[str, int]] = {}
    for label, sizes in found.items():
        if sizes not in unique.values():
            unique[label] = sizes
    return unique


def resize(tensors: Tensors, specs: tuple[TensorSpec, ...], sizes: Mapping[str, int]) -> Tensors:
    """Repeat or cut arrays along their dynamic axes until they have the sizes asked for.

    Repeating the caller's own data keeps its range, which random data would not.

    Args:
        tensors: One array for each spec.
        specs: Where the dynamic axes are.
        sizes: Wanted size by axis name; axes that it does not name stay as they are.
    """
    resized = {}
    for spec in specs:
        array = tensors[spec.name]
        for position, size in enumerate(spec.shape):
            if isinstance(size, str) and size in sizes:
                index = np.arange(sizes[size]) % array.shape[position]
                array = np.take(array, index, axis=position)
        resized[spec.name] = np.asarray(array, order="C")
    return resized


def save_arrays(path: Path, arrays: Tensors) -> None:
    """Write arrays as NumPy's npz, whole or not at all, with equal bytes for equal arrays.

    Not by `numpy.savez`: an array may be named as one of its parameters.
    """
    with written(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def load_arrays(path: Path) -> dict[str, Array]:
    """Read arrays; pickled objects are refused.

    Raises:
        ArtifactError: The file is missing or broken.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile) as error:
        msg = f"Cannot read {path.name} in {path.parent}: {error}; download it again."
        raise ArtifactError(msg) from error
