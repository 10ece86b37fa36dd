"""Crashes of worker processes as folders: the end of the log, the inputs, a reproduction.

A folder has up to five kinds of file:

crash.txt     how the process ended, with the versions of the libraries
log.txt       the last lines that it wrote to stdout and stderr
sample.npz    the inputs of its last call of a runner
graph.onnx    the graph, with its weight files; or a plan of TensorRT
reproduce.py  ``python reproduce.py`` does the same with the libraries alone
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pprint import pformat
from typing import Any, TypeAlias

from mlflow_e2eai.artifacts.arrays import save_arrays
from mlflow_e2eai.artifacts.files import sha256_of
from mlflow_e2eai.artifacts.values import Tensors
from mlflow_e2eai.artifacts.weight_files import weight_names
from mlflow_e2eai.errors import brief, without_secrets

LOG_LINES = 200

LARGEST_BYTES = 256 << 20
"""Larger files are not copied: their digests are in ``files.sha256``, as ``sha256sum -c`` reads it.
Samples of more are left out."""

_LIBRARIES = ("cuda", "numpy", "onnx", "tensorrt", "torch")
"""How the names begin of distributions whose versions matter to a crash."""

_log = logging.getLogger(__name__)

Keep: TypeAlias = Callable[[Path], str]
"""Copies a folder to where it stays; returns that place in words."""

Write: TypeAlias = Callable[[Path], None]
"""Writes a reproduction into a folder."""

_keepers: list[tuple[int, Keep]] = []


@contextmanager
def crashes_saved(keep: Keep) -> Iterator[None]:
    """Have the crashes of the block kept; a block inside another one comes first."""
    entry = (threading.get_ident(), keep)
    _keepers.append(entry)
    try:
        yield
    finally:
        _keepers.remove(entry)


def keep_crash(reason: str, log: str, sample: Tensors | None, write: Write) -> str:
    """Keep a crash where a block of `crashes_saved` says; what fails at that is a warning.

    Args:
        reason: How the process ended.
        log: What it had written.
        sample: The inputs of its last call.
        write: Writes the reproduction, if there is one.

    Returns:
        A sentence that says where it is, with a space in front; nothing outside such a block.
    """
    keepers = list(_keepers)
    own = [keep for thread, keep in keepers if thread == threading.get_ident()]
    keep = next(reversed(own or [keep for _, keep in keepers]), None)
    if keep is None:
        return ""
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            _write_text(folder / "log.txt", log.splitlines()[-LOG_LINES:])
            notes = [reason, *_write_sample(folder, sample), *_reproduction(folder, write)]
            _write_text(folder / "crash.txt", [*notes, *_versions()])
            has_script = _script(folder).exists()
            what = "Its log and a reproduction are in" if has_script else "Its log is in"
            return f" {what} {keep(folder)}."
    except Exception as error:  # noqa: BLE001 - the crash is the error to show
        _log.warning("The crash could not be kept: %s", brief(error))
        return ""


def _write_sample(folder: Path, sample: Tensors | None) -> Iterator[str]:
    if sample and sum(array.nbytes for array in sample.values()) <= LARGEST_BYTES:
        save_arrays(folder / "sample.npz", sample)
    elif sample:
        yield f"The inputs are larger than {LARGEST_BYTES >> 20} MiB, and are left out."


def _reproduction(folder: Path, write: Write) -> Iterator[str]:
    try:
        write(folder)
    except Exception as error:  # noqa: BLE001 - the log is of use without it
        yield f"The reproduction is not complete: {brief(error)}"
    if (folder / _DIGESTS).exists():
        yield (
            f"Files of {_DIGESTS} are larger than {LARGEST_BYTES >> 20} MiB, and are not here: take"
            f" them from the model in MLflow, put them here and compare them by `sha256sum -c`."
        )


def _versions() -> list[str]:
    names = {
        str(each.metadata["Name"]): each.version for each in importlib.metadata.distributions()
    }
    lines = [f"{name} {names[name]}" for name in sorted(names) if name.startswith(_LIBRARIES)]
    return [platform.platform(), f"Python {platform.python_version()}", *lines]


def _write_text(path: Path, lines: list[str]) -> None:
    text = without_secrets("".join(f"{line}\n" for line in lines))
    path.write_text(text, encoding="utf-8", errors="replace")


# Reproductions. The process that writes one may crash too: the script comes last.

_DIGESTS = "files.sha256"

_place: list[Path] = []
"""The folder of the reproduction that this process writes."""


@contextmanager
def native_calls_written(folder: Path) -> Iterator[None]:
    """Write a reproduction of each native call of the block before it, in place of the last."""
    _place.append(folder)
    try:
        yield
    finally:
        _place.pop()


def before_native(write: Write) -> None:
    """Have a reproduction of the native call that follows written, where one is looked for."""
    if _place:
        write(_place[-1])


def add_file(folder: Path, file: Path, name: str) -> None:
    """Copy a file, or note the digest of a large one."""
    if file.stat().st_size <= LARGEST_BYTES:
        shutil.copyfile(file, folder / name)
        return
    with (folder / _DIGESTS).open("a", encoding="utf-8") as digests:
        digests.write(f"{sha256_of(file)}  {name}\n")


def add_graph(folder: Path, graph: Path | bytes, weights: Path) -> None:
    """Write ``graph.onnx`` and its weight files.

    Args:
        folder: The folder of the reproduction.
        graph: The graph, or its file.
        weights: The folder of its weight files.
    """
    (folder / _DIGESTS).unlink(missing_ok=True)
    if isinstance(graph, bytes):
        (folder / "graph.onnx").write_bytes(graph)
    else:
        add_file(folder, graph, "graph.onnx")
    for name in weight_names(graph):
        add_file(folder, weights / name, Path(name).name)


def add_script(folder: Path, text: str, **values: Any) -> None:
    """Write ``reproduce.py``: its arguments as constants, in capitals, and then a text."""
    lines = [f"{name.upper()} = {pformat(value)}" for name, value in values.items()]
    script = "\n".join([_IMPORTS, *lines, "", text.strip(), ""])
    _script(folder).write_text(script, encoding="utf-8")


def _script(folder: Path) -> Path:
    return folder / "reproduce.py"


_IMPORTS = '''"""Reproduces the crash of crash.txt."""

import os
from pathlib import Path

import numpy as np

os.chdir(Path(__file__).parent)
'''

_SESSION = """
import onnxruntime

options = onnxruntime.SessionOptions()
options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, LEVEL)
for key, value in ENTRIES.items():
    options.add_session_config_entry(key, value)
for library in LIBRARIES:
    options.register_custom_ops_library(os.path.abspath(library))
session = onnxruntime.InferenceSession("graph.onnx", options, **ARGUMENTS)
if os.path.exists("sample.npz"):
    with np.load("sample.npz") as sample:
        inputs = {each.name: sample[each.name] for each in session.get_inputs()}
    for _ in range(REPEATS):
        session.run(OUTPUTS, inputs)
"""

_REPEATS = 10
"""Calls of a reproduction: some crashes are not of the first one."""


def write_session(
    folder: Path,
    *,
    graph: Path | bytes,
    weights: Path,
    level: str,
    entries: Mapping[str, str],
    libraries: Sequence[Path],
    arguments: Mapping[str, Any],
    outputs: Sequence[str] | None = None,
) -> None:
    """Write a session of ONNX Runtime as a reproduction.

    Args:
        folder: The folder of the reproduction.
        graph: The graph, or its file.
        weights: The folder of its weight files.
        level: Name of a `GraphOptimizationLevel`.
        entries: Its configuration by key.
        libraries: Libraries with operators.
        arguments: Further arguments of `InferenceSession`.
        outputs: The outputs to compute; None for all.
    """
    add_graph(folder, graph, weights)
    for library in libraries:
        add_file(folder, library, library.name)
    add_script(
        folder,
        _SESSION,
        level=level,
        entries=dict(entries),
        libraries=[library.name for library in libraries],
        arguments=dict(arguments),
        outputs=None if outputs is None else list(outputs),
        repeats=_REPEATS,
    )
