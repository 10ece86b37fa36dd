"""Options that verbs of the command line share, or that only one has."""

from __future__ import annotations

import argparse

from mlflow_e2eai.texts import batch_sizes, dynamic_axes, truth, typed, whole


def model_uri(one: argparse.ArgumentParser) -> None:
    """Take any model of a chain."""
    one.add_argument(
        "--model-uri",
        required=True,
        help="a LoggedModel id, models:/name/version, models:/name@alias or runs:/run_id/name",
    )


def export_options(one: argparse.ArgumentParser) -> None:
    """Take what export takes."""
    one.add_argument("--exporter", default="auto", help="auto, dynamo, trace or script")
    one.add_argument("--opset", default="18", type=typed(whole), help="ONNX operator set")
    axes_option(one)


def axes_option(one: argparse.ArgumentParser) -> None:
    """Take dynamic axes."""
    one.add_argument(
        "--dynamic-axes",
        default="auto",
        type=typed(dynamic_axes),
        help="input:position=name:min:opt:max, comma between; 'none', or 'auto' as logged",
    )


def plan_option(one: argparse.ArgumentParser) -> None:
    """Take a surgery plan."""
    one.add_argument(
        "--plan", default="default", help="a YAML file or runs:/run_id/plan.yaml; or 'default'"
    )


def keep_option(one: argparse.ArgumentParser) -> None:
    """Take nodes that stay in fp32."""
    one.add_argument(
        "--keep-fp32",
        default="none",
        help="nodes, comma between; 'none', or a file of them: runs:/run_id/bisection.json",
    )


def batch_option(one: argparse.ArgumentParser) -> None:
    """Take batch sizes."""
    one.add_argument(
        "--batch-sizes",
        default="none",
        type=typed(batch_sizes),
        help="sizes to measure latency at beside min, opt and max, comma between; or 'none'",
    )


def tf32_option(one: argparse.ArgumentParser) -> None:
    """Take whether fp32 may be rounded to TF32."""
    one.add_argument("--tf32", default="false", type=typed(truth), help="true or false")


def show_options(one: argparse.ArgumentParser) -> None:
    """Take what `show` takes."""
    one.add_argument("model", metavar="MODEL", help="an ONNX file, a bundle, or a model's URI")
    one.add_argument("--port", type=typed(whole), help="where; by default a free one")
    one.add_argument("--no-browser", action="store_true", help="say the address only")


def promote_options(one: argparse.ArgumentParser) -> None:
    """Take what `promote` takes."""
    one.add_argument("--name", required=True, help="the registered model")
    one.add_argument("--version", required=True, type=typed(whole), help="its version")
    one.add_argument("--alias", default="champion", help="the alias to give")
    one.add_argument("--gates", default="default", help="a YAML file, or 'default'")
