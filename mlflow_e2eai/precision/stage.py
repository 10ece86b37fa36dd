"""ONNX -> ONNX in another precision, with an fp32 interface.

Precision is a property of the graph, not a flag of the builder: TensorRT 11 and TensorRT-RTX build
strongly typed networks only, and TensorRT 10 has the same as an option.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data, graphs
from mlflow_e2eai.artifacts.files import Summary, Table
from mlflow_e2eai.artifacts.values import (
    Library,
    OnnxArtifact,
    Precision,
    Tensors,
    TensorSpec,
    precision_of,
    require_graph,
)
from mlflow_e2eai.artifacts.weight_files import staging_path
from mlflow_e2eai.errors import (
    ArtifactError,
    InvalidInputError,
    PrecisionError,
    RunnerError,
    require_path,
    require_samples,
    require_several,
)
from mlflow_e2eai.precision.bf16_losses import guard_losses
from mlflow_e2eai.precision.calibration import Calibration
from mlflow_e2eai.precision.half import (
    ONNX_TYPES,
    of_libraries,
    prepare,
    to_bf16,
    to_fp16,
    without_half,
)
from mlflow_e2eai.precision.quantize import TYPES, quantize
from mlflow_e2eai.precision.ranges import Fp32Node, Guarded, Reason, guard
from mlflow_e2eai.runtime.isolation import isolated_onnxruntime
from mlflow_e2eai.runtime.storage import storage_errors

if TYPE_CHECKING:
    import onnx


CONVERTERS = {"fp16": to_fp16, "bf16": to_bf16}
"""The converter to each half precision."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class PrecisionReport(Summary):
    """Result of a conversion.

    Attributes:
        precision: The precision of the converted graph.
        samples: Number of samples that the ranges were measured on; 0 for an unguarded graph.
        nodes: Nodes in the main graph before.
        casts: Casts that were added.
        kept: The nodes that stay in fp32, in the graph's order.
        saturated: Values beyond fp16's range that may saturate, as they only mask inputs of a
            Softmax.
        quantized: Nodes whose factors are in int8 or fp8.
        pairs: Pairs of QuantizeLinear and DequantizeLinear that were added.
        calibration: Where the ranges of quantised values come from; None in other precisions.
        refused: Why there is no graph in that precision; None where there is.
    """

    precision: Precision
    samples: int = 0
    nodes: int = 0
    casts: int = 0
    kept: tuple[Fp32Node, ...] = ()
    saturated: tuple[str, ...] = ()
    quantized: int = 0
    pairs: int = 0
    calibration: Calibration | None = None
    refused: str | None = None

    def _line(self) -> str:
        if self.refused is not None:
            return f"{self.precision} refused: {self.refused}"
        kept = f"{len(self.kept)} of {self.nodes} nodes stay in fp32"
        return f"{self.precision}, {kept}, ranges from {self.samples} samples"

    def _table(self) -> Table:
        return Fp32Node, self.kept


@storage_errors()
def convert(
    source: OnnxArtifact,
    precision: Precision,
    *,
    out: Path,
    keep_fp32: Collection[str] = (),
    samples: Iterable[Tensors] = (),
) -> tuple[OnnxArtifact, PrecisionReport]:
    """Write a graph in another precision.

    To fp16 and bf16 see `half.to_half`; for int8 and fp8 see `quantize.quantize`. Each graph is
    checked to have the interface of the one before, and is loaded by ONNX Runtime.

    Args:
        source: A graph in fp32; its file is not changed.
        precision: ``fp16``, ``bf16``, ``int8`` or ``fp8``; or ``fp32``, which returns
            `source`.
        out: The file to write.
        keep_fp32: Nodes that stay in fp32, by the names that `graphs.node_names` gives them;
            `bisect` finds those that must. See `to_half` for what stays in fp32 with them.
        samples: Inputs on which the ranges of all values are measured; nodes out of fp16's range
            stay in fp32 too, see `ranges.guard`, and for bf16 those that lose too much, see
            `bf16_losses.guard_losses`. Read once. Without any, the graph is unguarded. int8 and
            fp8 are calibrated on them, and need some.

    Returns:
        The graph in that precision, with inputs and outputs of the same names, types and shapes;
        and which nodes stayed in fp32, and why.

    Raises:
        InvalidInputError: There is no such precision of a graph, `source` is not in fp32, or it
            has no node of a name in `keep_fp32`.
        PrecisionError: The converter failed, or wrote a graph that does not load, has another
            interface, or has nothing in the requested precision; or `source` does not run on a
            sample. Its `report` has the findings up to the failure.

    Examples:
        >>> half, report = mlflow_e2eai.convert(cleaned, "fp16", out=folder / "fp16.onnx")
        >>> half.precision
        'fp16'
    """
    source, out = require_graph(source), require_path("out", out)
    samples = require_samples(samples)
    names = require_several("keep_fp32", keep_fp32, str, "names of nodes, as a list")
    keep_fp32 = frozenset(names)
    precision = graph_precision_of(precision)
    if source.precision != "fp32":
        msg = f"The graph is in {source.precision}, but one in fp32 is expected; convert that one."
        raise InvalidInputError(msg)
    if precision == "fp32":
        return source, PrecisionReport(precision=precision)
    before = graphs.inline_functions(graphs.read(source.path))
    report = PrecisionReport(precision=precision, nodes=len(before.graph.node))
    _check_names(before, keep_fp32)
    try:
        if precision in TYPES:
            model, report = _quantize(before, keep_fp32, samples, report, source.libraries)
        else:
            before = prepare(before, precision)
            guarded = _guard(precision, before, keep_fp32, samples, source.libraries)
            report = dataclasses.replace(
                report,
                kept=guarded.kept,
                saturated=guarded.saturated,
                samples=guarded.samples,
            )
            model = CONVERTERS[precision](before, keep_fp32=[one.node for one in guarded.kept])
            _require_half(model, precision, before, guarded.kept)
        _check_interface(model, source, precision, before)
        with staging_path(out) as temporary:
            try:
                graphs.write(model, temporary)
                with isolated_onnxruntime(
                    temporary,
                    precision=precision,
                    rounded=precision == "bf16",
                    libraries=source.libraries,
                ):
                    pass
            except (ArtifactError, RunnerError) as error:
                msg = f"The {precision} graph does not load: {error} Keep this model in fp32."
                raise PrecisionError(msg) from error
    except PrecisionError as error:
        error.report = dataclasses.replace(report, refused=str(error))
        raise
    artifact = graphs.describe(
        out,
        stage="convert",
        precision=precision,
        axes=source.axes,
        origins=source.origins,
        parent_sha256=source.sha256,
        libraries=source.libraries,
    )
    casts = graphs.operators(model).get("Cast", 0) - graphs.operators(before).get("Cast", 0)
    return artifact, dataclasses.replace(report, casts=casts)


def _quantize(
    before: onnx.ModelProto,
    keep_fp32: Collection[str],
    samples: Iterable[Tensors],
    report: PrecisionReport,
    libraries: Sequence[Library],
) -> tuple[onnx.ModelProto, PrecisionReport]:
    """The graph in int8 or fp8, and its report."""
    try:
        quantized = quantize(
            before, report.precision, samples, keep_fp32=keep_fp32, libraries=libraries
        )
    except RunnerError as error:
        msg = f"The fp32 graph cannot be calibrated: {error}"
        raise PrecisionError(msg) from error
    return quantized.model, dataclasses.replace(
        report,
        kept=quantized.kept,
        samples=quantized.calibration.samples,
        quantized=quantized.quantized,
        pairs=quantized.pairs,
        calibration=quantized.calibration,
    )


def _require_half(
    model: onnx.ModelProto, precision: Precision, before: onnx.ModelProto, kept: Sequence[Fp32Node]
) -> None:
    """Refuse a graph in a half precision that has nothing in it."""
    if _has(ONNX_TYPES[precision], model):
        return
    in_fp32 = {one.operator for one in kept}
    unknown = [name for name in without_half(before, precision) if name not in in_fp32]
    reasons = [
        f"{len(kept)} of its {len(before.graph.node)} nodes must stay in fp32" if kept else "",
        f"{', '.join(unknown[:3])} cannot be in {precision} at opset {graphs.opset_of(before)}"
        if unknown
        else "",
    ]
    why = " and ".join(filter(None, reasons)) or "none of its nodes computes in fp32"
    msg = f"No part of the graph can be converted to {precision}: {why}; use the fp32 graph."
    raise PrecisionError(msg)


def _check_interface(
    model: onnx.ModelProto, source: OnnxArtifact, precision: Precision, before: onnx.ModelProto
) -> None:
    """Refuse a graph with another interface; gives it the names of sizes of the one before."""
    inputs, outputs = graphs.interface(model)
    if inputs != source.inputs or not _agree(outputs, source.outputs):
        msg = (
            f"The {precision} graph has other inputs or outputs than the fp32 graph; keep the "
            "fp32 graph."
        )
        raise PrecisionError(msg)
    del model.graph.output[:]
    model.graph.output.extend(before.graph.output)


def _guard(
    precision: Precision,
    model: onnx.ModelProto,
    keep_fp32: Collection[str],
    samples: Iterable[Tensors],
    libraries: Sequence[Library],
) -> Guarded:
    """The result of the guard, with the nodes that the caller keeps in fp32."""
    operators = _check_names(model, keep_fp32)
    try:
        guarding = guard_losses if precision == "bf16" else guard
        seen = guarding(model, samples, libraries=libraries)
    except RunnerError as error:
        msg = f"The value ranges of the fp32 graph cannot be measured: {error}"
        raise PrecisionError(msg) from error
    guarded = {one.node: one for one in seen.kept}
    reasons: dict[str, Reason] = {
        **dict.fromkeys(of_libraries(model, libraries), "library"),
        **dict.fromkeys(keep_fp32, "asked for"),
    }
    in_fp32 = {
        name: guarded.get(name) or Fp32Node(node=name, operator=operator, reason=reasons[name])
        for name, operator in operators.items()
        if name in guarded or name in reasons
    }
    return dataclasses.replace(seen, kept=tuple(in_fp32.values()))


def _check_names(model: onnx.ModelProto, keep_fp32: Collection[str]) -> dict[str, str]:
    """Refuse names of missing nodes; returns the operator of each node, by name."""
    operators = {
        name: graphs.operator_name(node.domain, node.op_type)
        for node, name in zip(model.graph.node, graphs.node_names(model), strict=True)
    }
    if unknown := sorted(set(keep_fp32).difference(operators)):
        msg = f"The graph has no node {unknown[0]!r} to keep in fp32; see graphs.node_names."
        raise InvalidInputError(msg)
    return operators


def graph_precision_of(name: str) -> Precision:
    """Read a precision that a graph can be in, by any of its names.

    Raises:
        InvalidInputError: It is unknown, or it is arithmetic of engines only (tf32).
    """
    precision = precision_of(name)
    if precision == "tf32":
        msg = "Only engines compute in tf32; compile the fp32 graph in tf32."
        raise InvalidInputError(msg)
    return precision


def _agree(outputs: Sequence[TensorSpec], wanted: Sequence[TensorSpec]) -> bool:
    """Whether two lists of outputs have the same names, types, ranks and fixed sizes.

    The converter infers shapes, and may fix a size that the exporter left symbolic.
    """
    if [each.interface for each in outputs] != [each.interface for each in wanted]:
        return False
    sizes = [
        pair
        for o, w in zip(outputs, wanted, strict=True)
        for pair in zip(o.shape, w.shape, strict=True)
    ]
    return all(
        one == other for one, other in sizes if isinstance(one, int) and isinstance(other, int)
    )


def _has(kind: str, model: onnx.ModelProto) -> bool:
    import onnx

    half = onnx.TensorProto.DataType.Value(kind)
    return any(tensor.data_type == half for tensor in external_data.tensors(model)) or any(
        node.op_type == "Cast" and any(attribute.i == half for attribute in node.attribute)
        for node in graphs.nodes(model)
    )
