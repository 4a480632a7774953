"""Time of palettes against coremltools' `palettize_weights`, in one run on one tensor, and how good both are.

    python tests/benchmarks/palette_speed.py [--rows 5120] [--columns 1280] [--json FILE]

coremltools' time is that of its whole call on a model of one layer, less that of the same call in mode `uniform`, which
does all of the work but k-means.
"""

import argparse
import json
import os
import time
from pathlib import Path

import numpy as np

from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize


def one_layer(weight):
    ct = import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    spec = mb.TensorSpec(shape=(1, weight.shape[1]), dtype=types.fp16)

    @mb.program(input_specs=[spec], opset_version=ct.target.iOS18)
    def program(x):
        return mb.linear(x=x, weight=mb.const(val=weight, name="weight"))

    target = ct.target.iOS18
    return ct.convert(program, convert_to="mlprogram", minimum_deployment_target=target, skip_model_load=True)


def theirs(model, mode, nbits, group_size):
    """Seconds, and the dense weight."""
    cto = import_coremltools().optimize.coreml
    grouped = {"granularity": "per_grouped_channel", "group_size": group_size} if group_size else {}
    config = cto.OptimizationConfig(cto.OpPalettizerConfig(mode=mode, nbits=nbits, weight_threshold=0, **grouped))
    with quiet_coremltools():
        start = time.perf_counter()
        found = cto.palettize_weights(model, config)
        seconds = time.perf_counter() - start
    operations = found._mil_program.functions["main"].operations
    made = next(op for op in operations if op.op_type == "constexpr_lut_to_dense")
    return seconds, made.materialized_val_inference()


def ours(weight, option, exact):
    start = time.perf_counter()
    found = palettize(weight, option, exact=exact)
    return time.perf_counter() - start, found.squared_error(weight)


def measured(model, weight, nbits, group_size):
    option = Compression(nbits, "per_grouped_channel" if group_size else "per_tensor", group_size)
    around, _ = theirs(model, "uniform", nbits, group_size)
    whole, dense = theirs(model, "kmeans", nbits, group_size)
    error = float(np.square(weight.astype(np.float64) - dense).sum())
    seconds, exact_error = ours(weight, option, True)
    quick_seconds, quick_error = ours(weight, option, False)
    return {
        "nbits": nbits,
        "group_size": group_size,
        "coremltools_s": whole,
        "coremltools_k_means_s": whole - around,
        "ours_s": seconds,
        "quick_s": quick_seconds,
        "excess": exact_error / error - 1,
        "quick_excess": quick_error / error - 1,
    }


def main():
    os.environ.setdefault("TQDM_DISABLE", "1")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--columns", type=int, default=1280)
    parser.add_argument("--group-sizes", type=int, nargs="*", default=[0, 16])
    parser.add_argument("--nbits", type=int, nargs="*", default=[1, 2, 3, 4, 6])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    weight = (np.random.default_rng(0).standard_t(6, (given.rows, given.columns)) * 0.03).astype(np.float16)
    with quiet_coremltools():
        model = one_layer(weight)
    rows = []
    print("groups  bits  coremltools   k-means only   exact   quick   error: exact, quick against coremltools")
    for group_size in given.group_sizes:
        for nbits in given.nbits:
            row = measured(model, weight, nbits, group_size)
            rows.append(row)
            times = "{coremltools_s:10.2f} s {coremltools_k_means_s:12.2f} s {ours_s:6.2f} s {quick_s:6.2f} s"
            errors = "   {excess:+.1e}   {quick_excess:+.1e}"
            print(f"{group_size or '-':>6} {nbits:5d} " + (times + errors).format(**row), flush=True)
        these = [row for row in rows if row["group_size"] == group_size]
        total = {key: sum(row[key] for row in these) for key in ("coremltools_s", "ours_s", "quick_s")}
        print(
            f"   all: {total['coremltools_s']:.2f} s / {total['ours_s']:.2f} s = "
            f"{total['coremltools_s'] / total['ours_s']:.1f}x exact, "
            f"{total['coremltools_s'] / total['quick_s']:.1f}x quick\n"
        )
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
