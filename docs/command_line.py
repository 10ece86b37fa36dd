"""Writes command-line.md from the one declaration of verbs and options.

`make docs` runs it; tests/project/test_docs.py compares the file with it.
"""

from __future__ import annotations

from pathlib import Path

import click

from mlflow_e2eai.cli.main import command_line

PAGE = Path(__file__).with_name("command-line.md")

HEAD = """# Command line

<!-- Written by docs/command_line.py; do not edit. -->

The console command `mlflow_e2eai`, also `python -m mlflow_e2eai`, has a verb for each entry point of the MLflow project and a few more. An entry point takes the same options as parameters: `mlflow run . -e export -P opset=17`. Exit codes: 0 done, 1 error, 2 usage error, 3 rejected by a gate, decided otherwise today (`redecide`) or moved by hand (`guard`, `watch`), 130 and 143 after Ctrl-C and SIGTERM; `mlflow run` reports all but 0 as a failed run.

Results, such as a model's URI, are printed on standard output; progress and errors on standard error. `--json` prints them as data: `mlflow_e2eai promote --json | jq .gates`. Each stage is one line when it ends. Meanwhile a terminal shows a bar or a clock, and a log gets a line after 10 seconds, 20, 40 and so on. `--quiet` shows none of it. Nothing is coloured. After Ctrl-C the last line is the command to go on with.

The shell completes verbs, options and their choices once it has read one of these, as from `~/.bashrc`, `~/.zshrc` or `~/.config/fish/config.fish`:

```bash
eval "$(_MLFLOW_E2EAI_COMPLETE=bash_source mlflow_e2eai)"  # bash 4.4 or newer
eval "$(_MLFLOW_E2EAI_COMPLETE=zsh_source mlflow_e2eai)"   # zsh
_MLFLOW_E2EAI_COMPLETE=fish_source mlflow_e2eai | source   # fish
```
"""


def page() -> str:
    """The whole page as Markdown."""
    context = click.Context(command_line, info_name="mlflow_e2eai")
    names = [name for name in command_line.list_commands(context) if name != "help"]
    return HEAD + "".join(_section(name, context) for name in names)


def _section(name: str, parent: click.Context) -> str:
    command = command_line.get_command(parent, name)
    context = click.Context(command, info_name=name, parent=parent)
    lines = [f"\n## {name}\n", f"{command.get_short_help_str(200)}\n"]
    if command.verb.example:
        lines.append(f"```bash\nmlflow_e2eai {name} {command.verb.example}\n```\n")
    lines += ["| option | | default |", "|---|---|---|"]
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if isinstance(parameter, click.Argument):
            lines.append(_word_row(parameter, context))
        elif record is not None and "--help" not in parameter.opts:
            lines.append(_row(parameter, record[1]))
    return "\n".join(lines) + "\n"


def _word_row(word: click.Argument, context: click.Context) -> str:
    option = getattr(word, "option", None)  # else its option has a row of its own
    text, default = ("by position", None) if option is None else (option.help, option.default)
    return (
        f"| `{word.make_metavar(context)}` | {text} | {'' if default is None else f'`{default}`'} |"
    )


def _row(option: click.Option, text: str) -> str:
    words = text.rsplit("  [", 1)[0].replace("|", "\\|")
    default = "" if option.is_flag or option.required else f"`{option.default}`"
    return f"| `{option.opts[0]}` | {words} | {default} |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
