"""Peak memory of evaluating one very long file.

The file is the demo's long recording again and again, as 44.1 kHz stereo FLAC. The whole way is that of `wkt evaluate`
with the bundle, in a process of its own; its peak is compared with that of the same process on the short recordings.

    python -m tests.benchmarks evaluate-long-file BUNDLE [--hours 2] [--long-form sequential]
"""

import json
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tests.benchmarks.harness import Figure, Finished, Result, benchmark, bundle_argument, measured_process, wkt
from whisperkit_tools.demo import demo_longform

RATE_HZ = 44_100
LIMIT_BYTES = 1.5 * 2**30


def make_dataset(folder: Path, hours: float) -> None:
    """Write the recording, repeated until it is long enough, and its text as often; block by block."""
    folder.mkdir()
    long = demo_longform()[0]
    samples, rate = soundfile.read(long.path, dtype="float32")
    block = soxr.resample(samples, rate, RATE_HZ)
    times = max(1, round(hours * 3600 / long.duration_s))
    with soundfile.SoundFile(folder / "long.flac", "w", RATE_HZ, 2) as file:
        for _ in range(times):
            file.write(np.stack([block, block], axis=1))
    row = {"file_name": "long.flac", "text": " ".join([long.text] * times), "language": long.language}
    (folder / "metadata.jsonl").write_text(json.dumps(row) + "\n")


def evaluate(bundle: Path, dataset: Path, out: Path, long_form: str) -> Finished:
    """Run `wkt evaluate` in a process of its own."""
    options = ("--no-check-silence", "--long-form", long_form, "--json")
    return measured_process(wkt("evaluate", bundle.resolve(), "--dataset", dataset, "-o", out, *options))


def options(parser: ArgumentParser) -> None:
    bundle_argument(parser)
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--long-form", default="sequential")


@benchmark("evaluate-long-file", options)
def evaluate_long_file(args: Namespace) -> Result:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        make_dataset(folder / "short", 0.01)
        make_dataset(folder / "long", args.hours)
        short = evaluate(args.bundle, folder / "short", folder / "out", args.long_form)
        long = evaluate(args.bundle, folder / "long", folder / "out", args.long_form)
    run = json.loads(long.output)["runs"][0]
    above = long.peak_bytes - short.peak_bytes
    figures = [
        Figure("audio", run["dataset"]["audio_s"], "s", spec=".0f"),
        Figure("time", long.seconds, "s", spec=".0f"),
        Figure("WER", 100 * run["metrics"]["wer"], "%", spec=".2f"),
        Figure("peak on short recordings", short.peak_bytes / 2**20, "MiB", spec=",.0f"),
        Figure("peak", long.peak_bytes / 2**20, "MiB", spec=",.0f"),
        Figure("peak above short recordings", above / 2**20, "MiB", spec=",.0f"),
        Figure("limit of that", LIMIT_BYTES / 2**20, "MiB", spec=",.0f"),
    ]
    return Result(figures=figures, passed=above <= LIMIT_BYTES)
