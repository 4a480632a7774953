"""`wkt info`: what a bundle holds, readably."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.bundle import Bundle


@click.command(short_help="Show what a bundle holds.")
@click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(bundle_path: Path, as_json: bool) -> None:
    """Show what a bundle holds: components, inputs and outputs, sizes, operations, options, parity."""
    from whisperkit_tools.bundle import Bundle

    bundle = Bundle.open(bundle_path)
    facts = _facts(bundle)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def _facts(bundle: "Bundle") -> dict[str, Any]:
    from whisperkit_tools.bundle import folder_bytes

    manifest = {key: value for key, value in bundle.manifest.items() if key != "files"}
    return {
        "name": bundle.name,
        "bytes": folder_bytes(bundle.path),
        "components": {name: _component(bundle, name) for name in bundle.components()},
        "manifest": manifest,
    }


def _component(bundle: "Bundle", name: str) -> dict[str, Any]:
    from whisperkit_tools.bundle import folder_bytes
    from whisperkit_tools.mil.graph import read_graph

    path = bundle.package(name)
    graph = read_graph(path, "main")
    figures = bundle.manifest.get("parity", {}).get("psnr_db", {}).get(name, {})
    return {
        "bytes": folder_bytes(path),
        "opset": graph.metadata.opset,
        "license": graph.metadata.license,
        "inputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.inputs.items()},
        "outputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.outputs.items()},
        "operations": dict(Counter(operation.type for operation in graph.operations).most_common()),
        "psnr_db": figures,
    }


def _print(facts: dict[str, Any]) -> None:
    manifest = facts["manifest"]
    click.echo(f"{facts['name']}  ({facts['bytes'] / 1e6:.1f} MB)")
    for title, value in _summary(manifest):
        click.echo(f"  {title:<12} {value}")
    for name, component in facts["components"].items():
        click.echo(f"\n{name}  {component['bytes'] / 1e6:.1f} MB, {component['opset']}")
        for kind in ("inputs", "outputs"):
            for key, value in component[kind].items():
                click.echo(f"  {kind[:-1]:<7} {key:<26} {value}")
        operations = component["operations"]
        listed = ", ".join(f"{count} {kind}" for kind, count in operations.items())
        click.echo(f"  {sum(operations.values())} operations: {listed}")
        for precision, figures in component["psnr_db"].items():
            click.echo(
                f"  parity  {precision}: " + ", ".join(f"{key} {value:.1f} dB" for key, value in figures.items())
            )


def _summary(manifest: dict[str, Any]) -> list[tuple[str, str]]:
    if not manifest:
        return [("manifest", "none: another tool made this bundle")]
    source, conversion = manifest.get("source", {}), manifest.get("conversion", {})
    options = ", ".join(
        f"{key} {value}" for key, value in conversion.items() if key not in ("notes", "alignment_heads")
    )
    tool = manifest.get("tool", {})
    return [
        ("created", f"{manifest.get('created', '?')} by {tool.get('name', '?')} {tool.get('version', '?')}"),
        ("source", f"{source.get('name', '?')} (revision {source.get('revision') or 'none, local'})"),
        ("license", source.get("license") or "not stated by the source"),
        ("options", options),
        *(("note", note) for note in conversion.get("notes", [])),
    ]
