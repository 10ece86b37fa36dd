"""The verbs: function, options and printer of each. Nothing heavy is imported before use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow_e2eai.pipeline.options import Option


@dataclass(frozen=True, slots=True, kw_only=True)
class Verb:
    """One verb of the command line.

    Attributes:
        name: Its name, also that of its entry point in MLproject.
        summary: One sentence about it.
        function: The function that it calls, as ``module:name`` below the package.
        printer: The function that prints the result, given the arguments too, and returns the
            exit code; as ``module:name``.
        options: Keys of `mlflow_e2eai.cli.arguments.OPTIONS`; an `Option` is used unchanged.
        example: The words of a call.
        takes: Stages whose newest model is ``latest``; none where it takes no logged model.
        positional: Arguments without an option; those with a default may be left out.
    """

    name: str
    summary: str
    function: str = ""
    printer: str = ""
    options: Sequence[str | Option] = ()
    example: str = ""
    takes: Sequence[str] = ()
    positional: Sequence[str] = ()

    def all_options(self) -> list[Option]:
        """The options, in their order."""
        from mlflow_e2eai.cli.arguments import OPTIONS

        return [OPTIONS[key] if isinstance(key, str) else key for key in self.options]


def load(name: str) -> Any:
    """Import ``module:name``, below the package."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(f"mlflow_e2eai.{module}"), attribute)


_EXPORT = ("exporter", "opset", "dynamic_axes")
_WORKERS = ("executor", "workers", "allow_native")
_ALLOW = ("allow_native", "allow_pickle")
_BUILD = ("plugin_libraries", "build_settings", "rebuild", *_WORKERS)

_AGAIN = ("rebuild", "fresh", "evidence_days")

VERBS = {
    verb.name: verb
    for verb in (
        Verb(
            name="run",
            summary="Run all stages on a model: a file, a folder of weights, or a callable.",
            function="cli.run_verb:run",
            printer="cli.results:print_bundle",
            options=(
                *("source", "source_name", "register", "example", "samples_at", "allow_pickle"),
                *(*_EXPORT, "surgery", "precisions", "targets", "keep_fp32", "batch_sizes"),
                *("evidence", "plugin_libraries", "build_settings", *_AGAIN),
                *("executor", "workers"),
            ),
            positional=("source",),
            example="model.onnx --name digits --dynamic-axes x:0=N:1:8:64 --targets A100,L4",
        ),
        Verb(
            name="log",
            summary="Log a PyTorch model that a callable returns.",
            function="pipeline.jobs:log",
            printer="cli.results:print_models",
            options=("factory", "name"),
            example="--model examples/digits.py:build --name digits",
        ),
        Verb(
            name="export",
            summary="Export a logged PyTorch model to ONNX.",
            function="pipeline.jobs:export",
            printer="cli.results:print_models",
            options=("model_uri", *_EXPORT, "samples_at", "plan", *_ALLOW),
            takes=("source",),
            example="models:/digits/1 --exporter dynamo --dynamic-axes x:0=N:1:8:64",
        ),
        Verb(
            name="clean",
            summary="Apply a surgery plan to an exported graph, or to an ONNX file.",
            function="cli.clean_verb:clean",
            printer="cli.results:print_models",
            options=(
                *("model_uri", "onnx", "input_example", "samples_at", "dynamic_axes", "plan"),
                *("operator_libraries", *_ALLOW),
            ),
            takes=("export",),
            example="--onnx model.onnx --dynamic-axes x:0=N:1:8:64 --plan plan.yaml",
        ),
        Verb(
            name="convert",
            summary="Convert a cleaned graph to another precision.",
            function="pipeline.jobs:convert",
            printer="cli.results:print_models",
            options=("model_uri", "convert_precision", "keep_fp32", *_ALLOW),
            takes=("clean",),
            example="models:/digits/1 --precision fp16",
        ),
        Verb(
            name="bisect",
            summary="Find the nodes that must stay in fp32 for a precision to pass.",
            function="pipeline.jobs:bisect",
            printer="cli.results:print_bisection",
            options=("model_uri", "bisect_precision", *_ALLOW),
            takes=("clean",),
            example="models:/digits/1 --precision fp16",
        ),
        Verb(
            name="compile",
            summary="Build TensorRT engines of a cleaned or converted graph.",
            function="fleet.distributed:compile",
            printer="cli.results:print_models",
            options=("model_uri", "compile_targets", "engine_precision", *_BUILD),
            takes=("clean", "convert"),
            example="models:/digits/1 --targets sm86,sm89",
        ),
        Verb(
            name="evaluate",
            summary="Evaluate a graph, engine or bundle, on this machine or on its GPU.",
            function="fleet.distributed:evaluate",
            printer="cli.results:print_evidence",
            options=("model_uri", "batch_sizes", "evidence", *_WORKERS, "allow_pickle"),
            takes=("clean", "convert", "compile", "package"),
            example="models:/digits/1 --batch-sizes 16,32",
        ),
        Verb(
            name="pipeline",
            summary="Run all stages on a logged PyTorch model, from export to package.",
            function="flavor.repackage:package",
            printer="cli.results:print_bundle",
            options=(
                *("model_uri", "bundle_name", "registered_model_name", *_EXPORT, "samples_at"),
                *(
                    "surgery",
                    "precisions",
                    "targets",
                    "keep_fp32",
                    "batch_sizes",
                    "evidence",
                    *("plugin_libraries", "build_settings", *_AGAIN, *_WORKERS),
                    "allow_pickle",
                ),
            ),
            takes=("source", "import"),
            example="--registered-model-name digits --targets sm86,sm89",
        ),
        Verb(
            name="promote",
            summary="Promote a version to an alias if it passes the gates.",
            function="promotion.stage:promote",
            printer="cli.results:print_decision",
            options=(
                *("registered_model", "version", "alias", "gates", "promotion_goal", "remeasure"),
                *("dry_run", *_WORKERS),
            ),
            example="digits 2 --gates gates.yaml",
        ),
        Verb(
            name="explain",
            summary="Show the last decision about a version, with all that it was made of.",
            function="promotion.registry.record:explain",
            printer="cli.registry_results:print_text",
            options=("version_model", "one_version", "explained_alias"),
            positional=("name", "version"),
            example="models:/digits/7",
        ),
        Verb(
            name="redecide",
            summary="Compute the last decision about a version again, from its stored evidence.",
            function="promotion.redecision:redecide",
            printer="cli.registry_results:print_text",
            options=("version_model", "one_version"),
            positional=("name", "version"),
            example="models:/digits/7",
        ),
        Verb(
            name="history",
            summary="Show when each alias was moved, by whom and why; or where it stood on a day.",
            function="promotion.registry.timeline:history",
            printer="cli.registry_results:print_history",
            options=("registered_model", "any_alias", "on"),
            positional=("name",),
            example="digits --alias champion --on 2026-11-30",
        ),
        Verb(
            name="approve",
            summary="Approve a version, by its files' logged digest, for a gate that requires it.",
            function="promotion.registry.approvals:approve",
            printer="cli.registry_results:print_statement",
            options=("approved_model", "approved_version", "as", "key"),
            positional=("name", "version"),
            example="digits 7 --as release",
        ),
        Verb(
            name="reject",
            summary="Reject a version for good: nobody can approve it afterwards.",
            function="promotion.registry.approvals:reject",
            printer="cli.registry_results:print_statement",
            options=("approved_model", "approved_version", "as", "key"),
            positional=("name", "version"),
            example="digits 7 --as release",
        ),
        Verb(
            name="sign",
            summary="Verify every file of a model, and sign them with a key of yours.",
            function="tracking.store.attestations:sign",
            printer="cli.registry_results:print_verification",
            options=("model", "signing_key"),
            positional=("model_uri",),
            example="models:/digits/7 --key ~/.ssh/id_ed25519",
        ),
        Verb(
            name="verify",
            summary="Verify every file of a model: its digests and, with a key, its signature.",
            function="tracking.store.attestations:verify",
            printer="cli.registry_results:print_verification",
            options=("model", "public_key"),
            positional=("model_uri",),
            example="models:/digits/7 --key ~/.ssh/id_ed25519.pub",
        ),
        Verb(
            name="guard",
            summary="Find aliases that were moved by hand, and put them back if you say so.",
            function="promotion.registry.drift:guard",
            printer="cli.registry_results:print_guard",
            options=("registered_model", "restore"),
            example="digits",
        ),
        Verb(
            name="watch",
            summary="Guard the aliases of a model until one is moved by hand, or for ever.",
            function="promotion.registry.drift:watch",
            printer="cli.registry_results:print_watch",
            options=("registered_model", "every_s", "watch_restore"),
            positional=("name",),
            example="digits --every 60 --restore",
        ),
        Verb(
            name="rollback",
            summary="Put an alias back to the version that it pointed to before.",
            function="promotion.reversal:rollback",
            printer="cli.registry_results:print_rollback",
            options=("required_model", "rollback_alias", "to", "rollback_gates", "allow_native"),
            positional=("name",),
            example="digits --to 5",
        ),
        Verb(
            name="list",
            summary="List the versions of a model: aliases, decisions, errors and times.",
            function="flavor.tables:list_versions",
            printer="cli.listings:print_frame",
            options=("registered_model",),
            positional=("name",),
            example="digits",
        ),
        Verb(
            name="compare",
            summary="Show the evidence of several versions of a model side by side.",
            function="cli.listings:compare_named",
            printer="cli.listings:print_comparison",
            options=("registered_model", "compared_versions"),
            positional=("name", "versions"),
            example="digits 1,2",
        ),
        Verb(
            name="gates",
            summary="Check a file of gates, and show the rules that it holds.",
            function="promotion.gates_file:read_policy",
            printer="cli.listings:print_gates",
            options=("gates",),
            positional=("gates",),
            example="gates.yaml",
        ),
        Verb(
            name="targets",
            summary="List the GPUs that a target may name, and where their engines are built.",
            function="cli.readers:list_targets",
            printer="cli.listings:print_targets",
            example="--json",
        ),
        Verb(
            name="inspect",
            summary="Show the inputs, outputs and variants of a model.",
            function="cli.readers:inspect",
            printer="cli.results:print_inspection",
            options=("graph",),
            positional=("model",),
            example="models:/digits/1",
        ),
        Verb(
            name="report",
            summary="Open the report of a model in a browser, and print its address.",
            function="cli.readers:report",
            printer="cli.results:print_paths",
            options=("model", "browser"),
            positional=("model_uri",),
            example="models:/digits/1",
        ),
        Verb(
            name="export-triton",
            summary="Write a model repository for Triton's server.",
            function="flavor.triton:export_triton",
            printer="cli.results:print_paths",
            options=("model", "repository", "prefix", "replace", "allow_native"),
            positional=("model_uri",),
            example="models:/digits@champion --repository models",
        ),
        Verb(
            name="choose-buckets",
            summary="Choose the buckets of an axis from the sizes of real calls.",
            function="engine.profiles:choose_buckets",
            printer="cli.results:print_buckets",
            options=("sizes", "count"),
            positional=("seen",),
            example="1,8:120,32:5 --count 3",
        ),
        Verb(
            name="tidy",
            summary="End the runs of dead processes, and remove their temporary folders here.",
            function="tracking.store.leftovers:tidy",
            printer="cli.results:print_tidied",
            options=("dead_after_h",),
            example="--dead-after 24",
        ),
        Verb(
            name="doctor",
            summary="Show what this machine can do, and how to install what is missing.",
            function="cli.doctor:diagnose",
            printer="cli.results:print_diagnosis",
            example="--json",
        ),
        Verb(
            name="show",
            summary="Open a model's graph in Netron, until Ctrl-C.",
            function="cli.show:show",
            printer="cli.results:print_nothing",
            options=("graph", "port", "browser"),
            positional=("model",),
            example="models:/digits/1",
        ),
    )
}
"""The verbs by name."""

CONSOLE_ONLY = {
    *("run", "inspect", "report", "export-triton", "choose-buckets", "tidy", "doctor"),
    *("show", "explain", "redecide", "history", "approve", "reject", "watch", "rollback"),
    *("sign", "verify", "list", "compare", "gates", "targets"),
}
"""Verbs that are for the machine of the caller, and no entry points of MLproject."""
