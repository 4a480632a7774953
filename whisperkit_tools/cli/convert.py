"""`wkt convert`: a checkpoint to a verified bundle."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from whisperkit_tools.conversion.convert import ConversionResult
    from whisperkit_tools.conversion.prefill.build import PrefillConfig

TARGETS = ["ios16", "ios17", "ios18", "macos13", "macos14", "macos15"]
STATEFUL_TARGETS = ["ios18", "macos15"]
ATTENTIONS = ["cat", "split-heads", "split-heads-q", "split-kv"]


@click.command()
@click.argument("source")
@click.option("-o", "--output-dir", type=click.Path(path_type=Path), default=Path("bundles"), show_default=True,
              help="The folder that holds bundles.")  # fmt: skip
@click.option("--revision", help="Branch, tag or commit of a Hub checkpoint; the commit it resolves to is recorded.")
@click.option("--deployment-target", type=click.Choice(TARGETS), default="ios16", show_default=True,
              help="The oldest system that is to load the bundle.")  # fmt: skip
@click.option("--kv-length", type=int, help="Positions of the decoder's caches [default: all, 448].")
@click.option("--turbo", is_flag=True,
              help="The layout for latency: --audio-encoder-attention split-heads-q, and _turbo in the name. It is not "
                   "OpenAI's model of that name, and M1's Neural Engine does not run large models so.")  # fmt: skip
@click.option("--stateful", is_flag=True,
              help="The decoder's caches as states (iOS 18, macOS 15 and later), and _stateful in the name: audio is "
                   "projected once a window, not once a token. Today's open runtime does not load it.")  # fmt: skip
@click.option("--audio-encoder-attention", type=click.Choice(ATTENTIONS),
              help="How the encoder's attention is laid out [default: cat; split-heads-q with --turbo].")  # fmt: skip
@click.option("--text-decoder-attention", type=click.Choice(ATTENTIONS),
              help="How the decoder's attention is laid out [default: cat].")  # fmt: skip
@click.option("--attention-chunk-size", type=int,
              help="Positions in a chunk of split-heads-q (queries) and split-kv (keys), a multiple of 32 "
                   "[default: 512].")  # fmt: skip
@click.option("--logits-chunk-size", type=int,
              help="Most logits that one product gives; 16384 is the width that older Neural Engines hold "
                   "[default: all at once].")  # fmt: skip
@click.option("--prefill/--no-prefill", default=None,
              help="Add TextDecoderContextPrefill: the caches after start, language and task as a table, which "
                   "replaces the first passes of each window; left out where caches of zeros or noise do as well "
                   "[default: with --turbo].")  # fmt: skip
@click.option("--prefill-from", type=click.Choice(["speech", "noise", "mixed"]),
              help="What the table is the mean over [default: speech].")  # fmt: skip
@click.option("--prefill-audio", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A folder with your own speech for the table, every other file; the rest, where a NAME.txt with the "
                   "transcript is beside it, is what the table is judged on [default: the demo's].")  # fmt: skip
@click.option("--prefill-max-wer-delta", type=float,
              help="Most points by which the word error rate may rise, or the table is left out [default: 0.2].",
              )  # fmt: skip
@click.option("--strict", is_flag=True,
              help="Exit 3, and leave nothing behind, when the table is left out or what it changes was not measured.",
              )  # fmt: skip
@click.option("--no-word-timestamps", is_flag=True, help="Leave the alignment heads' output away.")
@click.option("--no-verify", is_flag=True, help="Do not run the packages; the bundle records that it is unverified.")
@click.option("--compile", "compile_", is_flag=True, help="Add .mlmodelc folders (macOS with Xcode).")
@click.option("--allow-pickle", is_flag=True, help="Read pickled weights (.pt, .bin), without running code in them.")
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def command(
    source: str,
    output_dir: Path,
    revision: str | None,
    deployment_target: str,
    kv_length: int | None,
    turbo: bool,
    stateful: bool,
    audio_encoder_attention: str | None,
    text_decoder_attention: str | None,
    attention_chunk_size: int | None,
    logits_chunk_size: int | None,
    prefill: bool | None,
    prefill_from: str | None,
    prefill_audio: Path | None,
    prefill_max_wer_delta: float | None,
    strict: bool,
    no_word_timestamps: bool,
    no_verify: bool,
    compile_: bool,
    allow_pickle: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Convert a Whisper checkpoint to a verified bundle of Core ML packages.

    SOURCE is an alias (tiny, base.en, large-v3, distil-large-v3, ...), a Hub id (ORG/NAME), a folder with a
    Hugging Face checkpoint or a LoRA adapter, an OpenAI .pt file, or `demo`, the embedded model.

    Each package is loaded back and run on speech: at least 70 dB against PyTorch in float32 and 40 dB in float16, or
    the command exits 3 and leaves nothing behind.

    The attention layouts compute the same; they differ in what the Neural Engine's compiler makes of them. cat: all
    heads in one product, the fewest operations, for GPU and M1. split-heads: one head at a time, which keeps tensors
    small, with one transpose of the keys for all heads. split-heads-q: the same with the queries in chunks, for the
    encoder (a decoder step has one query). split-kv: all heads, with keys and values in chunks.
    """
    from whisperkit_tools.checkpoint import open_checkpoint
    from whisperkit_tools.cli.progress import ConsoleProgress
    from whisperkit_tools.conversion.convert import ConversionConfig, convert
    from whisperkit_tools.demo import verification_speech

    if stateful:
        _check_states(deployment_target)
    config = ConversionConfig(
        output_dir=output_dir,
        deployment_target=deployment_target,
        kv_length=kv_length,
        turbo=turbo,
        stateful=stateful,
        audio_encoder_attention=audio_encoder_attention,
        text_decoder_attention=text_decoder_attention,
        attention_chunk_size=attention_chunk_size,
        logits_chunk_size=logits_chunk_size,
        word_timestamps=not no_word_timestamps,
        verify=not no_verify,
        compile=compile_,
        force=force,
        prefill=_prefill(
            turbo if prefill is None else prefill,
            strict,
            asked_for=bool(prefill),
            source=prefill_from,
            audio=prefill_audio,
            max_wer_delta=prefill_max_wer_delta,
        ),
    )
    progress = ConsoleProgress()
    with progress.stage("checkpoint", "open"):
        checkpoint = open_checkpoint(source, revision=revision, allow_pickle=allow_pickle)
    result = convert(checkpoint, config, verification_speech(), progress)
    click.echo(json.dumps(_as_json(result), indent=2) if as_json else "\n".join(_lines(result)))


def _check_states(deployment_target: str) -> None:
    """Raise `click.UsageError` where the target has no states."""
    if deployment_target not in STATEFUL_TARGETS:
        raise click.UsageError(
            f"--stateful needs iOS 18 or macOS 15, but --deployment-target is {deployment_target}; "
            f"choose {' or '.join(STATEFUL_TARGETS)}"
        )


def _prefill(
    wanted: bool,
    strict: bool,
    *,
    asked_for: bool,
    source: str | None,
    audio: Path | None,
    max_wer_delta: float | None,
) -> "PrefillConfig | None":
    """How the prefill is made, from the options.

    Raises:
        click.UsageError: There is to be none, but options ask for things of it.
    """
    given = {
        "--prefill-from": source,
        "--prefill-audio": audio,
        "--prefill-max-wer-delta": max_wer_delta,
        "--strict": strict or None,
    }
    names = [name for name, value in given.items() if value is not None]
    if not wanted:
        if names:
            raise click.UsageError(f"{', '.join(names)}: there is no prefill to apply to; add --prefill or --turbo")
        return None
    from whisperkit_tools.conversion.prefill.audio import labelled_recordings
    from whisperkit_tools.conversion.prefill.build import DEFAULT_MAX_WER_DELTA, PrefillConfig
    from whisperkit_tools.conversion.prefill.comparison import transcripts_with

    return PrefillConfig(
        source=source or "speech",
        recordings=labelled_recordings(audio) if audio else (),
        transcripts=transcripts_with,
        max_wer_delta=DEFAULT_MAX_WER_DELTA if max_wer_delta is None else max_wer_delta,
        strict=strict,
        required=asked_for,
    )


def _lines(result: "ConversionResult") -> list[str]:
    """The result in words: components, prefill, and at last the bundle's path."""
    sizes = [f"{name:<26} {size / 1e6:9.1f} MB   {_parity_line(result, name)}" for name, size in result.bytes.items()]
    return [*sizes, *(result.prefill.lines() if result.prefill else ()), str(result.path)]


def _parity_line(result: "ConversionResult", name: str) -> str:
    figures = {item.component: item for item in result.parity}.get(name)
    if figures is None:
        return "not verified"
    return f"float32 >= {min(figures.float32_db.values()):.1f} dB, float16 >= {min(figures.float16_db.values()):.1f} dB"


def _as_json(result: "ConversionResult") -> dict[str, object]:
    from dataclasses import asdict

    return {**asdict(result), "path": str(result.path)}
