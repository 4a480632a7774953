"""What the prefill is made of, spares and costs: by the source of its mean, in passes and time, and at large-v3's size.

    python tests/benchmarks/prefill.py sources BUNDLE [--checkpoint demo]   PSNR, transcripts and WER by source
    python tests/benchmarks/prefill.py passes BUNDLE [--utterances 12]      decoder passes and time to first token
    python tests/benchmarks/prefill.py size [--model large-v3] [--windows 1] [--decoder-only]   size and peak memory

BUNDLE is what `wkt convert demo --turbo` prints. `size` makes a checkpoint of true dimensions with seeded random
weights in a process of its own, and in another one estimates and exports the table alone; each window takes an
encoding. With --decoder-only the audio embeddings are noise, and what is measured is the table.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def sources(bundle: Path, source: str) -> list[dict[str, Any]]:
    """Evidence for each source of the mean, on the demo's held-out speech."""
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.conversion.prefill.audio import SOURCES, demo_audio
    from whisperkit_tools.conversion.prefill.comparison import transcripts_with
    from whisperkit_tools.conversion.prefill.evidence import gather_evidence
    from whisperkit_tools.conversion.prefill.table import encode, estimate, forced_tokens

    checkpoint = open_checkpoint(source)
    forced = forced_tokens(checkpoint.generation_config)
    rows = []
    print(f"{'source':<8} {'windows':>7} {'median dB':>10} {'least dB':>9} {'changed':>8} {'WER %':>7} {'without':>8}")
    for name in SOURCES:
        audio = demo_audio(name)
        table = estimate(checkpoint, forced, encode(checkpoint, audio.windows))
        found = gather_evidence(checkpoint, bundle, table, audio, transcripts_with, 0.2)
        figures = found.all_psnr_db
        rows.append({"source": name, **found.recorded()})
        print(
            f"{name:<8} {len(audio.windows):>7} {statistics.median(figures):>10.1f} {min(figures):>9.1f} "
            f"{found.changed:>4}/{found.clips:<3} {found.wer_with:>7.2f} {found.wer_without:>8.2f}",
            flush=True,
        )
    return rows


def passes(bundle: Path, utterances: int) -> list[dict[str, Any]]:
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
    rows = []
    print(f"{'setting':<28} {'prefill':<8} {'passes not for text':>20} {'prefix ms':>10} {'first token ms':>15}")
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
            rows.append(
                {"setting": name, "prefill": used, "passes": steps, "prefix_s": prefix_s, "first_token_s": first_s}
            )
            print(
                f"{name:<28} {'yes' if used else 'no':<8} {steps:>20g} {1e3 * prefix_s:>10.2f} {1e3 * first_s:>15.1f}"
            )
    return rows


def size(model: str, windows: int, decoder_only: bool, work: Path | None) -> list[dict[str, Any]]:
    """Bytes of the package and peak memory of making it, in a process of its own."""
    folder = Path(tempfile.mkdtemp(dir=work))
    checkpoint = folder / model
    try:
        benchmark = HERE / "convert_memory.py"
        subprocess.run([sys.executable, str(benchmark), "--make", model, str(checkpoint)], check=True)
        command = [sys.executable, __file__, "make-table", str(checkpoint), str(folder / "T.mlpackage")]
        command += ["--windows", str(windows), *(["--decoder-only"] if decoder_only else [])]
        start = time.monotonic()
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            sys.exit(f"the table was not made: status {os.waitstatus_to_exitcode(status)}")
    finally:
        shutil.rmtree(folder)
    scale = 1 if sys.platform == "darwin" else 1024
    row = {
        "model": model,
        "windows": windows,
        "decoder_only": decoder_only,
        "seconds": time.monotonic() - start,
        "peak_rss_gib": usage.ru_maxrss * scale / 2**30,
        **json.loads(output.splitlines()[-1]),
    }
    print(
        f"{model}: {row['nodes']} nodes for {row['languages']} languages and {row['tasks']} tasks, "
        f"{row['package_bytes'] / 1e6:.1f} MB (each pair by itself: {row['naive_bytes'] / 1e6:.1f} MB), "
        f"{windows} windows, peak {row['peak_rss_gib']:.2f} GiB, {row['seconds']:.0f} s"
    )
    return [row]


def make_table(folder: Path, package: Path, windows: int, decoder_only: bool) -> None:
    """Estimate and export; prints the sizes as JSON. The child of `size`."""
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
    table = estimate(checkpoint, forced, embeds)
    metadata = PackageMetadata("", "", "", "", {})
    interface = prefill_interface(dims, forced.length)
    export_package(table.module(), interface, package, deployment_target="ios16", metadata=metadata)
    pairs = max(1, len(forced.languages) * len(forced.tasks))
    figures = {
        "nodes": len(forced.tokens),
        "languages": len(forced.languages),
        "tasks": len(forced.tasks),
        "package_bytes": folder_bytes(package),
        "naive_bytes": pairs * forced.length * dims.d_model * dims.decoder_layers * 2 * 2,
    }
    print(json.dumps(figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sources", "passes", "size", "make-table"])
    parser.add_argument("paths", nargs="*", type=Path)
    parser.add_argument("--checkpoint", default="demo", help="of the bundle")
    parser.add_argument("--utterances", type=int, default=12)
    parser.add_argument("--model", default="large-v3")
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--work", type=Path, help="folder for the checkpoint [default: a temporary one]")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    args = parser.parse_args()
    if args.what == "make-table":
        make_table(*args.paths, args.windows, args.decoder_only)
        return
    if args.what == "size":
        rows = size(args.model, args.windows, args.decoder_only, args.work)
    elif len(args.paths) != 1:
        parser.error(f"{args.what} takes one BUNDLE")
    else:
        bundle = args.paths[0]
        rows = sources(bundle, args.checkpoint) if args.what == "sources" else passes(bundle, args.utterances)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
