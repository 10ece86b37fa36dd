"""The meaning of an operator, carried by the graph as a model-local function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import ExportError, InvalidInputError, require_kind, require_several

if TYPE_CHECKING:
    import onnx


_TORCH_NAME = "torch_name"
"""Key of the metadata in which a saved function names its operator in PyTorch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """An operator that is not ONNX's own, and its function.

    Attributes:
        name: Domain and operator, ``devtech::FooOp``.
        function: Its definition in operators that every runtime has: an ``onnx.FunctionProto``
            of that name, its text as ``onnx.parser`` reads it, or an onnxscript function. None
            where a library implements it.
        torch_name: The operator of ``torch.library`` that it replaces, ``devtech::foo_op``; None
            where ``symbolic`` of a ``torch.autograd.Function`` writes it.

    Raises:
        InvalidInputError: A name is no text.

    Examples:
        >>> square = Operator(
        ...     name="example::Square",
        ...     function=(
        ...         '<domain: "example", opset_import: ["" : 18]> '
        ...         "Square (x) => (y) { y = Mul (x, x) }"
        ...     ),
        ...     torch_name="example::square",
        ... )
        >>> square.proto().name
        'Square'
    """

    name: str
    function: Any = None
    torch_name: str | None = None

    def __post_init__(self) -> None:
        require_kind("The name of an operator", self.name, str, "one such as 'devtech::FooOp'")
        if self.torch_name is not None:
            wanted = "a name such as 'devtech::foo_op'"
            require_kind(f"torch_name of {self.name}", self.torch_name, str, wanted)

    def proto(self) -> onnx.FunctionProto | None:
        """The function as a proto; None where there is none.

        Raises:
            InvalidInputError: It is something else, is not valid, or has another name.
        """
        import onnx.parser

        function = self.function
        if function is None:
            return None
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
        if (name := graphs.operator_name(function.domain, function.name)) != self.name:
            msg = f"The function of {self.name} is named {name}; give both the same name."
            raise InvalidInputError(msg)
        return cast("onnx.FunctionProto", function)


def check_operators(operators: Any) -> tuple[Operator, ...]:
    """Refuse what is no list of operators, and functions that are not valid.

    Raises:
        InvalidInputError: A value is no `Operator`, or its function is not valid.
    """
    several: tuple[Operator, ...] = require_several(
        "operators", operators, Operator, "mlflow_e2eai.Operator(...), as a list"
    )
    for operator in several:
        operator.proto()
    return several


def carry(path: Path, operators: Sequence[Operator]) -> None:
    """Add the operators' functions to the graph at `path`.

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
                f"Operator {operator.name} was given, but the graph has no such node; its "
                f"operators are {', '.join(sorted(used))}."
            )
            raise ExportError(msg)
        if function is None:
            continue
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
    """Write operators as an ONNX file of their functions, with no graph."""
    import onnx

    model = onnx.ModelProto()
    for each in operators:
        domain, _, name = each.name.rpartition("::")
        function = each.proto() or onnx.FunctionProto(domain=domain, name=name)
        proto = model.functions.add()
        proto.CopyFrom(function)
        if each.torch_name is not None:
            proto.metadata_props.add(key=_TORCH_NAME, value=each.torch_name)
    path.write_bytes(model.SerializeToString())


def load(path: Path) -> tuple[Operator, ...]:
    """Read what `save` wrote."""
    import onnx

    functions = onnx.ModelProto.FromString(path.read_bytes()).functions
    return tuple(
        Operator(
            name=graphs.operator_name(each.domain, each.name),
            function=each if each.node else None,
            torch_name={prop.key: prop.value for prop in each.metadata_props}.get(_TORCH_NAME),
        )
        for each in functions
    )
