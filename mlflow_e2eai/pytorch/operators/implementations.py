"""Implementations of the operators of a graph: kernels, libraries or functions."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import Library
from mlflow_e2eai.errors import ExportError, InvalidInputError, RunnerError
from mlflow_e2eai.runtime.ort import onnxruntime_runner

if TYPE_CHECKING:
    import onnx


def load_libraries(libraries: Sequence[Path]) -> tuple[Library, ...]:
    """Load the libraries at these paths once, and describe them for other processes.

    Raises:
        InvalidInputError: One is not there, or ONNX Runtime cannot load it.
    """
    import onnxruntime

    known = describe_libraries(libraries)
    for library in known:
        try:
            onnxruntime.SessionOptions().register_custom_ops_library(str(library.path))
        except Exception as error:  # onnxruntime's exceptions share no base class
            msg = (
                f"The operator library {library.path} cannot be loaded: {error}; give a shared "
                f"library for ONNX Runtime."
            )
            raise InvalidInputError(msg) from error
    return known


def unimplemented_operators(
    model: onnx.ModelProto, *, deferred: Collection[str] = (), libraries: Sequence[Library] = ()
) -> tuple[str, ...]:
    """Operators of a graph with neither a kernel in ONNX Runtime nor a function.

    Args:
        model: The graph.
        deferred: Operators that need no implementation yet, with their domain or without.
        libraries: Shared libraries with operators for ONNX Runtime; they are loaded.

    Raises:
        ExportError: One of the unimplemented operators is not deferred.
    """
    versions = {entry.domain: entry.version for entry in model.opset_import}
    explained = {graphs.operator_name(each.domain, each.name) for each in model.functions}
    implemented: dict[str, bool] = {}
    for node in graphs.nodes(model):
        name = graphs.operator_name(node.domain, node.op_type)
        # The checker has verified ONNX's own operators when the file was read.
        if "::" not in name or name in explained:
            continue
        if name not in implemented:
            implemented[name] = _is_registered(node, versions.get(node.domain, 1), libraries)
        if not implemented[name] and not {name, node.op_type} & set(deferred):
            raise _nothing_implements(node, name)
    return tuple(sorted(name for name, known in implemented.items() if not known))


def _is_registered(node: onnx.NodeProto, version: int, libraries: Sequence[Library]) -> bool:
    """Whether ONNX Runtime has the operator, by a session on a graph of one such node.

    The inputs of that node may not fit, which ONNX Runtime refuses with another message.
    """
    import onnx

    alone = onnx.helper.make_node(node.op_type, ["x"], ["y"], domain=node.domain)
    values = [onnx.helper.make_tensor_value_info(name, 1, None) for name in ("x", "y")]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([alone], "alone", values[:1], values[1:]),
        opset_imports=[
            onnx.helper.make_opsetid("", 18),
            onnx.helper.make_opsetid(node.domain, version),
        ],
        ir_version=8,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "alone.onnx")
        onnx.save(model, path)
        try:
            with onnxruntime_runner(path, libraries=libraries):
                return True
        except RunnerError as error:
            return "is not a registered function/op" not in str(error)


def _nothing_implements(node: onnx.NodeProto, name: str) -> ExportError:
    msg = (
        f"Nothing implements {name}, the operator of node {node.name!r}. Say what it computes by a "
        f"function: operators=[Operator(name={name!r}, function=...)]; or let the surgery plan "
        f"bypass, remove or replace it; or give the library that has it for ONNX Runtime: "
        f"operator_libraries=[...]; or, for a plugin of TensorRT, export it with "
        f"deferred=[{name!r}]."
    )
    return ExportError(msg, node=node.name, operator=name)
