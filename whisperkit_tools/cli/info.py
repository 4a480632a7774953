"""`wkt info`: the content of a bundle, readably."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.verify import STATEFUL_NOTE

if TYPE_CHECKING:
    from whisperkit_tools.manifest import Manifest, PrefillRecord


@click.command()
@click.argument("bundle", type=options.PATH)
@options.json_output
def command(bundle: Path, as_json: bool) -> None:
    """Show what a bundle contains.

    Components with their inputs, outputs, sizes, operations and parity, and how the bundle was made.
    """
    from whisperkit_tools.pipeline.checks import describe

    opened = wkt.Bundle.open(bundle)
    facts = describe(opened)
    if as_json:
        show_json(facts)
    else:
        _print(facts, opened.manifest)


def _print(facts: dict[str, Any], manifest: "Manifest") -> None:
    show(f"{facts['name']}  ({facts['bytes'] / 1e6:.1f} MB)")
    if not facts["loads_in_runtime"]:
        show(f"  {'form':<12} {STATEFUL_NOTE}")
    for title, value in facts["defaults"].items():
        show(f"  {title:<12} {value}, unless another one is asked for")
    for title, value in _summary(manifest):
        show(f"  {title:<12} {value}")
    for name, component in facts["components"].items():
        show(f"\n{name}  {component['bytes'] / 1e6:.1f} MB, {component['opset']}")
        _print_program(component)
        for function, program in component["functions"].items():
            show(f"  function {function}")
            _print_program(program)
        for precision, figures in component["psnr_db"].items():
            show(f"  parity  {precision}: " + ", ".join(f"{key} {value:.1f} dB" for key, value in figures.items()))


def _print_program(program: dict[str, Any]) -> None:
    for kind in ("inputs", "outputs", "states"):
        for key, value in program[kind].items():
            show(f"  {kind[:-1]:<7} {key:<26} {value}")
    operations = program["operations"]
    listed = ", ".join(f"{count} {kind}" for kind, count in operations.items())
    show(f"  {sum(operations.values())} operations: {listed}")


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
    """Return the outcome of the prefill and its evidence, a line for each fact."""
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
