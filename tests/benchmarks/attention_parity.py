"""Parity of the attention implementations, and what their packages hold.

For each implementation and size: PSNR of the output and of a head's weights against transformers' Whisper attention in
float32, then the operations of the exported program, its largest tensor, and its PSNR when run in float32 and float16.

    python tests/benchmarks/attention_parity.py [--sizes tiny large-v3 demo] [--chunk-size N] [--json FILE]

The table goes to stdout, coremltools' progress to stderr.
"""

import argparse
import json
import math
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention

from whisperkit_tools.compile_hints.attention import (
    AttentionImplementation,
    MultiHeadAttention,
    attention,
    attention_names,
    works_in_chunks,
)
from whisperkit_tools.contract import PackageInterface, TensorInterface
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.signals import psnr_db

SIZES = {"tiny": (6, 64), "large-v3": (20, 64), "demo": (4, 32)}
KEYS = 1500
# Encoder self-attention, a decoder's cross-attention, a decoder's masked self-attention.
USES = {"encoder": (1500, None), "decoder cross": (1, None), "decoder self": (1, 100)}
METADATA = PackageMetadata("attention", "benchmark", "MIT", "1", {})


class Layer(torch.nn.Module):
    """An attention layer that shows one head."""

    def __init__(self, layer: MultiHeadAttention) -> None:
        super().__init__()
        self.layer = layer

    def forward(
        self, x: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        output, weights = self.layer.attend(x, key, value, mask, observed=(1,))
        return output, weights[0]


def cases(heads: int, width: int, use: str) -> tuple[Any, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The reference's weights, the inputs, and the reference's outputs."""
    queries, filled = USES[use]
    keys = KEYS if filled is None else 448
    channels = heads * width
    torch.manual_seed(0)
    config = WhisperConfig(d_model=channels, attn_implementation="eager")
    reference = WhisperAttention(channels, heads, layer_idx=0, config=config).eval()
    for parameter in reference.parameters():
        parameter.data = (parameter.data * 2).half().float()
    x, source = (torch.randn(1, length, channels).half().float() for length in (queries, keys))
    mask = torch.where(torch.arange(keys) < (filled or keys), 0.0, -1e4).view(1, 1, 1, keys)
    with torch.no_grad():
        output, weights = reference(x, key_value_states=source, attention_mask=mask, output_attentions=True)[:2]
        inputs = {
            "x": as_layout(x),
            "key": as_layout(reference.k_proj(source)),
            "value": as_layout(reference.v_proj(source)),
            "mask": mask,
        }
    return reference.state_dict(), inputs, {"output": as_layout(output), "weights": weights[:, 1:2]}


def as_layout(x: torch.Tensor) -> torch.Tensor:
    """`[B, S, C]` to `[B, C, 1, S]`."""
    return x.transpose(1, 2)[:, :, None].contiguous()


def measure(implementation: AttentionImplementation, heads: int, width: int, use: str, folder: Path) -> dict[str, Any]:
    state, inputs, expected = cases(heads, width, use)
    layer = MultiHeadAttention(heads * width, heads, implementation)
    layer.load_state_dict(state)
    module = Layer(layer).eval().requires_grad_(False)
    row: dict[str, Any] = {"pytorch_db": lowest(expected, dict(zip(expected, module(*inputs.values()), strict=True)))}
    interface = PackageInterface(
        {name: TensorInterface(tuple(x.shape)) for name, x in inputs.items()},
        {name: TensorInterface(tuple(x.shape)) for name, x in expected.items()},
    )
    path = folder / f"{len(list(folder.iterdir()))}.mlpackage"
    export_package(module.half(), interface, path, deployment_target="ios16", metadata=METADATA)
    operations = read_graph(path).operations
    row["operations"] = dict(Counter(operation.type for operation in operations).most_common())
    sizes = [math.prod(output.shape) for operation in operations for output in operation.outputs]
    row["largest_tensor_bytes"] = 2 * max(sizes)
    given = {name: x.half().float() for name, x in inputs.items()}
    # The reference of the package gets the rounded inputs too, so that only the package makes a difference.
    exact = dict(zip(expected, module.float()(*given.values()), strict=True))
    for precision in ("float32", "float16"):
        program = Program.load(path, precision=precision)
        row[f"{precision}_db"] = lowest(exact, {name: x.detach() for name, x in program.run(**given).items()})
    row["rows_sum_to_one_within"] = float((program.run(**given)["weights"].float().sum(-1) - 1).abs().max())
    return row


def lowest(expected: dict[str, torch.Tensor], found: dict[str, torch.Tensor]) -> float:
    return round(min(psnr_db(expected[name].numpy(), found[name].numpy()) for name in expected), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--uses", nargs="+", choices=list(USES), default=list(USES))
    parser.add_argument("--chunk-size", type=int, default=512)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    title = f"{'size':<10}{'use':<15}{'attention':<15}{'PyTorch':>8}{'float32':>8}{'float16':>8}"
    print(f"{title}{'rows':>9}{'largest':>10}  operations")
    with tempfile.TemporaryDirectory() as folder:
        for size in options.sizes:
            for use in options.uses:
                for name in attention_names():
                    implementation = attention(name, options.chunk_size if works_in_chunks(name) else None)
                    row = measure(implementation, *SIZES[size], use, Path(folder))
                    rows.append({"size": size, "use": use, "attention": str(implementation), **row})
                    print(line(size, use, name, row), flush=True)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


def line(size: str, use: str, name: str, row: dict[str, Any]) -> str:
    counts = ", ".join(f"{count} {kind}" for kind, count in row["operations"].items())
    figures = "".join(f"{row[key]:8.1f}" for key in ("pytorch_db", "float32_db", "float16_db"))
    largest = f"{row['largest_tensor_bytes'] / 1e6:7.1f} MB"
    total = sum(row["operations"].values())
    return f"{size:<10}{use:<15}{name:<15}{figures}{row['rows_sum_to_one_within']:9.1e}{largest}  {total}: {counts}"


if __name__ == "__main__":
    main()
