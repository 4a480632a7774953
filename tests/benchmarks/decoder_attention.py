"""A decoder step with each attention: operations, FLOPs, bytes and estimated latency.

`--turbo` takes the one with the lowest latency. Each is exported in the runtime's form at the model's true dimensions,
with meaningless weights, and counted from the program. --layers omits layers, because all are alike.

    python -m tests.benchmarks decoder-attention [--models tiny large-v3] [--layers N] [--chips a14,m1]

The table goes to stdout, coremltools' progress to stderr.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import torch

from tests.benchmarks.decoder_forms import METADATA, decoder
from tests.benchmarks.dimensions import DECODERS, KV_LENGTH
from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark
from whisperkit_tools.compile_hints.attention import MultiHeadAttention, attention
from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable, load_chips
from whisperkit_tools.compile_hints.lint.cost import ProgramEstimate, estimate_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import ATTENTION_NAMES, package_interfaces
from whisperkit_tools.conversion.attention_layout import TURBO_DECODER
from whisperkit_tools.conversion.export import export_package
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph


def measure(made: TextDecoder, name: str, chips: list[Chip], table: ChipTable) -> tuple[int, list[ProgramEstimate]]:
    """Export a decoder with another attention: its operations, and what it costs on each chip."""
    for part in made.modules():
        if isinstance(part, MultiHeadAttention):
            part.implementation = attention(name, None)
    interface = package_interfaces(made.dims, KV_LENGTH, word_timestamps=True)["TextDecoder"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        path = Path(folder) / "TextDecoder.mlpackage"
        export_package(made, interface, path, deployment_target="ios16", metadata=METADATA)
        graph = read_graph(path)
        return len(graph.operations), [estimate_program(name, graph, chip, table) for chip in chips]


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=DECODERS, default=["tiny", "large-v3"])
    parser.add_argument("--layers", type=int, help="maximum number of decoder layers")
    parser.add_argument("--chips", default="a14,m1,a17pro,m4")


@benchmark("decoder-attention", options)
def decoder_attention(args: Namespace) -> Result:
    import_coremltools()
    chip_table = load_chips()
    chips = [chip_table.chip(name) for name in args.chips.split(",")]
    table = Table((
        Column("model", "model"), Column("layers", "layers"), Column("attention", "attention"),
        Column("operations", "operations"), Column("flops", "MFLOP", ".1f", 1e-6), Column("bytes", "MB", ".1f", 1e-6),
        *(Column(chip.name, f"{chip.name} ms", ".3f", 1e3) for chip in chips), Column("mark", ""),
    ))  # fmt: skip
    for model in args.models:
        made = decoder(model, args.layers)
        for name in ATTENTION_NAMES:
            count, found = measure(made, name, chips, chip_table)
            table.add(
                model=model, layers=made.dims.decoder_layers, attention=name, operations=count, flops=found[0].flops,
                bytes=found[0].weight_bytes + found[0].activation_bytes,
                mark="--turbo" if name == TURBO_DECODER else "", **{one.chip: one.latency_s for one in found},
            )  # fmt: skip
    figures = [
        Figure(row["attention"], 1e3 * row[chip.name], "ms", f"{row['model']}, {chip.name}", ".3f")
        for row in table.rows
        for chip in chips
    ]
    note = f"latencies: median error {chip_table.median_error.value:.0%}; bytes: on the first chip"
    return Result([table], figures, [note])
