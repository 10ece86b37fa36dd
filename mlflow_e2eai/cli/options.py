"""The words of the command line: a parser whose errors are ours, and options that verbs share."""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import NoReturn

from mlflow_e2eai.artifacts.axes import dynamic_axes
from mlflow_e2eai.cli.types import (
    batch_sizes,
    executor,
    names,
    typed,
    whole,
    whole_or_auto,
    yes_or_no,
)
from mlflow_e2eai.engine.profiles import seen
from mlflow_e2eai.errors import InvalidInputError


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving the process.

        Raises:
            InvalidInputError: Always.
        """
        verb = self.prog.partition(" ")[2]
        raise InvalidInputError(f"{verb}: {message}" if verb else message)

    def refuse(self, strange: str) -> NoReturn:
        """Say that there is no such parameter, and which one may be meant."""
        known = [text for action in self._actions for text in action.option_strings]
        near = difflib.get_close_matches(strange, known, n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}."
        self.error(f"there is no parameter {strange}{hint}")


def model_uri(one: argparse.ArgumentParser) -> None:
    """What every verb on a chain takes."""
    one.add_argument(
        "--model-uri",
        required=True,
        help="a LoggedModel id, models:/name/version, models:/name@alias or runs:/run_id/name",
    )
    allow_option(one)


def onnx_options(one: argparse.ArgumentParser) -> None:
    """A model of a chain, or an ONNX file that begins one."""
    one.add_argument("--model-uri", default="none", help="any model of the chain, or 'none'")
    one.add_argument("--onnx", default="none", help="an ONNX file that begins a chain, or 'none'")
    one.add_argument("--input-example", default="none", help="its inputs, an npz file, or 'none'")
    one.add_argument(
        "--operator-libraries",
        default="none",
        type=typed(names),
        help="libraries with its operators for ONNX Runtime, comma between; or 'none'",
    )
    allow_option(one)


def export_options(one: argparse.ArgumentParser) -> None:
    """How to export."""
    one.add_argument("--exporter", default="auto", help="auto, dynamo, trace or script")
    one.add_argument("--opset", default="18", type=typed(whole), help="ONNX operator set")
    axes_option(one)


def axes_option(one: argparse.ArgumentParser) -> None:
    """Which sizes vary."""
    one.add_argument(
        "--dynamic-axes",
        default="auto",
        type=typed(dynamic_axes),
        help="input:position=name:min:opt:max, with buckets x:0=N:1:8:64@1+8+32, comma between; "
        "'none', or 'auto' as logged",
    )


def plan_option(one: argparse.ArgumentParser) -> None:
    """What to clean."""
    one.add_argument(
        "--plan", default="default", help="a YAML file or runs:/run_id/plan.yaml; or 'default'"
    )


def keep_option(one: argparse.ArgumentParser) -> None:
    """What stays in fp32."""
    one.add_argument(
        "--keep-fp32",
        default="none",
        help="nodes, comma between; 'none', or a file of them: runs:/run_id/bisection.json",
    )


def allow_option(one: argparse.ArgumentParser) -> None:
    """Which native code may be loaded."""
    one.add_argument(
        "--allow-native",
        default="none",
        type=typed(names),
        help="libraries in the model that may be loaded, by file name, comma between; or 'none'",
    )


def batch_option(one: argparse.ArgumentParser) -> None:
    """Where latency is measured."""
    one.add_argument(
        "--batch-sizes",
        default="none",
        type=typed(batch_sizes),
        help="sizes to measure latency at beside min, opt and max, comma between; or 'none'",
    )


def plugins_option(one: argparse.ArgumentParser) -> None:
    """Which plugins TensorRT gets."""
    one.add_argument(
        "--plugin-libraries",
        default="none",
        type=typed(names),
        help="libraries with plugins for TensorRT, comma between; or 'none'",
    )


def build_options(one: argparse.ArgumentParser) -> None:
    """How engines are built, whether one that is there will do, and who builds."""
    one.add_argument(
        "--build-settings",
        default="default",
        help="how TensorRT builds: optimization_level=5,threads=2, or a YAML file; or 'default'",
    )
    one.add_argument(
        "--rebuild",
        default="no",
        type=typed(yes_or_no),
        help="'yes' builds engines that the tracking server holds already; or 'no'",
    )
    executor_options(one)


def evaluate_options(one: argparse.ArgumentParser) -> None:
    """What is judged, at which sizes, and by whom."""
    model_uri(one)
    batch_option(one)
    executor_options(one)


def executor_options(one: argparse.ArgumentParser) -> None:
    """Who does the jobs."""
    one.add_argument(
        "--executor",
        default="none",
        type=typed(executor),
        help="who does it: 'local' processes here, 'ray' a Ray cluster; or 'none'",
    )
    one.add_argument(
        "--workers",
        default="auto",
        type=typed(whole_or_auto),
        help="processes here, or 'auto': one for each core",
    )


def promote_options(one: argparse.ArgumentParser) -> None:
    """Which version, and by which gates."""
    one.add_argument("--name", required=True, help="the registered model")
    one.add_argument("--version", required=True, type=typed(whole), help="its version")
    one.add_argument("--alias", default="champion", help="the alias to give")
    one.add_argument("--gates", default="default", help="a YAML file, or 'default'")
    allow_option(one)


def triton_options(one: argparse.ArgumentParser) -> None:
    """What Triton serves, and from where."""
    one.add_argument("model", metavar="MODEL", help="a bundle, or a model's URI")
    one.add_argument("--repository", required=True, type=Path, help="the folder of Triton's models")
    one.add_argument("--name", default="none", help="how their names begin; or 'none', as it is")
    one.add_argument("--replace", action="store_true", help="replace models that are there")
    allow_option(one)


def buckets_options(one: argparse.ArgumentParser) -> None:
    """What was seen, and how many to choose."""
    one.add_argument(
        "sizes",
        metavar="SIZES",
        type=typed(seen),
        help="sizes or size:times, comma between, as 1,8:120,32; or a JSON file of times by size",
    )
    one.add_argument("--count", required=True, type=typed(whole), help="how many, at most")


def show_options(one: argparse.ArgumentParser) -> None:
    """Which graph, and where."""
    one.add_argument("model", metavar="MODEL", help="an ONNX file, a bundle, or a model's URI")
    one.add_argument("--port", type=typed(whole), help="where; by default a free one")
    one.add_argument("--no-browser", action="store_true", help="say the address only")
