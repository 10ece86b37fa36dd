"""What an operator computes, carried by the graph as a model-local function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlflow_e2eai import graphs
from mlflow_e2eai.errors import ExportError, InvalidInputError

if TYPE_CHECKING:
    import onnx


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator that is not ONNX's own, and what it computes.

    Attributes:
        name: Domain and operator, ``devtech::FooOp``.
        function: What it computes, in operators that every runtime knows: an ``onnx.FunctionProto``
            of that name, its text as ``onnx.parser`` reads it, or an onnxscript function.
    """

    name: str
    function: Any

    def proto(self) -> onnx.FunctionProto:
        """The function as ONNX has it.

        Raises:
            InvalidInputError: It is something else, is not valid, or has another name.
        """
        import onnx.parser

        function = self.function
        try:
            if isinstance(function, str):
                function = onnx.parser.parse_function(function)
            elif hasattr(function, "to_function_proto"):
                function = function.to_function_proto()
            onnx.checker.check_function(function)
        except Exception as error:  # the parser's and the checker's errors share no base class
            msg = (
                f"The function of {self.name} is not valid: {' '.join(str(error).split())[:300]}; "
                f"give an onnx.FunctionProto, its text, or an onnxscript function."
            )
            raise InvalidInputError(msg) from error
        if (found := graphs.operator_name(function.domain, function.name)) != self.name:
            msg = f"The function of {self.name} is named {found}; give both the same name."
            raise InvalidInputError(msg)
        return cast("onnx.FunctionProto", function)


def carry(path: Path, operators: Sequence[Operator]) -> None:
    """Put the operators' functions into the graph at `path`.

    Raises:
        InvalidInputError: A function is not valid, or is written for another opset than the graph.
        ExportError: The graph has no node of one of the operators.
    """
    if not operators:
        return
    model = graphs.read(path)
    used = {graphs.operator_name(each.domain, each.op_type) for each in graphs.nodes(model)}
    opset = graphs.opset_of(model)
    for operator in operators:
        function = operator.proto()
        if operator.name not in used:
            msg = (
                f"The function of {operator.name} is given, but the graph has no such node; its "
                f"operators are {', '.join(sorted(used))}."
            )
            raise ExportError(msg)
        # onnx.inliner leaves a function of another opset where it is.
        if (written := graphs.opset_of(function)) not in (0, opset):
            msg = (
                f"The function of {operator.name} is written for opset {written}, but the graph is "
                f"of opset {opset}; write it for {opset}."
            )
            raise InvalidInputError(msg)
        model.functions.append(function)
    graphs.write(model, path)


def save(operators: Sequence[Operator], path: Path) -> None:
    """Write operators down: an ONNX file of their functions, with no graph."""
    import onnx

    path.write_bytes(
        onnx.ModelProto(functions=[each.proto() for each in operators]).SerializeToString()
    )


def load(path: Path) -> tuple[Operator, ...]:
    """Read what `save` wrote."""
    import onnx

    functions = onnx.ModelProto.FromString(path.read_bytes()).functions
    return tuple(
        Operator(name=graphs.operator_name(each.domain, each.name), function=each)
        for each in functions
    )
