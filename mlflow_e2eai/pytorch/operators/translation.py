"""Operators of ``torch.library``, written as nodes by either exporter."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from mlflow_e2eai.errors import InvalidInputError

if TYPE_CHECKING:
    from mlflow_e2eai.pytorch.operators.operator import Operator

_TENSORS = ("Tensor", "Optional[Tensor]")
_KINDS: dict[str, tuple[Any, str]] = {
    "float": ("f", "FLOAT"),
    "int": ("i", "INT"),
    "bool": ("i", "INT"),
    "str": ("s", "STRING"),
    "List[int]": ("is", "INTS"),
    "List[float]": ("fs", "FLOATS"),
}
"""An argument's type in the TorchScript exporter, and in ONNX."""


@contextmanager
def translate_operators(
    operators: Sequence[Operator], exporter: str, *, opset: int
) -> Iterator[Any]:
    """Make an exporter write each operator of ``torch.library`` as its node in this block.

    Its tensors are the node's inputs, its other arguments attributes of the same names.

    Args:
        operators: Operators with a `torch_name`.
        exporter: The exporter that runs in the block.
        opset: The opset that it writes.

    Yields:
        For dynamo, the ``custom_translation_table`` of ``torch.onnx.export``; for the others None,
        as PyTorch has one global list of theirs, which is restored after the block.

    Raises:
        InvalidInputError: PyTorch has no such operator, or ONNX no type for an argument.
    """
    import torch

    by_name = {each.torch_name: each for each in operators if each.torch_name is not None}
    if exporter == "dynamo":
        yield {_overload(each): _translation(each) for each in by_name.values()} or None
        return
    # PyTorch documents both, and does not list them among its public names.
    exporters: Any = torch.onnx
    with ExitStack() as stack:
        for name, each in by_name.items():
            exporters.register_custom_op_symbolic(name, _symbolic(each), opset)
            stack.callback(exporters.unregister_custom_op_symbolic, name, opset)
        yield None


def _overload(operator: Operator) -> Any:
    import torch

    space, _, name = str(operator.torch_name).partition("::")
    try:
        overload = getattr(getattr(torch.ops, space), name).default
    except (AttributeError, RuntimeError) as error:
        msg = (
            f"PyTorch has no operator {operator.torch_name!r}, which {operator.name} stands for; "
            f"register it with torch.library before the export."
        )
        raise InvalidInputError(msg) from error
    for argument in overload._schema.arguments:  # noqa: SLF001 - there is no public way
        kind = str(argument.type)
        if kind not in _TENSORS and kind not in _KINDS:
            msg = (
                f"The argument {argument.name!r} of {operator.torch_name} is a {kind}, which is "
                f"not an attribute type of ONNX; take one of {', '.join((*_TENSORS, *_KINDS))}."
            )
            raise InvalidInputError(msg)
    return overload


def _translation(operator: Operator) -> Callable[..., Any]:
    """The translation function for dynamo: it makes a node of a schema like PyTorch's."""
    import onnx
    import onnxscript.values

    schema = _overload(operator)._schema  # noqa: SLF001 - there is no public way
    domain, _, name = operator.name.rpartition("::")
    tensors = [each.name for each in schema.arguments if str(each.type) in _TENSORS]
    others = {each.name: str(each.type) for each in schema.arguments if each.name not in tensors}
    outputs = [f"output_{at}" for at in range(len(schema.returns))]
    values = [*tensors, *outputs]
    parameters = [onnx.defs.OpSchema.FormalParameter(value, f"T_{value}") for value in values]
    numbers = [f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)]
    floats = ["float", "float16", "double", "bfloat16"]
    every = [f"tensor({kind})" for kind in (*floats, *numbers, "bool")]
    op = onnxscript.values.Op(
        onnxscript.values.Opset(domain, 1),
        name,
        onnx.defs.OpSchema(
            name,
            domain,
            1,
            inputs=parameters[: len(tensors)],
            outputs=parameters[len(tensors) :],
            type_constraints=[(f"T_{value}", every, "") for value in values],
            attributes=[
                onnx.defs.OpSchema.Attribute(
                    other, getattr(onnx.defs.OpSchema.AttrType, _KINDS[kind][1]), required=False
                )
                for other, kind in others.items()
            ],
        ),
    )

    def translate(*given: Any, **named: Any) -> Any:
        bound = dict(zip((each.name for each in schema.arguments), given, strict=False)) | named
        attributes = {other: bound[other] for other in others if bound.get(other) is not None}
        return op(*(bound.get(tensor) for tensor in tensors), **attributes)

    return translate


def _symbolic(operator: Operator) -> Callable[..., Any]:
    """The symbolic function for the TorchScript exporter."""
    from torch.onnx import symbolic_helper

    schema = _overload(operator)._schema  # noqa: SLF001 - there is no public way

    def symbolic(g: Any, *given: Any) -> Any:
        inputs, attributes = [], {}
        for argument, value in zip(schema.arguments, given, strict=True):
            kind = str(argument.type)
            if kind in _TENSORS:
                inputs.append(value)
                continue
            how = _KINDS[kind][0]
            constant = symbolic_helper._maybe_get_const(value, how)  # noqa: SLF001 - as symbolics do
            attributes[f"{argument.name}_{how[0]}"] = constant
        outputs = g.op(operator.name, *inputs, outputs=len(schema.returns), **attributes)
        types = [each.type() for each in g.original_node.outputs()]
        if len(types) == 1:
            return outputs.setType(types[0])
        return tuple(each.setType(kind) for each, kind in zip(outputs, types, strict=True))

    return symbolic
