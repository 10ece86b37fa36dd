"""The console command. Here and nowhere else do errors become exit codes.

Exit codes: 0 done (for ``promote``: promoted), 1 error, 3 rejected.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from mlflow_e2eai._version import __version__
from mlflow_e2eai.artifacts.libraries import native_allowed
from mlflow_e2eai.cli import options
from mlflow_e2eai.cli.types import (
    build_settings,
    nodes,
    plan,
    precision,
    precision_of_engine,
    precisions,
    targets,
    typed,
)
from mlflow_e2eai.errors import E2EAIError, InvalidInputError

DONE, ERROR, REJECTED = 0, 1, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the command's name; by default those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)

    def run() -> int:
        arguments, strange = parser().parse_known_args(words)
        if strange:
            arguments.parser.refuse(strange[0])
        with native_allowed(getattr(arguments, "allow_native", ())):
            code: int = arguments.verb(arguments)
        return code

    return reported(run)


def reported(run: Callable[[], int]) -> int:
    """Run a program; an error becomes one sentence, exit code 1, and the reason on its MLflow run.

    Args:
        run: The program, its parsing of words included: `mlflow run` may have made a run for this
            process, which must learn of a typing error too.

    Returns:
        The program's exit code, or 1.
    """
    from mlflow_e2eai.tracking.runs import project_run_says_why

    try:
        with project_run_says_why():
            return run()
    except E2EAIError as error:
        print(f"mlflow_e2eai: {error}", file=sys.stderr)
        return ERROR


def parser() -> argparse.ArgumentParser:
    """The command line: one verb for each entry point of MLproject but ``main``, and a few more."""
    top = options.Parser(
        prog="mlflow_e2eai", description="From a PyTorch model to a promoted version."
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(required=True, metavar="VERB", parser_class=options.Parser)

    def verb(name: str, run: Callable[[argparse.Namespace], int], help: str) -> options.Parser:  # noqa: A002
        added: options.Parser = verbs.add_parser(
            name, help=help, description=help, allow_abbrev=False
        )
        added.set_defaults(verb=run, parser=added)
        return added

    one = verb("log", _log, "Log a PyTorch model that a callable makes.")
    one.add_argument("--model", required=True, help="package.module:callable or file.py:callable")
    one.add_argument("--name", default="model", help="name of the logged model")

    one = verb("export", _export, "Export the PyTorch model of a chain to ONNX.")
    options.model_uri(one)
    options.export_options(one)
    options.plan_option(one)

    one = verb("clean", _clean, "Apply a surgery plan to the raw graph of a chain.")
    options.onnx_options(one)
    options.axes_option(one)
    options.plan_option(one)

    one = verb("convert", _convert, "Convert the cleaned graph of a chain to another precision.")
    options.model_uri(one)
    one.add_argument("--precision", required=True, type=typed(precision), help="all but tf32")
    options.keep_option(one)

    one = verb("bisect", _bisect, "Find the nodes that must stay in fp32 for a precision to pass.")
    options.model_uri(one)
    one.add_argument(
        "--precision", default="fp16", type=typed(precision), help="the one that fails"
    )

    one = verb("compile", _compile, "Build TensorRT engines of a graph of a chain.")
    options.model_uri(one)
    one.add_argument(
        "--targets", required=True, type=typed(targets), help="sm86,rtx,trt11:sm90 or local"
    )
    one.add_argument(
        "--precision",
        default="auto",
        type=typed(precision_of_engine),
        help="tf32 for the graph in fp32, or 'auto': the graph's own",
    )
    options.plugins_option(one)
    options.build_options(one)

    one = verb("evaluate", _evaluate, "Judge a graph, engine or bundle, here or where its GPU is.")
    options.evaluate_options(one)

    options.promote_options(verb("promote", _promote, "Give a version an alias, if it passes."))

    one = verb("pipeline", _pipeline, "Take a logged PyTorch model from export to package.")
    options.model_uri(one)
    one.add_argument("--name", default="model", help="name of the logged model")
    one.add_argument("--registered-model-name", default="none", help="or 'none'")
    options.export_options(one)
    options.plan_option(one)
    one.add_argument("--precisions", default="fp32,fp16", type=typed(precisions))
    one.add_argument("--targets", default="none", type=typed(targets), help="or 'none'")
    options.keep_option(one)
    options.batch_option(one)
    options.plugins_option(one)
    options.build_options(one)

    options.triton_options(
        verb("export-triton", _export_triton, "Write a model repository for Triton's server.")
    )
    options.buckets_options(
        verb("choose-buckets", _choose_buckets, "Choose buckets from sizes that were seen.")
    )
    options.show_options(verb("show", _show, "Open a model's graph in Netron, until Ctrl-C."))
    return top


def _log(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.pipeline import jobs

    print(f"models:/{jobs.log(arguments.model, name=arguments.name)}")
    return DONE


def _export(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.pipeline import jobs

    model_id = jobs.export(
        arguments.model_uri,
        exporter=arguments.exporter,
        opset=arguments.opset,
        dynamic_axes=arguments.dynamic_axes,
        plan=plan(arguments.plan),
    )
    print(f"models:/{model_id}")
    return DONE


def _clean(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.pipeline import jobs
    from mlflow_e2eai.pipeline.jobs import clean_onnx

    uri, onnx, example = arguments.model_uri, arguments.onnx, arguments.input_example
    if (uri == "none") == (onnx == "none"):
        msg = "clean takes one of model_uri and onnx; give the one that is to be cleaned."
        raise InvalidInputError(msg)
    steps = plan(arguments.plan)
    if onnx != "none":
        data = None if example == "none" else Path(example)
        axes = arguments.dynamic_axes
        model_id = clean_onnx(
            Path(onnx),
            example=data,
            dynamic_axes=axes,
            plan=steps,
            operator_libraries=[Path(library) for library in arguments.operator_libraries],
        )
    else:
        model_id = jobs.clean(uri, plan=steps)
    print(f"models:/{model_id}")
    return DONE


def _convert(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.pipeline import jobs

    model_id = jobs.convert(
        arguments.model_uri,
        precision=arguments.precision,
        keep_fp32=nodes(arguments.keep_fp32),
    )
    print(f"models:/{model_id}")
    return DONE


def _bisect(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.pipeline import jobs

    found, uri = jobs.bisect(arguments.model_uri, precision=arguments.precision)
    print(found.sentence)
    if found.nodes:
        print(uri)
    return DONE


def _compile(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.fleet import distributed

    for model_id in distributed.compile(
        arguments.model_uri,
        targets=arguments.targets,
        precision=arguments.precision,
        plugin_libraries=[Path(library) for library in arguments.plugin_libraries],
        build_settings=build_settings(arguments.build_settings),
        rebuild=arguments.rebuild,
        executor=arguments.executor,
        workers=arguments.workers,
    ):
        print(f"models:/{model_id}")
    return DONE


def _evaluate(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.evaluation.evidence import machine_name
    from mlflow_e2eai.fleet import distributed

    machines = distributed.evaluate(
        arguments.model_uri,
        batch_sizes=arguments.batch_sizes,
        executor=arguments.executor,
        workers=arguments.workers,
    )
    for there in machines:
        if arguments.executor is not None:
            print(f"{machine_name(there.environment)}:")
        for entry in there.evidence:
            outcome = "passed" if entry.passed else "failed" if entry.measured else "not measured"
            lost = entry.lost_at and f"lost at {entry.lost_at}"
            reasons = "; ".join(filter(None, [lost, entry.reason, *entry.findings, entry.untimed]))
            print(f"{entry.variant}: {outcome}" + (f" ({reasons})" if reasons else ""))
    return DONE


def _promote(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.promotion.stage import promote

    decision = promote(
        arguments.name,
        arguments.version,
        alias=arguments.alias,
        gates=None if arguments.gates == "default" else arguments.gates,
        allow_native=arguments.allow_native,
    )
    for verdict in decision.verdicts:
        print(f"{'passed' if verdict.passed else 'FAILED'}  {verdict}")
    if decision.promoted:
        print(f"promoted: {arguments.name} {arguments.version} is {arguments.alias}")
        return DONE
    print(f"rejected: {'; '.join(decision.reasons)}")
    return REJECTED


def _pipeline(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.flavor import repackage
    from mlflow_e2eai.flavor.api import load_model
    from mlflow_e2eai.report.text import table

    registered = arguments.registered_model_name
    info = repackage.package(
        arguments.model_uri,
        name=arguments.name,
        registered_model_name=None if registered == "none" else registered,
        exporter=arguments.exporter,
        opset=arguments.opset,
        dynamic_axes=arguments.dynamic_axes,
        surgery=plan(arguments.plan),
        precisions=arguments.precisions,
        targets=arguments.targets,
        keep_fp32=nodes(arguments.keep_fp32),
        batch_sizes=arguments.batch_sizes,
        plugin_libraries=[Path(library) for library in arguments.plugin_libraries],
        build_settings=build_settings(arguments.build_settings),
        rebuild=arguments.rebuild,
        executor=arguments.executor,
        workers=arguments.workers,
    )
    print(table(load_model(info.model_uri).manifest))
    if info.registered_model_version is not None:
        print(f"models:/{registered}/{info.registered_model_version}")
    print(info.model_uri)
    return DONE


def _export_triton(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.flavor.triton import export_triton

    name = None if arguments.name == "none" else arguments.name
    for place in export_triton(
        arguments.model, arguments.repository, name=name, replace=arguments.replace
    ):
        print(place)
    return DONE


def _choose_buckets(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.engine.profiles import choose_buckets

    print("+".join(map(str, choose_buckets(arguments.sizes, arguments.count))))
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    from mlflow_e2eai.cli.show import shown, wait

    with shown(arguments.model, port=arguments.port, browser=not arguments.no_browser) as url:
        print(url, flush=True)
        wait()
    return DONE


if __name__ == "__main__":
    raise SystemExit(main())
