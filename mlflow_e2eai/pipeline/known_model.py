"""A PyTorch model whose content is known as a digest, and models of which it is not."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlflow_e2eai import tracking
from mlflow_e2eai.pipeline.earlier_runs import SourceDigest
from mlflow_e2eai.pytorch.module import module_of
from mlflow_e2eai.pytorch.module_code import module_code_digest
from mlflow_e2eai.tracking.store.source_digest import source_digest

_PICKLED = (
    "the PyTorch model is pickled, as torch.export does not write it, so that not all of its code "
    "is known"
)


@dataclass(frozen=True, slots=True)
class KnownModel:
    """A logged model, and the digest of its files.

    Attributes:
        load: Loads it, as a module of `flatten_module`.
        digest: Its digest.
    """

    load: Callable[[], Any]
    digest: SourceDigest


def digest_of_module(model: Any, model_id: str) -> SourceDigest:
    """Digest of a module that was just logged: of its exported program, and of its code.

    The program alone would leave out the code that runs only in an export to ONNX.
    """
    program = tracking.resolve(model_id).tags.get(tracking.SHA256)
    if program is None:
        return SourceDigest(None, _PICKLED)
    code = module_code_digest(module_of(model))
    if code is None:
        return SourceDigest(None, "a class of the PyTorch model is in no file")
    return SourceDigest(hashlib.sha256(f"{program} {code}".encode()).hexdigest())


def digest_of_files(folder: Path) -> SourceDigest:
    """Digest of the downloaded files of a logged PyTorch model."""
    digest = source_digest(folder)
    return SourceDigest(None, _PICKLED) if digest is None else SourceDigest(digest)
