"""PyTorch models from callables by name."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_e2eai.errors import InvalidInputError, suggestion


def call(factory: str) -> Mapping[str, Any]:
    """Call ``package.module:callable`` or ``path/to/file.py:callable``.

    Raises:
        InvalidInputError: There is no such callable, or it returns something else.
    """
    path, _, attribute = factory.rpartition(":")
    if not path or not attribute:
        msg = (
            f"The model is {factory!r}; write package.module:callable or path/to/file.py:callable."
        )
        raise InvalidInputError(msg)
    try:
        function = getattr(module := _module(path), attribute, None)
        if not callable(function):
            own = [name for name, value in vars(module).items() if _is_defined_in(module, value)]
            hint = suggestion(attribute, own) if own else "write one, which returns a model."
            msg = f"There is no callable {attribute!r} in {path}; {hint}"
            raise InvalidInputError(msg)
        description = function()
    except (ImportError, AttributeError, FileNotFoundError) as error:
        msg = f"The model {factory!r} cannot be created: {error}; check the path and the name."
        raise InvalidInputError(msg) from error
    if not isinstance(description, Mapping) or not {"model", "input_example"} <= description.keys():
        msg = f"{factory!r} must return a mapping with 'model' and 'input_example'."
        raise InvalidInputError(msg)
    return description


def _is_defined_in(module: Any, value: Any) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _module(path: str) -> Any:
    if not path.endswith(".py"):
        return importlib.import_module(path)
    if not Path(path).is_file():
        msg = f"there is no file {path}"
        raise ImportError(msg)
    specification = importlib.util.spec_from_file_location(Path(path).stem, path)
    if specification is None or specification.loader is None:
        msg = f"{path} is not a Python file"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(specification)
    # Classes of the file are pickled by its name, when torch.export refuses the model.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
