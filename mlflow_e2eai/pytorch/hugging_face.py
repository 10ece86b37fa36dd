"""Models in folders of Hugging Face weights, loaded from disk alone, without code of theirs."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.files import parse_json, read_bytes, reading_error
from mlflow_e2eai.artifacts.values import Axis, Tensors
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, MissingDependencyError, brief
from mlflow_e2eai.pytorch.module import parameter_names

CONFIG = "config.json"
"""The file that tells such a folder."""

_SENTENCES = ("The report names every engine.", "It was measured on this machine today, twice.")
_LENGTH, _LONGEST = 16, 128
"""Tokens of the example, whose sentences take less and are padded; and tokens at most. A model that
takes fewer gets its own."""
_TEXTS, _IMAGES = Axis("N", min=1, opt=4, max=16), Axis("N", min=1, opt=8, max=64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainedModel:
    """A model of a folder, with an example and axes that nobody gave.

    Attributes:
        model: The module.
        example: An array for each input; empty where none can be made.
        source: Where the example comes from, as a noun.
        axes: Axes that go with it.
    """

    model: Any
    example: Tensors
    source: str
    axes: DynamicAxes


def load_pretrained(folder: Path) -> PretrainedModel:
    """Load a folder of Hugging Face weights.

    The class is that of ``architectures`` in its config.json, else `AutoModel`'s. Code in the
    folder is not run, and nothing is downloaded. The example is of text where the folder has a
    tokenizer, of an image where the configuration has its size.

    Raises:
        InvalidInputError: The folder is not one that transformers can load.
        MissingDependencyError: Transformers is not installed.
    """
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        purpose = "Loading a folder of Hugging Face weights"
        raise MissingDependencyError(
            package="transformers", extra="transformers", purpose=purpose
        ) from error
    kind = _architecture(folder)
    known = getattr(transformers, kind, None) or transformers.AutoModel
    progress = transformers.utils.logging
    progress.disable_progress_bar()
    try:
        model, found = known.from_pretrained(
            str(folder), local_files_only=True, dtype="float32", output_loading_info=True
        )
    except Exception as error:  # transformers may raise anything
        msg = f"transformers cannot load {folder} as {kind or 'a model'}: {brief(error)}"
        raise InvalidInputError(msg) from error
    finally:
        progress.enable_progress_bar()
    if missing := sorted(found["missing_keys"]):
        msg = (
            f"{folder} has no weights for {missing[0]} and {len(missing) - 1} more, so "
            f"{known.__name__} would run with random ones; give the folder of a trained model."
        )
        raise InvalidInputError(msg)
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # a cache is an object, and no output of a graph
    return _with_text(transformers, model, folder) or _with_image(model)


def _architecture(folder: Path) -> str:
    try:
        config = parse_json(read_bytes(folder / CONFIG))
        return str((config.get("architectures") or [""])[0])
    except (ArtifactError, ValueError, AttributeError, LookupError) as error:
        msg = f"Cannot read {folder / CONFIG}: {reading_error(error)}; give a folder of weights."
        raise InvalidInputError(msg) from error


def _with_text(transformers: Any, model: Any, folder: Path) -> PretrainedModel | None:
    """A model of text with an example that its tokenizer makes; None without a tokenizer."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        return None
    longest = min(int(getattr(model.config, "max_position_embeddings", _LONGEST)), _LONGEST)
    length = min(_LENGTH, longest)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokens = tokenizer(
            list(_SENTENCES),
            padding="max_length",
            truncation=True,
            max_length=length,
            return_tensors="np",
        )
    except Exception as error:  # the same
        msg = f"transformers cannot load the tokenizer in {folder}: {brief(error)}"
        raise InvalidInputError(msg) from error
    accepted = parameter_names(model)
    example = {
        name: np.asarray(array, np.int64) for name, array in tokens.items() if name in accepted
    }
    return PretrainedModel(
        model=model,
        example=example,
        source=f"two sentences of {length} tokens through the folder's tokenizer",
        axes={
            name: {0: _TEXTS, 1: Axis("S", min=min(8, length), opt=length, max=longest)}
            for name in example
        },
    )


def _with_image(model: Any) -> PretrainedModel:
    """A model of images with noise of the size that its configuration has."""
    size = getattr(model.config, "image_size", None)
    if model.main_input_name != "pixel_values" or size is None:
        return PretrainedModel(model=model, example={}, source="", axes={})
    height, width = size if isinstance(size, list | tuple) else (size, size)
    shape = (2, getattr(model.config, "num_channels", 3), height, width)
    return PretrainedModel(
        model=model,
        example={"pixel_values": np.random.default_rng(0).standard_normal(shape, np.float32)},
        source=f"noise of shape {list(shape)}",
        axes={"pixel_values": {0: _IMAGES}},
    )
