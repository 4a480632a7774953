"""Prefill: its sources of speech, the decoder passes and time that it spares, and its size for large-v3.

    python -m tests.benchmarks prefill sources BUNDLE [--checkpoint demo]   PSNR, transcripts and WER by source
    python -m tests.benchmarks prefill passes BUNDLE [--utterances 12]      decoder passes and time to first token
    python -m tests.benchmarks prefill size [--model large-v3] [--windows 1] [--decoder-only]   size and peak memory
    python -m tests.benchmarks prefill make-table CHECKPOINT PACKAGE [--windows 1] [--decoder-only]   only make it

BUNDLE is the path that `wkt convert demo --turbo` prints. `size` makes a checkpoint of true dimensions with seeded
random weights in a process of its own, and in another one estimates and exports the table alone. Each window takes an
encoding. With --decoder-only the audio embeddings are noise, and what is measured is the table.
"""

import json
import shutil
import statistics
import subprocess
import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from tests.benchmarks.dimensions import SIZES
from tests.benchmarks.harness import (
    ROOT,
    Column,
    Figure,
    Result,
    Table,
    benchmark,
    benchmarks,
    measured_process,
    work_option,
)


def sources(bundle: Path, source: str) -> Result:
    """Evidence for each source of the mean, on the demo's held-out speech."""
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.prefill.audio import SOURCES, demo_audio
    from whisperkit_tools.conversion.prefill.evidence import gather_evidence
    from whisperkit_tools.conversion.prefill.table import encode, estimate, forced_tokens

    checkpoint = open_checkpoint(source)
    forced = forced_tokens(checkpoint.generation_config)
    table = Table((
        Column("source", "source"), Column("windows", "windows"), Column("median_db", "median dB", ".1f"),
        Column("least_db", "least dB", ".1f"), Column("changed", "changed"), Column("clips", "of"),
        Column("wer_with", "WER %", ".2f"), Column("wer_without", "without", ".2f"),
    ))  # fmt: skip
    figures = []
    for name in SOURCES:
        audio = demo_audio(name)
        prefill = estimate(checkpoint, forced, encode(checkpoint, audio.windows))
        found = gather_evidence(checkpoint, bundle, prefill, audio, 0.2)
        psnr_db = found.all_psnr_db
        measured = {"windows": len(audio.windows), "median_db": statistics.median(psnr_db), "least_db": min(psnr_db)}
        table.add(**{**found.recorded().to_json(), "source": name, **measured})
        figures += [
            Figure("transcripts that change", f"{found.changed} of {found.clips}", "", name),
            Figure("WER with", found.wer_with, "%", name, ".2f"),
            Figure("WER without", found.wer_without, "%", name, ".2f"),
            *(Figure(f"WER with {null} caches", test.wer, "%", name, ".2f") for null, test in found.nulls.items()),
        ]
    return Result([table], figures)


def passes(bundle: Path, utterances: int) -> Result:
    """Decoder passes of a window and time from audio to first token, with and without, in turn."""
    from whisperkit_tools.conversion.prefill.audio import demo_clips
    from whisperkit_tools.transcribe.options import TranscribeOptions
    from whisperkit_tools.transcribe.transcriber import Transcriber

    transcriber = Transcriber.load(bundle)
    clips = demo_clips()
    clips = clips[:: max(1, len(clips) // utterances)][:utterances]
    plain = TranscribeOptions(temperatures=(0.0,), timestamps=False, no_speech_threshold=None)
    settings = {
        "text, no check for silence": plain,
        "text": replace(plain, no_speech_threshold=0.6),
        "timestamps": replace(plain, timestamps=True, no_speech_threshold=0.6),
    }
    table = Table((
        Column("setting", "setting"), Column("prefill", "prefill"), Column("passes", "passes not for text", "g"),
        Column("prefix_s", "prefix ms", ".2f", 1e3), Column("first_token_s", "first token ms", ".1f", 1e3),
    ))  # fmt: skip
    for name, options in settings.items():
        found: dict[bool, list[tuple[float, float, float]]] = {False: [], True: []}
        transcriber.transcribe(clips[0].samples, replace(options, language=clips[0].language))  # warm up
        for clip in clips:
            for used in (False, True):
                timings = transcriber.transcribe(
                    clip.samples, replace(options, language=clip.language, prefill=used)
                ).timings
                before = timings.time_to_first_token_s - timings.mel_s - timings.encoder_s
                # The generated tokens, and the end of the text, which takes no pass: the pass that gave the first
                # token makes up for it.
                found[used].append((timings.decoder_steps - timings.tokens, before, timings.time_to_first_token_s))
        for used, values in found.items():
            steps, prefix_s, first_s = (statistics.median(column) for column in zip(*values, strict=True))
            table.add(setting=name, prefill=used, passes=steps, prefix_s=prefix_s, first_token_s=first_s)
    figures = [
        Figure("time to first token", 1e3 * row["first_token_s"], "ms", f"{row['setting']}, {used}", ".1f")
        for row in table.rows
        for used in ["with" if row["prefill"] else "without"]
    ]
    return Result([table], figures)


def size(model: str, windows: int, decoder_only: bool, work: Path | None) -> Result:
    """Bytes of the package and peak memory of making it, in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=work)).resolve()
    checkpoint = folder / model
    try:
        subprocess.run(benchmarks("convert-memory", "--make", model, checkpoint), check=True, cwd=ROOT)
        command = benchmarks("prefill", "make-table", checkpoint, folder / "T.mlpackage", "--windows", windows)
        done = measured_process([*command, *(["--decoder-only"] if decoder_only else []), "--json", "-"])
    finally:
        shutil.rmtree(folder)
    made = json.loads(done.output)["tables"][0]["rows"][0]
    table = Table((
        Column("model", "model"), Column("nodes", "nodes"), Column("languages", "languages"), Column("tasks", "tasks"),
        Column("package_bytes", "MB", ".1f", 1e-6), Column("naive_bytes", "each pair by itself MB", ".1f", 1e-6),
        Column("windows", "windows"), Column("peak_bytes", "peak GiB", ".2f", 2**-30),
        Column("seconds", "seconds", ".0f"),
    ))  # fmt: skip
    row = table.add(
        model=model, windows=windows, decoder_only=decoder_only, seconds=done.seconds, peak_bytes=done.peak_bytes,
        **made,
    )  # fmt: skip
    figures = [
        Figure("languages and tasks", f"{row['languages']} and {row['tasks']}"),
        Figure("table", row["package_bytes"] / 1e6, "MB", spec=".1f"),
        Figure("peak memory of building it", row["peak_bytes"] / 2**30, "GiB", spec=".1f"),
        Figure("time", row["seconds"], "s", spec=".0f"),
    ]
    return Result([table], figures)


def make_table(folder: Path, package: Path, windows: int, decoder_only: bool) -> Result:
    """Estimate and export; returns the sizes. The child of `size`."""
    import torch

    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.contract import prefill_interface
    from whisperkit_tools.conversion.export import PackageMetadata, export_package
    from whisperkit_tools.conversion.prefill.audio import noise_windows
    from whisperkit_tools.conversion.prefill.table import encode, estimate, forced_tokens
    from whisperkit_tools.files import folder_bytes

    checkpoint = open_checkpoint(str(folder))
    dims, forced = checkpoint.dims, forced_tokens(checkpoint.generation_config)
    if decoder_only:
        torch.manual_seed(0)
        embeds = [torch.randn(1, dims.d_model, 1, dims.n_audio_ctx).half() for _ in range(windows)]
    else:
        embeds = encode(checkpoint, noise_windows()[:windows])
    prefill = estimate(checkpoint, forced, embeds)
    metadata = PackageMetadata("", "", "", "", {})
    interface = prefill_interface(dims, forced.length)
    export_package(prefill.module(), interface, package, deployment_target="ios16", metadata=metadata)
    pairs = max(1, len(forced.languages) * len(forced.tasks))
    sizes = {
        "nodes": len(forced.tokens),
        "languages": len(forced.languages),
        "tasks": len(forced.tasks),
        "package_bytes": folder_bytes(package),
        "naive_bytes": pairs * forced.length * dims.d_model * dims.decoder_layers * 2 * 2,
    }
    table = Table(tuple(Column(key, key.replace("_", " ")) for key in sizes))
    table.add(**sizes)
    return Result([table])


def options(parser: ArgumentParser) -> None:
    parser.add_argument("what", choices=["sources", "passes", "size", "make-table"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--checkpoint", default="demo", help="of the bundle")
    parser.add_argument("--utterances", type=int, default=12)
    parser.add_argument("--model", choices=SIZES, default="large-v3")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--decoder-only", action="store_true")
    work_option(parser)


@benchmark("prefill", options)
def prefill(args: Namespace) -> Result:
    wanted = {"sources": 1, "passes": 1, "size": 0, "make-table": 2}[args.what]
    if len(args.paths) != wanted:
        raise SystemExit(f"prefill {args.what} takes {wanted} paths, not {len(args.paths)}")
    if args.what == "make-table":
        return make_table(*args.paths, args.windows, args.decoder_only)
    if args.what == "size":
        return size(args.model, args.windows, args.decoder_only, args.work)
    return sources(*args.paths, args.checkpoint) if args.what == "sources" else passes(*args.paths, args.utterances)
