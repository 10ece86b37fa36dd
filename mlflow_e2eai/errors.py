"""Every error that this package raises on purpose.

    E2EAIError
    ├── InvalidInputError (ValueError)        an argument, example, axis, target or file is wrong
    ├── ExportError                           PyTorch could not write the model as ONNX
    ├── SurgeryError                          a rule broke the graph, or could not be applied
    ├── PrecisionError                        a graph could not be converted to another precision
    ├── EngineBuildError                      TensorRT refused the graph
    ├── EngineMismatchError                   an engine is for another GPU or version
    ├── RunnerError                           a model cannot be loaded or run here
    ├── ArtifactError                         a file is missing, changed or of an unknown format
    ├── StorageError                          a file cannot be written: no room, no permission
    ├── TrackingError                         MLflow cannot be reached, or holds something else
    └── MissingDependencyError (ImportError)  a package is not installed

A message is one sentence or two: what was found, what was wanted, what to do next. Programs read
the attributes. A failed parity check or gate is no error: it is a result that says no.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from types import FrameType
from typing import Any

_WORD = re.compile(r"[^\s'\"]+")
_USER = re.compile(r"(?<![^/:])[^/:@]+:(?![/:])[^@]+(?=@)")
"""User and password before an @ where the slashes of a URI are missing."""
_SECRETS = (
    r"(://)[^\s'\"/@:\[]*:(?!\d{1,5}(?!\w))[^\s'\"/]+",  # there is no @, and it is no port
    r"(?i)((?:password|passwd|pwd|signature|secret|token|[_-]key|[?&]sig)=)[^\s'\"&]+",
    r"(?i)(authorization\W{1,5}(?:bearer|basic) )[\w.~+/=-]+",
)
"""Texts that are secrets; group 1 is what stays before one."""

_SECRET_SETTING = re.compile(r"(PASSWORD|PASSWD|TOKEN|SECRET|_KEY)$", re.IGNORECASE)
_LONGEST = 5000
"""Characters of a message, which names of another's files may fill."""
_SHORTEST_SECRET = 6
"""Shorter values of settings are taken for words."""


def without_secrets(text: str) -> str:
    """Replace passwords, tokens and keys in a text by ``***``.

    These are the user information of URIs, also of some that are mistyped, parameters of URIs and
    headers that hold a secret by their name, and the values of environment variables that do.
    """
    text = _WORD.sub(_without_user, text)
    for pattern in _SECRETS:
        text = re.sub(pattern, r"\1***", text)
    for name, value in os.environ.items():
        if len(value) >= _SHORTEST_SECRET and _SECRET_SETTING.search(name):
            text = text.replace(value, "***")
    return text


def _without_user(word: re.Match[str]) -> str:
    """A word without user information, in time that is linear in its length.

    All from the slashes to the last @ goes, as a password may hold an @ or a slash.
    """
    head, at, rest = word[0].rpartition("@")
    if not at:
        return word[0]
    before, slashes, user = head.partition("://")
    kept = f"{before}{slashes}***" if user else head
    return _USER.sub("***", f"{kept}@") + rest


def _without_middle(text: str) -> str:
    """A text of at most some thousand characters, without its middle: its end says what to do."""
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]}… ({len(text) - 2 * half:,} characters left out) …{text[-half:]}"


class E2EAIError(Exception):
    """The root: catch this to catch everything that this package raises on purpose.

    Its message goes to tags, logs and pages, so that it never holds a password or a token.

    Attributes:
        resumable: Whether the same call goes on from where it ended, once its surroundings work.
    """

    resumable = False

    def __init__(self, message: str = "") -> None:
        super().__init__(_without_middle(without_secrets(message)))

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle with all fields: Python would call the constructor with the message alone."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[E2EAIError], args: tuple[Any, ...], fields: dict[str, Any]) -> E2EAIError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


_PAGE = re.compile(r"\.? Response (?:body|text): '?\s*<.*")
"""The end of an error of MLflow where a proxy responded with a page of HTML."""


def brief(error: BaseException, limit: int = 300) -> str:
    """The message of an error on one line, without passwords, tokens and pages of HTML."""
    text = without_secrets(_PAGE.sub("", " ".join(str(error).split())))
    return text if len(text) <= limit else f"{text[:limit]}…"


def shown(value: object, limit: int = 200) -> str:
    """A value of the caller's as it stands in a sentence: quoted, on one line, without secrets."""
    text = without_secrets(repr(str(value)))
    return text if len(text) <= limit else f"{text[:limit]}…'"


def shown_all(values: Iterable[object], most: int = 10) -> str:
    """Several of them, as a list of which a sentence has the first ones."""
    listed = [shown(value, 60) for value in values]
    more = f", {len(listed) - most} more" if len(listed) > most else ""
    return f"[{', '.join(listed[:most])}{more}]"


@contextmanager
def errors_about(subject: object) -> Iterator[None]:
    """Begin the message of an error of the block with its subject, where it does not name that."""
    try:
        yield
    except E2EAIError as error:
        name = shown(subject)[1:-1]
        if not re.search(rf"(?<!\w){re.escape(name)}(?!\w)", str(error)):
            error.args = (f"{name}: {error}",)
        raise


def warn_caller(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line of the user's code that led here, or at none in a command or a server.

    A line of ours, or of MLflow's, would say nothing to the user.
    """
    level = 2
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - as warnings itself does
    while frame is not None and _is_of_library(frame):
        level, frame = level + 1, frame.f_back
    text = _without_middle(without_secrets(message))
    if frame is None:
        warnings.warn_explicit(text, category, "mlflow_e2eai", 1)
    else:
        warnings.warn(text, category, stacklevel=level)


_LIBRARIES = {
    *("mlflow_e2eai", "mlflow", "click", "contextlib", "functools", "runpy", "threading"),
    *("concurrent", "asyncio", "anyio", "starlette", "fastapi", "uvicorn", "flask", "gunicorn"),
}
"""Packages whose lines are no user's; scripts of these names start them."""


def _is_of_library(frame: FrameType) -> bool:
    module = frame.f_globals.get("__package__") or frame.f_globals.get("__name__") or ""
    script = Path(frame.f_code.co_filename)
    is_script = module == "__main__" and not script.suffix
    return (script.name if is_script else module.partition(".")[0]) in _LIBRARIES


def nearest(word: object, known: Iterable[str]) -> str | None:
    """The known word that is most like another, upper and lower case alike; None without one."""
    by_key = {each.casefold(): each for each in known}
    near = difflib.get_close_matches(str(word).casefold(), by_key, n=1)
    return by_key[near[0]] if near else None


def suggestion(word: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown word: the nearest known one, or all of them."""
    words = list(known)
    near = nearest(word, words)
    return f"there are {', '.join(words)}." if near is None else f"did you mean {near}?"


class InvalidInputError(E2EAIError, ValueError):
    """An argument, input example, axis, target or file that the caller gave is wrong."""


def require_kind(name: str, value: Any, kinds: type | tuple[type, ...], wanted: str) -> Any:
    """Refuse an argument of another type than it must have; a bool is no number, NumPy's are.

    Args:
        name: The argument.
        value: Its value.
        kinds: The types that are right.
        wanted: The end of the sentence: what to give.

    Returns:
        The value.

    Raises:
        InvalidInputError: It is of another type.
    """
    if isinstance(value, kinds) and (not isinstance(value, bool) or kinds is bool):
        return value
    if kinds is int and isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    text = without_secrets(repr(value))[:100]
    msg = f"{name} is {text}, of the type {type(value).__name__}; give {wanted}."
    raise InvalidInputError(msg)


def require_several(
    name: str, values: Any, kinds: type | tuple[type, ...], wanted: str
) -> tuple[Any, ...]:
    """Refuse an argument that is no sequence of values of a type; see `require_kind`.

    Returns:
        The values; of a set or generator, too.
    """
    return tuple(require_each(name, values, kinds, wanted))


def require_each(
    name: str, values: Any, kinds: type | tuple[type, ...], wanted: str
) -> Iterator[Any]:
    """As `require_several`, but a value is read, and refused, when it is its turn."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        require_kind(name, values, (), wanted)
    return (require_kind(f"{name} has a value that", each, kinds, wanted) for each in values)


def require_samples(samples: Any) -> Iterator[Any]:
    """Refuse what are no samples, each when it is its turn; see `require_each`."""
    wanted = "a list of samples, each a mapping of input names to arrays"
    return require_each("samples", samples, Mapping, wanted)


def require_path(name: str, value: Any, wanted: str = "the path of a file") -> Path:
    """Refuse an argument that is no path, or an empty one; see `require_kind`."""
    path = require_kind(name, value, (str, os.PathLike), wanted)
    return Path(require_kind(name, os.fspath(path) or None, str, wanted))


def require_flags(**flags: Any) -> None:
    """Refuse flags that are neither True nor False, by name; see `require_kind`."""
    for name, value in flags.items():
        require_kind(name, value, bool, "True or False")


def require_function(
    name: str, value: Any, wanted: str = "a function of named arrays that returns named arrays"
) -> None:
    """Refuse an argument that cannot be called; see `require_kind`."""
    if not callable(value):
        require_kind(name, value, (), wanted)


class ExportError(E2EAIError):
    """PyTorch could not write the model as ONNX, or wrote something other than requested.

    Attributes:
        node: Name of the node whose operator nothing implements; None where that is not the matter.
        operator: That operator with its domain, for example ``devtech::FooOp``.
    """

    def __init__(
        self, message: str, *, node: str | None = None, operator: str | None = None
    ) -> None:
        super().__init__(message)
        self.node = node
        self.operator = operator


class SurgeryError(E2EAIError):
    """A surgery rule broke the graph's interface or numbers, or could not be applied.

    Attributes:
        rule: Name of the rule, or None when the whole plan is meant.
        graphs: Files with the graphs before and after the failing step, where they were saved.
    """

    def __init__(self, message: str, *, rule: str | None = None) -> None:
        super().__init__(message)
        self.rule = rule
        self.graphs: tuple[Path, ...] = ()


class PrecisionError(E2EAIError):
    """A graph could not be converted to another precision.

    Attributes:
        report: The `PrecisionReport` of the findings up to the failure; None where the graph was
            not run.
    """

    def __init__(self, message: str, *, report: Any = None) -> None:
        super().__init__(message)
        self.report = report


class EngineBuildError(E2EAIError):
    """TensorRT refused to parse or build the graph.

    Attributes:
        node: Name of the ONNX node that was refused, or None when TensorRT named none.
        operator: The node's operator with its domain, for example ``devtech::FooOp``.
        reason: TensorRT's own words.
    """

    def __init__(
        self, message: str, *, reason: str, node: str | None = None, operator: str | None = None
    ) -> None:
        super().__init__(message)
        self.node = node
        self.operator = operator
        self.reason = reason


class EngineMismatchError(E2EAIError):
    """An engine cannot run here: it was built for another GPU or TensorRT version.

    Attributes:
        wanted: What the engine needs.
        found: What this machine has.
    """

    def __init__(self, *, wanted: str, found: str) -> None:
        super().__init__(
            f"The engine needs {wanted}, but this machine has {found}; compile one for this "
            "machine, or load the ONNX Runtime variant."
        )
        self.wanted = wanted
        self.found = found


class RunnerError(E2EAIError):
    """A model could not be loaded, or could not be run on the requested device.

    Attributes:
        runner: Name of the failing runner among several, where it is known; else None.
    """

    def __init__(self, message: str, *, runner: str | None = None) -> None:
        super().__init__(message)
        self.runner = runner


class ArtifactError(E2EAIError):
    """A file is missing, has changed since it was recorded, or has an unknown format."""


class StorageError(E2EAIError):
    """A file cannot be written: the disk is full, a limit is reached, or the user may not."""

    resumable = True


class TrackingError(E2EAIError):
    """MLflow could not be reached, or holds something other than what was requested.

    Attributes:
        lost: Whether the server stopped responding in the middle: nothing more is written there.
    """

    def __init__(self, message: str, *, lost: bool = False, resumable: bool = False) -> None:
        super().__init__(message)
        self.lost = lost
        self.resumable = lost or resumable


class MissingDependencyError(E2EAIError, ImportError):
    """A package that this step needs is not installed.

    Attributes:
        package: What could not be imported.
        extra: The extra of mlflow_e2eai that brings it.
    """

    def __init__(self, *, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; "
            f"install it with: pip install 'mlflow_e2eai[{extra}]'"
        )
        self.package = package
        self.extra = extra
