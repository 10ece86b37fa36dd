"""Functions with ``symbolic``, as nodes under every exporter.

A ``torch.autograd.Function`` with ``symbolic`` defines its own nodes in an ONNX graph. Only the
TorchScript exporter calls it; the dynamo exporter traces ``forward``, and the operator is lost
silently. Here it is exported by both: under dynamo each application becomes one placeholder, which
is afterwards replaced by the nodes that the TorchScript exporter writes for that application. So
``symbolic`` is called as it was written for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.errors import ExportError

if TYPE_CHECKING:
    import onnx
    import torch

_PLACEHOLDERS = "mlflow_e2eai.placeholders"
"""Domain of the placeholders; none remains in the exported graph."""

_TORCHSCRIPT_MAX_OPSET = 20
"""The last opset that the TorchScript exporter writes (torch 2.13)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Application:
    """One call of a Function, with its arguments, to export it alone."""

    function: type[torch.autograd.Function]
    arguments: tuple[Any, ...]

    def tensors(self) -> tuple[_Like, ...]:
        return tuple(argument for argument in self.arguments if isinstance(argument, _Like))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Like:
    """A tensor's type: sizes of the example, and the positions of those that may vary."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    dynamic: tuple[int, ...]


@dataclass(slots=True)
class _Applications:
    """The applications of functions with ``symbolic`` during one export."""

    applied: set[type] = field(default_factory=set)
    exported: set[type] = field(default_factory=set)
    placeholders: dict[str, _Application] = field(default_factory=dict)
    inside: bool = False

    def settle(self, path: Path, opset: int) -> None:
        """Replace the placeholders in the graph at `path`; an error where one is missing."""
        if self.placeholders:
            model = graphs.read(path)
            graphs.write(_replace_placeholders(model, self.placeholders, opset), path)
            self.exported |= {each.function for each in self.placeholders.values()}
        if lost := sorted(each.__name__ for each in self.applied - self.exported):
            msg = (
                f"forward applies {lost[0]}, which defines symbolic, but the exporter did not call "
                "it, so the operator is not in the graph; use its result in forward, or take "
                "another exporter."
            )
            raise ExportError(msg)


def check_no_python(module: torch.jit.ScriptModule) -> None:
    """Refuse a scripted module that calls Python, as each ``torch.autograd.Function`` does.

    Raises:
        ExportError: The module calls Python; the message names the function.
    """
    graph: Any = module.inlined_graph  # must outlive its nodes
    calls = graph.findAllNodes("prim::PythonOp", recurse=True)
    if calls:
        msg = (
            f"The script exporter cannot keep {calls[0].pyname()}, which is Python; use "
            f"exporter='dynamo' or exporter='trace' on the module before it is scripted."
        )
        raise ExportError(msg)


@contextmanager
def keep_symbolic(exporter: str, path: Path, *, opset: int) -> Iterator[None]:
    """Make an exporter write each Function with ``symbolic`` as its nodes in this block.

    Every class that defines ``symbolic`` is patched in the block, and restored after it.

    Args:
        exporter: The exporter that runs in the block.
        path: The file that it writes.
        opset: The opset that it writes.

    Raises:
        ExportError: A function was applied that the graph does not contain, or its ``symbolic``
            failed.
    """
    applications = _Applications()
    with ExitStack() as stack:
        for function in _functions():
            watch = _standing_in if exporter == "dynamo" else _recording_forward
            changes: dict[str, Any] = {"forward": staticmethod(watch(function, applications))}
            if exporter != "dynamo":
                changes["symbolic"] = staticmethod(_recording_symbolic(function, applications))
            stack.enter_context(mock.patch.multiple(function, **changes))
        yield
    applications.settle(path, opset)


@contextmanager
def record_applied() -> Iterator[set[str]]:
    """Record the names of the functions with ``symbolic`` that are applied in the block."""
    names: set[str] = set()

    def recording(function: type[torch.autograd.Function]) -> Callable[..., Any]:
        forward = function.forward

        def record(*given: Any) -> Any:
            names.add(function.__name__)
            return forward(*given)

        return record

    with ExitStack() as stack:
        for function in _functions():
            stack.enter_context(
                mock.patch.object(function, "forward", staticmethod(recording(function)))
            )
        yield names


def _functions() -> list[type[torch.autograd.Function]]:
    """The classes with a ``symbolic`` that can be called, PyTorch's own left out."""
    import torch

    waiting, functions = [torch.autograd.Function], []
    while waiting:
        for each in waiting.pop().__subclasses__():
            waiting.append(each)
            own = each.__module__.partition(".")[0] != "torch"
            if own and each not in functions and callable(getattr(each, "symbolic", None)):
                functions.append(each)
    return functions


def _standing_in(
    function: type[torch.autograd.Function], applications: _Applications
) -> Callable[..., Any]:
    """The function's ``forward`` for dynamo: a placeholder with the types of its outputs."""
    import torch

    forward = function.forward
    with_context = function.setup_context is torch.autograd.Function.setup_context

    def stand_in(*given: Any) -> Any:
        returned = forward(*given)
        if not torch.onnx.is_in_onnx_export():
            return returned
        applications.applied.add(function)
        arguments = given[1:] if with_context else given
        name = f"{function.__name__}_{len(applications.placeholders)}"
        applications.placeholders[name] = _Application(
            function=function,
            arguments=tuple(_like(each) for each in arguments),
        )
        outputs = returned if isinstance(returned, tuple) else (returned,)
        placed = torch.onnx.ops.symbolic_multi_out(
            f"{_PLACEHOLDERS}::{name}",
            tuple(each for each in arguments if isinstance(each, torch.Tensor)),
            dtypes=tuple(each.dtype for each in outputs),
            shapes=tuple(each.shape for each in outputs),
            version=1,
        )
        return tuple(placed) if isinstance(returned, tuple) else placed[0]

    return stand_in


def _recording_forward(
    function: type[torch.autograd.Function], applications: _Applications
) -> Callable[..., Any]:
    """The function's ``forward``, which records that it was called."""
    import torch

    forward = function.forward

    def watched(*given: Any) -> Any:
        # Functions that a recorded function applies inside its forward are part of it.
        inner = applications.inside or not torch.onnx.is_in_onnx_export()
        if inner:
            return forward(*given)
        applications.applied.add(function)
        applications.inside = True
        try:
            return forward(*given)
        finally:
            applications.inside = False

    return watched


def _recording_symbolic(function: Any, applications: _Applications) -> Callable[..., Any]:
    """The function's ``symbolic``, which records that it was called."""
    symbolic = function.symbolic

    def record(*given: Any) -> Any:
        applications.exported.add(function)
        return symbolic(*given)

    return record


def _like(argument: Any) -> Any:
    """The type of a tensor; anything else unchanged."""
    import torch

    if not isinstance(argument, torch.Tensor):
        return argument
    return _Like(
        dtype=argument.dtype,
        # `int` of a symbolic size would make it static.
        shape=tuple(
            size.node.hint if isinstance(size, torch.SymInt) else size for size in argument.shape
        ),
        dynamic=tuple(
            position
            for position, size in enumerate(argument.shape)
            if isinstance(size, torch.SymInt)
        ),
    )


def _replace_placeholders(
    model: onnx.ModelProto, placeholders: dict[str, _Application], opset: int
) -> onnx.ModelProto:
    """Replace the placeholder of each application by its nodes."""
    import onnx.inliner

    used = [each.op_type for each in graphs.nodes(model) if each.domain == _PLACEHOLDERS]
    domains = {entry.domain for entry in model.opset_import}
    for name in used:
        body = _body(name, placeholders[name], opset)
        model.functions.append(body)
        for entry in body.opset_import:
            if entry.domain not in domains:
                domains.add(entry.domain)
                model.opset_import.append(entry)
    filled: onnx.ModelProto = onnx.inliner.inline_selected_functions(
        model, [(_PLACEHOLDERS, name) for name in used]
    )
    imports = [entry for entry in filled.opset_import if entry.domain != _PLACEHOLDERS]
    del filled.opset_import[:]
    filled.opset_import.extend(imports)
    return filled


def _body(name: str, application: _Application, opset: int) -> onnx.FunctionProto:
    """The nodes that the TorchScript exporter writes for one application, as a function."""
    import onnx

    function = application.function.__name__
    try:
        model = _exported_alone(application, min(opset, _TORCHSCRIPT_MAX_OPSET))
    except Exception as error:  # symbolic and the exporter may raise anything
        msg = (
            f"symbolic of {function} failed: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}; correct symbolic."
        )
        raise ExportError(msg) from error
    standard = [node.op_type for node in model.graph.node if not node.domain]
    if opset > _TORCHSCRIPT_MAX_OPSET and standard:
        msg = (
            f"symbolic of {function} uses {standard[0]} of ONNX itself, which is supported up to "
            f"opset {_TORCHSCRIPT_MAX_OPSET}, but opset {opset} was requested; request an earlier "
            "one."
        )
        raise ExportError(msg)
    constants = [
        onnx.helper.make_node("Constant", [], [each.name], value=each)
        for each in model.graph.initializer
    ]
    imports = [entry for entry in model.opset_import if entry.domain]
    return onnx.helper.make_function(
        _PLACEHOLDERS,
        name,
        [each.name for each in model.graph.input],
        [each.name for each in model.graph.output],
        [*constants, *model.graph.node],
        [onnx.helper.make_opsetid("", opset), *imports],
    )


def _exported_alone(application: _Application, opset: int) -> onnx.ModelProto:
    import onnx
    import torch

    class Alone(torch.nn.Module):
        def forward(self, *tensors: torch.Tensor) -> Any:
            given = iter(tensors)
            return application.function.apply(
                *(
                    next(given) if isinstance(each, _Like) else each
                    for each in application.arguments
                )
            )

    likes = application.tensors()
    names = [f"input_{at}" for at in range(len(likes))]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "alone.onnx")
        torch.onnx.export(
            Alone().eval(),
            tuple(torch.ones(each.shape, dtype=each.dtype) for each in likes),
            path,
            dynamo=False,
            # Inlining is for functions without symbolic; it fails on some forwards (torch 2.13).
            autograd_inlining=False,
            opset_version=opset,
            input_names=names,
            dynamic_axes={
                name: list(each.dynamic)
                for name, each in zip(names, likes, strict=True)
                if each.dynamic
            },
        )
        return onnx.load(path)
