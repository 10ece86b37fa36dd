"""Options of the verbs: the fields of `Settings`, and the arguments of single steps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mlflow_e2eai.artifacts.values import precision_of
from mlflow_e2eai.cli.registry_arguments import REGISTRY_OPTIONS
from mlflow_e2eai.engine.profiles import parse_seen
from mlflow_e2eai.fleet.job import EXECUTORS
from mlflow_e2eai.pipeline.options import (
    Option,
    options_of,
    parse_choice,
    parse_names,
    parse_or,
    parse_paths,
    parse_targets,
    parse_whole,
    parse_yes,
)
from mlflow_e2eai.pipeline.settings import Settings
from mlflow_e2eai.tracking.store.attempts import DEAD_AFTER_H
from mlflow_e2eai.tracking.versions import LATEST

_SETTINGS = options_of(Settings)

_PRECISION = Option(
    name="precision",
    parse=precision_of,
    default="fp16",
    metavar="NAME",
    choices=("fp16", "bf16", "int8", "fp8", "fp32"),
    help="precision of the graph: fp16, bf16, int8, fp8 or fp32",
)


OPTIONS: dict[str, Option] = {
    **_SETTINGS,
    **REGISTRY_OPTIONS,
    "plan": replace(_SETTINGS["surgery"], argument="plan"),
    "model_uri": Option(
        name="model_uri",
        parse=str,
        default=LATEST,
        metavar="URI",
        help="the model, or any later one made from it: a registered name, of which the newest "
        "version is meant, name/version, name@alias, a LoggedModel id, runs:/run_id/name, or "
        "'latest', the newest in the experiment that this step can use",
    ),
    "factory": Option(
        name="model",
        argument="factory",
        parse=str,
        metavar="CALLABLE",
        help="package.module:callable or file.py:callable; it returns a mapping with 'model' and "
        "'input_example'",
    ),
    "source": Option(
        name="source",
        parse=str,
        metavar="SOURCE",
        help="model.pt, .pth or .pt2, model.onnx, a folder of Hugging Face weights, "
        "file.py:callable, or the URI of a logged model",
    ),
    "source_name": Option(
        name="name",
        parse=parse_or("auto", str),
        default="auto",
        metavar="NAME",
        help="name of the logged model, or 'auto': that of the source",
    ),
    "register": Option(
        name="register",
        argument="registered_model_name",
        parse=parse_or("none", str),
        default="none",
        metavar="NAME",
        help="register the result as a version of this model; or 'none'",
    ),
    "example": Option(
        name="input_example",
        parse=parse_or("none", Path),
        default="none",
        metavar="FILE",
        help="an npz file with an array for each input; or 'none' for that of the source",
    ),
    "samples_at": Option(
        name="samples_at",
        parse=parse_paths,
        default="none",
        metavar="FILES",
        help="npz files with further examples at other sizes of the dynamic axes, run in every "
        "comparison of this command, comma-separated; or 'none'",
    ),
    "allow_pickle": Option(
        name="allow_pickle",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="load the PyTorch model also where that runs code of its author, as a pickle does; "
        "use it only with models that you trust",
    ),
    "name": Option(
        name="name",
        parse=str,
        default="model",
        metavar="NAME",
        help="name of the logged model",
    ),
    "bundle_name": Option(
        name="name",
        parse=parse_or("none", str),
        default="none",
        metavar="NAME",
        help="name of the logged model; or 'none': that of the registered model, else 'model'",
    ),
    "onnx": Option(
        name="onnx",
        parse=parse_or("none", Path),
        default="none",
        metavar="FILE",
        help="an ONNX file to start from, in place of a logged model; or 'none'",
    ),
    "input_example": Option(
        name="input_example",
        parse=parse_or("none", Path),
        default="none",
        metavar="FILE",
        help="inputs of the ONNX file, an npz file; or 'none' for random numbers",
    ),
    "convert_precision": _PRECISION,
    "bisect_precision": replace(_PRECISION, help="the precision in which the graph fails"),
    "engine_precision": Option(
        name="precision",
        parse=parse_or("auto", precision_of),
        default="auto",
        metavar="NAME",
        help="tf32 for engines of the graph in fp32 that may round to TF32, or 'auto': the graph's",
    ),
    "compile_targets": replace(
        _SETTINGS["targets"],
        parse=lambda text: parse_targets(_target_here() if text == "auto" else text),
        default="auto",
        help="GPUs to build engines for, comma-separated: 'local' (the GPU here), A100, sm75 to "
        "sm121 or 'rtx' (TensorRT-RTX), H100, trt11:sm90+compatible (TensorRT); 'auto' is "
        "local, and rtx where there is no GPU",
    ),
    "executor": Option(
        name="executor",
        parse=parse_or("none", parse_choice((*EXECUTORS, "none"))),
        default="none",
        metavar="NAME",
        choices=(*EXECUTORS, "none"),
        help="where engines are built and evaluated: 'local' (processes on this machine), 'ray' "
        "(a Ray cluster), or 'none' (this process)",
    ),
    "workers": Option(
        name="workers",
        parse=parse_or("auto", parse_whole),
        default="auto",
        metavar="N",
        help="number of processes for 'local', or 'auto': one per core",
    ),
    "registered_model_name": Option(
        name="registered_model_name",
        parse=parse_or("none", str),
        default="none",
        metavar="NAME",
        help="register the result as a version of this model; or 'none'",
    ),
    "allow_native": Option(
        name="allow_native",
        parse=parse_names,
        default="none",
        metavar="FILES",
        help="shared libraries of the model that may be loaded, by file name, comma-separated; or "
        "'none'",
    ),
    "repository": Option(
        name="repository",
        parse=Path,
        metavar="FOLDER",
        help="the folder of Triton's models",
    ),
    "prefix": Option(
        name="name",
        parse=parse_or("none", str),
        default="none",
        metavar="NAME",
        help="prefix of the names of Triton's models, or 'none': the model's name",
    ),
    "replace": Option(
        name="replace",
        parse=parse_yes,
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="replace models of these names",
    ),
    "dead_after_h": Option(
        name="dead_after",
        argument="dead_after_h",
        parse=parse_whole,
        default=f"{DEAD_AFTER_H:.0f}",
        metavar="HOURS",
        help="hours without a heartbeat after which a process on another host counts as dead",
    ),
    "count": Option(
        name="count",
        parse=parse_whole,
        metavar="N",
        help="the largest number of buckets to choose",
    ),
    "port": Option(
        name="port",
        parse=parse_or("auto", parse_whole),
        default="auto",
        metavar="N",
        help="port to listen on, or 'auto': a free one",
    ),
    "browser": Option(
        name="no_browser",
        argument="browser",
        parse=lambda text: not parse_yes(text),
        default="no",
        metavar="yes|no",
        is_flag=True,
        help="print the address without opening a browser",
    ),
    "model": Option(
        name="model",
        argument="model_uri",
        parse=str,
        metavar="MODEL",
        help="a bundle's folder, or a model as digits, digits/2 or models:/digits@champion",
    ),
    "graph": Option(
        name="model",
        parse=str,
        metavar="MODEL",
        help="an ONNX file, a bundle's folder, or a model as digits, digits/2 or "
        "models:/digits@champion",
    ),
    "sizes": Option(
        name="sizes",
        argument="seen",
        parse=parse_seen,
        metavar="SIZES",
        help="sizes or size:times, comma-separated, or a JSON file of times by size",
    ),
}
"""The options by argument; where verbs differ, by a key of their own."""


def _target_here() -> str:
    from mlflow_e2eai.artifacts.machine import gpu_name

    return "local" if gpu_name() is not None else "rtx"
