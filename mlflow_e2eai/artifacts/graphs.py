"""ONNX files: read, check, describe, write."""

from __future__ import annotations

import functools
import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlflow_e2eai.artifacts import external_data, model_file, weight_files
from mlflow_e2eai.artifacts.files import atomic_write
from mlflow_e2eai.artifacts.values import (
    Axis,
    Library,
    OnnxArtifact,
    Origins,
    Precision,
    TensorSpec,
)
from mlflow_e2eai.artifacts.weight_files import share_weights, subgraphs
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx
    import onnx_graphsurgeon as gs


def read(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights, those in other files of its folder included.

    Above `external_data.EXTERNAL_BYTES` the large ones stay in their files, and the tensors refer
    to them; `write` accepts such references, and `external_data.values` reads their numbers.

    Raises:
        ArtifactError: It is missing, is no ONNX file, or breaks the ONNX rules; or a file of its
            weights is missing, too short, or outside its folder.
    """
    model = model_file.load(path)
    model_file.check_structure(model, path)
    model_file.raise_ir_version(model)
    return model


def write(model: onnx.ModelProto, out: Path) -> None:
    """Check a graph and write it, whole or not at all.

    Above `external_data.EXTERNAL_BYTES` its weights lie next to it, in files named by their
    content: those that the model refers to, by hard link, and a new one for its own large weights.

    Raises:
        ArtifactError: It breaks the ONNX rules.
    """
    import onnx

    with weight_files.weights_linked(model, out.parent):
        try:
            onnx.checker.check_model(external_data.skeleton(model))
        except onnx.checker.ValidationError as error:
            reason = str(error).strip().splitlines()[0]
            msg = f"The graph for {out.name} is not valid ONNX: {reason}"
            raise ArtifactError(msg) from error
        with atomic_write(out) as temporary:
            temporary.write_bytes(model.SerializeToString(deterministic=True))


def to_graph(model: onnx.ModelProto) -> gs.Graph:
    """A model of `read` as a GraphSurgeon graph, whose rules may look at every constant."""
    import onnx_graphsurgeon as gs

    graph = gs.import_onnx(model)
    for each in (graph, *graph.subgraphs(recursive=True)):
        for tensor in each.tensors().values():
            if is_in_other_file(tensor):
                # GraphSurgeon would look for the file in the working folder.
                lazy = tensor._values  # noqa: SLF001
                lazy.load = functools.partial(external_data.values, lazy.tensor)
    return graph


def is_in_other_file(tensor: gs.Tensor) -> bool:
    """Whether a tensor of `to_graph` is a constant that nothing has loaded from its file yet."""
    import onnx_graphsurgeon as gs

    lazy = getattr(tensor, "_values", None)
    return isinstance(lazy, gs.ir.tensor.LazyValues) and external_data.is_reference(lazy.tensor)


def sort(graph: gs.Graph) -> gs.Graph:
    """Put the nodes of a graph, and of its subgraphs, after those that they read from.

    Model-local functions stay as they came: GraphSurgeon's own default sorts them too, and never
    ends where a node has a subgraph.
    """
    return graph.toposort(recurse_functions=False, mode="nodes")


def to_onnx(graph: gs.Graph, *, like: onnx.ModelProto) -> onnx.ModelProto:
    """A GraphSurgeon graph as ONNX, sorted, with the source's IR version.

    Only the operator sets in use stay listed. GraphSurgeon stamps the newest IR version on some
    graphs, which ONNX Runtime refuses, and keeps the operator sets of removed nodes.
    """
    import onnx_graphsurgeon as gs

    model: onnx.ModelProto = gs.export_onnx(sort(graph))
    model.ir_version = like.ir_version
    external_data.settle(model)
    share_weights(model)
    used = {node.domain for node in model.graph.node} | {
        node.domain for function in model.functions for node in function.node
    }
    # Subgraphs and functions are searched no deeper: a domain that only they use stays listed.
    nested = bool(model.functions) or any(
        attribute.HasField("g") or attribute.graphs
        for node in model.graph.node
        for attribute in node.attribute
    )
    if not nested:
        used_opsets = [
            entry for entry in model.opset_import if entry.domain in used | {"", "ai.onnx"}
        ]
        del model.opset_import[:]
        model.opset_import.extend(used_opsets)
    _annotate(model, like)
    return model


_PYTORCHS = ("namespace", "pkg.torch.")
"""How the metadata begins that torch.onnx's dynamo exporter writes on nodes (torch 2.13)."""


def _annotate(model: onnx.ModelProto, like: onnx.ModelProto) -> None:
    """Copy names, documentation and metadata from a source model: GraphSurgeon drops them.

    A node of the main graph is known by its name and operator. What PyTorch's exporter wrote for
    those who debug it, paths of the machine among it, is left in the raw graph.
    """

    def copy(old: Any, new: Any, *fields: str) -> None:
        for name in ("doc_string", *fields):
            new.ClearField(name)
            if old.HasField(name):  # one that is empty is not one that is not there
                setattr(new, name, getattr(old, name))
        del new.metadata_props[:]
        new.metadata_props.extend(
            each for each in old.metadata_props if not each.key.startswith(_PYTORCHS)
        )

    copy(like, model, "domain", "model_version")
    copy(like.graph, model.graph)
    names = zip(node_names(like), like.graph.node, strict=True)
    written_on = {(name, node.op_type): node for name, node in names}
    for node in model.graph.node:
        if (node.name, node.op_type) in written_on:
            copy(written_on[node.name, node.op_type], node)
    functions = {(each.domain, each.name): each for each in like.functions}
    for function in model.functions:
        if (function.domain, function.name) in functions:
            copy(functions[function.domain, function.name], function)


def describe(
    path: Path,
    *,
    stage: Literal["export", "clean", "convert"],
    precision: Precision,
    axes: tuple[Axis, ...],
    parent_sha256: str | None,
    origins: Origins | None = None,
    libraries: tuple[Library, ...] = (),
    model: onnx.ModelProto | None = None,
) -> OnnxArtifact:
    """Describe an ONNX file as an artifact; `model` is its content where it was read already."""
    model = model or read(path)
    inputs, outputs = interface(model)
    files = weight_files.files_of(model)
    return OnnxArtifact(
        path=path,
        sha256=weight_files.digest(path, files),
        parent_sha256=parent_sha256,
        stage=stage,
        precision=precision,
        opset=opset_of(model),
        inputs=inputs,
        outputs=outputs,
        axes=axes,
        origins=origins,
        weights=files,
        # Where surgery took such operators out, nothing needs native code any more.
        libraries=libraries
        if any("::" in operator_name(n.domain, n.op_type) for n in nodes(model))
        else (),
    )


def size_of(graph: OnnxArtifact) -> int:
    """Bytes of an ONNX file and of its weight files."""
    return graph.path.stat().st_size + sum(file.size_bytes for file in graph.weights)


def interface(model: onnx.ModelProto) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """A graph's inputs and outputs; initializers that are listed as inputs do not count.

    Raises:
        ArtifactError: One is no tensor, but a sequence for example.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = tuple(_spec(value) for value in model.graph.input if value.name not in constants)
    return inputs, tuple(_spec(value) for value in model.graph.output)


def opset_of(model: onnx.ModelProto | onnx.FunctionProto) -> int:
    """Version of the default operator set that a graph or function uses."""
    defaults = [entry for entry in model.opset_import if entry.domain in ("", "ai.onnx")]
    return max((int(entry.version) for entry in defaults), default=0)


def unique_names(nodes: Iterable[tuple[str, str]]) -> list[str]:
    """A name of its own for every node of one graph, in order.

    ONNX lets nodes have no name, or share one. A name that is there stays with the first node that
    has it; the others get one from their operator or name and their position, so that the same
    file always gives the same names.

    Args:
        nodes: Name (empty for none) and operator of each node, in the graph's order.
    """
    listed = list(nodes)
    taken = {name for name, _ in listed if name}
    given: set[str] = set()
    names = []
    for position, (own, operator) in enumerate(listed):
        name = own
        if not own or own in given:
            name = f"{own or operator}_{position}"
            while name in taken:
                name = f"{name}_{position}"
        taken.add(name)
        given.add(name)
        names.append(name)
    return names


def name_nodes(graph: gs.Graph) -> None:
    """Give every node of a graph a name of its own; those of its subgraphs are left as they are.

    GraphSurgeon takes two nodes for one when their names, operators, inputs and outputs are equal,
    and then unlinks the wrong one.
    """
    names = unique_names((node.name or "", node.op) for node in graph.nodes)
    for node, name in zip(graph.nodes, names, strict=True):
        node.name = name


def node_names(model: onnx.ModelProto) -> list[str]:
    """The unique name of each node of the main graph, in order; see `unique_names`."""
    return unique_names((node.name, node.op_type) for node in model.graph.node)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of a model: of the main graph, of subgraphs at any depth, and of functions."""

    def within(listed: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
        for node in listed:
            yield node
            for attribute in node.attribute:
                for inner in (attribute.g, *attribute.graphs):
                    yield from within(inner.node)

    yield from within(model.graph.node)
    for function in model.functions:
        yield from within(function.node)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of the values that a node and its subgraphs read from outside."""
    yield from filter(None, node.input)
    for inner in subgraphs(node):
        produced = {value.name for value in (*inner.input, *inner.initializer)}
        produced |= {name for each in inner.node for name in each.output}
        read = [name for each in inner.node for name in reads(each)]
        yield from (
            name for name in (*read, *(o.name for o in inner.output)) if name not in produced
        )


def inline_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Replace the calls of model-local functions by the nodes of the functions."""
    if not model.functions:
        return model
    import onnx.inliner

    flat: onnx.ModelProto = onnx.inliner.inline_local_functions(model)
    return flat


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Number of nodes of each operator in the main graph."""
    counts: dict[str, int] = {}
    for node in model.graph.node:
        name = operator_name(node.domain, node.op_type)
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def operator_name(domain: str | None, op_type: str) -> str:
    """``Conv`` for an operator of ONNX itself, ``devtech::FooOp`` for any other."""
    return op_type if domain in (None, "", "ai.onnx") else f"{domain}::{op_type}"


_MOST_DIMENSIONS = 64
"""Of an array of NumPy (2.0)."""


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    import onnx

    if (form := value.type.WhichOneof("value")) not in (None, "tensor_type"):
        name = form.removesuffix("_type").replace("_", " ")
        msg = (
            f"{value.name!r} is a {name}, but inputs and outputs must be tensors; remove it from "
            f"the graph, or export the model without it (skl2onnx: options={{'zipmap': False}})."
        )
        raise ArtifactError(msg)
    kind = value.type.tensor_type
    shape: list[int | str] = [
        dim.dim_value if dim.HasField("dim_value") else (dim.dim_param or "?")
        for dim in kind.shape.dim
    ]
    if len(shape) > _MOST_DIMENSIONS:
        msg = (
            f"{value.name!r} has {len(shape)} dimensions, but at most {_MOST_DIMENSIONS} are "
            "expected, as in NumPy's arrays; join some of them."
        )
        raise ArtifactError(msg)
    form = (value.type.WhichOneof("value") or "tensor_type").removesuffix("_type")
    if form != "tensor":
        msg = (
            f"{value.name!r} is not a tensor (its type is {form!r}), but inputs and outputs must "
            "be; export the tensors in it, each under its own name."
        )
        raise ArtifactError(msg)
    types = onnx.TensorProto
    if kind.elem_type in (types.STRING, types.COMPLEX64, types.COMPLEX128):
        what = "texts" if kind.elem_type == types.STRING else "complex numbers"
        msg = (
            f"{value.name!r} has the type {what}, but inputs and outputs must be real numbers; "
            "convert them outside the graph, and export or extract the rest."
        )
        raise ArtifactError(msg)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)
    except KeyError as error:
        msg = (
            f"{value.name!r} has no tensor type of ONNX; inputs and outputs must have one: give it "
            "a type, or remove it from the graph."
        )
        raise ArtifactError(msg) from error
    return TensorSpec(name=value.name, dtype=dtype.name, shape=tuple(shape))


def check(model: onnx.ModelProto) -> None:
    """Check a model of `read` by all of ONNX's rules, with strict shape inference.

    Operators outside ONNX's domains are not checked.

    Raises:
        ArtifactError: It breaks one.
    """
    import onnx

    try:
        onnx.checker.check_model(external_data.skeleton(model), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        msg = f"The graph does not pass ONNX's checker: {' '.join(str(error).split())[:300]}"
        raise ArtifactError(msg) from error


# Garbage collection that skips the objects of earlier imports.


@contextmanager
def only_new_garbage() -> Iterator[None]:
    """Exclude all existing objects from garbage collection during the block or function.

    Exporters and rules of surgery make objects by the million, and each full collection walks what
    PyTorch's imports left, too: with it, exporting MiniLM by dynamo took 1.17 times as long
    (torch 2.13, CPython 3.11).
    """
    mine = gc.get_freeze_count() == 0  # else the program has set objects aside itself
    if mine:
        gc.freeze()
    try:
        yield
    finally:
        if mine:
            gc.unfreeze()
