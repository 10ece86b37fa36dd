"""Generic simplification, by well-maintained libraries."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlflow_e2eai.artifacts import external_data, graphs
from mlflow_e2eai.errors import RunnerError, SurgeryError, brief, suggestion
from mlflow_e2eai.runtime.crashes import add_graph, add_script
from mlflow_e2eai.runtime.isolation import worker_process
from mlflow_e2eai.runtime.process import loading_bytes
from mlflow_e2eai.surgery.node_edits import Edits, hand_over

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs

    from mlflow_e2eai.runtime.process import WorkerProcess
    from mlflow_e2eai.runtime.worker import Worker

_MAY_GROW_BYTES = 1 << 20
"""Folded constants may make the file this much larger."""

_WEIGHT_BYTES = 1 << 16
"""Smaller constants cost nothing to pass on, and may be sizes, indices and bounds."""

_TIME_LIMIT_S = 120.0
"""Seconds that a library may take for one graph: of 20,000 nodes the slowest took 4."""

_WEIGHT_OF = {"Gather": 0, "MatMul": 1}
"""Input position of a weight whose values no simplification reads, by operator."""


LIBRARIES = ("onnxsim", "onnxslim")
"""The libraries, in the order in which they run."""


def simplify(graph: gs.Graph, *, libraries: Sequence[str] = LIBRARIES) -> int:
    """Simplify with onnxsim, then with onnxslim.

    Neither does all that the other does: onnxsim folds shapes and makes Gemm of MatMul and Add,
    onnxslim drops nodes between two equal shapes. Where both together make the graph much larger (a
    giant tensor of equal values was written out), onnxslim runs alone, which has an option to leave
    such a tensor as it is; onnxsim has none that works.

    Both write and read the whole graph many times over, so tables and matrices, which are most of
    a transformer's bytes, are inputs meanwhile. They run until they find nothing: a table whose
    indices were folded is no longer set aside, and is folded too.

    They run in a process of their own, as either may crash. One that fails, or whose result is
    another graph, is left out, and the report says so.

    Args:
        graph: The graph.
        libraries: Those of `LIBRARIES` that are to run.

    Raises:
        SurgeryError: There is no such library.
    """
    if unknown := sorted(set(libraries).difference(LIBRARIES)):
        hint = suggestion(unknown[0], LIBRARIES)
        msg = f"There is no library {unknown[0]!r} to simplify with; {hint}"
        raise SurgeryError(msg)
    simplifiers = _Simplifiers([name for name in LIBRARIES if name in libraries])
    saved_bytes = 0
    try:
        while simplifiers.libraries and (saved := _simplify_once(graph, simplifiers)):
            saved_bytes += saved
    finally:
        simplifiers.close()
    return Edits(saved_bytes, simplifiers.notes)


def fold_constants(graph: gs.Graph) -> int:
    """Replace nodes that depend on constants only by constants, computed by ONNX Runtime.

    In a process of its own: a few nodes may stand for terabytes, or for years.

    Args:
        graph: The graph.

    Raises:
        SurgeryError: Computing them takes too much memory or time.
    """
    import onnx

    before = len(graph.nodes)
    aside = _set_aside(graph)
    try:
        content = _export(graph).SerializeToString()
        with worker_process() as process:
            folded = _call(process, partial(_fold, content=content), content)
        _take_over(graph, graphs.to_graph(onnx.ModelProto.FromString(folded)))
    except RunnerError as error:
        msg = f"The constants cannot be folded: {error} Leave the rule fold_constants out."
        raise SurgeryError(msg) from error
    finally:
        _put_back(graph, aside)
    return before - len(graph.nodes)


def _fold(worker: Worker, content: bytes) -> bytes:
    import onnx
    import onnx_graphsurgeon as gs

    worker.note.write_activity("as constants were folded")
    graph = gs.import_onnx(onnx.ModelProto.FromString(content))
    graph.fold_constants()
    graph.cleanup()
    result: bytes = _export(graph).SerializeToString()
    return result


def _export(graph: gs.Graph) -> onnx.ModelProto:
    import onnx_graphsurgeon as gs

    model: onnx.ModelProto = gs.export_onnx(graphs.sort(graph))
    external_data.settle(model)
    return model


def _call(process: WorkerProcess, function: Callable[[Worker], bytes], content: bytes) -> bytes:
    """Call a function of a serialized graph, within the memory and time that real ones take."""
    with process.limited_to(loading_bytes(len(content))):
        result: bytes = process.call(function, time_limit_s=_TIME_LIMIT_S)
    return result


class _Simplifiers:
    """The libraries that still work on a graph, in a process of their own.

    Attributes:
        libraries: Their names.
        notes: A sentence for each that was left out.
    """

    def __init__(self, libraries: Sequence[str]) -> None:
        self.libraries = [*libraries]
        self.notes: list[str] = []
        self._stack = ExitStack()
        self._process: WorkerProcess | None = None

    def run(
        self, library: str, model: onnx.ModelProto, *, largest: int | None = None
    ) -> onnx.ModelProto:
        """The graph after a library, or the graph itself where that fails."""
        import onnx

        if library not in self.libraries:
            return model
        if self._process is None:
            self._process = self._stack.enter_context(worker_process())
        content = model.SerializeToString()
        call = partial(_simplify, library=library, content=content, largest=largest)
        self._process.reproduction = partial(
            _reproduce, library=library, content=content, largest=largest
        )
        try:
            result = _call(self._process, call, content)
            simplified: onnx.ModelProto = onnx.ModelProto.FromString(result)
            onnx.checker.check_model(external_data.skeleton(simplified))
        except Exception as error:  # noqa: BLE001 - of the worker, of protobuf or of the checker
            self.leave_out(library, brief(error))
            return model
        wanted = [value.name for value in model.graph.output]
        if (outputs := [value.name for value in simplified.graph.output]) != wanted:
            self.leave_out(library, f"it turned the outputs {wanted} into {outputs}")
            return model
        # onnxslim drops unread inputs, which callers still pass.
        del simplified.graph.input[:]
        simplified.graph.input.extend(model.graph.input)
        return simplified

    def leave_out(self, library: str, reason: str) -> None:
        """Go on without a library, whose process may have ended."""
        self.libraries.remove(library)
        self.notes.append(
            f"{library} was skipped by simplify, because it fails on this graph: {reason}"
        )
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process = None
        self._stack.close()


def _simplify(worker: Worker, library: str, content: bytes, largest: int | None) -> bytes:
    """Run a library on a model in a worker process; onnxslim folds no tensor above a size."""
    import onnx

    from mlflow_e2eai.surgery.simplifiers import onnxsim, onnxslim

    worker.note.write_activity(f"in {library}")
    model = onnx.ModelProto.FromString(content)
    if library == "onnxsim":
        simplified, _ = onnxsim.simplify(model)
    else:
        simplified = onnxslim.slim(model, size_threshold=largest)
    result: bytes = simplified.SerializeToString()
    return result


_SCRIPT = {
    "onnxsim": """
import sys

sys.modules["torch"] = None  # onnxsim imports it where it can, and does not need it
import onnx, onnxsim

onnxsim.simplify(onnx.load("graph.onnx"))
""",
    "onnxslim": """
import sys

sys.modules["torch"] = None
import onnx, onnxslim

onnxslim.slim(onnx.load("graph.onnx"), size_threshold=LARGEST)
""",
}


def _reproduce(folder: Path, _: str, *, library: str, content: bytes, largest: int | None) -> None:
    """Write a call of a library as a reproduction."""
    add_graph(folder, content, folder)
    add_script(folder, _SCRIPT[library], largest=largest)


def _simplify_once(graph: gs.Graph, simplifiers: _Simplifiers) -> int:
    aside = _set_aside(graph)
    try:
        before = _export(graph)
        after = _run_simplifiers(before, simplifiers)
        saved = len(before.graph.node) - len(after.graph.node)
        if saved <= 0:
            return 0
        _take_over(graph, graphs.to_graph(after))
    finally:
        _put_back(graph, aside)
    return saved


def _run_simplifiers(model: onnx.ModelProto, simplifiers: _Simplifiers) -> onnx.ModelProto:
    simplified = simplifiers.run("onnxsim", model)
    # onnxsim makes Gemm of a MatMul of three dimensions too, with sizes and Reshapes around it.
    if len(simplified.graph.node) > len(model.graph.node):
        simplified = model
    slim = simplifiers.run("onnxslim", simplified)
    if slim.ByteSize() > model.ByteSize() + _MAY_GROW_BYTES:
        slim = simplifiers.run("onnxslim", model, largest=_MAY_GROW_BYTES)
    is_large = slim.ByteSize() > model.ByteSize() + _MAY_GROW_BYTES
    return model if is_large and "onnxslim" not in simplifiers.libraries else slim


def _set_aside(graph: gs.Graph) -> dict[str, gs.Constant]:
    """Turn the graph's weights into inputs; returns those weights, by name."""
    import onnx_graphsurgeon as gs

    aside = {
        name: tensor
        for name, tensor in graph.tensors().items()
        if isinstance(tensor, gs.Constant) and _is_weight(tensor)
    }
    for name, weight in aside.items():
        stand_in = gs.Variable(name, dtype=weight.dtype, shape=weight.shape)
        hand_over(weight, stand_in)
        graph.inputs.append(stand_in)
    return aside


def _put_back(graph: gs.Graph, aside: dict[str, gs.Constant]) -> None:
    for tensor in graph.inputs:
        if tensor.name in aside:
            hand_over(tensor, aside[tensor.name])
    graph.inputs = [tensor for tensor in graph.inputs if tensor.name not in aside]


def _is_weight(tensor: gs.Constant) -> bool:
    """Whether a constant is a large one that is only read where its values do not matter.

    onnxsim merges the three MatMuls of an attention whose input nothing else reads: their weights
    are passed to it.

    A weight in another file counts as such: the libraries would load it, and fold the parts that
    are read into the graph.
    """
    import onnx_graphsurgeon as gs

    if graphs.is_in_other_file(tensor):
        return True
    if not isinstance(tensor.dtype, type | np.dtype) or _bytes_of(tensor) < _WEIGHT_BYTES:
        return False
    for node in tensor.outputs:
        position = _WEIGHT_OF.get(node.op)
        others = [other for other in node.inputs if other is not tensor]
        alone = len(others) == 1 and not isinstance(others[0], gs.Constant)
        if position is None or not alone or node.inputs[position] is not tensor:
            return False
        if [reader.op for reader in others[0].outputs] == ["MatMul"] * 3:
            return False
    return True


def _bytes_of(tensor: gs.Constant) -> int:
    size: int = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return size


def _take_over(graph: gs.Graph, simplified: gs.Graph) -> None:
    graph.nodes, graph.inputs, graph.outputs = (
        simplified.nodes,
        simplified.inputs,
        simplified.outputs,
    )
    graph.functions, graph.opset, graph.import_domains = (
        simplified.functions,
        simplified.opset,
        simplified.import_domains,
    )
    graphs.name_nodes(graph)
