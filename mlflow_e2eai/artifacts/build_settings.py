"""Settings with which TensorRT builds an engine."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from mlflow_e2eai.artifacts.files import Real, not_default, short_repr
from mlflow_e2eai.errors import InvalidInputError, suggestion

_HIGHEST_LEVEL = 5  # of `IBuilderConfig.builder_optimization_level`

_SOME = "a positive 64-bit integer"


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSettings:
    """Settings of an engine build.

    Attributes:
        optimization_level: How long it looks for fast kernels, 0 to 5; 3 is TensorRT's own.
            TensorRT-RTX 1.6.1 made the same engine at 0 and at 5.
        workspace_bytes: Memory that a kernel may use, its inputs and outputs not counted; None for
            TensorRT's own limit, all of the GPU's. Less memory excludes fast kernels.
        threads: Threads that build; None for as many as TensorRT takes by itself.
        time_limit_s: Seconds after which the build is stopped as one that hangs. Real models took
            TensorRT-RTX up to 12 s; TensorRT times kernels, which takes minutes.
        timing_cache: Whether TensorRT takes timings of kernels from earlier builds, which makes a
            build shorter; an engine that was built without is not another one.
        refit: Whether the engine's weights can be replaced; it cannot fuse what depends on them.
        strip_weights: Whether the weights are left out of the engine, and restored from the graph
            next to it when it is loaded. Like `refit` it needs a GPU where it is built, with
            TensorRT-RTX too.

    Raises:
        InvalidInputError: A value is of another type, or out of its range.

    Examples:
        >>> BuildSettings(optimization_level=5, time_limit_s=600)
        BuildSettings(optimization_level=5, time_limit_s=600)
    """

    optimization_level: int = 3
    workspace_bytes: int | None = None
    threads: int | None = None
    time_limit_s: Real = 3600.0
    timing_cache: bool = True
    refit: bool = False
    strip_weights: bool = False

    def __post_init__(self) -> None:
        level, limit = self.optimization_level, self.time_limit_s
        for name, wanted, fits in (
            ("optimization_level", "0 to 5", _is_whole(level) and 0 <= level <= _HIGHEST_LEVEL),
            ("workspace_bytes", _SOME, _is_some_or_none(self.workspace_bytes)),
            ("threads", _SOME, _is_some_or_none(self.threads)),
            ("time_limit_s", "a number of seconds", _is_time(limit)),
            ("timing_cache", "True or False", isinstance(self.timing_cache, bool)),
            ("refit", "True or False", isinstance(self.refit, bool)),
            ("strip_weights", "True or False", isinstance(self.strip_weights, bool)),
        ):
            if not fits:
                msg = f"{name} is {getattr(self, name)!r}, but {wanted} is expected."
                raise InvalidInputError(msg)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> BuildSettings:
        """Take settings by name.

        Raises:
            InvalidInputError: There is no such setting, or a value is wrong.
        """
        known = [field.name for field in fields(cls)]
        for name in settings:
            if name not in known:
                msg = f"There is no build setting {name!r}; {suggestion(name, known)}"
                raise InvalidInputError(msg)
        return cls(**settings)

    @classmethod
    def parse(cls, text: str) -> BuildSettings:
        """Read ``name=value`` with commas between, the text that `str` writes.

        Raises:
            InvalidInputError: It is something else, or a value is wrong.
        """
        return cls.of(dict(_pair(part) for part in text.split(",")))

    @property
    def not_default(self) -> dict[str, Any]:
        """The settings that differ from the default, by name."""
        return not_default(self)

    def __repr__(self) -> str:
        """The settings that differ from the default."""
        return short_repr(self)

    def __str__(self) -> str:
        """The settings that differ from the default, as the command line takes them."""
        words = {True: "yes", False: "no"}
        given = (
            f"{name}={words[value] if isinstance(value, bool) else value}"
            for name, value in self.not_default.items()
        )
        return ",".join(given) or "default"


def _pair(text: str) -> tuple[str, Any]:
    """A name and its value, read as YAML reads it."""
    from mlflow_e2eai.artifacts import yaml_nodes

    name, separator, value = text.partition("=")
    with contextlib.suppress(InvalidInputError):
        if separator:
            return name.strip(), yaml_nodes.load(value, name)
    msg = f"{text!r} is not a build setting; write name=value, or a YAML file with name: value."
    raise InvalidInputError(msg)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_some_or_none(value: int | None) -> bool:
    return value is None or (_is_whole(value) and 0 < value < 2**63)


def _is_time(value: float) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and value > 0


DEFAULT_BUILD = BuildSettings()
