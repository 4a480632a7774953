"""Passing rounding errors on to later inputs (GPTQ): divergence at equal size, and each layer's error.

    python -m tests.benchmarks compensation BUNDLE [--bits 3,4] [--windows 8] [--examples 16]

Uniform palettes of all weights, plain and with importance, with the same tables each: as they are, and with indices
assigned anew where the weight allows. The moments of the layers' inputs are taken on calibration speech, the divergence
is measured on utterances that it does not hold.
"""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.gptq import compensable, compensate, output_error, second_moment, with_inputs
from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark, bundle_argument, numbers
from tests.benchmarks.palettize_curve import PROFILE, Meter
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.compressor import sense
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.planner import importance
from whisperkit_tools.compress.workspace import open_workspace
from whisperkit_tools.contract import DECODER, EMBEDS, ENCODER, FEATURES
from whisperkit_tools.decoder.teacher_forcing import TeacherForcing
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize


class Tapped(TeacherForcing):
    """Teacher forcing that sums the second moments of what weights multiply."""

    def __init__(self, decoder, taps):
        super().__init__(decoder)
        self.taps, self.sums = taps, {}
        run = decoder.run

        def tapped(inputs):
            found = run(inputs)
            add(self.sums, self.taps, found)
            return found

        decoder.run = tapped


def add(sums, taps, found):
    for name, value in taps.items():
        sums[name] = sums.get(name, 0) + second_moment(found[value].numpy())


def moments(work):
    graphs = {name: read_graph(path) for name, path in work.weights.packages.items()}
    names = {
        c: [n for where, n in work.weights.shapes if where == c and n in compensable(g)] for c, g in graphs.items()
    }
    programs = {c: Program(with_inputs(g, names[c])) for c, g in graphs.items()}
    taps = {c: {n: compensable(graphs[c])[n].name for n in names[c]} for c in graphs}
    forcing, found = Tapped(programs[DECODER], taps[DECODER]), {}
    for window in work.calibration_windows():
        with torch.no_grad():
            outputs = programs[ENCODER].run({FEATURES: window.features})
        add(found, taps[ENCODER], outputs)
        forcing.forward(window, outputs[EMBEDS])
    return {**{(ENCODER, n): m for n, m in found.items()}, **{(DECODER, n): m for n, m in forcing.sums.items()}}


def compared(work, meter, known, nbits, weighted):
    """Divergence of palettes as they are and compensated, and how far each layer's error falls."""
    palettes = {}
    for key in work.weights.shapes:
        weights = importance(work.planner.curvature(key)) if weighted else None
        palettes[key] = palettize(work.weights.weight(key), Compression(nbits), weights, key[1])
    passed, ratios = dict(palettes), []
    for key in known:
        weight = work.weights.weight(key)
        passed[key] = compensate(palettes[key], weight, known[key])
        before, after = (
            output_error(made[key].dense().astype(np.float32) - weight, known[key]) for made in (palettes, passed)
        )
        ratios.append(after / before)
    return {
        "nbits": nbits, "weighted": weighted, "kl_rounded": meter(palettes), "kl_compensated": meter(passed),
        "median_error_ratio": float(np.median(ratios)),
    }  # fmt: skip


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--profile", type=Path, default=PROFILE)


@benchmark("compensation", options)
def compensation(args: Namespace) -> Result:
    work = open_workspace(Bundle.open(args.bundle), PalettizeConfig(windows=args.windows, profile_dir=args.profile))
    sense(work)
    meter, known = Meter(work, args.examples), moments(work)
    table = Table((
        Column("nbits", "bits"), Column("weighted", "weighted"), Column("kl_rounded", "KL rounded", ".5g"),
        Column("kl_compensated", "KL compensated", ".5g"), Column("median_error_ratio", "median error ratio", ".3f"),
    ))  # fmt: skip
    figures = []
    for nbits in map(int, numbers(args.bits)):
        for weighted in (False, True):
            row = table.add(**compared(work, meter, known, nbits, weighted))
            case = f"{nbits} bits, {'with' if weighted else 'without'} importance"
            figures += [
                Figure("KL, rounded", row["kl_rounded"], "", case, ".5f"),
                Figure("KL, compensated", row["kl_compensated"], "", case, ".5f"),
                Figure("median ratio of layers' errors", row["median_error_ratio"], "", case, ".2f"),
            ]
    return Result([table], figures)
