"""Options that several commands share, and the ways in which options are declared.

A parameter has the long name of its option with underscores, which is the keyword of the function that the command
calls. Values are passed on as the user wrote them; that function checks them.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

Decorated = TypeVar("Decorated", bound=Callable[..., Any])
Decorator = Callable[[Any], Any]

FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)
FILE = click.Path(path_type=Path, dir_okay=False)

json_output = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
force = click.option("--force", is_flag=True, help="Replace existing output.")
bundles_dir = click.option(
    "--bundles-dir",
    type=PATH,
    default=Path("bundles"),
    show_default=True,
    help="Folder in which to look for the last converted bundle, when no bundle is named.",
)
output_bundles = click.option(
    "-o", "--output-dir", type=PATH, default=Path("bundles"), show_default=True, help="Folder that holds bundles."
)
precision = click.option(
    "--precision",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Precision of the executor. float16 rounds as the device does, and is slower.",
)
compute_units = click.option(
    "--compute-units",
    type=click.Choice(["all", "cpu_only", "cpu_and_gpu", "cpu_and_ne"]),
    help="Core ML compute units.  [default: those of the on-device runtime]",
)


def _number_or_auto(context: click.Context, param: click.Parameter, value: Any) -> int | str:
    """Return a batch size as a number where it is one."""
    return value if value == "auto" else click.IntRange(1).convert(value, param, context)


batch_size = click.option(
    "--batch-size",
    metavar="N|auto",
    default="auto",
    show_default=True,
    callback=_number_or_auto,
    help="Number of recordings decoded at once. Their tokens are those of one at a time.",
)
allow_pickle = click.option(
    "--allow-pickle", is_flag=True, help="Read pickled weights (.pt, .bin) without running code in them."
)
function = click.option("--function", help="Function of a package with several.  [default: all]")
dry_run = click.option("--dry-run", is_flag=True, help="Show exactly what would change, and change nothing.")
pull_request = click.option("--pr", is_flag=True, help="Open a pull request instead of committing.")
branch = click.option("--revision", metavar="BRANCH", help="Branch to commit to.  [default: main]")


def options(*decorators: Decorator) -> Decorator:
    """Combine several options into one decorator. They appear in the help in this order."""

    def decorate(function: Any) -> Any:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def switch_off(flag: str, help: str) -> Decorator:
    """Declare `--no-x`, which sets the parameter `x` to False."""
    name = flag.removeprefix("--no-").replace("-", "_")
    return click.option(flag, name, is_flag=True, callback=lambda context, param, given: not given, help=help)
