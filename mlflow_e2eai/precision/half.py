"""ONNX -> ONNX in fp16 or bf16, but for the nodes that are to stay in fp32.

ONNX Runtime's converter (``onnxruntime.transformers.float16`` 1.31) was tried and is not used: it
has no bf16, narrows operators whose definitions have no fp16, overlooks constants that are given as
floats, and fails where two branches have a weight of one name. Which operators take which type is
read from ONNX's own definitions; of that converter, only the rounding of weights and the list of
operators that fp16 is not for are used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from mlflow_e2eai.artifacts import graphs
from mlflow_e2eai.artifacts.names import FreshNames
from mlflow_e2eai.artifacts.value_types import Types, infer_types, schema_of, write_types
from mlflow_e2eai.errors import InvalidInputError, PrecisionError
from mlflow_e2eai.precision.half_weights import drop_unread, move_constants, round_weight
from mlflow_e2eai.precision.opsets import has_kernels, raise_opset

if TYPE_CHECKING:
    import onnx

    from mlflow_e2eai.artifacts.values import Library

HalfPrecision = Literal["fp16", "bf16"]

ONNX_TYPES = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
"""ONNX's name of each half precision."""

OPSETS = {"fp16": (13,), "bf16": (22, 21, 18, 16, 13)}
"""Operator sets that a graph is raised to, best first. From 13 on all definitions are ranked alike
and Cast knows bf16; from 22 on Conv, pooling, InstanceNormalization and the recurrent operators
take bf16; those between are for graphs that cannot go so far. See ONNX's changelog of operators."""

_EXPANDED_IN_FP32 = frozenset({"MeanVarianceNormalization"})
"""Operators that ONNX Runtime 1.31 replaces by nodes with constants in fp32, whatever they read."""


def to_fp16(model: onnx.ModelProto, *, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """A graph in fp16, but for the nodes that are to stay in fp32; see `to_half`."""
    return to_half(model, "fp16", keep_fp32=keep_fp32)


def to_bf16(model: onnx.ModelProto, *, keep_fp32: Collection[str] = ()) -> onnx.ModelProto:
    """A graph in bf16, but for the nodes that are to stay in fp32; see `to_half`."""
    return to_half(model, "bf16", keep_fp32=keep_fp32)


def prepare(model: onnx.ModelProto, precision: str) -> onnx.ModelProto:
    """A copy of a graph whose nodes have unique names, in an operator set that has the type.

    Raises:
        PrecisionError: The graph cannot be brought to an operator set that has it.
    """
    named = type(model)()
    named.CopyFrom(model)
    for node, name in zip(named.graph.node, graphs.node_names(model), strict=True):
        node.name = name
    opset = graphs.opset_of(named)
    refusal: PrecisionError | None = None
    for wanted in OPSETS[precision]:
        if not opset or wanted <= opset:
            return named  # 0 where none of its operators is ONNX's own
        try:
            raised = raise_opset(named, wanted, precision)
        except PrecisionError as error:
            refusal = refusal or error
            continue
        if has_kernels(raised):
            return raised
    if precision == "fp16" or refusal is None:
        return named
    raise refusal


def to_half(
    model: onnx.ModelProto, precision: HalfPrecision, *, keep_fp32: Collection[str] = ()
) -> onnx.ModelProto:
    """A graph in a half precision, but for the nodes that are to stay in fp32.

    Inputs and outputs, those of subgraphs included, stay in fp32. So does a node whose operator
    does not take the type in this operator set, or is not known to ONNX. A node in fp32 reads its
    weights and other values as they were before any rounding, where they exist so.

    Args:
        model: A graph in fp32 without functions, which is not changed.
        precision: The precision.
        keep_fp32: Names of nodes of the main graph, as `graphs.node_names` gives them. A node with
            subgraphs stays in fp32 with all that is inside.

    Raises:
        InvalidInputError: There is no node of that name.
        PrecisionError: The graph cannot be brought to an operator set that has the type.
    """
    if unknown := sorted(set(keep_fp32).difference(graphs.node_names(model))):
        msg = f"The graph has no node {unknown[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    converted = prepare(model, precision)
    form = _Form(
        precision=precision,
        opset=graphs.opset_of(converted),
        fresh=FreshNames.of_model(converted),
        keep_fp32=frozenset(keep_fp32),
    )
    _Scope(converted.graph, form, write_types(converted)).run()
    drop_unread(converted)
    return converted


def without_half(model: onnx.ModelProto, precision: str) -> list[str]:
    """The operators of a graph that compute in fp32 and have no half form in its operator set."""
    import onnx

    form = _Form(
        precision=precision, opset=graphs.opset_of(model), fresh=FreshNames(()), keep_fp32=()
    )
    wide = onnx.TensorProto.FLOAT
    types = infer_types(model)
    return sorted(
        {
            graphs.operator_name(node.domain, node.op_type)
            for node in model.graph.node
            if any(types.of(name) == wide for name in (*node.input, *node.output))
            and node.op_type != "Constant"
            and not form.admits(node)
        }
    )


def of_libraries(model: onnx.ModelProto, libraries: Sequence[Library]) -> list[str]:
    """Names of the nodes that libraries may implement, which may have no half kernels."""
    if not libraries:
        return []
    return [
        name
        for node, name in zip(model.graph.node, graphs.node_names(model), strict=True)
        if node.domain not in ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
    ]


@dataclass(frozen=True, slots=False, kw_only=True)
class _Form:
    """A half precision, and what is to be left out of it.

    Attributes:
        precision: ``fp16`` or ``bf16``.
        opset: The graph's operator set.
        fresh: Gives names to new values.
        keep_fp32: Names of the nodes of the main graph that stay in fp32.
    """

    precision: str
    opset: int
    fresh: FreshNames
    keep_fp32: Collection[str]

    @cached_property
    def onnx_type(self) -> int:
        """ONNX's number of the type."""
        import onnx

        return int(onnx.TensorProto.DataType.Value(ONNX_TYPES[self.precision]))

    @cached_property
    def _unsuited_operators(self) -> frozenset[str]:
        if self.precision != "fp16":
            return frozenset()
        from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST

        return frozenset(DEFAULT_OP_BLOCK_LIST) | _EXPANDED_IN_FP32

    def admits(self, node: onnx.NodeProto) -> frozenset[str]:
        """The type parameters of a node's definition that may be of this type."""
        schema = schema_of(node, self.opset)
        if schema is None or node.op_type in self._unsuited_operators:
            return frozenset()
        if self.precision == "fp16" and any(
            one.name == "reduction" and one.s not in (b"", b"none") for one in node.attribute
        ):
            return frozenset()  # ONNX Runtime scatters fp16 on the CPU, but sums none of it there
        name = f"tensor({ONNX_TYPES[self.precision].lower()})"
        return frozenset(
            one.type_param_str for one in schema.type_constraints if name in one.allowed_type_strs
        )


@dataclass(slots=True)
class _Scope:
    """A graph, or a graph inside a node, on its way to a half precision.

    Attributes:
        graph: The graph.
        form: The precision.
        types: The types of its values and of those around it.
        outer: The graph around it.
        in_fp32: Whether all of its nodes stay in fp32.
        floats: The values in fp32 that it defines.
        weights: Those of them that are weights.
        named: Name of a value in fp32 (False) and in the half type (True), where that exists.
        nodes: The nodes so far, casts included.
    """

    graph: onnx.GraphProto
    form: _Form
    types: Types
    outer: _Scope | None = None
    in_fp32: bool = False
    floats: set[str] = field(default_factory=set)
    weights: dict[str, onnx.TensorProto] = field(default_factory=dict)
    named: dict[tuple[str, bool], str] = field(default_factory=dict)
    nodes: list[onnx.NodeProto] = field(default_factory=list)

    def run(self) -> None:
        """Retype every node; inputs and outputs stay in fp32."""
        import onnx

        graph, wide = self.graph, onnx.TensorProto.FLOAT
        move_constants(graph)
        own = [value.name for value in (*graph.input, *graph.initializer)]
        own += [name for node in graph.node for name in node.output]
        self.floats = {name for name in own if self.types.of(name) == wide}
        self.weights = {w.name: w for w in graph.initializer if w.data_type == wide}
        self.named = {(value.name, False): value.name for value in graph.input}
        outputs = {value.name for value in graph.output}
        for node in graph.node:
            self._retype(node, outputs)
        for value in graph.output:
            if value.name in self.floats:
                self._as(value.name, narrow=False, output=value.name)
            else:
                value.name = self.find(value.name, narrow=False)
        self._retain_unknown_types()
        del graph.node[:]
        graph.node.extend(self.nodes)

    def _retain_unknown_types(self) -> None:
        """Drop the types that ONNX can infer; others are of operators that it does not know."""
        unknown = {
            name
            for node in self.nodes
            if schema_of(node, self.form.opset) is None
            for name in node.output
        }
        retained = [value for value in self.graph.value_info if value.name in unknown]
        del self.graph.value_info[:]
        self.graph.value_info.extend(retained)

    def find(self, name: str, *, narrow: bool) -> str:
        """Name of a value of this graph or one around it in one of the two types."""
        scope = self._owner(name)
        return name if scope is None else scope._as(name, narrow=narrow)  # noqa: SLF001 - of one class

    def _retype(self, node: onnx.NodeProto, outputs: Collection[str]) -> None:
        in_fp32 = self.in_fp32 or (self.outer is None and node.name in self.form.keep_fp32)
        for inner in graphs.subgraphs(node):
            types = self.types.inside(inner)
            _Scope(inner, self.form, types, outer=self, in_fp32=in_fp32).run()
        narrow_in, narrow_out = (set(), set()) if in_fp32 else self._narrow(node)
        node.input[:] = [
            self.find(name, narrow=index in narrow_in) for index, name in enumerate(node.input)
        ]
        self.nodes.append(node)
        for index, name in enumerate(node.output):
            narrow = index in narrow_out
            if narrow and name in outputs:
                node.output[index] = self.form.fresh(f"{name}_in_{self.form.precision}")
            self.named[name, narrow] = node.output[index]

    def _narrow(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """Indices of the inputs and of the outputs of a node that are to be in the half type."""
        import onnx

        admitted = self.form.admits(node)
        schema = schema_of(node, self.form.opset)
        if not admitted or schema is None or any(graphs.subgraphs(node)):
            return set(), set()
        if node.op_type in ("Cast", "ConstantOfShape"):
            return self._narrow_created(node)
        inputs = _parameters(schema.inputs, len(node.input))
        outputs = _parameters(schema.outputs, len(node.output))
        bound: dict[str, list[int]] = {}
        for index, (name, kind) in enumerate(zip(node.input, inputs, strict=True)):
            if name:
                bound.setdefault(kind.type_str, []).append(index)
        narrowed = {
            kind
            for kind, places in bound.items()
            if kind in admitted
            and all(inputs[at].is_homogeneous for at in places)
            and all(self.types.of(node.input[at]) == onnx.TensorProto.FLOAT for at in places)
        }
        written = {at for at in range(len(node.output)) if outputs[at].type_str in narrowed}
        if not written:  # it compares, counts or measures: rounding for that would gain nothing
            made = [self.types.of(name) for name in node.output if name]
            is_other = all(kind not in (None, onnx.TensorProto.FLOAT) for kind in made)
            narrowed = {
                kind
                for kind in narrowed
                if is_other and self._are_narrow(node.input[at] for at in bound[kind])
            }
        return {at for kind in narrowed for at in bound[kind]}, written

    def _narrow_created(self, node: onnx.NodeProto) -> tuple[set[int], set[int]]:
        """The same for a node that creates numbers of a type that an attribute says."""
        import onnx

        wide = onnx.TensorProto.FLOAT
        if node.op_type == "Cast":
            (to,) = [one for one in node.attribute if one.name == "to"]
            from_float = self.types.of(node.input[0]) == wide
            if to.i == wide:
                to.i = self.form.onnx_type
                return ({0} if from_float else set()), {0}
            return ({0} if from_float and self._are_narrow(node.input) else set()), set()
        value = next((one.t for one in node.attribute if one.name == "value"), None)
        if value is None:
            zero = onnx.helper.make_tensor("value", self.form.onnx_type, [1], [0.0])
            node.attribute.append(onnx.helper.make_attribute("value", zero))
        elif value.data_type == wide:
            value.CopyFrom(round_weight(value, "value", self.form.precision))
        else:
            return set(), set()
        return set(), {0}

    def _are_narrow(self, names: Iterable[str]) -> bool:
        """Whether all of these values are in the half type, and not all are in fp32 too."""
        listed = [name for name in names if name]
        return all(self._has(name, narrow=True) for name in listed) and not all(
            self._has(name, narrow=False) for name in listed
        )

    def _owner(self, name: str) -> _Scope | None:
        scope: _Scope | None = self
        while scope is not None and name not in scope.floats:
            scope = scope.outer
        return scope

    def _has(self, name: str, *, narrow: bool) -> bool:
        scope = self._owner(name)
        return scope is not None and (name in scope.weights or (name, narrow) in scope.named)

    def _as(self, name: str, *, narrow: bool, output: str | None = None) -> str:
        """Name of a value of this graph in one of the two types, after a cast where it needs one.

        Args:
            name: The value.
            narrow: Whether it is to be in the half type.
            output: A name that it must have.
        """
        import onnx

        if (name, narrow) in self.named and output in (None, self.named[name, narrow]):
            return self.named[name, narrow]
        if name in self.weights:
            self.named[name, narrow] = name
            if narrow:
                fresh = self.form.fresh(f"{name}_in_{self.form.precision}")
                self.graph.initializer.append(
                    round_weight(self.weights[name], fresh, self.form.precision)
                )
                self.named[name, narrow] = fresh
            return self.named[name, narrow]
        source = self.named[name, not narrow]
        suffix = self.form.precision if narrow else "fp32"
        output = output or self.form.fresh(f"{name}_in_{suffix}")
        to = self.form.onnx_type if narrow else onnx.TensorProto.FLOAT
        title = self.form.fresh(f"{output}_cast")
        self.nodes.append(onnx.helper.make_node("Cast", [source], [output], title, to=to))
        self.named[name, narrow] = output
        return output


def _parameters(
    formal: Sequence[onnx.defs.OpSchema.FormalParameter], count: int
) -> list[onnx.defs.OpSchema.FormalParameter]:
    """The parameter of a definition that each of so many inputs or outputs is."""
    return [formal[min(at, len(formal) - 1)] for at in range(count)]
