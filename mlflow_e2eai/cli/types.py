"""Options of the package as options of click."""

from __future__ import annotations

from typing import Any

import click
from click.shell_completion import CompletionItem

from mlflow_e2eai.errors import InvalidInputError
from mlflow_e2eai.pipeline.options import Option


class Text(click.ParamType[Any]):
    """The text form of an option."""

    def __init__(self, option: Option) -> None:
        self.option = option
        self.name = option.metavar

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Read a text; its `InvalidInputError` becomes click's error, which names the option."""
        try:
            return self.option.parse(value)
        except InvalidInputError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 - click's signature
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """The option's choices that begin with the text; files where it has none."""
        if not self.option.choices:
            return [CompletionItem(incomplete, type="file")]
        return [CompletionItem(c) for c in self.option.choices if c.startswith(incomplete)]


def option_of(option: Option) -> click.Option:
    """Make click's option: required without a default; a flag alone means ``yes``."""
    more: dict[str, Any] = {"is_flag": False, "flag_value": "yes"} if option.is_flag else {}
    if option.default is not None:
        more["default"] = option.default
    return click.Option(
        [f"--{option.name.replace('_', '-')}", option.argument],
        type=Text(option),
        required=option.default is None,
        show_default=True,
        metavar=option.metavar,
        help=option.help,
        **more,
    )
