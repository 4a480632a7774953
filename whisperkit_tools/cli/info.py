"""`wkt info`: what a bundle holds, readably."""

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from whisperkit_tools.bundle import Bundle
    from whisperkit_tools.manifest import Manifest, PrefillRecord
    from whisperkit_tools.mil.graph import Graph

STATEFUL_NOTE = "stateful (iOS 18, macOS 15): today's open runtime does not load it; wkt transcribe runs it"


@click.command()
@click.argument("bundle_path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(bundle_path: Path, as_json: bool) -> None:
    """Show what a bundle contains."""
    from whisperkit_tools.bundle import Bundle

    bundle = Bundle.open(bundle_path)
    facts = _facts(bundle)
    if as_json:
        click.echo(json.dumps(facts, indent=2))
    else:
        _print(facts, bundle.manifest)


def _facts(bundle: "Bundle") -> dict[str, Any]:
    from whisperkit_tools.files import folder_bytes

    components = {name: _component(bundle, name) for name in bundle.components()}
    return {
        "name": bundle.name,
        "bytes": folder_bytes(bundle.path),
        "loads_in_runtime": not any(component["states"] for component in components.values()),
        "components": components,
        "manifest": {key: value for key, value in bundle.manifest.to_json().items() if key != "files"},
    }


def _component(bundle: "Bundle", name: str) -> dict[str, Any]:
    from whisperkit_tools.files import folder_bytes
    from whisperkit_tools.mil.graph import function_names, read_graph

    path = bundle.package(name).path
    names = function_names(path)
    graph = read_graph(path, names[0])
    others = {one: read_graph(path, one) for one in names[1:]}
    parity = bundle.manifest.parity
    return {
        "bytes": folder_bytes(path),
        "opset": graph.metadata.opset,
        "license": graph.metadata.license,
        **_program(graph),
        "functions": {one: _program(other) for one, other in others.items()},
        "psnr_db": parity.psnr_db.get(name, {}) if parity else {},
    }


def _program(graph: "Graph") -> dict[str, Any]:
    """Inputs, outputs, states and operations of one function."""
    return {
        "inputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.inputs.items()},
        "outputs": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.outputs.items()},
        "states": {key: f"{spec.dtype}{list(spec.shape)}" for key, spec in graph.states.items()},
        "operations": dict(Counter(operation.type for operation in graph.operations).most_common()),
    }


def _print(facts: dict[str, Any], manifest: "Manifest") -> None:
    click.echo(f"{facts['name']}  ({facts['bytes'] / 1e6:.1f} MB)")
    if not facts["loads_in_runtime"]:
        click.echo(f"  {'form':<12} {STATEFUL_NOTE}")
    for title, value in _summary(manifest):
        click.echo(f"  {title:<12} {value}")
    for name, component in facts["components"].items():
        click.echo(f"\n{name}  {component['bytes'] / 1e6:.1f} MB, {component['opset']}")
        _print_program(component)
        for function, program in component["functions"].items():
            click.echo(f"  function {function}")
            _print_program(program)
        for precision, figures in component["psnr_db"].items():
            click.echo(
                f"  parity  {precision}: " + ", ".join(f"{key} {value:.1f} dB" for key, value in figures.items())
            )


def _print_program(program: dict[str, Any]) -> None:
    for kind in ("inputs", "outputs", "states"):
        for key, value in program[kind].items():
            click.echo(f"  {kind[:-1]:<7} {key:<26} {value}")
    operations = program["operations"]
    listed = ", ".join(f"{count} {kind}" for kind, count in operations.items())
    click.echo(f"  {sum(operations.values())} operations: {listed}")


def _summary(manifest: "Manifest") -> list[tuple[str, str]]:
    if manifest.is_empty:
        return [("manifest", "none: another tool made this bundle")]
    source, conversion, tool = manifest.source, manifest.conversion, manifest.tool
    options = conversion.to_json() if conversion else {}
    listed = ", ".join(f"{key} {value}" for key, value in options.items() if key not in ("notes", "alignment_heads"))
    maker = f"{tool.name or '?'} {tool.version or '?'}" if tool else "? ?"
    return [
        ("created", f"{manifest.created or '?'} by {maker}"),
        ("source", f"{(source and source.name) or '?'} (revision {(source and source.revision) or 'none, local'})"),
        ("license", (source and source.license) or "not stated by the source"),
        ("options", listed),
        *(("prefill", line) for line in _prefill(manifest.prefill)),
        *(("note", note) for note in (conversion.notes if conversion else ())),
    ]


def _prefill(recorded: "PrefillRecord | None") -> list[str]:
    """What became of the prefill, and its evidence."""
    if recorded is None:
        return []
    if not recorded.tokens:
        return [f"left out: {recorded.reason}"]
    pairs = f"{recorded.languages} languages x {recorded.tasks} tasks" if recorded.languages else "English only"
    lines = [
        f"{'included' if recorded.included else 'left out'}: {recorded.tokens} tokens, {pairs}, mean over "
        f"{recorded.windows} windows of {recorded.source} ({recorded.audio})"
    ]
    evidence = recorded.evidence
    if evidence is None:
        return lines
    figures = sorted(value for tasks in evidence.psnr_db.values() for value in tasks.values())
    if figures:
        median = figures[len(figures) // 2]
        lines.append(f"caches on held-out speech: median {median:.1f} dB, minimum {figures[0]:.1f} dB")
    if evidence.wer_without is not None and evidence.wer_with is not None:
        lines.append(
            f"{evidence.changed} of {evidence.clips} transcripts change, WER {evidence.wer_without:.2f} % to "
            f"{evidence.wer_with:.2f} % ({evidence.judged_on})"
        )
    lines += [
        f"null test {name}: {null.psnr_db or 0:.1f} dB, {null.changed} of {null.clips} transcripts change"
        for name, null in evidence.nulls.items()
    ]
    return lines
