"""Triton's model configuration: its fields for a model, and its text.

The fields are those of the message ModelConfig in Triton's ``model_config.proto``; their meaning in
its core and backends was read in the source of 2026 (Triton 2.70 and newer).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlflow_e2eai.artifacts.values import Axis, TensorSpec

Message = Mapping[str, Any]
"""A protobuf message: a list is a repeated field, a mapping a message inside."""

_TYPES: Mapping[str, str] = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
}
"""Triton's name of each NumPy dtype that it has a tensor of numbers for."""


class Word(str):
    """The name of a member of an enumeration, which stands in the text without quotes."""

    __slots__ = ()


def why_not_served(specs: Sequence[TensorSpec], batch: Axis | None) -> str | None:
    """Reason why Triton cannot serve an input or output of a model; None where it can."""
    for spec in specs:
        if spec.dtype not in _TYPES:
            return f"{spec.name!r} is {spec.dtype}, a type that Triton does not have"
        if batch is None and not spec.shape:
            return f"{spec.name!r} is a scalar, which Triton takes only in a batch"
    return None


def batch_axis(specs: Sequence[TensorSpec], axes: Sequence[Axis]) -> Axis | None:
    """The axis along which Triton may batch requests; None where there is none.

    It is the first axis of every input and output and no other axis of them, and takes every size
    from 1, as Triton forms batches of any size.
    """
    firsts = {spec.shape[:1] for spec in specs}
    for axis in axes:
        only = all(spec.shape.count(axis.name) == 1 for spec in specs)
        if firsts == {(axis.name,)} and only and axis.min == axis.multiple == 1:
            return axis
    return None


def tensors(specs: Sequence[TensorSpec], batch: Axis | None) -> list[Message]:
    """The field ``input`` or ``output`` for some tensors.

    Without the batch axis a tensor of one number for each item has no axes left, which Triton does
    not support: clients send or receive it with an axis of length one.
    """
    return [
        {
            "name": spec.name,
            "data_type": data_type(spec),
            "dims": dims(spec, batch),
            **({} if _inner(spec, batch) else {"reshape": {"shape": []}}),
        }
        for spec in specs
    ]


def data_type(spec: TensorSpec) -> Word:
    """Triton's name of a tensor's type."""
    return Word(_TYPES[spec.dtype])


def dims(spec: TensorSpec, batch: Axis | None, sizes: Sequence[int] | None = None) -> list[int]:
    """A tensor's sizes as a client sends them, without the batch axis; -1 where they vary.

    Args:
        spec: The tensor.
        batch: The batch axis.
        sizes: The sizes of one array, to be used instead.
    """
    inner = _inner(spec, batch) if sizes is None else list(sizes[1:] if batch else sizes)
    return [size if isinstance(size, int) else -1 for size in inner] or [1]


def _inner(spec: TensorSpec, batch: Axis | None) -> list[int | str]:
    return list(spec.shape[1:] if batch else spec.shape)


def text(message: Message, *, indent: int = 0) -> str:
    """A message in protobuf's text format."""
    pad, lines = " " * indent, []
    for field, value in message.items():
        several = value if isinstance(value, list) and _are_messages(value) else [value]
        for one in several:
            if isinstance(one, Mapping):
                inside = text(one, indent=indent + 2)
                lines.append(
                    f"{pad}{field} {{\n{inside}{pad}}}\n" if one else f"{pad}{field} {{}}\n"
                )
            else:
                lines.append(f"{pad}{field}: {_scalars(one)}\n")
    return "".join(lines)


def _are_messages(values: list[Any]) -> bool:
    return any(isinstance(value, Mapping) for value in values)


def _scalars(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_scalars, value))}]"
    if isinstance(value, Word):
        return str(value)
    # JSON's texts and integers are protobuf's too.
    return json.dumps(value, ensure_ascii=False)
