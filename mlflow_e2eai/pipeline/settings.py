"""What to make of a model, checked before anything is made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from mlflow_e2eai.artifacts.axes import DynamicAxes
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import Precision
from mlflow_e2eai.engine.targets import check_anywhere, check_here
from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.precision.stage import check_precision
from mlflow_e2eai.pytorch.operators.operator import Operator
from mlflow_e2eai.pytorch.stage import DEFAULT_OPSET, Exporter
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, Step, plan_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Options of a pipeline.

    Attributes:
        dynamic_axes: Axes whose size may vary, by input name and position.
        exporter: See `mlflow_e2eai.export`.
        opset: The same.
        output_names: The same.
        operators: The same.
        operator_libraries: The same.
        plugin_libraries: See `mlflow_e2eai.compile`. ONNX Runtime knows no plugins, so their
            operators need a function too.
        surgery: The cleaning plan: steps, or a list as YAML gives it.
        precisions: What to make graphs and engines in; the graph in fp32 is always made, and
            ``tf32`` makes engines of it.
        targets: What to build engines for.
        keep_fp32: Nodes that stay in fp32 in the other precisions; see `mlflow_e2eai.convert`.
        batch_sizes: Sizes of the leading axis at which latency is measured too.
        build_settings: How engines are built.
        rebuild: Build engines that the tracking server holds already.

    Raises:
        InvalidInputError: There is no such precision or target, a target takes no plugins, tf32 is
            wanted without a target, an operator's function is not valid, or a library is not
            there.
    """

    dynamic_axes: DynamicAxes | None = None
    exporter: Exporter = "auto"
    opset: int = DEFAULT_OPSET
    output_names: Sequence[str] | None = None
    operators: Sequence[Operator] = ()
    operator_libraries: Sequence[Path] = ()
    plugin_libraries: Sequence[Path] = ()
    surgery: Sequence[Step] = DEFAULT_PLAN
    precisions: Sequence[Precision] = ("fp32", "fp16")
    targets: Sequence[str] = ()
    keep_fp32: Sequence[str] = ()
    batch_sizes: Sequence[int] = ()
    build_settings: BuildSettings = DEFAULT_BUILD
    rebuild: bool = False

    def __post_init__(self) -> None:
        for name in _SEVERAL:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "surgery", plan_from(self.surgery))
        # All of it before any work: nobody wants to learn of a typing error after the export.
        for precision in self.precisions:
            check_precision(precision)
        check_anywhere(self.targets, libraries=describe_libraries(self.plugin_libraries))
        if "tf32" in self.precisions and not self.targets:
            msg = (
                "precisions names tf32, which is how an engine computes, and there are no targets; "
                "give targets to build engines for, or leave tf32 out."
            )
            raise InvalidInputError(msg)
        for operator in self.operators:
            operator.proto()
        describe_libraries(self.operator_libraries)
        for step in self.surgery:
            step.bound()

    def check_here(self) -> None:
        """Refuse engines that this machine cannot build.

        Raises:
            InvalidInputError: It cannot build for a target, or not with these build settings.
            MissingDependencyError: A target's TensorRT is not installed.
        """
        libraries = describe_libraries(self.plugin_libraries)
        check_here(self.targets, settings=self.build_settings, libraries=libraries)


_SEVERAL = (
    "operators",
    "operator_libraries",
    "plugin_libraries",
    "precisions",
    "targets",
    "keep_fp32",
    "batch_sizes",
)
"""Fields that a caller may give as any sequence."""


class SettingsArguments(TypedDict, total=False):
    """The fields of `Settings`, as a caller gives them."""

    dynamic_axes: DynamicAxes | None
    exporter: Exporter
    opset: int
    output_names: Sequence[str] | None
    operators: Sequence[Operator]
    operator_libraries: Sequence[Path]
    plugin_libraries: Sequence[Path]
    surgery: Sequence[Any]
    precisions: Sequence[Precision]
    targets: Sequence[str]
    keep_fp32: Sequence[str]
    batch_sizes: Sequence[int]
    build_settings: BuildSettings
    rebuild: bool
