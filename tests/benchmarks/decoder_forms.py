"""FLOPs and bytes of a decoder step in both forms: caches as inputs and outputs, and caches as states.

Each form is exported at the model's true dimensions, with weights that mean nothing, and counted from the program.
Bytes are those that go through memory on the chip: weights, activations beyond its working set, inputs, outputs and
states.

    python tests/benchmarks/decoder_forms.py [--models tiny large-v3 demo] [--chip m1] [--json FILE]

The table goes to stdout, coremltools' progress to stderr. large-v3 takes about 8 GB of memory and 10 GB of disk.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch

from whisperkit_tools.compile_hints.lint.chips import Chip, ChipTable, load_chips
from whisperkit_tools.compile_hints.lint.cost import ProgramEstimate, estimate_program
from whisperkit_tools.compile_hints.text_decoder import TextDecoder
from whisperkit_tools.contract import STEP_FUNCTION, WINDOW_FUNCTION, package_interfaces, stateful_interfaces
from whisperkit_tools.conversion.export import PackageMetadata, export_package, fold_query_scale
from whisperkit_tools.dimensions import ModelDimensions
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph

# d_model, decoder layers and heads, vocabulary, alignment heads.
MODELS = {
    "demo": (128, 2, 4, 2248, ((1, 0), (1, 1))),
    "tiny": (384, 4, 6, 51865, ((2, 2), (3, 0), (3, 2), (3, 3), (3, 4), (3, 5))),
    "large-v3": (1280, 32, 20, 51866, tuple((layer, 4) for layer in (7, 10, 12, 13, 19, 20, 21, 23, 24, 25))),
}
METADATA = PackageMetadata("decoder", "benchmark", "MIT", "1", {})
KV_LENGTH = 448


def decoder(name: str, most_layers: int | None = None) -> TextDecoder:
    """A decoder of the model's dimensions in float16, no two of whose weights are equal; all layers unless limited."""
    d_model, layers, heads, vocabulary, alignment_heads = MODELS[name]
    layers = min(layers, most_layers or layers)
    alignment_heads = tuple(pair for pair in alignment_heads if pair[0] < layers) or ((0, 0),)
    dims = ModelDimensions(
        n_mels=80, d_model=d_model, encoder_layers=1, encoder_attention_heads=heads, encoder_ffn_dim=4 * d_model,
        decoder_layers=layers, decoder_attention_heads=heads, decoder_ffn_dim=4 * d_model, vocab_size=vocabulary,
    )  # fmt: skip
    with torch.device("meta"):
        made = TextDecoder(dims, KV_LENGTH, alignment_heads)
    made = made.half().to_empty(device="cpu").eval().requires_grad_(False)
    for number, parameter in enumerate(made.parameters(), start=1):
        parameter.fill_(number / 64)
    fold_query_scale(made)
    return made


def measure(name: str, chip: Chip, table: ChipTable) -> list[ProgramEstimate]:
    """Export both forms for iOS 18 and count them."""
    from whisperkit_tools.conversion.stateful import export_stateful

    made = decoder(name)
    contract = package_interfaces(made.dims, KV_LENGTH, word_timestamps=True)["TextDecoder"]
    functions = stateful_interfaces(made.dims, KV_LENGTH, word_timestamps=True)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        stateless, stateful = Path(folder) / "stateless.mlpackage", Path(folder) / "stateful.mlpackage"
        export_package(made, contract, stateless, deployment_target="ios18", metadata=METADATA)
        found.append(estimate_program(f"{name}, stateless step", read_graph(stateless), chip, table))
        export_stateful(made, functions, stateful, deployment_target="ios18", metadata=METADATA)
        for function, title in ((STEP_FUNCTION, "stateful step"), (WINDOW_FUNCTION, "stateful, once a window")):
            found.append(estimate_program(f"{name}, {title}", read_graph(stateful, function), chip, table))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["tiny", "large-v3"])
    parser.add_argument("--chip", default="m1")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    import_coremltools()
    table = load_chips()
    chip = table.chip(arguments.chip)
    print(f"{'':<34} {'MFLOP':>10} {'weights MB':>11} {'other MB':>9} {'all MB':>9}  latency on {chip.title}")
    rows = []
    for name in arguments.models:
        for one in measure(name, chip, table):
            size = one.weight_bytes + one.activation_bytes
            print(
                f"{one.component:<34} {one.flops / 1e6:>10.2f} {one.weight_bytes / 1e6:>11.2f} "
                f"{one.activation_bytes / 1e6:>9.2f} {size / 1e6:>9.2f}  {one.latency_s * 1e3:.3g} ms "
                f"±{one.median_error:.0%}",
                flush=True,
            )
            rows.append({
                "program": one.component, "chip": one.chip, "flops": one.flops, "weight_bytes": one.weight_bytes,
                "activation_bytes": one.activation_bytes, "latency_s": one.latency_s, "launches": one.launches,
                "median_error": one.median_error,
            })  # fmt: skip
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
