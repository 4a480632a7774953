"""`wkt convert`: a checkpoint to a verified bundle."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import whisperkit_tools as wkt
from whisperkit_tools.cli import options
from whisperkit_tools.cli.output import show, show_json
from whisperkit_tools.cli.progress import ConsoleProgress
from whisperkit_tools.contract import DEPLOYMENT_TARGETS, PREFILL, VERIFIER

if TYPE_CHECKING:
    from whisperkit_tools.conversion.config import ConvertResult

_layout = options.options(
    click.option(
        "--deployment-target",
        type=click.Choice(list(DEPLOYMENT_TARGETS)),
        default="ios16",
        show_default=True,
        help="Oldest system that must load the bundle.",
    ),
    click.option("--kv-length", type=int, help="Positions of the decoder's caches.  [default: all, 448]"),
    click.option(
        "--turbo",
        is_flag=True,
        help="Use the layout for low latency: --audio-encoder-attention split-heads-q and --prefill, with _turbo in "
        "the name. This is not OpenAI's model of that name. M1's Neural Engine does not run large models in this "
        "layout.",
    ),
    click.option(
        "--stateful",
        is_flag=True,
        help="Keep the decoder's caches as states (iOS 18, macOS 15), with _stateful in the name. Audio is projected "
        "once per window instead of once per token. Today's open runtime does not load this form.",
    ),
    click.option(
        "--audio-encoder-attention",
        metavar="LAYOUT",
        help="Layout of the encoder's attention, see above.  [default: cat; split-heads-q with --turbo]",
    ),
    click.option(
        "--text-decoder-attention",
        metavar="LAYOUT",
        help="Layout of the decoder's attention, see above.  [default: cat]",
    ),
    click.option(
        "--attention-chunk-size",
        type=int,
        help="Positions in a chunk of split-heads-q (queries) and split-kv (keys), a multiple of 32.  [default: 512]",
    ),
    click.option(
        "--logits-chunk-size",
        type=int,
        help="Maximum number of logits that one matrix product computes. Older Neural Engines support a width of "
        "16384.  [default: all at once]",
    ),
    options.switch_off("--no-word-timestamps", help="Omit the output of the alignment heads."),
)

_draft = click.option(
    "--draft-tokens",
    type=int,
    metavar="N",
    help=f"Add {VERIFIER}, the decoder on N tokens at once (5, for example), with which wkt transcribe --draft "
    "verifies what a small model wrote. Today's open runtime does not use it.",
)

_prefill = options.options(
    click.option(
        "--prefill/--no-prefill",
        default=None,
        help=f"Add {PREFILL}, a table with the caches after the start, language and task tokens. It "
        "replaces the first decoder passes of each window, and is omitted where all-zero caches or caches of noise do "
        "about as well.  [default: with --turbo]",
    ),
    click.option(
        "--prefill-from",
        metavar="AUDIO",
        help="Audio that the table is averaged over: speech, noise or mixed.  [default: speech]",
    ),
    click.option(
        "--prefill-audio",
        type=options.FOLDER,
        help="Folder with your own speech. Every second file goes into the table. The others test it, where a NAME.txt "
        "with the transcript is beside them.  [default: the demo's speech]",
    ),
    click.option(
        "--prefill-max-wer-delta",
        type=float,
        help="Maximum rise of the word error rate, in percentage points. A table that raises it more is omitted.  "
        "[default: 0.2]",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Exit 3 and keep nothing when the table is omitted, or when its effect on transcripts was not measured.",
    ),
)


@click.command()
@click.argument("source")
@options.output_bundles
@click.option("--revision", help="Branch, tag or commit of a Hub checkpoint. Its commit is recorded.")
@click.option(
    "--tokenizer",
    metavar="FOLDER_OR_ID",
    help="Model whose tokenizer the checkpoint has, where it carries none: a folder, an alias or a Hub id.",
)
@click.option(
    "--base",
    metavar="FOLDER_OR_ID",
    help="Base of a LoRA adapter, instead of the one that it names: a folder, an alias or a Hub id.",
)
@_layout
@_prefill
@_draft
@options.switch_off("--no-verify", help="Do not run the packages. The bundle records that it is unverified.")
@click.option("--compile", is_flag=True, help="Add .mlmodelc folders (macOS with Xcode).")
@options.allow_pickle
@options.force
@options.json_output
def command(source: str, as_json: bool, **chosen: Any) -> None:
    """Convert a Whisper checkpoint to a verified bundle of Core ML packages.

    SOURCE is an alias (tiny, base.en, large-v3, distil-large-v3, ...), a Hub id (ORG/NAME), a folder with a
    Hugging Face, CTranslate2 (faster-whisper), MLX or LiteASR checkpoint or a LoRA adapter, an OpenAI .pt file, a
    whisper.cpp ggml-*.bin file, or `demo`, the embedded model. The format is recognised by looking.

    Each package is loaded and run on speech. It must reach 70 dB against PyTorch in float32 and 40 dB in float16.
    Otherwise the command exits 3 and keeps nothing.

    All attention layouts compute the same result. They differ in what the Neural Engine's compiler makes of them.
    cat: all heads in one matrix product, with the fewest operations, for GPU and M1. split-heads: one head at a time,
    which keeps tensors small, with one transpose of the keys for all heads. split-heads-q: the same with the queries
    in chunks, for the encoder (a decoder step has one query). split-kv: all heads, with keys and values in chunks.
    """
    with ConsoleProgress() as progress:
        result = wkt.convert(source, **chosen, progress=progress).result
    if as_json:
        show_json({**asdict(result), "path": str(result.path)})
        return
    for name, size in result.bytes.items():
        show(f"{name:<26} {size / 1e6:9.1f} MB   {_parity(result, name)}")
    for line in result.prefill.lines() if result.prefill else ():
        show(line)
    show(result.path)


def _parity(result: "ConvertResult", name: str) -> str:
    figures = {item.component: item for item in result.parity}.get(name)
    if figures is None:
        return "not verified"
    return f"float32 >= {min(figures.float32_db.values()):.1f} dB, float16 >= {min(figures.float16_db.values()):.1f} dB"
