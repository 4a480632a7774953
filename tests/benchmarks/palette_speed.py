"""Time and error of palettes against coremltools' `palettize_weights`, in one run on one tensor.

    python -m tests.benchmarks palette-speed [--rows 5120] [--columns 1280]

coremltools' time is that of its whole call on a model of one layer, less that of the same call in mode `uniform`, which
does all of the work but k-means.
"""

import os
from argparse import ArgumentParser, Namespace

import numpy as np

from tests.benchmarks.harness import Column, Figure, Result, Stopwatch, Table, benchmark
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
        watch = Stopwatch()
        found = cto.palettize_weights(model, config)
        seconds = watch.wall_s
    operations = found._mil_program.functions["main"].operations
    made = next(op for op in operations if op.op_type == "constexpr_lut_to_dense")
    return seconds, made.materialized_val_inference()


def ours(weight, option, exact):
    watch = Stopwatch()
    found = palettize(weight, option, exact=exact)
    return watch.wall_s, float(np.square(weight.astype(np.float64) - found.dense()).sum())


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


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=5120)
    parser.add_argument("--columns", type=int, default=1280)
    parser.add_argument("--group-sizes", type=int, nargs="*", default=[0, 16])
    parser.add_argument("--nbits", type=int, nargs="*", default=[1, 2, 3, 4, 6])


@benchmark("palette-speed", options)
def palette_speed(args: Namespace) -> Result:
    os.environ.setdefault("TQDM_DISABLE", "1")
    weight = (np.random.default_rng(0).standard_t(6, (args.rows, args.columns)) * 0.03).astype(np.float16)
    with quiet_coremltools():
        model = one_layer(weight)
    table = Table((
        Column("group_size", "groups"), Column("nbits", "bits"), Column("coremltools_s", "coremltools s", ".2f"),
        Column("coremltools_k_means_s", "k-means only s", ".2f"), Column("ours_s", "exact s", ".2f"),
        Column("quick_s", "quick s", ".2f"), Column("excess", "exact's error", "+.1e"),
        Column("quick_excess", "quick's error", "+.1e"),
    ))  # fmt: skip
    figures = []
    for group_size in args.group_sizes:
        rows = [table.add(**measured(model, weight, nbits, group_size)) for nbits in args.nbits]
        total = {key: sum(row[key] for row in rows) for key in ("coremltools_s", "ours_s", "quick_s")}
        case = f"groups of {group_size} channels" if group_size else "a palette per tensor"
        figures += [
            Figure("coremltools", total["coremltools_s"], "s", case, ".2f"),
            Figure("exact", total["ours_s"], "s", case, ".2f"),
            Figure("exact, times as fast", total["coremltools_s"] / total["ours_s"], "", case, ".1f"),
            Figure("quick, times as fast", total["coremltools_s"] / total["quick_s"], "", case, ".1f"),
        ]
    return Result([table], figures, ["errors: squared error above that of coremltools, as a share"])
