"""A decoder step with each attention: operations, FLOPs, bytes, and the latency that the cost model gives it.

What `--turbo` takes for the decoder is the one with the least. Each is exported in the runtime's form at the model's
true dimensions, with weights that mean nothing, and counted from the program; --layers leaves layers out, which are
all alike.

    python tests/benchmarks/decoder_attention.py [--models tiny large-v3] [--layers N] [--chips a14,m1] [--json FILE]

The table goes to stdout, coremltools' progress to stderr.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from decoder_forms import KV_LENGTH, METADATA, MODELS, decoder

from whisperkit_tools.compile_hints.attention import MultiHeadAttention, attention, attention_names
from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable, load_chips
from whisperkit_tools.compile_hints.lint.cost import ProgramEstimate, estimate_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import package_interfaces
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "large-v3"])
    parser.add_argument("--layers", type=int, help="at most so many decoder layers")
    parser.add_argument("--chips", default="a14,m1,a17pro,m4")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import_coremltools()
    table = load_chips()
    chips = [table.chip(name) for name in arguments.chips.split(",")]
    titles = "".join(f"{chip.name + ' ms':>11}" for chip in chips)
    print(f"{'model':<12}{'layers':>6}  {'attention':<15}{'operations':>10}{'MFLOP':>11}{'MB':>9}{titles}")
    rows = []
    for model in arguments.models:
        made = decoder(model, arguments.layers)
        for name in attention_names():
            count, found = measure(made, name, chips, table)
            size = (found[0].weight_bytes + found[0].activation_bytes) / 1e6
            times = "".join(f"{one.latency_s * 1e3:>11.3f}" for one in found)
            mark = "  --turbo" if name == TURBO_DECODER else ""
            layers = made.dims.decoder_layers
            print(
                f"{model:<12}{layers:>6}  {name:<15}{count:>10}{found[0].flops / 1e6:>11.1f}{size:>9.1f}{times}{mark}",
                flush=True,
            )
            latency_s = {one.chip: one.latency_s for one in found}
            rows.append({
                "model": model, "layers": layers, "attention": name, "operations": count, "flops": found[0].flops,
                "bytes": found[0].weight_bytes + found[0].activation_bytes, "latency_s": latency_s,
            })  # fmt: skip
    print(f"latencies: median error {table.median_error.value:.0%}; bytes: on the first chip")
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
