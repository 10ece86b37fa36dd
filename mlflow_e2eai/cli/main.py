"""The console command. Here and nowhere else do errors become exit codes.

Exit codes: 0 done, 1 error, 2 usage error; 3 where ``promote`` rejected the version, ``redecide``
found that the decision would be another, or ``guard`` that an alias was moved by hand; 130 and 143
as shells have them, after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import atexit
import gc
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import click

from mlflow_e2eai._version import __version__
from mlflow_e2eai.cli.verbs import VERBS, Verb, load
from mlflow_e2eai.errors import E2EAIError, InvalidInputError, suggestion
from mlflow_e2eai.runtime.storage import storage_error
from mlflow_e2eai.runtime.termination import (
    INTERRUPTED,
    TERMINATED,
    Termination,
    interruption_of,
    raised_on_sigterm,
    reason_of,
)

DONE, ERROR, USAGE, NOT_PASSED = 0, 1, 2, 3
"""Exit codes."""

_NAME = "mlflow_e2eai"

_BY_POSITION_TOO = ("model_uri", "registered_model", "version")
"""Keys of options that may also be given by position."""

_WORD = "word_"
"""Begins the name of such an argument, before the option's."""

_EPILOG = """\b
Examples:
  mlflow_e2eai run examples/digits.py:build --register digits --targets A100,L4
  mlflow_e2eai run model.onnx --dynamic-axes x:0=N:1:8:64
  mlflow_e2eai promote

\b
Exit codes: 0 done, 1 error, 2 usage error, 3 rejected by a gate, decided
otherwise today or moved by hand; 130 and 143 after Ctrl-C and SIGTERM.
Completion, also for zsh and fish:
  eval "$(_MLFLOW_E2EAI_COMPLETE=bash_source mlflow_e2eai)"
MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME say where models and runs are."""


class VerbCommand(click.Command):
    """A verb as click's command, whose options are imported when they are first needed."""

    def __init__(self, verb: Verb) -> None:
        epilog = f"\b\nExample:\n  {_NAME} {verb.name} {verb.example}" if verb.example else None
        super().__init__(
            verb.name,
            help=verb.summary,
            short_help=verb.summary,
            epilog=epilog,
            callback=self.call,
        )
        self.verb = verb

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The options of the verb, those of all verbs, and ``--help``."""
        if not self.params:
            self.params = _params(self.verb)
        return super().get_params(ctx)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the arguments that have no option, and then the options."""
        from mlflow_e2eai.cli.types import Word

        rows = [param.help_row for param in self.get_params(ctx) if isinstance(param, Word)]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)

    def call(self, **arguments: Any) -> int:
        """Call the verb's function and print its result."""
        as_json = arguments.get("json", False)
        with prepare(self.verb, arguments):
            result = load(self.verb.function)(**arguments)
            printer = "cli.results:print_json" if as_json else self.verb.printer
            code: int = load(printer)(result, arguments)
        return code


def _params(verb: Verb) -> list[click.Parameter]:
    from mlflow_e2eai.cli.types import Text, Word, option_of

    params: list[click.Parameter] = []
    for key, option in zip(verb.options, verb.all_options(), strict=True):
        if option.argument in verb.positional:
            params.append(Word(option))
        else:
            params.append(option_of(option))
            if key in _BY_POSITION_TOO:
                words, kind = [f"{_WORD}{option.argument}"], Text(option)
                metavar = f"[{option.metavar}]"
                params.append(click.Argument(words, type=kind, required=False, metavar=metavar))
    flags = {
        "verbose": "Print details, and warnings of libraries.",
        "quiet": "Print the result only.",
    }
    if verb.printer != "cli.results:print_nothing":
        flags["json"] = "Print the result as JSON."
    return params + [
        click.Option([f"--{name}", f"-{name[0]}"], is_flag=True, help=text)
        for name, text in flags.items()
    ]


class Verbs(click.Group):
    """All verbs; the error for an unknown one suggests the nearest."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The names in the order of the steps."""
        return [*VERBS, "help"]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """The command of a name."""
        if cmd_name == "help":
            return _HELP
        return VerbCommand(VERBS[cmd_name]) if cmd_name in VERBS else None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command of the first word.

        Raises:
            click.UsageError: There is no such verb.
        """
        if args[0] not in self.list_commands(ctx) and not ctx.resilient_parsing:
            hint = suggestion(args[0], self.list_commands(ctx))
            msg = f"There is no verb {args[0]!r}; {hint}"
            raise click.UsageError(msg)
        return super().resolve_command(ctx, args)


@click.command("help", help="Show the help of a verb.")
@click.argument("verb", required=False)
@click.pass_context
def _HELP(ctx: click.Context, verb: str | None) -> None:  # noqa: N802 - a command, not a function
    above = ctx.parent or ctx
    if verb is None:
        print(above.get_help())
        return
    name, command, _ = command_line.resolve_command(above, [verb])
    if command is not None:
        print(command.get_help(click.Context(command, info_name=name, parent=above)))


@click.group(
    _NAME,
    cls=Verbs,
    help="From a PyTorch model to a promoted version.",
    epilog=_EPILOG,
    invoke_without_command=True,
)
@click.version_option(__version__, message="%(version)s")
@click.pass_context
def command_line(ctx: click.Context) -> None:
    """Show the help where no verb is given."""
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        argv: The words after the command's name; by default those of this process.

    Returns:
        The exit code.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        _collect_nothing_at_the_end()
    try:
        with reported_errors(words):
            code = command_line.main(words, prog_name=_NAME, standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    return int(code or 0)


@contextmanager
def entry_point(verb: Verb | str) -> Iterator[dict[str, Any]]:
    """Read this process's words as those of a verb; an error in the block ends the process.

    Args:
        verb: The verb, or its name.

    Yields:
        The arguments for its function.
    """
    command = VerbCommand(VERBS[verb] if isinstance(verb, str) else verb)
    _collect_nothing_at_the_end()
    with reported_errors():
        arguments = command.make_context(command.name, sys.argv[1:]).params
        with prepare(command.verb, arguments):
            yield arguments


def _collect_nothing_at_the_end() -> None:
    """Let this process end without collecting garbage: 2 s with PyTorch and MLflow imported."""
    atexit.register(gc.freeze)


@contextmanager
def prepare(verb: Verb, arguments: dict[str, Any]) -> Iterator[None]:
    """Turn what click read into the arguments of the verb's function, which the block calls.

    Args:
        verb: The verb.
        arguments: Values by name, as click gives them; changed in place.
    """
    from mlflow_e2eai.artifacts.libraries import native_allowed
    from mlflow_e2eai.runtime.progress import reported_on_stderr
    from mlflow_e2eai.runtime.scratch import temporary_files_together
    from mlflow_e2eai.tracking.console import quiet_mlflow
    from mlflow_e2eai.tracking.runs import check_project_store

    check_project_store()

    level = {"verbose": logging.DEBUG, "quiet": logging.WARNING}
    chosen = [level[name] for name in level if arguments.pop(name)]
    arguments.pop("json", None)  # of the printer, not of the function
    allowed = arguments.get("allow_native", ())
    if verb.takes:
        arguments.pop("allow_native", None)  # of the block, not of the function
    with (
        reported_on_stderr(min(chosen, default=logging.INFO)),
        nullcontext() if logging.DEBUG in chosen else quiet_mlflow(),
        native_allowed(allowed),
        temporary_files_together(),
    ):
        _choose_model(verb, arguments)
        yield


def _choose_model(verb: Verb, arguments: dict[str, Any]) -> None:
    """Put words by position in their options' place, and the newest for ``latest``."""
    from mlflow_e2eai.tracking.latest import latest_model, latest_version
    from mlflow_e2eai.tracking.versions import LATEST

    for word in [key for key in arguments if key.startswith(_WORD)]:
        if (value := arguments.pop(word)) is not None:
            argument = word.removeprefix(_WORD)
            if arguments[argument] != LATEST:
                about = "model" if argument == "model_uri" else argument
                option = f"--{argument.replace('_', '-')}"
                msg = f"the {about} is given twice; leave {option} out."
                raise click.UsageError(msg)
            arguments[argument] = value
    if verb.takes and arguments["model_uri"] == LATEST:
        from_file = arguments.get("onnx") is not None
        arguments["model_uri"] = None if from_file else latest_model(verb.takes).model_uri
    if "version" in arguments:
        _split_uri(verb, arguments)
    if LATEST in (arguments.get("version"), arguments.get("name")):
        name = None if arguments["name"] == LATEST else arguments["name"]
        newest = latest_version(name)
        arguments["name"] = newest.name
        if arguments.get("version") == LATEST:
            arguments["version"] = int(newest.version)


def _split_uri(verb: Verb, arguments: dict[str, Any]) -> None:
    """Put the two parts of a version's URI, which may be in place of a name, in their places."""
    from mlflow_e2eai.tracking.versions import LATEST, split_version, version_at

    name, version = arguments["name"], arguments["version"]
    if ":/" not in name and split_version(name) is None:
        if version is None:
            msg = f"VERSION is missing; give it after the name: {verb.name} {name} 7"
            raise click.UsageError(msg)
        return
    if version not in (None, LATEST):
        msg = f"the version is given twice; leave {version} out, or give the name alone."
        raise click.UsageError(msg)
    found = version_at(name)
    arguments["name"], arguments["version"] = found.name, int(found.version)


@contextmanager
def reported_errors(words: Sequence[str] = ()) -> Iterator[None]:
    """End the process on an error of the block: one sentence, an exit code, a reason on the run.

    `mlflow run` may have made a run for this process, which gets the reason as a tag, also of an
    error in the words.

    Args:
        words: The words of the command, to show after an interruption how to go on.
    """
    try:
        with raised_on_sigterm():
            yield
    except click.exceptions.Exit as end:
        raise SystemExit(end.exit_code) from None
    except BaseException as error:
        from mlflow_e2eai.tracking.runs import log_project_failure

        ended: BaseException | None = interruption_of(error)
        if isinstance(error, click.Abort):
            ended = KeyboardInterrupt()
        if isinstance(ended, (KeyboardInterrupt, Termination)):
            print(f"{_NAME}: {reason_of(ended)}", *_how_to_go_on(words), file=sys.stderr, sep="\n")
            log_project_failure(ended)
            code = TERMINATED if isinstance(ended, Termination) else INTERRUPTED
            raise SystemExit(code) from None
        if not isinstance(error, Exception):
            raise
        reason = log_project_failure(storage_error(error) or _usage_error(error))
        if not isinstance(reason, E2EAIError):
            raise
        going_on = _how_to_go_on(words) if reason.resumable else []
        print(f"{_NAME}: {reason}", *going_on, file=sys.stderr, sep="\n")
        raise SystemExit(USAGE if isinstance(error, click.UsageError) else ERROR) from error


def _how_to_go_on(words: Sequence[str]) -> list[str]:
    """The line about an interrupted verb: the same command; none for verbs that keep nothing."""
    verb = VERBS.get(words[0]) if words else None
    if verb is None or verb.printer == "cli.results:print_nothing":
        return []
    options = {key for key in verb.options if isinstance(key, str)}
    linked = ""
    given = {word.partition("=")[0] for word in words}
    if given & {"--fresh", "--rebuild"}:
        linked = "; it does again what was done"
    elif "fresh" in options:
        linked = "; stages that are done will be linked"
    elif options & {"targets", "compile_targets"}:
        linked = "; engines that are built already will be linked"
    return [f"To continue: {shlex.join([_NAME, *words])}{linked}"]


def _usage_error(error: Exception) -> Exception:
    """Turn an error of click into one of the package; any other is returned unchanged."""
    if not isinstance(error, click.UsageError):
        return error
    context = error.ctx
    message = error.message
    if isinstance(error, click.NoSuchOption):
        known = [] if context is None else _options_of(context)
        hint = suggestion(error.option_name, known)
        message = f"there is no option {error.option_name}; {hint}"
    elif isinstance(error, click.MissingParameter) and error.param is not None:
        about = getattr(error.param, "help", None) or error.param.human_readable_name
        message = f"{error.param.opts[0]} is missing: {about}."
    elif isinstance(error, click.BadParameter) and error.param is not None:
        message = f"{error.param.opts[0]}: {error.message}"
    is_verb = context is not None and isinstance(context.command, VerbCommand)
    verb = f"{context.command.name}: " if context is not None and is_verb else ""
    return InvalidInputError(f"{verb}{message}")


def _options_of(context: click.Context) -> list[str]:
    return [text for param in context.command.get_params(context) for text in param.opts]
