"""Does the predicted divergence of a compressed weight rank weights as the measured one does?

    python tests/benchmarks/sensitivity_rank.py BUNDLE [--bits 2,4] [--windows 8] [--tokens 128] [--samples N]
        [--json FILE]

For each weight and width a palette for one weight alone is put into the bundle's program, and the divergence of the
teacher-forced logits is measured on the same windows on which the curvature was estimated.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from scipy.stats import spearmanr

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.compressor import Palettizer
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.contract import DECODER, EMBEDS, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder.teacher_forcing import TeacherForcing, mean_divergence
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.compression import Compression


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--bits", default="2,4")
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--samples", type=int)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = PalettizeConfig(
            windows=args.windows, max_tokens=args.tokens, samples=args.samples, profile_dir=Path(folder)
        )
        work = Palettizer(Bundle.open(args.bundle), config)
        started = time.perf_counter()
        work.sense()
        print(f"sensitivity {time.perf_counter() - started:.1f} s", flush=True)
        rows = measure(work, [int(n) for n in args.bits.split(",")])
    predicted, measured = ([row[name] for row in rows] for name in ("predicted", "measured"))
    figures = {"spearman": float(spearmanr(predicted, measured).statistic)}
    for n in sorted({row["nbits"] for row in rows}):
        pairs = [(row["predicted"], row["measured"]) for row in rows if row["nbits"] == n]
        figures[f"spearman_{n}"] = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    print("  ".join(f"{name} {value:.4f}" for name, value in figures.items()))
    if args.json:
        args.json.write_text(json.dumps({**figures, "rows": rows}, indent=1) + "\n")


def measure(work, widths):
    programs = {name: Program.load(path) for name, path in work.model.packages.items()}
    forcing = TeacherForcing(programs[DECODER])

    def encode():
        encoder = programs[MODEL_COMPONENTS[0]]
        return [encoder.run({FEATURES: window.features})[EMBEDS] for window in work.windows]

    def logits(embeds):
        return [forcing.forward(window, audio).logits for window, audio in zip(work.windows, embeds, strict=True)]

    plain = encode()
    references, rows = logits(plain), []
    for key in work.model.shapes:
        weight = programs[key[0]].weights[key[1]]
        original = weight.detach().clone()
        for nbits in widths:
            option = Compression(nbits)
            predicted = work.planner.candidates(key, [option])[0].divergence
            with torch.no_grad():
                weight.copy_(torch.from_numpy(work.planner.palette(key, option).dense().astype(np.float32)))
            found = mean_divergence(references, logits(plain if key[0] == DECODER else encode()))
            rows.append({"weight": "/".join(key), "nbits": nbits, "predicted": predicted, "measured": found})
            print(f"{'/'.join(key):<60} {nbits}  predicted {predicted:.6f}  measured {found:.6f}", flush=True)
        with torch.no_grad():
            weight.copy_(original)
    return rows


if __name__ == "__main__":
    main()
