"""The content of a logged PyTorch model as a digest, where its files say all that it does."""

from __future__ import annotations

import hashlib
from pathlib import Path

from mlflow_e2eai.artifacts.files import sha256_of

_PROGRAM = "data/model.pt2"

EVALUATION = "extra_files/evaluation.npz"

_LEFT_OUT = {
    *("MLmodel", "registered_model_meta", "conda.yaml", "python_env.yaml", "requirements.txt"),
    EVALUATION,
}
"""Files with ids and times, of environments, and of data, which have a digest of their own."""


def source_digest(folder: Path) -> str | None:
    """Digest of a PyTorch model's files but for its evaluation data.

    None for one that is no exported program (pt2): a pickle names its code, and does not hold it.
    """
    if not (folder / _PROGRAM).is_file() or (folder / "code").exists():
        return None
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    lines = [f"{sha256_of(path)}  {name}" for name, path in names.items() if name not in _LEFT_OUT]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
