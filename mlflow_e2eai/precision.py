"""ONNX -> ONNX in another precision, with the interface kept in fp32.

Precision is a property of the graph, not a flag of the builder: TensorRT 11 and TensorRT-RTX build
strongly typed networks only, and TensorRT 10 can be asked for the same.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import PRECISIONS, OnnxArtifact, Precision
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, PrecisionError, RunnerError
from mlflow_e2eai.files import written
from mlflow_e2eai.runners import onnxruntime_runner

if TYPE_CHECKING:
    import onnx


def convert(source: OnnxArtifact, precision: Precision, *, out: Path) -> OnnxArtifact:
    """Write a graph in another precision.

    The converter is ONNX Runtime's own (``onnxruntime.transformers.float16``). What it writes does
    not count until ONNX Runtime has loaded it: converters of this kind are known to write graphs
    that do not load when an output is also read inside the graph.

    Args:
        source: A graph in fp32; its file is not changed.
        precision: ``fp16``, or ``fp32``, which gives `source` back as it is.
        out: The file to write.

    Returns:
        The graph in that precision, with inputs and outputs of the same names and types.

    Raises:
        InvalidInputError: The precision is unknown, or `source` is not in fp32.
        PrecisionError: The converter failed, or wrote a graph that does not load, has another
            interface, or has nothing in the precision asked for.
    """
    import onnx_graphsurgeon as gs

    check_precision(precision)
    if source.precision != "fp32":
        msg = f"The graph is in {source.precision}, but one in fp32 is wanted; convert that one."
        raise InvalidInputError(msg)
    if precision == "fp32":
        return source
    before = graphs.read(source.path)
    # The converter appends its casts at the end, and nodes must stand in the order of their use.
    model = graphs.to_onnx(gs.import_onnx(_to_fp16(before)), like=before)
    if graphs.interface(model) != (source.inputs, source.outputs):
        msg = "The fp16 graph has other inputs or outputs than the fp32 graph; keep it in fp32."
        raise PrecisionError(msg)
    with written(out) as temporary:
        try:
            graphs.write(model, temporary)
            with onnxruntime_runner(temporary):
                pass
        except (ArtifactError, RunnerError) as error:
            msg = f"The fp16 graph does not load: {error} Keep this model in fp32."
            raise PrecisionError(msg) from error
    return graphs.describe(
        out,
        stage="convert",
        precision=precision,
        axes=source.axes,
        parent_sha256=source.sha256,
    )


def check_precision(precision: str) -> None:
    """Refuse a precision that there is not.

    Raises:
        InvalidInputError: It is not one of `PRECISIONS`.
    """
    if precision not in PRECISIONS:
        msg = f"The precision is {precision!r}, but one of {', '.join(PRECISIONS)} is wanted."
        raise InvalidInputError(msg)


def _to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    chatter = logging.getLogger("onnxruntime.transformers.float16")
    level = chatter.level
    chatter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            converted: onnx.ModelProto = convert_float_to_float16(model, keep_io_types=True)
    except Exception as error:  # the converter raises whatever happened inside
        msg = f"The fp16 converter failed: {type(error).__name__}: {error}; keep it in fp32."
        raise PrecisionError(msg) from error
    finally:
        chatter.setLevel(level)
    half = onnx.TensorProto.FLOAT16
    if not any(weight.data_type == half for weight in converted.graph.initializer) and not any(
        node.op_type == "Cast" and any(attribute.i == half for attribute in node.attribute)
        for node in converted.graph.node
    ):
        msg = "The graph has nothing that fp16 could hold, so it would say fp16 and not be it."
        raise PrecisionError(msg)
    return converted
