"""Callables that a text names, and what they make."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow_e2eai.errors import InvalidInputError


def call(factory: str) -> Mapping[str, Any]:
    """Call what ``package.module:callable`` or ``path/to/file.py:callable`` names.

    Raises:
        InvalidInputError: There is no such callable, or it returns something else.
    """
    place, _, attribute = factory.rpartition(":")
    if not place or not attribute:
        msg = (
            f"The model is {factory!r}; write package.module:callable or path/to/file.py:callable."
        )
        raise InvalidInputError(msg)
    try:
        made = getattr(_module(place), attribute)()
    except (ImportError, AttributeError, FileNotFoundError) as error:
        msg = f"The model {factory!r} cannot be made: {error}; check the path and the name."
        raise InvalidInputError(msg) from error
    if not isinstance(made, Mapping) or not {"model", "input_example"} <= made.keys():
        msg = f"{factory!r} returned no mapping with 'model' and 'input_example'; return one."
        raise InvalidInputError(msg)
    return made


def _module(place: str) -> Any:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not Path(place).is_file():
        msg = f"there is no file {place}"
        raise ImportError(msg)
    specification = importlib.util.spec_from_file_location(Path(place).stem, place)
    if specification is None or specification.loader is None:
        msg = f"{place} is no Python file"
        raise ImportError(msg)
    module = importlib.util.module_from_spec(specification)
    # Classes of the file are pickled by its name, when torch.export refuses the model.
    sys.modules[specification.name] = module
    specification.loader.exec_module(module)
    return module
