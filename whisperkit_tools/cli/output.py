"""Printing: results on stdout, notes on stderr."""

import json
from collections.abc import Iterable
from typing import Any

import click

from whisperkit_tools.cli.flags import show_flags


def show(line: object = "") -> None:
    """Print a line of the result, with options as flags of the running command."""
    click.echo(show_flags(str(line)))


def show_json(value: Any) -> None:
    """Print the result for programs."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, default=str))


def note(message: str) -> None:
    """Tell the user something about the result that does not belong to it."""
    click.echo(f"wkt: note: {show_flags(message)}", err=True)


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
