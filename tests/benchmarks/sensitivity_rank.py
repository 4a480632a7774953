"""Rank correlation of predicted and measured divergences of compressed weights.

    python -m tests.benchmarks sensitivity-rank BUNDLE [--bits 2,4] [--windows 8] [--tokens 128] [--samples N]

For each weight and width a palette for one weight alone is put into the bundle's program, and the divergence of the
teacher-forced logits is measured on the same windows on which the curvature was estimated.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from tests.benchmarks.harness import Column, Figure, Result, Stopwatch, Table, benchmark, bundle_argument, numbers
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.compressor import sense
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.workspace import open_workspace
from whisperkit_tools.contract import DECODER, EMBEDS, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import TeacherForcing, mean_divergence
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.compression import Compression


def measure(work, widths, table):
    """Fill the table with each weight's predicted and measured divergence at each width."""
    programs = {name: Program.load(path) for name, path in work.weights.packages.items()}
    forcing = TeacherForcing(programs[DECODER])

    def encode():
        encoder = programs[MODEL_COMPONENTS[0]]
        return [encoder.run({FEATURES: window.features})[EMBEDS] for window in work.calibration_windows()]

    def logits(embeds):
        return [
            forcing.forward(window, audio).logits
            for window, audio in zip(work.calibration_windows(), embeds, strict=True)
        ]

    plain = encode()
    references = logits(plain)
    for key in work.weights.shapes:
        weight = programs[key[0]].weights[key[1]]
        original = weight.detach().clone()
        for nbits in widths:
            option = Compression(nbits)
            predicted = work.planner.options(key, [option])[0].divergence
            with torch.no_grad():
                weight.copy_(torch.from_numpy(work.planner.palette(key, option).dense().astype(np.float32)))
            found = mean_divergence(references, logits(plain if key[0] == DECODER else encode()))
            table.add(weight="/".join(key), nbits=nbits, predicted=predicted, measured=found)
        with torch.no_grad():
            weight.copy_(original)


def correlation(rows):
    """Rank correlation of predicted and measured divergences."""
    return float(spearmanr([row["predicted"] for row in rows], [row["measured"] for row in rows]).statistic)


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--bits", default="2,4")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--samples", type=int)


@benchmark("sensitivity-rank", options)
def sensitivity_rank(args: Namespace) -> Result:
    table = Table((
        Column("weight", "weight"), Column("nbits", "bits"), Column("predicted", "predicted", ".6f"),
        Column("measured", "measured", ".6f"),
    ))  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        config = PalettizeConfig(
            windows=args.windows, max_tokens=args.tokens, samples=args.samples, profile_dir=Path(folder)
        )
        work = open_workspace(Bundle.open(args.bundle), config)
        watch = Stopwatch()
        sense(work)
        sensed_s = watch.wall_s
        measure(work, [int(bits) for bits in numbers(args.bits)], table)
    figures = [Figure("rank correlation", correlation(table.rows), spec=".3f")]
    for nbits in sorted({row["nbits"] for row in table.rows}):
        some = [row for row in table.rows if row["nbits"] == nbits]
        figures.append(Figure(f"rank correlation at {nbits} bits", correlation(some), spec=".3f"))
    return Result([table], [*figures, Figure("sensitivity", sensed_s, "s", spec=".1f")])
