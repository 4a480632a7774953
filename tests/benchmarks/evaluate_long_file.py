"""Peak memory of evaluating one very long file: decoding, transcribing, scoring, storing, reporting.

The file is the demo's long recording again and again, as 44.1 kHz stereo FLAC. The whole way is that of `wkt evaluate`
with the bundle, in a process of its own; its peak is compared with that of the same process on the short recordings.

    python tests/benchmarks/evaluate_long_file.py BUNDLE [--hours 2] [--long-form sequential] [--json FILE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import soxr

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


def evaluate(bundle: str, dataset: Path, out: Path, long_form: str) -> tuple[float, int, dict[str, object]]:
    """Wall seconds, peak bytes and the report of `wkt evaluate` in a process of its own."""
    command = [sys.executable, "-m", "whisperkit_tools", "evaluate", bundle, "--dataset", str(dataset), "-o", str(out)]
    command += ["--no-check-silence", "--long-form", long_form, "--json"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    report = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"{' '.join(command)} failed")
    unit = 1 if sys.platform == "darwin" else 1024
    return time.perf_counter() - begun, usage.ru_maxrss * unit, json.loads(report)["runs"][0]


def main() -> None:
    """Print the table; exit 1 above the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle")
    parser.add_argument("--hours", type=float, default=2.0)
    parser.add_argument("--long-form", default="sequential")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_dataset(folder / "short", 0.01)
        make_dataset(folder / "long", arguments.hours)
        _, base, _ = evaluate(arguments.bundle, folder / "short", folder / "out", arguments.long_form)
        wall_s, peak, run = evaluate(arguments.bundle, folder / "long", folder / "out", arguments.long_form)
    above = peak - base
    figures = {
        "audio_s": run["dataset"]["audio_s"],
        "wall_s": round(wall_s, 1),
        "wer": run["metrics"]["wer"],
        "peak_short_mib": round(base / 2**20),
        "peak_long_mib": round(peak / 2**20),
        "above_model_mib": round(above / 2**20),
        "limit_mib": round(LIMIT_BYTES / 2**20),
    }
    for label, value in figures.items():
        print(f"{label:<18} {value}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    sys.exit(int(above > LIMIT_BYTES))


if __name__ == "__main__":
    main()
