"""FLOPs and bytes of a decoder step with caches as inputs and outputs, and with caches as states.

Each form is exported at the model's true dimensions, with weights that mean nothing, and counted from the program.
Bytes are those that go through memory on the chip: weights, activations beyond its working set, inputs, outputs and
states.

    python -m tests.benchmarks decoder-forms [--models tiny large-v3 demo] [--chip m1]

The table goes to stdout, coremltools' progress to stderr. large-v3 takes about 8 GB of memory and 10 GB of disk.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

import torch

from tests.benchmarks.dimensions import DECODERS, KV_LENGTH, SIZES, dimensions
from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark
from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable, load_chips
from whisperkit_tools.compile_hints.lint.cost import ProgramEstimate, estimate_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION, package_interfaces, stateful_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph

METADATA = PackageMetadata("decoder", "benchmark", "MIT", "1", {})


def decoder(name: str, most_layers: int | None = None) -> TextDecoder:
    """A decoder of the model's dimensions in float16, no two of whose weights are equal; all layers unless limited."""
    size = SIZES[name]
    layers = min(size.layers, most_layers or size.layers)
    alignment_heads = tuple(pair for pair in size.alignment_heads if pair[0] < layers) or ((0, 0),)
    dims = replace(dimensions(size.config()), encoder_layers=1, decoder_layers=layers)
    with torch.device("meta"):
        made = TextDecoder(dims, KV_LENGTH, alignment_heads)
    made = made.half().to_empty(device="cpu").eval().requires_grad_(False)
    for number, parameter in enumerate(made.parameters(), start=1):
        parameter.fill_(number / 64)
    fold_query_scale(made)
    return made


def measure(name: str, chip: Chip, table: ChipTable) -> dict[str, ProgramEstimate]:
    """Export both forms for iOS 18 and count them."""
    from whisperkit_tools.conversion.stateful import export_stateful

    made = decoder(name)
    contract = package_interfaces(made.dims, KV_LENGTH, word_timestamps=True)["TextDecoder"]
    functions = stateful_interfaces(made.dims, KV_LENGTH, word_timestamps=True)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        stateless, stateful = Path(folder) / "stateless.mlpackage", Path(folder) / "stateful.mlpackage"
        export_package(made, contract, stateless, deployment_target="ios18", metadata=METADATA)
        found["stateless step"] = estimate_program(f"{name}, stateless step", read_graph(stateless), chip, table)
        export_stateful(made, functions, stateful, deployment_target="ios18", metadata=METADATA)
        for function, title in ((STEP_FUNCTION, "stateful step"), (WINDOW_FUNCTION, "stateful, once a window")):
            found[title] = estimate_program(f"{name}, {title}", read_graph(stateful, function), chip, table)
    return found


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=DECODERS, default=["tiny", "large-v3"])
    parser.add_argument("--chip", default="m1")


@benchmark("decoder-forms", options)
def decoder_forms(args: Namespace) -> Result:
    import_coremltools()
    chip_table = load_chips()
    chip = chip_table.chip(args.chip)
    table = Table((
        Column("program", "program"), Column("flops", "MFLOP", ".2f", 1e-6),
        Column("weight_bytes", "weights MB", ".2f", 1e-6), Column("activation_bytes", "other MB", ".2f", 1e-6),
        Column("bytes", "all MB", ".2f", 1e-6), Column("latency_s", f"ms on {chip.title}", ".3g", 1e3),
        Column("median_error", "±", ".0%"),
    ))  # fmt: skip
    figures = []
    for name in args.models:
        for form, one in measure(name, chip, chip_table).items():
            size = one.weight_bytes + one.activation_bytes
            table.add(
                program=one.component, chip=one.chip, flops=one.flops, weight_bytes=one.weight_bytes,
                activation_bytes=one.activation_bytes, bytes=size, latency_s=one.latency_s, launches=one.launches,
                median_error=one.median_error,
            )  # fmt: skip
            figures += [
                Figure(f"{form}, computed", one.flops / 1e6, "MFLOP", name, ",.0f"),
                Figure(f"{form}, moved", size / 1e6, "MB", name, ",.1f"),
            ]
    return Result([table], figures)
