"""Named arrays on disk, as NumPy's npz, with equal bytes for equal arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from mlflow_e2eai.artifacts import Array, Tensors, written
from mlflow_e2eai.errors import ArtifactError


def save_arrays(path: Path, arrays: Tensors) -> None:
    """Write arrays, whole or not at all.

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
