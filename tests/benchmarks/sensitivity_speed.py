"""Time and memory of a whole sensitivity profile: curvature, and every weight at six bit widths.

    python -m tests.benchmarks sensitivity-speed BUNDLE [--windows 8] [--tokens 64] [--profile DIR]

The bundle may have random weights (true dimensions are what counts here), so tokens are drawn and not transcribed: a
random model would write to the end of its context. Features are those of the demo's speech.
"""

import resource
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import torch

from tests.benchmarks.harness import Figure, Result, Stopwatch, benchmark, bundle_argument, peak_unit_bytes
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import samples_of, select_calibration
from whisperkit_tools.compress.planner import Planner
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.quantization.compression import NBITS, Compression
from whisperkit_tools.quantization.recipe import AllowedCompressions
from whisperkit_tools.quantization.sensitivity import FisherOptions
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey


def windows(bundle, count, tokens):
    mel = bundle.package("MelSpectrogram").program()
    vocabulary = int(bundle.read_json("config.json")["vocab_size"])
    rng, found = np.random.default_rng(0), []
    pieces = select_calibration(None, 99, 480_000)
    for at in range(count):
        samples_in = samples_of(pieces[at % len(pieces)])
        samples = np.zeros(480_000, np.float32)
        samples[: len(samples_in)] = np.roll(samples_in, 16_000 * at)
        features = mel.run({"audio": torch.from_numpy(samples)})["melspectrogram_features"]
        found.append(SpeechWindow(features, tuple(rng.integers(0, vocabulary, tokens + 4).tolist()), 4))
    return found


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--profile", type=Path, help="a folder to keep the profile in, where a killed run goes on")


@benchmark("sensitivity-speed", options)
def sensitivity_speed(args: Namespace) -> Result:
    bundle = Bundle.open(args.bundle)
    weights = WeightInventory(bundle)
    with tempfile.TemporaryDirectory() as folder:
        cache = SensitivityCache(args.profile or Path(folder), SensitivityKey({}, []))
        planner = Planner(weights, cache, AllowedCompressions())
        speech = windows(bundle, args.windows, args.tokens)
        watch = Stopwatch()
        planner.sense(lambda: speech, FisherOptions(samples=1))
        sensed, sensed_cpu = watch.wall_s, watch.cpu_s
        for key in weights.shapes:
            planner.options(key, [Compression(n) for n in NBITS])
        total, total_cpu = watch.wall_s, watch.cpu_s
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * peak_unit_bytes()
    figures = [
        Figure("weights", len(weights.shapes)),
        Figure("elements", weights.elements / 1e6, "M", spec=".1f"),
        Figure("windows", args.windows),
        Figure("curvature", sensed, "s", spec=".1f"),
        Figure("curvature, processor time", sensed_cpu, "s", spec=".1f"),
        Figure("whole profile", total, "s", spec=".1f"),
        Figure("whole profile, processor time", total_cpu, "s", spec=".1f"),
        Figure("peak memory", peak / 2**30, "GiB", spec=".1f"),
    ]
    return Result(figures=figures, notes=[f"{torch.get_num_threads()} threads"])
