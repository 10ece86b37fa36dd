"""PyTorch models <-> LoggedModels by mlflow.pytorch, with the inputs of later stages."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlflow_e2eai import bundle
from mlflow_e2eai.artifacts import libraries
from mlflow_e2eai.artifacts.arrays import load_several, save_arrays, save_several
from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of, input_specs, resize
from mlflow_e2eai.artifacts.example import GeneratedExample, assumptions_of, generate_example
from mlflow_e2eai.artifacts.files import from_json, parse_json, read_bytes, require_inside, to_json
from mlflow_e2eai.artifacts.sampler import with_samples
from mlflow_e2eai.artifacts.values import Array, Axis, Library, Tensors, TensorSpec
from mlflow_e2eai.errors import ArtifactError, InvalidInputError, TrackingError, brief
from mlflow_e2eai.evaluation.data import EvaluationData, read_evaluation, save_evaluation
from mlflow_e2eai.pytorch import operators as custom
from mlflow_e2eai.pytorch import pytree
from mlflow_e2eai.pytorch.consent import Consent, require_consent
from mlflow_e2eai.pytorch.flat_module import (
    flatten_module,
    input_tree,
    named_samples,
    positional,
    run_module,
)
from mlflow_e2eai.pytorch.module import evaluation_mode, module_of
from mlflow_e2eai.pytorch.pytree import Tree
from mlflow_e2eai.runtime.progress import timed_stage
from mlflow_e2eai.tracking.lineage import ASSUMED, STAGE, fetch
from mlflow_e2eai.tracking.metrics import EVALUATION
from mlflow_e2eai.tracking.models import signature_of
from mlflow_e2eai.tracking.store.logged_sources import log_saved, saved_source

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel

_log = logging.getLogger(__name__)

_EVALUATION = "evaluation.npz"
_AXES = "dynamic_axes.json"
_TREE = "input_tree.json"
_SAMPLES = "samples_at.npz"
_OPERATORS = "operators.onnx"
_LIBRARIES = "libraries.json"
"""File with the digests of the libraries next to it, by file name."""


def log_source(
    model: Any,
    input_example: Any,
    *,
    name: str,
    run_id: str,
    dynamic_axes: DynamicAxes | None = None,
    samples_at: Sequence[Any] = (),
    operators: Sequence[custom.Operator] = (),
    operator_libraries: Sequence[Path] = (),
    evaluation: EvaluationData | None = None,
    fresh: bool = False,
) -> str:
    """Log a PyTorch model by mlflow.pytorch, with the inputs of later stages.

    The format is MLflow's default, pt2, which runs no code when it is loaded; a model that
    `torch.export` refuses (a data-dependent branch), or in which it would lose an operator (a
    ``torch.autograd.Function`` with ``symbolic``), is pickled instead, and a ScriptModule stays
    one. Of a pickle, this process loads again what it wrote; any other asks: see `fetch_source`.

    Args:
        model: A module, ScriptModule or ExportedProgram.
        input_example: Inputs that it accepts.
        name: Name of the LoggedModel.
        run_id: The run that it is an output of.
        dynamic_axes: Logged with the model, for `export`.
        samples_at: Examples at other sizes, logged with the model for later stages.
        operators: Implementations of operators, logged with the model for `export`.
        operator_libraries: Libraries of operators, logged with the model and their digests.
        evaluation: Data that are logged with the model for `evaluate`, if they are small enough;
            the code of metrics is not.
        fresh: Log it although there is one of the same files, which else is linked.

    Returns:
        Its id.
    """
    import torch

    module, example = flatten_module(model, input_example)
    logged, tree = module_of(model), input_tree(module, example)
    if isinstance(logged, torch.fx.GraphModule) and not tree.is_plain:
        # An ExportedProgram cannot be pickled; with its tensors in order it can be pt2 again.
        logged, tree = positional(module, tuple(example), structured=True), pytree.plain(example)
    specs = input_specs(example, dynamic_axes or {})
    others = named_samples(model, input_example, samples_at)
    with_samples(example, others, specs, axes_of(dynamic_axes or {}))  # refuses what does not fit
    sizes = {axis.name: axis.opt for axis in axes_of(dynamic_axes or {})}
    # pt2 makes an axis of size 1 static for good.
    example = dict(resize(example, specs, {k: max(size, 2) for k, size in sizes.items()}))
    with evaluation_mode(module), custom.record_applied() as functions:
        outputs = tuple(
            TensorSpec(name=key, dtype=value.cpu().numpy().dtype.name, shape=("?",) * value.ndim)
            for key, value in run_module(module, example).items()
        )
    signature = signature_of(specs, outputs, named=False)
    assumed = "\n".join(assumptions_of(input_example))
    with (
        timed_stage("log") as line,
        tempfile.TemporaryDirectory() as folder,
        evaluation_mode(module),
    ):
        if others:
            save_several(Path(folder, _SAMPLES), others)
        inputs = example, tree, dynamic_axes
        files = _companions(Path(folder), *inputs, operators, evaluation, run_id)
        described = libraries.describe_libraries(operator_libraries)
        if described:
            digests = {library.path.name: library.sha256 for library in described}
            Path(folder, _LIBRARIES).write_text(json.dumps(digests), encoding="utf-8")
            files += [str(Path(folder, _LIBRARIES)), *(str(library.path) for library in described)]
        with saved_source(
            scripted=isinstance(logged, torch.jit.ScriptModule),
            pytorch_model=logged,
            signature=signature,
            # pt2 has neither nested arguments nor constants, nor operators by `symbolic`.
            input_example=example if tree.is_plain and not functions else None,
            extra_files=files,
        ) as saved:
            tags = {STAGE: "source"} | ({ASSUMED: assumed} if assumed else {})
            model_id, reused = log_saved(saved, name=name, run_id=run_id, tags=tags, fresh=fresh)
        line += [name, *reused]
    return model_id


def _companions(
    folder: Path,
    example: Tensors,
    tree: Tree,
    dynamic_axes: DynamicAxes | None,
    operators: Sequence[custom.Operator],
    evaluation: EvaluationData | None,
    run_id: str,
) -> list[str]:
    save_arrays(folder / bundle.EXAMPLE, example)
    (folder / _TREE).write_text(to_json(tree), encoding="utf-8")
    axes = {
        name: {
            str(at): [axis.name, axis.min, axis.opt, axis.max, axis.multiple, *axis.buckets]
            for at, axis in positions.items()
        }
        for name, positions in (dynamic_axes or {}).items()
    }
    (folder / _AXES).write_text(json.dumps(axes), encoding="utf-8")
    if operators:
        custom.save(operators, folder / _OPERATORS)
    if evaluation is not None:
        whole = save_evaluation(evaluation, folder / _EVALUATION)
        if whole is not None:
            _log_dataset(*whole, run_id)
    return [str(path) for path in sorted(folder.iterdir())]


def _log_dataset(inputs: Tensors, labels: Array | None, run_id: str) -> None:
    """Name evaluation data on a run: their digest, shapes and number, not themselves."""
    from mlflow import MlflowClient
    from mlflow.data.numpy_dataset import from_numpy
    from mlflow.entities import DatasetInput, InputTag
    from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

    # Without labels it takes None, as its code has it.
    dataset = from_numpy(dict(inputs), targets=labels, name="evaluation")  # type: ignore[arg-type]
    tags = [InputTag(MLFLOW_DATASET_CONTEXT, EVALUATION)]
    MlflowClient().log_inputs(run_id, [DatasetInput(dataset._to_mlflow_entity(), tags)])  # noqa: SLF001 - MLflow has no public way to a run that is not active


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggedSource:
    """A PyTorch LoggedModel, downloaded, with the values that were logged with it.

    Attributes:
        load: Loads the module, ScriptModule or ExportedProgram, once.
        structure: Makes the input example: the one that was logged, else MLflow's own, else one
            from the signature.
        arrays: The arrays of the one that was logged, by name; None where it is another.
        dynamic_axes: None where none were logged.
        samples_at: Examples at other sizes.
        operators: Implementations of operators.
        libraries: Libraries of operators.
        evaluation: None where no data were logged.
        assumptions: What the example and the axes assume; see `GeneratedExample`.
        folder: The downloaded files.
    """

    load: Callable[[], Any]
    structure: Callable[[], Any]
    folder: Path
    arrays: Tensors | None = None
    dynamic_axes: DynamicAxes | None = None
    samples_at: tuple[Tensors, ...] = ()
    operators: tuple[custom.Operator, ...] = ()
    libraries: tuple[Library, ...] = ()
    evaluation: EvaluationData | None = None
    assumptions: tuple[str, ...] = ()

    @property
    def model(self) -> Any:
        """The module, ScriptModule or ExportedProgram."""
        return self.load()

    @property
    def input_example(self) -> Any:
        """An example of its inputs, in their structure."""
        return self.structure()


def fetch_source(
    model: LoggedModel, folder: Path, *, allow_pickle: Consent = False
) -> LoggedSource:
    """Download a PyTorch LoggedModel with the values that were logged with it.

    Code of its author runs where `allow_pickle` allows it: see `require_consent`.

    Raises:
        TrackingError: It is no PyTorch model, or has neither an example nor a signature. Where the
            example was logged, that is found when the model is loaded.
        InvalidInputError: It would run code that is not allowed; that, too.
    """
    path = fetch(model, folder)
    load = functools.cache(functools.partial(_load_module, model, path, allow_pickle))
    extra = path / "extra_files"
    if not (extra / bundle.EXAMPLE).is_file():
        module = load()
        example = _mlflow_example(path)
        if example is not None:
            return LoggedSource(load=load, structure=lambda: example, folder=path)
        generated = _generate_example(path, model, module)
        return LoggedSource(
            load=load,
            structure=lambda: tuple(generated.values()),
            folder=path,
            assumptions=generated.assumptions,
        )
    operators = extra / _OPERATORS
    arrays = bundle.read_example(extra)
    return LoggedSource(
        load=load,
        structure=functools.partial(_read_structure, extra / _TREE, arrays),
        folder=path,
        arrays=arrays,
        dynamic_axes=_read_axes(extra / _AXES),
        samples_at=load_several(extra / _SAMPLES) if (extra / _SAMPLES).is_file() else (),
        operators=custom.load(operators) if operators.is_file() else (),
        libraries=_read_libraries(extra),
        evaluation=read_evaluation(extra / _EVALUATION),
        assumptions=tuple(model.tags.get(ASSUMED, "").splitlines()),
    )


def _load_module(model: LoggedModel, path: Path, allow_pickle: Consent) -> Any:
    """The module of a downloaded PyTorch model, by mlflow.pytorch."""
    import mlflow.pytorch
    import torch
    from mlflow.exceptions import MlflowException

    from mlflow_e2eai.tracking import _mlflow

    try:
        configuration = _mlflow.get_flavor_configuration(path, mlflow.pytorch.FLAVOR_NAME)
        file = _file_of(path, str(configuration["model_data"]))
        form = require_consent(file, allow_pickle=allow_pickle)
        if configuration.get("code") and not allow_pickle:
            msg = (
                f"Model {model.model_id} was logged with Python code ({configuration['code']}); if "
                "you trust its author, add allow_pickle=True (--allow-pickle)."
            )
            raise InvalidInputError(msg)
        if form == "weights":
            msg = f"Model {model.model_id} has weights, but no module; log the module itself."
            raise TrackingError(msg)
        with warnings.catch_warnings():
            if form == "TorchScript":
                warnings.filterwarnings("ignore", message="`torch.jit.load` is deprecated")
                return torch.jit.load(str(file)).eval()
            return mlflow.pytorch.load_model(str(path))
    except (MlflowException, ImportError, AttributeError) as error:
        msg = f"Model {model.model_id} cannot be loaded by mlflow.pytorch: {error}"
        raise TrackingError(msg) from error


def _file_of(path: Path, data: str) -> Path:
    """The file that mlflow.pytorch loads, of a model whose MLmodel names this file or folder."""
    require_inside(data, f"The MLmodel file of {path} names {data!r}")
    place = path / data
    if not place.is_dir():
        return place
    return place / ("model.pth" if (place / "model.pth").exists() else "model.pt2")


def _mlflow_example(path: Path) -> Any:
    """The input example that MLflow logged with a model; None if there is none."""
    from mlflow.models import Model

    meta = Model.load(str(path))
    example = meta.load_input_example(str(path)) if meta.saved_input_example_info else None
    known = example is None or isinstance(example, np.ndarray | dict)
    return example if known else np.asarray(example)


def _generate_example(path: Path, model: LoggedModel, module: Any) -> GeneratedExample:
    """An input example from a model's signature, with 2 where that leaves a size open."""
    from mlflow.models import Model

    inputs = Model.load(str(path)).get_input_schema()
    if inputs is None or not inputs.is_tensor_spec():
        msg = (
            f"Model {model.model_id} has neither an input example nor a tensor signature; log it "
            f"with input_example=."
        )
        raise TrackingError(msg)

    def accepts(sample: Tensors) -> bool:
        try:
            flat, named = flatten_module(module, tuple(sample.values()))
            run_module(flat, named, what="a generated example")
        except InvalidInputError:
            return False
        return True

    shapes = {
        spec.name or f"input {position}": (
            tuple(2 if size == -1 else size for size in spec.shape),
            np.dtype(spec.type),
        )
        for position, spec in enumerate(inputs)
    }
    return generate_example(shapes, accepts)


def _read_structure(path: Path, arrays: Tensors) -> Any:
    """The arrays in the structure of the inputs; unchanged where none was logged."""
    if not path.is_file():
        return arrays
    tree = from_json(Tree, read_bytes(path))
    for part in pytree.objects(tree):
        with contextlib.suppress(ImportError):  # `flatten_module` names the missing class
            importlib.import_module(part.text.partition(":")[0])
    return pytree.unflatten(tree, arrays)


def _read_axes(path: Path) -> dict[str, dict[int, Axis]] | None:
    if not path.is_file():
        return None
    try:
        return {
            name: {
                int(at): Axis(
                    axis, min=low, opt=best, max=high, multiple=(*more, 1)[0], buckets=(*more[1:],)
                )
                for at, (axis, low, best, high, *more) in positions.items()
            }
            for name, positions in parse_json(read_bytes(path)).items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise _unreadable(path, error) from error


def _read_libraries(extra: Path) -> tuple[Library, ...]:
    if not (extra / _LIBRARIES).is_file():
        return ()
    try:
        digests = parse_json(read_bytes(extra / _LIBRARIES))
        stored = [Library(path=Path(name), sha256=str(digests[name])) for name in digests]
        return libraries.resolve_libraries(stored, extra)
    except (ValueError, TypeError) as error:
        raise _unreadable(extra / _LIBRARIES, error) from error


def _unreadable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"Cannot read {path}: {brief(error)}; log the PyTorch model again.")
