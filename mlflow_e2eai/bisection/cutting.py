"""A piece of a graph, as a graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlflow_e2eai import graphs
from mlflow_e2eai.artifacts import OnnxArtifact
from mlflow_e2eai.errors import ArtifactError, InvalidInputError


def cut(
    source: OnnxArtifact, *, inputs: Sequence[str], outputs: Sequence[str], out: Path
) -> OnnxArtifact:
    """Write the part of a graph between some of its values.

    An engine can be searched so without marking outputs inside it: each piece is built by itself,
    fed with what ONNX Runtime gives at its inputs, and judged by its own outputs. What is fused
    across the cut is not seen.

    Args:
        source: The graph; its file is not changed.
        inputs: Values where the piece begins; everything that it needs must come from them or from
            weights.
        outputs: Values where it ends.
        out: The file to write.

    Returns:
        The piece. Its axes are those of the source that its inputs name.

    Raises:
        InvalidInputError: There is no such value, its type or shape is not known, or the piece
            needs more inputs than these.
    """
    import onnx
    from onnx.utils import Extractor

    model = onnx.shape_inference.infer_shapes(graphs.read(source.path))
    known = {
        value.name: value
        for value in [*model.graph.input, *model.graph.value_info, *model.graph.output]
    }
    for name in (*inputs, *outputs):
        if name not in known:
            msg = f"The graph has no value {name!r} of known type to cut at; see its node outputs."
            raise InvalidInputError(msg)
    piece = Extractor(model).extract_model(list(inputs), list(outputs))
    try:
        graphs.write(piece, out)
    except ArtifactError as error:
        msg = f"From {list(inputs)} alone {list(outputs)} cannot be computed: {error}"
        raise InvalidInputError(msg) from error
    found = graphs.interface(piece)[0]
    named = {size for spec in found for size in spec.shape}
    return graphs.describe(
        out,
        stage="clean",
        precision=source.precision,
        axes=tuple(axis for axis in source.axes if axis.name in named),
        parent_sha256=source.sha256,
    )
