"""Peak memory and time of `wkt convert` at the true dimensions of published models, with seeded random weights.

    python tests/benchmarks/convert_memory.py [--models tiny base small large-v3] [--no-verify] [--json FILE]

Each conversion is a process of its own, whose peak resident set the operating system reports. The checkpoint is made
in a process before it. Needs about 7 GB of disk below --work for large-v3.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DIMENSIONS = {  # d_model, layers, heads, mel bins, vocabulary; source: the published configs
    "tiny": (384, 4, 6, 80, 51865),
    "base": (512, 6, 8, 80, 51865),
    "small": (768, 12, 12, 80, 51865),
    "large-v3": (1280, 32, 20, 128, 51866),
}


def make_checkpoint(name: str, folder: Path) -> None:
    """Write a checkpoint of these dimensions, float16; the tokenizer files, only copied, are the demo's."""
    import torch
    from transformers import WhisperConfig, WhisperForConditionalGeneration

    from whisperkit_tools.demo import demo_checkpoint_dir

    d_model, layers, heads, n_mels, vocabulary = DIMENSIONS[name]
    config = WhisperConfig(
        d_model=d_model, encoder_layers=layers, decoder_layers=layers, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=4 * d_model, decoder_ffn_dim=4 * d_model,
        num_mel_bins=n_mels, vocab_size=vocabulary,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16)
    WhisperForConditionalGeneration(config).save_pretrained(folder, max_shard_size="2GB")
    for file in demo_checkpoint_dir().glob("*.json"):
        if file.name != "config.json":
            shutil.copyfile(file, folder / file.name)


def measure(name: str, work: Path, verify: bool) -> dict[str, object]:
    """Convert one model in a process of its own."""
    folder = work / name
    subprocess.run([sys.executable, __file__, "--make", name, str(folder)], check=True)
    command = [sys.executable, "-m", "whisperkit_tools", "convert", str(folder), "-o", str(work / "bundles"), "--json"]
    start = time.monotonic()
    process = subprocess.Popen(command + ([] if verify else ["--no-verify"]), stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.monotonic() - start
    if status:
        sys.exit(f"{name}: wkt convert failed with status {os.waitstatus_to_exitcode(status)}")
    scale = 1 if sys.platform == "darwin" else 1024
    shutil.rmtree(work)
    result = json.loads(output)
    parity = {
        precision: min(value for item in result["parity"] for value in item[precision].values())
        for precision in ("float32_db", "float16_db")
        if result["parity"]
    }
    size = sum(result["bytes"].values())
    return {
        "model": name,
        "peak_rss_gib": usage.ru_maxrss * scale / 2**30,
        "seconds": seconds,
        "bundle_bytes": size,
        **parity,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=DIMENSIONS, default=list(DIMENSIONS))
    parser.add_argument("--no-verify", action="store_true")
    parser.add_argument("--work", type=Path, help="folder for checkpoints and bundles [default: a temporary one]")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        make_checkpoint(args.make[0], Path(args.make[1]))
        return
    rows = []
    print(f"{'model':<10} {'bundle MB':>10} {'peak GiB':>9} {'seconds':>8} {'float32 dB':>11} {'float16 dB':>11}")
    for name in args.models:
        work = Path(tempfile.mkdtemp(dir=args.work))
        row = measure(name, work, not args.no_verify)
        rows.append(row)
        print(
            f"{name:<10} {row['bundle_bytes'] / 1e6:>10.0f} {row['peak_rss_gib']:>9.2f} {row['seconds']:>8.0f} "
            f"{row.get('float32_db', float('nan')):>11.1f} {row.get('float16_db', float('nan')):>11.1f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
