"""Keys of stages: of inputs, settings, the code of this package and its libraries."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

import mlflow_e2eai
from mlflow_e2eai.artifacts.example import assumptions_of, others_of
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.machine import PASSING, environment
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.evaluation.data import EvaluationData
from mlflow_e2eai.evaluation.metric_code import UnknownContentError, content_of
from mlflow_e2eai.surgery.plan import Step
from mlflow_e2eai.surgery.rules import RULES

_LIBRARIES = (
    *("numpy", "onnx", "onnx-graphsurgeon", "onnx-ir", "onnxruntime", "onnxruntime-gpu"),
    *("onnxscript", "onnxsim", "onnxslim", "tensorrt-cu13", "tensorrt-rtx-cu13", "torch"),
)
"""Distributions that the stages call."""


def stage_key(stage: str, **parts: Any) -> str | None:
    """The key of a stage.

    Args:
        stage: Its name.
        **parts: All that its result depends on, by name: plain values, arrays, values of this
            package, and paths, which stand for the content of their files. None of them may be the
            result of `data_digest` or of a source that has no digest.

    Returns:
        Hexadecimal sha256; None where the content of a part is not known.
    """
    try:
        return _digest_of((stage, code_digest(), _versions(), parts))
    except (UnknownContentError, RecursionError):  # what holds itself has no end
        return None


UNKNOWN = object()
"""A part of a key whose content is not known, so that there is no key."""


@functools.cache
def code_digest() -> str:
    """Digest of all files of this package: no change of a stage can be forgotten."""
    root = Path(mlflow_e2eai.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            digest.update(f"{path.relative_to(root).as_posix()} {sha256_of(path)}\n".encode())
    return digest.hexdigest()


@functools.cache
def _versions() -> Mapping[str, str]:
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found


def machine_kind() -> dict[str, str]:
    """This machine, but for its name and what passes: evidence of one kind is reused on it."""
    known = environment()
    return {key: value for key, value in known.items() if key not in PASSING}


def example_parts(example: Tensors) -> tuple[Any, ...]:
    """All of an input example: its arrays, samples at sizes, and assumptions."""
    return dict(example), others_of(example), assumptions_of(example)


def plan_parts(plan: Sequence[Step]) -> list[Any]:
    """A surgery plan; the code of a rule that is not of this package is not known."""
    return [step if step.call is None and step.rule in RULES else UNKNOWN for step in plan]


def data_digest(data: EvaluationData | None) -> Any:
    """Digest of evaluation data and of the code of its metrics.

    `UNKNOWN` where that code is not known. All of the data is read once.
    """
    if data is None:
        return None
    digest = hashlib.sha256()
    try:
        for name, metric in data.metrics.items():
            _add(digest, (name, content_of(metric)))
        for inputs, labels in data.batches():
            _add(digest, (inputs, labels))
    except UnknownContentError:
        return UNKNOWN
    return digest.hexdigest()


def _add(digest: Any, value: Any) -> None:
    """Add a value to a digest, with its kind and length, so that no two values are alike."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            text = value if isinstance(value, bytes) else _text_of(value).encode()
            digest.update(f"{type(value).__name__} {len(text)}:".encode() + text)
        case np.ndarray() if not value.dtype.hasobject:
            digest.update(f"array {value.dtype.str} {value.shape}:".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        case Mapping():
            digest.update(f"mapping {len(value)}:".encode())
            for pair in value.items():
                _add(digest, pair)
        case list() | tuple():
            digest.update(f"sequence {len(value)}:".encode())
            for item in value:
                _add(digest, item)
        case _:
            _add(digest, (type(value).__qualname__, _parts_of(value)))


def _digest_of(value: Any) -> str:
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _text_of(value: Any) -> str:
    # Python writes no decimals of thousands of digits, but their hexadecimals.
    return hex(value) if type(value) is int else repr(value)


def _parts_of(value: Any) -> Any:
    """The content of a value of another kind, in values that `_add` knows."""
    match value:
        case Path():
            return sha256_of(value)
        case set() | frozenset():
            return sorted(map(_digest_of, value))
        case np.generic():
            return np.asarray(value)
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
        case _ if hasattr(value, "SerializeToString"):
            return value.SerializeToString(deterministic=True)
    raise UnknownContentError(type(value).__name__)
