"""Peak memory and time of `wkt convert` at true dimensions, with seeded random weights.

    python -m tests.benchmarks convert-memory [--models tiny base small large-v3] [--no-verify]

Each conversion is a process of its own, whose peak resident set the operating system reports. The checkpoint is made
in a process before it. Needs about 7 GB of disk below --work for large-v3.
"""

import json
import shutil
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

from tests.benchmarks.dimensions import SIZES, write_checkpoint
from tests.benchmarks.harness import (
    ROOT,
    Column,
    Figure,
    Result,
    Table,
    benchmark,
    benchmarks,
    measured_process,
    wkt,
    work_option,
)


def convert(name: str, work: Path, verify: bool) -> dict[str, Any]:
    """Convert one model in a process of its own."""
    folder = work / name
    subprocess.run(benchmarks("convert-memory", "--make", name, folder), check=True, cwd=ROOT)
    flags = [] if verify else ["--no-verify"]
    done = measured_process(wkt("convert", folder, "-o", work / "bundles", "--json", *flags))
    result = json.loads(done.output)
    parity = {
        precision: min(value for item in result["parity"] for value in item[precision].values())
        for precision in ("float32_db", "float16_db")
        if result["parity"]
    }
    size = sum(result["bytes"].values())
    return {"model": name, "peak_bytes": done.peak_bytes, "seconds": done.seconds, "bundle_bytes": size, **parity}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--models", nargs="+", choices=SIZES, default=["tiny", "base", "small", "large-v3"])
    parser.add_argument("--no-verify", action="store_true")
    work_option(parser)
    parser.add_argument("--make", nargs=2, metavar=("MODEL", "FOLDER"), help="only write a model's checkpoint")


@benchmark("convert-memory", options)
def convert_memory(args: Namespace) -> Result:
    if args.make:
        write_checkpoint(args.make[0], Path(args.make[1]))
        return Result()
    table = Table((
        Column("model", "model"), Column("bundle_bytes", "bundle MB", ".0f", 1e-6),
        Column("peak_bytes", "peak GiB", ".2f", 2**-30), Column("seconds", "seconds", ".0f"),
        Column("float32_db", "float32 dB", ".1f"), Column("float16_db", "float16 dB", ".1f"),
    ))  # fmt: skip
    for name in args.models:
        work = Path(tempfile.mkdtemp(dir=args.work)).resolve()
        try:
            table.add(**convert(name, work, not args.no_verify))
        finally:
            shutil.rmtree(work)
    figures = []
    for row in table.rows:
        figures += [
            Figure("peak memory", row["peak_bytes"] / 2**30, "GiB", row["model"], ".2f"),
            Figure("time", row["seconds"], "s", row["model"], ".0f"),
            Figure("parity in float32", row.get("float32_db"), "dB", row["model"], ".0f"),
            Figure("parity in float16", row.get("float16_db"), "dB", row["model"], ".0f"),
        ]
    return Result([table], figures)
