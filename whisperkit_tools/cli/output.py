"""Printing: results on stdout, notes on stderr. Nothing that a file says can steer the terminal."""

from collections.abc import Iterable
from typing import Any

import click

from whisperkit_tools.cli.flags import show_flags
from whisperkit_tools.strict_json import json_text
from whisperkit_tools.terminal_text import plain, plain_lines


def show(line: object = "") -> None:
    """Print a line of the result, with options as flags of the running command.

    A line break at the start leaves a line free. Others stand before an indentation, or come from data and are shown.
    """
    text = show_flags(str(line))
    body = text.lstrip("\n")
    click.echo(text[: len(text) - len(body)] + plain_lines(body))


def show_json(value: Any) -> None:
    """Print the result for programs. Control characters beyond ASCII are escaped as those within it."""
    text = json_text(value, default=str)
    click.echo("".join(f"\\u{ord(one):04x}" if "\x7f" <= one <= "\x9f" else one for one in text))


def note(message: str) -> None:
    """Tell the user something about the result that does not belong to it."""
    click.echo(f"wkt: note: {plain(show_flags(message))}", err=True)


def column_table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Return rows as aligned lines: the first column to the left, the others to the right."""
    listed = list(rows)
    widths = [max(len(row[column]) for row in listed) for column in range(len(listed[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in listed
    ]
