"""`wkt verify`: hashes, contract and parity of a bundle, again."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.checkpoint import Checkpoint


@click.command()
@click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--source", help="The checkpoint to compare with [default: the one that the bundle records].")
@click.option("--no-parity", is_flag=True, help="Check hashes and contract only.")
@click.option("--allow-pickle", is_flag=True, help="Read a pickled source (.pt, .bin), without running code in it.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(bundle_path: Path, source: str | None, no_parity: bool, allow_pickle: bool, as_json: bool) -> None:
    """Check a bundle's hashes, runtime contract and parity.

    Exits 3 when a file differs from the manifest, a package does not keep the runtime's contract, or computes
    something else than the checkpoint it was made from.
    """
    from dataclasses import asdict

    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.cli.info import STATEFUL_NOTE
    from whisperkit_tools.cli.progress import ConsoleProgress
    from whisperkit_tools.conversion.parity import ParityGate
    from whisperkit_tools.conversion.verify import bundle_is_stateful, verify_bundle
    from whisperkit_tools.demo import verification_speech
    from whisperkit_tools.errors import QualityGateError

    bundle = Bundle.open(bundle_path)
    checkpoint, reason = (None, "--no-parity") if no_parity else _checkpoint(bundle, source, allow_pickle)
    found = verify_bundle(bundle, checkpoint, verification_speech(), ParityGate(), ConsoleProgress())
    if bundle_is_stateful(bundle):
        click.echo(f"wkt: note: {bundle.name} is {STATEFUL_NOTE}", err=True)
    if as_json:
        click.echo(json.dumps({**asdict(found), "parity_skipped": reason}, indent=2))
    else:
        click.echo(f"files     {_verdict(found.files)}")
        click.echo(f"contract  {_verdict(found.contract)}")
        parity = _verdict(found.parity) if found.measured else f"not checked: {reason or 'see above'}"
        click.echo(f"parity    {parity}")
    if found.problems:
        raise QualityGateError(f"{bundle_path} does not verify: {'; '.join(found.problems)}")


def _verdict(problems: tuple[str, ...]) -> str:
    return f"{len(problems)} differ" if problems else "ok"


def _checkpoint(bundle: "Bundle", source: str | None, allow_pickle: bool) -> tuple["Checkpoint | None", str | None]:
    """Open the checkpoint to compare with, or say why there is none."""
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.verify import source_of
    from whisperkit_tools.errors import CheckpointError

    recorded = source_of(bundle)
    if recorded is None:
        return None, "the bundle does not record how it was converted"
    name, revision, hashes = recorded
    try:
        checkpoint = open_checkpoint(source or name, revision=None if source else revision, allow_pickle=allow_pickle)
    except CheckpointError as error:
        if source:
            raise
        return None, f"its source cannot be opened ({error}); name a copy with --source"
    if hashes and sorted(checkpoint.content_sha256.values()) != sorted(hashes.values()):
        if source:
            raise CheckpointError(f"{source} holds other weights than {name}, from which the bundle was converted")
        return None, f"{name} holds other weights now than those converted; name the original with --source"
    return checkpoint, None
