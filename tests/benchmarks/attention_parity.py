"""Parity of the attention implementations, and the operations of their packages.

For each implementation and size: PSNR of the output and of a head's weights against transformers' Whisper attention in
float32, then the operations of the exported program, its largest tensor, and its PSNR when run in float32 and float16.

    python -m tests.benchmarks attention-parity [--sizes tiny large-v3 demo] [--chunk-size N]

The table goes to stdout, coremltools' progress to stderr.
"""

import math
import tempfile
from argparse import ArgumentParser, Namespace
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperAttention

from tests.benchmarks.dimensions import SIZES
from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark
from whisperkit_tools.compile_hints.attention import (
    AttentionImplementation,
    MultiHeadAttention,
    attention,
    works_in_chunks,
)
from whisperkit_tools.contract import ATTENTION_NAMES, PackageInterface, TensorInterface
from whisperkit_tools.conversion.export import PackageMetadata, export_package
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.signals import psnr_db

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


def options(parser: ArgumentParser) -> None:
    sizes = ["tiny", "large-v3", "demo"]
    parser.add_argument("--sizes", nargs="+", choices=sizes, default=sizes)
    parser.add_argument("--uses", nargs="+", choices=list(USES), default=list(USES))
    parser.add_argument("--chunk-size", type=int, default=512)


@benchmark("attention-parity", options)
def attention_parity(args: Namespace) -> Result:
    table = Table((
        Column("size", "size"), Column("use", "use"), Column("attention", "attention"),
        Column("pytorch_db", "PyTorch dB", ".1f"), Column("float32_db", "float32 dB", ".1f"),
        Column("float16_db", "float16 dB", ".1f"), Column("rows_sum_to_one_within", "rows", ".1e"),
        Column("largest_tensor_bytes", "largest MB", ".1f", 1e-6), Column("operations_text", "operations"),
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for size in args.sizes:
            for use in args.uses:
                for name in ATTENTION_NAMES:
                    implementation = attention(name, args.chunk_size if works_in_chunks(name) else None)
                    row = measure(implementation, SIZES[size].heads, SIZES[size].head_width, use, Path(folder))
                    text = counted(row["operations"])
                    table.add(size=size, use=use, attention=str(implementation), operations_text=text, **row)
    lowest_of = {key: min(row[key] for row in table.rows) for key in ("pytorch_db", "float32_db", "float16_db")}
    figures = [
        Figure("lowest PSNR in PyTorch", lowest_of["pytorch_db"], "dB", spec=".1f"),
        Figure("lowest PSNR as a package in float32", lowest_of["float32_db"], "dB", spec=".1f"),
        Figure("lowest PSNR as a package in float16", lowest_of["float16_db"], "dB", spec=".1f"),
    ]
    return Result([table], figures)


def counted(operations: dict[str, int]) -> str:
    """Say how many operations there are, and of which types."""
    return f"{sum(operations.values())}: " + ", ".join(f"{count} {kind}" for kind, count in operations.items())
