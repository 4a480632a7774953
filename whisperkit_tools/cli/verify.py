"""`wkt verify`: hashes, contract and parity of a bundle, again."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import note, show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress

STATEFUL_NOTE = "stateful (iOS 18, macOS 15): today's open runtime does not load it; wkt transcribe runs it"


@click.command()
@click.argument("bundle", type=options.PATH)
@click.option("--source", help="Checkpoint to compare with.  [default: the one that the bundle records]")
@options.switch_off("--no-parity", help="Check hashes and contract only.")
@options.allow_pickle
@options.json_output
def command(bundle: Path, as_json: bool, **chosen: Any) -> None:
    """Check a bundle's hashes, runtime contract and parity.

    Exits 3 when a file differs from the manifest, or when a package violates the runtime's contract or does not compute
    what its checkpoint computes.
    """
    with ConsoleProgress() as progress:
        checked = wkt.verify(bundle, **chosen, progress=progress)
    found = checked.found
    if checked.is_stateful:
        note(f"{checked.bundle.name} is {STATEFUL_NOTE}")
    if as_json:
        show_json({**asdict(found), "parity_skipped": checked.parity_skipped})
    else:
        show(f"files     {_verdict(found.files)}")
        show(f"contract  {_verdict(found.contract)}")
        parity = _verdict(found.parity) if found.measured else f"not checked: {checked.parity_skipped or 'see above'}"
        show(f"parity    {parity}")
    checked.require()


def _verdict(problems: tuple[str, ...]) -> str:
    return f"{len(problems)} differ" if problems else "ok"
