"""The model repository: one Triton model for each precision of each runner.

repository/
  digits-tensorrt-fp16/
    config.pbtxt
    1/sm86.plan  1/sm89.plan     Triton takes the one for its GPU's compute capability
    warmup/                      inputs that each instance runs before it serves
  digits-onnxruntime-fp32/
    config.pbtxt
    1/model.onnx                 with its weight files and libraries
    warmup/
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai._version import __version__
from mlflow_e2eai.bundle.triton.config import text
from mlflow_e2eai.bundle.triton.models import TritonModel

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def _write(models: Sequence[TritonModel], repository: Path, origin: str) -> None:
    """Write models next to the repository and move them in: a server sees whole ones only."""
    repository.mkdir(parents=True, exist_ok=True)
    parent = repository if repository.is_mount() else repository.parent
    with tempfile.TemporaryDirectory(dir=parent, prefix=f".{repository.name}.") as work:
        new, old = Path(work, "new"), Path(work, "old")
        for model in models:
            _write_model(model, new / model.name, origin)
        old.mkdir()
        for model in models:
            path = repository / model.name
            if path.exists():
                path.rename(old / model.name)
            (new / model.name).rename(path)


def _write_model(model: TritonModel, folder: Path, origin: str) -> None:
    for path, source in model.files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(source, bytes):
            (folder / path).write_bytes(source)
        else:
            shutil.copyfile(source, folder / path)
    lines = [f"Written by mlflow_e2eai {__version__} from {json.dumps(origin)}.", *model.notes]
    head = "".join(f"# {line}\n" for line in lines)
    (folder / "config.pbtxt").write_text(head + text(model.config), encoding="utf-8")
