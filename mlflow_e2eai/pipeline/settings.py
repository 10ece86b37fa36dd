"""Settings of a pipeline, checked before anything is made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path
from typing import Any

from mlflow_e2eai.artifacts.axes import DynamicAxes, axes_of, parse_axes
from mlflow_e2eai.artifacts.build_settings import DEFAULT_BUILD, BuildSettings
from mlflow_e2eai.artifacts.libraries import describe_libraries
from mlflow_e2eai.artifacts.values import Precision, precision_of
from mlflow_e2eai.engine.targets import canonical, check_anywhere, check_here
from mlflow_e2eai.errors import InvalidInputError, require_kind, require_several
from mlflow_e2eai.evaluation.effort import EFFORTS, EvidenceLevel
from mlflow_e2eai.pipeline.options import (
    Option,
    option,
    options_of,
    parse_build_settings,
    parse_choice,
    parse_days,
    parse_nodes,
    parse_paths,
    parse_plan,
    parse_precisions,
    parse_sizes,
    parse_targets,
    parse_whole,
    parse_yes,
)
from mlflow_e2eai.pytorch.operators.operator import Operator, check_operators
from mlflow_e2eai.pytorch.stage import DEFAULT_OPSET, EXPORTERS, Exporter
from mlflow_e2eai.runtime.ort import check_opset
from mlflow_e2eai.surgery.plan import DEFAULT_PLAN, plan_from

EVIDENCE_DAYS = 30
"""Days after which evidence is measured again: drivers, neighbours and clocks change. A choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a pipeline: arguments of `mlflow_e2eai.log_model`, which describes each.

    Raises:
        InvalidInputError: There is no such precision or target, a target takes no plugins, tf32 is
            given without a target, an operator's function is not valid, or a library is missing.
    """

    dynamic_axes: DynamicAxes | None = option(
        None,
        parse_axes,
        text="auto",
        metavar="AXES",
        help="axes whose size may vary, as input:position=name:min:opt:max, with buckets "
        "x:0=N:1:8:64@1+8+32, comma-separated; 'none', or 'auto' for those that the model "
        "was logged with",
    )
    samples_at: Sequence[Any] = ()
    exporter: Exporter = option(
        "auto",
        parse_choice(EXPORTERS),
        metavar="EXPORTER",
        choices=EXPORTERS,
        help="auto, dynamo, trace or script; 'auto' keeps the first whose output matches PyTorch",
    )
    opset: int = option(
        DEFAULT_OPSET, parse_whole, metavar="N", help="version of the ONNX operator set"
    )
    output_names: Sequence[str] | None = None
    operators: Sequence[Operator] = ()
    operator_libraries: Sequence[Path] = option(
        (),
        parse_paths,
        metavar="PATHS",
        help="shared libraries that implement operators for ONNX Runtime, comma-separated; or "
        "'none'",
    )
    plugin_libraries: Sequence[Path] = option(
        (),
        parse_paths,
        metavar="PATHS",
        help="shared libraries with plugins for TensorRT, comma-separated; or 'none'",
    )
    surgery: Sequence[Any] = option(
        DEFAULT_PLAN,
        parse_plan,
        text="default",
        name="plan",
        metavar="FILE",
        help="the cleaning plan: a YAML file, runs:/run_id/plan.yaml, or 'default'",
    )
    precisions: Sequence[Precision] = option(
        ("fp32", "fp16"),
        parse_precisions,
        metavar="NAMES",
        help="precisions of graphs and engines: fp32, tf32, fp16, bf16, int8, fp8, "
        "comma-separated; the graph in fp32 is always made, int8 and fp8 need evaluation data",
    )
    targets: Sequence[str] = option(
        (),
        parse_targets,
        metavar="NAMES",
        help="GPUs to build engines for, comma-separated: 'local' (the GPU here), A100, sm75 to "
        "sm121 or 'rtx' (TensorRT-RTX), H100, trt11:sm90+compatible (TensorRT); or 'none'",
    )
    keep_fp32: Sequence[str] = option(
        (),
        parse_nodes,
        metavar="NODES",
        help="nodes that stay in fp32 in the other precisions, comma-separated, or a file of "
        "them: runs:/run_id/bisection.json; or 'none'",
    )
    batch_sizes: Sequence[int] = option(
        (),
        parse_sizes,
        metavar="SIZES",
        help="batch sizes to measure latency at, besides min, opt and max, comma-separated; or "
        "'none'",
    )
    evidence: EvidenceLevel = option(
        "standard",
        parse_choice(tuple(EFFORTS)),
        metavar="LEVEL",
        choices=tuple(EFFORTS),
        help="how much to compare and measure: quick, standard or thorough",
    )
    build_settings: BuildSettings = option(
        DEFAULT_BUILD,
        parse_build_settings,
        metavar="SETTINGS",
        help="TensorRT's build settings, such as optimization_level=5,threads=2, or a YAML file; "
        "or 'default'",
    )
    rebuild: bool = option(
        False,  # noqa: FBT003 - a default
        parse_yes,
        metavar="yes|no",
        choices=("yes", "no"),
        help="rebuild engines that are already on the tracking server; otherwise they are linked",
    )
    fresh: bool = option(
        False,  # noqa: FBT003 - a default
        parse_yes,
        metavar="yes|no",
        choices=("yes", "no"),
        help="do every stage again; otherwise results of earlier runs are linked where nothing "
        "that they depend on has changed",
    )
    evidence_days: int = option(
        EVIDENCE_DAYS,
        parse_days,
        metavar="DAYS",
        help="days after which the evidence of an earlier run is too old to be linked; 0 measures "
        "again",
    )

    @classmethod
    def of(cls, arguments: Mapping[str, Any]) -> Settings:
        """Take the fields out of the arguments of a function, its `locals`."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    def __post_init__(self) -> None:
        # All of it before any work: a slip must not show after the export only.
        for name, declared in options_of(Settings).items():
            object.__setattr__(self, name, _value_of(declared, getattr(self, name)))
        if self.dynamic_axes is not None:
            axes_of(self.dynamic_axes)
        if self.output_names is not None:
            require_several("output_names", self.output_names, str, "a name for each output")
        object.__setattr__(self, "surgery", plan_from(self.surgery))
        object.__setattr__(self, "operators", check_operators(self.operators))
        object.__setattr__(self, "precisions", tuple(map(precision_of, self.precisions)))
        # Two GPUs of one compute capability are one target.
        object.__setattr__(self, "targets", tuple(dict.fromkeys(map(canonical, self.targets))))
        check_opset(self.opset)
        if any(size < 1 for size in self.batch_sizes):
            msg = f"batch_sizes is {list(self.batch_sizes)}; give sizes of at least 1."
            raise InvalidInputError(msg)
        check_anywhere(self.targets, libraries=describe_libraries(self.plugin_libraries))
        if "tf32" in self.precisions and not self.targets:
            msg = (
                "precisions has tf32, which only engines have, but there are no targets; give "
                "targets to build engines for, or leave tf32 out."
            )
            raise InvalidInputError(msg)
        describe_libraries(self.operator_libraries)
        for step in self.surgery:
            step.bound()

    @property
    def params(self) -> dict[str, str]:
        """The settings by which runs are compared, as MLflow's parameters."""
        axes = axes_of(self.dynamic_axes or {})
        return {
            "exporter": self.exporter,
            "opset": str(self.opset),
            "precisions": ",".join(self.precisions),
            "targets": ",".join(self.targets) or "none",
            "evidence": self.evidence,
            "axes": ", ".join(f"{axis.name} {axis}, opt {axis.opt}" for axis in axes) or "none",
        }

    def check_here(self) -> None:
        """Refuse engines that this machine cannot build.

        Raises:
            InvalidInputError: It cannot build for a target, or not with these build settings.
            MissingDependencyError: A target's TensorRT is not installed.
        """
        libraries = describe_libraries(self.plugin_libraries)
        check_here(self.targets, settings=self.build_settings, libraries=libraries)


_SEVERAL: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "operator_libraries": ((str, PathLike), "paths of shared libraries"),
    "plugin_libraries": ((str, PathLike), "paths of shared libraries"),
    "precisions": (object, "names such as ('fp32', 'fp16')"),
    "targets": (str, "names such as ('A100', 'sm86')"),
    "keep_fp32": (str, "names of nodes"),
    "batch_sizes": (int, "numbers such as (16, 32)"),
}
"""What is in fields that a caller may give as any sequence, and what to give."""

_ONE: Mapping[str, tuple[type, str]] = {
    "opset": (int, f"a number such as {DEFAULT_OPSET}"),
    "evidence": (str, "one of " + ", ".join(EFFORTS)),
    "exporter": (str, "one of " + ", ".join(EXPORTERS)),
    "build_settings": (BuildSettings, "mlflow_e2eai.BuildSettings(...)"),
    "rebuild": (bool, "True or False"),
    "fresh": (bool, "True or False"),
    "evidence_days": (int, "a whole number of days"),
}


def _value_of(declared: Option, value: Any) -> Any:
    """The value of a field, which may be given in its text form too."""
    name = declared.argument
    if isinstance(value, str):
        try:
            value = declared.parse(value)
        except InvalidInputError as error:
            msg = f"{name}: {str(error).rstrip('.')}"
            msg += "" if msg.endswith("?") else "."
            raise InvalidInputError(msg) from error
    if name in _SEVERAL:
        return require_several(name, value, *_SEVERAL[name])
    return require_kind(name, value, *_ONE[name]) if name in _ONE else value
