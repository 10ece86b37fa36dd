"""ONNX files as they are: loaded, checked, and of a version that all libraries read."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data
from mlflow_e2eai.artifacts.files import open_file, reading_error
from mlflow_e2eai.errors import ArtifactError, brief

if TYPE_CHECKING:
    import onnx

_MESSAGE_BYTES = (2 << 30) - 1
"""Of a message of protobuf."""

_MOST_NODES = 1_000_000
"""A hundred times as many as the largest of real models have."""

_LONGEST_TEXT = 1 << 16
"""Of a name, or of what a graph says about itself."""

_IR_VERSION = 4
"""From here on weights need not be inputs, and one that is may be replaced by the caller."""


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights, without ONNX's checker; see `graphs.read`.

    Raises:
        ArtifactError: It is missing or is no ONNX file; or a file of its weights is missing, too
            short, or outside its folder.
    """
    import onnx

    try:
        with open_file(path) as file:
            _check_size(file)
            model = onnx.load_model_from_string(file.read())
        _check_texts(model)
        _check_calls(model)
        external_data.fetch(model, path)
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        msg = f"There is no file {path}; check the path."
        raise ArtifactError(msg) from error
    except OSError as error:
        msg = f"Cannot read {path}: {reading_error(error)}; give an ONNX file."
        raise ArtifactError(msg) from error
    except Exception as error:  # protobuf's errors share no base class
        raise invalid(path, error) from error
    if not path.stat().st_size:
        raise invalid(path, EOFError())
    return model


def _check_size(file: io.BufferedReader) -> None:
    if (size := os.fstat(file.fileno()).st_size) > _MESSAGE_BYTES:
        msg = f"it has {size} bytes, and protobuf reads {_MESSAGE_BYTES} at most"
        raise ValueError(msg)


def check_structure(model: onnx.ModelProto, path: Path) -> None:
    """Check a model of `load` by ONNX's rules, but for types and shapes inside.

    Raises:
        ArtifactError: It breaks one.
    """
    import onnx

    try:
        onnx.checker.check_model(external_data.skeleton(model))
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise invalid(path, error) from error


def _check_texts(model: onnx.ModelProto) -> None:
    """Refuse names that are no text, have NUL, or are too long.

    Raises:
        TypeError, ValueError: There is such a name.
    """

    def of_graph(graph: onnx.GraphProto) -> Iterator[str]:
        yield from (graph.name, graph.doc_string)
        yield from (each.name for each in (*graph.initializer, *graph.value_info))
        for value in (*graph.input, *graph.output):
            yield value.name
            yield from (dim.dim_param for dim in value.type.tensor_type.shape.dim)
        yield from of_nodes(graph.node)

    def of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[str]:
        for node in nodes:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield attribute.name
                for graph in (
                    *([attribute.g] if attribute.HasField("g") else ()),
                    *attribute.graphs,
                ):
                    yield from of_graph(graph)

    functions = (node for function in model.functions for node in function.node)
    for text in itertools.chain(of_graph(model.graph), of_nodes(functions)):
        if not isinstance(text, str):  # protobuf returns the bytes of what is no text
            msg = f"the name {text!r} in it is not UTF-8 text"
            raise TypeError(msg)
        if "\0" in text or len(text) > _LONGEST_TEXT:
            msg = f"a name in it has {len(text)} characters, or NUL: {text[:50]!r}"
            raise ValueError(msg)


def _check_calls(model: onnx.ModelProto) -> None:
    """Refuse model-local functions that call themselves, or stand for too many nodes.

    Whoever inlines functions that call one another twice, forty levels deep, never ends.

    Raises:
        ValueError: There are such functions.
    """
    functions = {(each.domain, each.name, each.overload): each for each in model.functions}
    sizes: dict[tuple[str, str, str], int] = {}

    def size_of(nodes: Iterable[onnx.NodeProto], above: frozenset[tuple[str, str, str]]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type, node.overload)
            if key in above:
                msg = f"the function {node.op_type!r} calls itself"
                raise ValueError(msg)
            if key in functions and key not in sizes:
                sizes[key] = size_of(functions[key].node, above | {key})
            total += sizes.get(key, 1)
            for attribute in node.attribute:
                for graph in (
                    *([attribute.g] if attribute.HasField("g") else ()),
                    *attribute.graphs,
                ):
                    total += size_of(graph.node, above)
        return total

    if functions and (size := size_of(model.graph.node, frozenset())) > _MOST_NODES:
        msg = f"its functions stand for {size} nodes, and {_MOST_NODES} at most are read"
        raise ValueError(msg)


def invalid(path: Path, error: Exception) -> ArtifactError:
    """An error of a file that is no ONNX file, for the reason of another error."""
    is_empty = path.stat().st_size == 0
    message = "it is empty" if is_empty else str(error).strip() or type(error).__name__
    reason = message.splitlines()[0].rstrip(" .:")
    reason = brief(ValueError(reason))
    return ArtifactError(f"{path.name} is not a valid ONNX file: {reason}; export it again.")


def raise_ir_version(model: onnx.ModelProto) -> bool:
    """Raise a model to IR version 4, where weights are no inputs; whether there was need to."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if model.ir_version >= _IR_VERSION and len(inputs) == len(model.graph.input):
        return False
    model.ir_version = max(model.ir_version, _IR_VERSION)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return True
