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


class Word(click.Argument):
    """An option that is given by position."""

    def __init__(self, option: Option) -> None:
        self.option = option
        super().__init__(
            [option.argument],
            type=Text(option),
            required=option.default is None,
            default=option.default,
            metavar=option.metavar if option.default is None else f"[{option.metavar}]",
        )

    @property
    def help_row(self) -> tuple[str, str]:
        """The word and the option's line; click has help of arguments from 8.5 on."""
        default = "" if self.option.default is None else f"  [default: {self.option.default}]"
        return self.option.metavar, f"{self.option.help}{default}"


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
