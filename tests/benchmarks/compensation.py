"""Do errors that are passed on to later inputs (GPTQ) lower the divergence at equal size, or only each layer's error?

    python tests/benchmarks/compensation.py BUNDLE [--bits 3,4] [--windows 8] [--examples 16] [--json FILE]

Uniform palettes of all weights, plain and with importance, with the same tables each: as they are, and with indices
assigned anew where the weight allows. The moments of the layers' inputs are taken on calibration speech, the divergence
is measured on utterances that it does not hold.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from gptq import compensable, compensate, output_error, second_moment, with_inputs
from palettize_curve import Meter

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.compressor import Palettizer
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.planner import importance
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
    graphs = {name: read_graph(path) for name, path in work.model.packages.items()}
    names = {c: [n for where, n in work.model.shapes if where == c and n in compensable(g)] for c, g in graphs.items()}
    programs = {c: Program(with_inputs(g, names[c])) for c, g in graphs.items()}
    taps = {c: {n: compensable(graphs[c])[n].name for n in names[c]} for c in graphs}
    forcing, found = Tapped(programs[DECODER], taps[DECODER]), {}
    for window in work.windows:
        with torch.no_grad():
            outputs = programs[ENCODER].run({FEATURES: window.features})
        add(found, taps[ENCODER], outputs)
        forcing.forward(window, outputs[EMBEDS])
    return {**{(ENCODER, n): m for n, m in found.items()}, **{(DECODER, n): m for n, m in forcing.sums.items()}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bits", default="3,4")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--examples", type=int, default=16)
    parser.add_argument("--profile", type=Path, default=Path(tempfile.gettempdir()) / "palettize-curve-profile")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = Palettizer(Bundle.open(args.bundle), PalettizeConfig(windows=args.windows, profile_dir=args.profile))
    work.sense()
    meter, known, rows = Meter(work, args.examples), moments(work), []
    for nbits in [int(part) for part in args.bits.split(",")]:
        for weighted in (False, True):
            palettes = {}
            for key in work.model.shapes:
                weights = importance(work.planner.curvature(key)) if weighted else None
                palettes[key] = palettize(work.model.weight(key), Compression(nbits), weights, key[1])
            passed = dict(palettes)
            ratios = []
            for key in known:
                weight = work.model.weight(key)
                passed[key] = compensate(palettes[key], weight, known[key])
                errors = [
                    output_error(made[key].dense().astype(np.float32) - weight, known[key])
                    for made in (palettes, passed)
                ]
                ratios.append(errors[1] / errors[0])
            row = {
                "nbits": nbits, "weighted": weighted, "kl_rounded": meter(palettes), "kl_compensated": meter(passed),
                "median_error_ratio": float(np.median(ratios)),
            }  # fmt: skip
            rows.append(row)
            print("  ".join(f"{name} {value:.5g}" for name, value in row.items()), flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
