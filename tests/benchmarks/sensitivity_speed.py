"""Time and memory of a whole sensitivity profile: curvature, and every weight at six bit widths.

    python tests/benchmarks/sensitivity_speed.py BUNDLE [--windows 8] [--tokens 64] [--profile DIR] [--json FILE]

The bundle may have random weights (true dimensions are what counts here), so tokens are drawn and not transcribed: a
random model would write to the end of its context. Features are those of the demo's speech.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import calibration_clips
from whisperkit_tools.compress.planner import Model, Planner
from whisperkit_tools.decoder.teacher_forcing import Window
from whisperkit_tools.quantization.compression import NBITS, Compression
from whisperkit_tools.quantization.recipe import Wishes
from whisperkit_tools.quantization.sensitivity import FisherOptions
from whisperkit_tools.quantization.sensitivity_cache import Profile, ProfileKey


def windows(bundle, count, tokens):
    mel = bundle.package("MelSpectrogram").program()
    vocabulary = int(bundle.read_json("config.json")["vocab_size"])
    rng, found = np.random.default_rng(0), []
    clips = calibration_clips(None, 99, 480_000)
    for at in range(count):
        clip = clips[at % len(clips)]
        samples = np.zeros(480_000, np.float32)
        samples[: len(clip.audio)] = np.roll(clip.audio, 16_000 * at)
        features = mel.run({"audio": torch.from_numpy(samples)})["melspectrogram_features"]
        found.append(Window(features, tuple(rng.integers(0, vocabulary, tokens + 4).tolist()), 4))
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--profile", type=Path, help="a folder to keep the profile in, where a killed run goes on")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    bundle = Bundle.open(args.bundle)
    model = Model(bundle)
    with tempfile.TemporaryDirectory() as folder:
        profile = Profile(args.profile or Path(folder), ProfileKey({}, []))
        planner = Planner(model, profile, Wishes(), lambda what, done, total: None)
        speech = windows(bundle, args.windows, args.tokens)
        started, cpu = time.perf_counter(), time.process_time()
        planner.sense(lambda: speech, FisherOptions(samples=1))
        sensed, sensed_cpu = time.perf_counter() - started, time.process_time() - cpu
        for key in model.shapes:
            planner.candidates(key, [Compression(n) for n in NBITS])
        total, total_cpu = time.perf_counter() - started, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    figures = {
        "weights": len(model.shapes), "elements": model.elements, "windows": args.windows,
        "curvature_s": sensed, "curvature_cpu_s": sensed_cpu, "total_s": total, "total_cpu_s": total_cpu,
        "peak_bytes": peak, "threads": torch.get_num_threads(),
    }  # fmt: skip
    print(f"{len(model.shapes)} weights, {model.elements / 1e6:.1f} M elements, {args.windows} windows")
    print(f"curvature {sensed:8.1f} s ({sensed_cpu:.1f} s of CPU)")
    print(f"whole     {total:8.1f} s ({total_cpu:.1f} s of CPU), peak {peak / 1e9:.2f} GB")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
