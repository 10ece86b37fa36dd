"""TorchScript of a module that takes and gives tensors by position, as ONNX does.

The TorchScript exporter takes no mapping of a scripted module, and names of nested inputs as it
likes. So a script around the module is compiled from source, made of the trees of its inputs and
outputs.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from mlflow_e2eai import trees
from mlflow_e2eai.errors import ExportError
from mlflow_e2eai.trees import Tree

if TYPE_CHECKING:
    import torch


def flat_script(
    module: torch.jit.ScriptModule, inputs: Tree, outputs: Tree
) -> torch.jit.ScriptModule:
    """A scripted module around another, from tensors in order to a tensor or a tuple of them.

    Args:
        module: What is called.
        inputs: The mapping of its arguments by name; names that it does not have go by position.
        outputs: What it returns.

    Raises:
        ExportError: An object with fields stands in the inputs.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

    leaves = {name: f"tensor_{i}" for i, name in enumerate(trees.names(inputs))}
    schema: Any = module.forward.schema  # type: ignore[attr-defined]  # torch does not say
    types = {argument.name: argument.type for argument in schema.arguments[1:]}
    arguments = []
    for name, part in zip(inputs.keys, inputs.parts, strict=True):
        value = _expression(part, leaves)
        if name in types:
            annotation = types[name].annotation_str
            if part.parts and "__torch__" not in annotation:  # such a class has no name in source
                value = f"torch.jit.annotate({annotation}, {value})"
            value = f"{name}={value}"
        arguments.append(value)
    taken = [f"torch.jit._unwrap_optional({place})" for place in _places(outputs, "returned")]
    lines = (
        f"def forward(self, {', '.join(f'{leaf}: Tensor' for leaf in leaves.values())}):",
        f"    returned = self.model.forward({', '.join(arguments)})",
        f"    return {', '.join(taken)}\n",
    )
    script: torch.jit.ScriptModule = torch.jit.script(Flat().eval())
    script.define("\n".join(lines))
    return script


def _expression(tree: Tree, leaves: dict[str, str]) -> str:
    """A value as TorchScript writes it."""
    if tree.kind == "leaf":
        return leaves[tree.text]
    inner = [_expression(part, leaves) for part in tree.parts]
    if tree.kind == "mapping":
        items = (f"{key!r}: {part}" for key, part in zip(tree.keys, inner, strict=True))
        return f"{{{', '.join(items)}}}"
    if tree.kind == "list":
        return f"[{', '.join(inner)}]"
    if tree.kind == "tuple":
        return f"({', '.join(inner)}{',' if len(inner) == 1 else ''})"
    if tree.kind == "object":
        msg = (
            f"The script exporter takes tensors in mappings, lists and tuples, but the input "
            f"example holds a {tree.text.partition(':')[2]}; have forward take its fields."
        )
        raise ExportError(msg)
    value = trees.unflatten(tree, {})
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({tree.text!r})"
    return repr(value)


def _places(tree: Tree, at: str) -> list[str]:
    """Where the leaves are found in what stands at a place, in order."""
    if tree.kind == "leaf":
        return [at]
    keys = tree.keys or tuple(range(len(tree.parts)))
    steps = [f".{key}" if tree.kind == "object" else f"[{key!r}]" for key in keys]
    inner = zip(steps, tree.parts, strict=True)
    return [place for step, part in inner for place in _places(part, f"{at}{step}")]
