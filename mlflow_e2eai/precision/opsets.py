"""Graphs in a later operator set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data, graphs
from mlflow_e2eai.errors import PrecisionError

if TYPE_CHECKING:
    import onnx

_IR_VERSIONS = ((19, 9), (21, 10), (23, 11))
"""The IR version that came with an operator set and all that follow it; see ONNX's table of
versions."""

_SCAN_WITHOUT_BATCH = 9
_OPSET_WITHOUT_KERNELS = 22
_WITHOUT_KERNELS = frozenset(
    {
        *("Bernoulli", "GlobalLpPool", "MaxRoiPool", "Multinomial", "RandomNormal"),
        *("RandomNormalLike", "RandomUniform", "RandomUniformLike", "RoiAlign"),
    }
)
"""Operators that ONNX Runtime 1.31 has for the CPU up to opset 21, but not from 22 on."""


def raise_opset(model: onnx.ModelProto, opset: int, precision: str) -> onnx.ModelProto:
    """A copy of a model with at least this operator set; named nodes keep their names.

    Args:
        model: The model.
        opset: The operator set.
        precision: The precision that needs it, for the error.

    Raises:
        PrecisionError: ONNX's converter of versions cannot raise it.
    """
    import onnx

    raised = onnx.ModelProto()
    raised.CopyFrom(model)
    if (before := graphs.opset_of(model)) >= opset:
        return raised
    try:
        _require_adapters(model, before)
        raised.CopyFrom(onnx.version_converter.convert_version(raised, opset))
        raised.ir_version = max(
            model.ir_version, *(ir for first, ir in _IR_VERSIONS if first <= opset), 0
        )
        onnx.checker.check_model(external_data.skeleton(raised))
    except Exception as error:  # the converter is native code, whose errors share no base class
        reason = " ".join(str(error).split())[:200]
        msg = (
            f"{precision} takes opset {opset}, but the graph cannot be converted to it from "
            f"{before}; export it with opset={opset}. Reason of ONNX's converter: {reason}"
        )
        raise PrecisionError(msg) from error
    return raised


def _require_adapters(model: onnx.ModelProto, opset: int) -> None:
    """Refuse what ONNX's converter changes the meaning of: Scan had a batch axis up to opset 8."""
    if opset < _SCAN_WITHOUT_BATCH and any(n.op_type == "Scan" for n in graphs.nodes(model)):
        msg = "Scan takes other inputs from opset 9 on."
        raise ValueError(msg)


def has_kernels(model: onnx.ModelProto) -> bool:
    """Whether ONNX Runtime runs each operator of a raised graph that it ran before."""
    at_22 = graphs.opset_of(model) >= _OPSET_WITHOUT_KERNELS
    return not (at_22 and any(node.op_type in _WITHOUT_KERNELS for node in graphs.nodes(model)))
