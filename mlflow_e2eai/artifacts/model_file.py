"""ONNX files as they are: loaded, checked, and of a version that all libraries read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mlflow_e2eai.artifacts import external_data
from mlflow_e2eai.artifacts.files import reading_error
from mlflow_e2eai.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

_IR_VERSION = 4
"""From here on weights need not be inputs, and one that is may be replaced by the caller."""


def load(path: Path) -> onnx.ModelProto:
    """Read an ONNX file with its weights, without ONNX's checker; see `graphs.read`.

    Raises:
        ArtifactError: It is missing or is no ONNX file; or a file of its weights is missing, too
            short, or outside its folder.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
        external_data.fetch(model, path)
    except ArtifactError:
        raise
    except FileNotFoundError as error:
        msg = f"There is no file {path}; check the path."
        raise ArtifactError(msg) from error
    except OSError as error:
        msg = f"Cannot read {path}: {reading_error(error)}; give an ONNX file."
        raise ArtifactError(msg) from error
    except Exception as error:  # protobuf's errors share no base class
        raise _invalid(path, error) from error
    if not path.stat().st_size:
        raise _invalid(path, EOFError())
    return model


def check_structure(model: onnx.ModelProto, path: Path) -> None:
    """Check a model of `load` by ONNX's rules, but for types and shapes inside.

    Raises:
        ArtifactError: It breaks one.
    """
    import onnx

    try:
        onnx.checker.check_model(external_data.skeleton(model))
    except Exception as error:  # protobuf's and onnx's errors share no base class
        raise _invalid(path, error) from error


def _invalid(path: Path, error: Exception) -> ArtifactError:
    is_empty = path.stat().st_size == 0
    message = "it is empty" if is_empty else str(error).strip() or type(error).__name__
    reason = message.splitlines()[0].rstrip(" .:")
    return ArtifactError(f"{path.name} is not a valid ONNX file: {reason}; export it again.")


def raise_ir_version(model: onnx.ModelProto) -> bool:
    """Raise a model to IR version 4, where weights are no inputs; whether there was need to."""
    weights = {weight.name for weight in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if model.ir_version >= _IR_VERSION and len(inputs) == len(model.graph.input):
        return False
    model.ir_version = max(model.ir_version, _IR_VERSION)
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    return True
