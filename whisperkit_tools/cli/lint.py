"""`wkt lint`: the operations that will not run on the Neural Engine, and the reasons."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools import contract
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.compile_hints.lint.forms import RULE_PREFIX

if TYPE_CHECKING:
    from whisperkit_tools.compile_hints.lint.rules import Finding, Residency
    from whisperkit_tools.pipeline.checks import LintReport

PLACES_SHOWN = 4


@click.command()
@click.argument("path", metavar="BUNDLE|PACKAGE", type=options.PATH)
@click.option("--chip", default="a14", show_default=True, help="Oldest chip that must run it.")
@options.function
@click.option("--ignore", multiple=True, metavar="RULE", help="Omit the findings of a rule. Repeatable.")
@click.option("--operations", is_flag=True, help="List every operation and where it runs.")
@click.option("--strict", is_flag=True, help="Exit 3 when there are findings.")
@click.option("--measured", is_flag=True, help="Also ask Core ML for its compute plan, and show both (macOS only).")
@options.json_output
def command(path: Path, as_json: bool, operations: bool, strict: bool, **chosen: Any) -> None:
    """List what will not run on the Neural Engine, and why.

    The rules are applied to the program itself, so this works without a Mac and on any ML Program. Core ML decides
    again on each device. The rules form-* name compressed forms of which others report failures, with chip and system.
    """
    found = wkt.lint(path, **chosen)
    if as_json:
        show_json(_as_json(path, found))
    else:
        show(f"{path.resolve().name} on {found.chip.title}")
        for name, package in found.packages.items():
            _print(name, package.report, package.devices, operations)
    if strict:
        found.require_clean()


def _as_json(path: Path, found: "LintReport") -> dict[str, Any]:
    packages = {name: _package_json(package.report, package.devices) for name, package in found.packages.items()}
    return {"path": str(path), "chip": found.chip.name, "packages": packages}


def _package_json(report: "Residency", devices: Mapping[str, str] | None) -> dict[str, Any]:
    return {
        **{key: value for key, value in asdict(report).items() if key not in ("on_engine", "types")},
        "operations": [
            {"name": key, "type": report.types[key], "on_engine": stays, **_measured(devices, key)}
            for key, stays in report.on_engine.items()
        ],
    }


def _measured(devices: Mapping[str, str] | None, name: str) -> dict[str, str | None]:
    return {} if devices is None else {"measured": devices.get(name)}


def _print(name: str, report: "Residency", devices: Mapping[str, str] | None, list_operations: bool) -> None:
    total, leaving = len(report.on_engine), sum(not stays for stays in report.on_engine.values())
    show(
        f"\n{name}  {report.flops_share:.1%} of FLOPs and {report.bytes_share:.1%} of bytes on the Neural Engine, "
        f"{report.switches} engine switch{'' if report.switches == 1 else 'es'}, {leaving} of {total} operations leave"
    )
    if leaving == total:
        show("  runs on CPU and GPU as a whole" + (", the runtime's default for it" if _is_mel(name) else ""))
    if report.padding_bytes or report.copied_bytes:
        show(f"  {report.padding_bytes} bytes of padding, {report.copied_bytes} bytes copied for layout, a call")
    for group in _grouped(report.findings):
        _print_rule(group)
    if not report.findings:
        show("  no findings")
    if devices is not None:
        differ = [key for key, stays in report.on_engine.items() if (devices.get(key, "ane") == "ane") != stays]
        planned = sum(device == "ane" for device in devices.values())
        show(f"  Core ML plans {planned} of {len(devices)} operations on the Neural Engine; {len(differ)} differ")
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
    label = "leaves" if first.leaves else "form" if first.rule.startswith(RULE_PREFIX) else "costs"
    show(f"  {label}  {first.rule} ({len(group)}): {first.advice}")
    show(f"          source: {first.source}")
    for finding in group[:PLACES_SHOWN]:
        show(f"          {finding.where}: {finding.what}")
    if len(group) > PLACES_SHOWN:
        show(f"          ... and {len(group) - PLACES_SHOWN} more (--json lists all)")


def _print_operations(report: "Residency", devices: Mapping[str, str] | None) -> None:
    reasons: dict[str, list[str]] = {}
    for finding in report.findings:
        for name in finding.operations if finding.leaves else ():
            reasons.setdefault(name, []).append(finding.rule)
    for name, stays in report.on_engine.items():
        verdict = "engine" if stays else "leaves"
        planned = f"{devices.get(name, '-'):<7}" if devices is not None else ""
        show(f"    {verdict} {planned}{report.types[name]:<18} {name}  {', '.join(reasons.get(name, []))}".rstrip())
