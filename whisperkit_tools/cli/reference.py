"""The command reference, generated from the commands: `python -m whisperkit_tools.cli.reference > docs/cli.md`."""

import inspect
from collections.abc import Iterator

import click

from whisperkit_tools.cli import COMMANDS, cli

_INTRODUCTION = """\
# Command reference

Generated from the commands by `python -m whisperkit_tools.cli.reference > docs/cli.md`. Each command also prints its
part with `-h`. Results go to stdout, progress and messages to stderr.

Exit codes: 0 success, 1 failure, 2 wrong usage, 3 a quality gate was not passed.
"""


def reference() -> str:
    """Return the help of all commands as Markdown."""
    context = click.Context(cli, info_name="wkt")
    table = [f"| [`wkt {name}`](#wkt-{name}) | {what} |" for name, what in COMMANDS.items()]
    parts = [_INTRODUCTION, "\n".join(["| command | |", "|---|---|", *table]) + "\n"]
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if command is not None:
            parts.append("\n".join(_section(name, command, context)))
    return "\n".join(parts)


def _section(name: str, command: click.Command, parent: click.Context) -> Iterator[str]:
    context = click.Context(command, info_name=name, parent=parent)
    yield f"## wkt {name}\n"
    yield f"```\n{' '.join(['wkt', name, *command.collect_usage_pieces(context)])}\n```\n"
    yield f"{_text(command)}\n"
    yield "| option | |\n|---|---|"
    for param in command.params:
        if isinstance(param, click.Option):
            yield f"| {_cell(f'`{_spelling(param, context)}`')} | {_cell(_meaning(param, context))} |"
    yield ""


def _spelling(param: click.Option, context: click.Context) -> str:
    """Return the names of an option and the name of its value."""
    record = param.get_help_record(context)
    return record[0] if record is not None else param.opts[0]


def _meaning(param: click.Option, context: click.Context) -> str:
    """Return the help of an option and its default, worded alike by all versions of click."""
    if param.required:
        return f"{param.help}  [required]"
    if not param.show_default:
        return param.help or ""
    default: object = param.get_default(context)
    if param.secondary_opts:
        default = max(param.opts if default else param.secondary_opts, key=len)
    return f"{param.help}  [default: {default}]"


def _text(command: click.Command) -> str:
    """Return the description of a command, one line for each paragraph."""
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


if __name__ == "__main__":
    click.echo(reference(), nl=False)
