"""`wkt lint`: what will not run on the Neural Engine, and why."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from whisperkit_tools import contract

if TYPE_CHECKING:
    from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable
    from whisperkit_tools.compile_hints.lint.rules import Finding, Residency

PLACES_SHOWN = 4


@click.command()
@click.argument("path", metavar="BUNDLE|PACKAGE", type=click.Path(path_type=Path))
@click.option("--chip", "chip_name", default="a14", show_default=True, help="The oldest chip that is to run it.")
@click.option("--function", help="Only this function of a package with several [default: all].")
@click.option(
    "--ignore", "ignored", multiple=True, metavar="RULE", help="Pass over the findings of a rule; repeatable."
)
@click.option("--operations", "list_operations", is_flag=True, help="List every operation and where it runs.")
@click.option("--strict", is_flag=True, help="Exit 3 when there are findings.")
@click.option("--measured", is_flag=True, help="Ask Core ML for its compute plan too, and show both (macOS only).")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(
    path: Path,
    chip_name: str,
    function: str | None,
    ignored: tuple[str, ...],
    list_operations: bool,
    strict: bool,
    measured: bool,
    as_json: bool,
) -> None:
    """List what will not run on the Neural Engine, and why.

    The rules are applied to the program itself, so this works without a Mac and on any ML Program. Core ML decides
    anew on each device.
    """
    from whisperkit_tools.errors import QualityGateError

    reports = _reports(path, chip_name, function, ignored, measured)
    _, chip = _table(chip_name)
    if as_json:
        click.echo(json.dumps(_as_json(path, chip, reports), indent=2))
    else:
        click.echo(f"{path.resolve().name} on {chip.title}")
        for name, (report, devices) in reports.items():
            _print(name, report, devices, list_operations)
    count = sum(len(report.findings) for report, _ in reports.values())
    if strict and count:
        found = "1 finding" if count == 1 else f"{count} findings"
        raise QualityGateError(f"{path}: {found} on {chip.title}; accept those of a rule with --ignore RULE")


def _table(chip_name: str) -> tuple["ChipTable", "Chip"]:
    from whisperkit_tools.compile_hints.lint.chips import load_chips

    table = load_chips()
    try:
        return table, table.chip(chip_name)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--chip") from error


def _reports(
    path: Path, chip_name: str, function: str | None, ignored: tuple[str, ...], measured: bool
) -> dict[str, tuple["Residency", dict[str, str] | None]]:
    """Judge each package; Core ML's own devices beside it when asked."""
    from dataclasses import replace

    table, chip = _table(chip_name)
    from whisperkit_tools.cli.arguments import find_functions
    from whisperkit_tools.compile_hints.lint.rules import lint_program, rules
    from whisperkit_tools.mil.coreml import planned_devices, require_compute_plan
    from whisperkit_tools.mil.graph import read_graph

    if unknown := sorted(set(ignored) - rules().keys()):
        raise click.BadParameter(
            f"unknown rule {', '.join(unknown)}; known are {', '.join(rules())}", param_hint="--ignore"
        )
    if measured:
        require_compute_plan()
    reports: dict[str, tuple[Residency, dict[str, str] | None]] = {}
    for name, (package, part) in find_functions(path, function).items():
        report = lint_program(read_graph(package, part), chip, table)
        kept = tuple(finding for finding in report.findings if finding.rule not in ignored)
        devices = planned_devices(package, part) if measured else None
        reports[name] = replace(report, findings=kept), devices
    return reports


def _as_json(path: Path, chip: "Chip", reports: dict[str, tuple["Residency", dict[str, str] | None]]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "path": str(path),
        "chip": chip.name,
        "packages": {
            name: {
                **{key: value for key, value in asdict(report).items() if key not in ("on_engine", "types")},
                "operations": [
                    {"name": key, "type": report.types[key], "on_engine": stays, **_measured(devices, key)}
                    for key, stays in report.on_engine.items()
                ],
            }
            for name, (report, devices) in reports.items()
        },
    }


def _measured(devices: dict[str, str] | None, name: str) -> dict[str, str | None]:
    return {} if devices is None else {"measured": devices.get(name)}


def _print(name: str, report: "Residency", devices: dict[str, str] | None, list_operations: bool) -> None:
    total, leaving = len(report.on_engine), sum(not stays for stays in report.on_engine.values())
    click.echo(
        f"\n{name}  {report.flops_share:.1%} of FLOPs and {report.bytes_share:.1%} of bytes on the Neural Engine, "
        f"{report.switches} engine switch{'' if report.switches == 1 else 'es'}, {leaving} of {total} operations leave"
    )
    if leaving == total:
        click.echo("  runs on CPU and GPU as a whole" + (", the runtime's default for it" if _is_mel(name) else ""))
    if report.padding_bytes or report.copied_bytes:
        click.echo(f"  {report.padding_bytes} bytes of padding, {report.copied_bytes} bytes copied for layout, a call")
    for group in _grouped(report.findings):
        _print_rule(group)
    if not report.findings:
        click.echo("  no findings")
    if devices is not None:
        differ = [key for key, stays in report.on_engine.items() if (devices.get(key, "ane") == "ane") != stays]
        planned = sum(device == "ane" for device in devices.values())
        click.echo(f"  Core ML plans {planned} of {len(devices)} operations on the Neural Engine; {len(differ)} differ")
    if list_operations or devices is not None:
        _print_operations(report, devices)


def _is_mel(name: str) -> bool:
    return name == contract.MEL


def _grouped(findings: tuple["Finding", ...]) -> list[list["Finding"]]:
    groups: dict[str, list[Finding]] = {}
    for finding in findings:
        groups.setdefault(finding.rule, []).append(finding)
    return list(groups.values())


def _print_rule(group: list["Finding"]) -> None:
    first = group[0]
    click.echo(f"  {'leaves' if first.leaves else 'costs'}  {first.rule} ({len(group)}): {first.advice}")
    click.echo(f"          source: {first.source}")
    for finding in group[:PLACES_SHOWN]:
        click.echo(f"          {finding.where}: {finding.what}")
    if len(group) > PLACES_SHOWN:
        click.echo(f"          ... and {len(group) - PLACES_SHOWN} more (--json lists all)")


def _print_operations(report: "Residency", devices: dict[str, str] | None) -> None:
    reasons: dict[str, list[str]] = {}
    for finding in report.findings:
        for name in finding.operations if finding.leaves else ():
            reasons.setdefault(name, []).append(finding.rule)
    for name, stays in report.on_engine.items():
        verdict = "engine" if stays else "leaves"
        planned = f"{devices.get(name, '-'):<7}" if devices is not None else ""
        click.echo(
            f"    {verdict} {planned}{report.types[name]:<18} {name}  {', '.join(reasons.get(name, []))}".rstrip()
        )
