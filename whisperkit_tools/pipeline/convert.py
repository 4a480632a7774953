"""From a checkpoint to a verified bundle."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from whisperkit_tools.bundle import DEFAULT_BUNDLES_DIR, Bundle
from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.conversion import convert as conversion
from whisperkit_tools.conversion.config import ConvertConfig, ConvertResult
from whisperkit_tools.conversion.prefill.build import PrefillOptions
from whisperkit_tools.errors import OptionsError, option
from whisperkit_tools.progress import Progress, SilentProgress

# Keywords of `convert` by the field of `PrefillOptions` that they set.
_KEYWORDS = {
    "source": "prefill_from",
    "audio": "prefill_audio",
    "max_wer_delta": "prefill_max_wer_delta",
    "strict": "strict",
}


@dataclass(frozen=True, slots=True)
class ConvertedBundle(Bundle):
    """A bundle that has just been converted.

    Attributes:
        path: The folder.
        manifest: The content of its `wkt.json`.
        result: Sizes, parity, prefill and notes of the conversion.
    """

    result: ConvertResult


def convert(
    source: str | Path | Checkpoint,
    *,
    output_dir: str | Path = DEFAULT_BUNDLES_DIR,
    revision: str | None = None,
    deployment_target: str = "ios16",
    kv_length: int | None = None,
    turbo: bool = False,
    stateful: bool = False,
    audio_encoder_attention: str | None = None,
    text_decoder_attention: str | None = None,
    attention_chunk_size: int | None = None,
    logits_chunk_size: int | None = None,
    prefill: bool | None = None,
    prefill_from: str | None = None,
    prefill_audio: str | Path | None = None,
    prefill_max_wer_delta: float | None = None,
    draft_tokens: int | None = None,
    strict: bool = False,
    word_timestamps: bool = True,
    verify: bool = True,
    compile: bool = False,
    allow_pickle: bool = False,
    tokenizer: str | Path | None = None,
    base: str | Path | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> ConvertedBundle:
    """Convert a Whisper checkpoint to a bundle of Core ML packages, and verify it.

    Args:
        source: An alias (`tiny`, `large-v3`), a Hub id, a folder (Hugging Face, CTranslate2, MLX, LiteASR or LoRA
            adapter), an OpenAI `.pt` or whisper.cpp `ggml-*.bin` file, `demo` for the embedded model, or an opened
            checkpoint.
        output_dir: The folder that holds bundles.
        revision: Branch, tag or commit of a Hub checkpoint.
        deployment_target: The oldest system that must load the bundle, a key of `contract.DEPLOYMENT_TARGETS`.
        kv_length: Positions of the decoder's caches, or None for all that the checkpoint has.
        turbo: Use the layout for low latency, which includes a prefill, and put `_turbo` into the name.
        stateful: Keep the decoder's caches as states (iOS 18, macOS 15), and put `_stateful` into the name.
        audio_encoder_attention: Layout of the encoder's attention, or None for what `turbo` implies.
        text_decoder_attention: Layout of the decoder's attention, or None for what `turbo` implies.
        attention_chunk_size: Positions in a chunk, for the layouts that work in chunks. None for the default.
        logits_chunk_size: Maximum number of logits that one matrix product computes, or None for all.
        prefill: Add the table of caches after the forced tokens. None adds it with `turbo`, where the model can have
            one.
        prefill_from: Audio that the table is averaged over: `speech`, `noise` or `mixed`. None for `speech`.
        prefill_audio: Folder with your own speech for the table. None for the demo's.
        prefill_max_wer_delta: Maximum rise of the word error rate in points. A table that raises it more is omitted.
        draft_tokens: Number of tokens that `TextDecoderVerify` takes at once, for speculative decoding. None for no
            such package.
        strict: Fail where the table is omitted or its effect on transcripts was not measured.
        word_timestamps: Export the weights of the alignment heads.
        verify: Run the packages and compare them with the checkpoint.
        compile: Add `.mlmodelc` folders (macOS with Xcode).
        allow_pickle: Read pickled weights, without running code in them.
        tokenizer: Folder, alias or Hub id of the model whose tokenizer the checkpoint has, where it carries none.
        base: Folder, alias or Hub id of an adapter's base, instead of the one that it names.
        force: Replace an existing bundle.
        progress: Receives stages and notes.

    Raises:
        OptionsError: A value is unknown, out of range, or contradicts another one.
        CheckpointError: The checkpoint cannot be found or read.
        ConversionError: The checkpoint cannot be exported.
        QualityGateError: A package does not compute what the checkpoint computes.
        BundleError: The bundle exists already.

    Example:
        >>> import whisperkit_tools as wkt
        >>> bundle = wkt.convert("demo", output_dir="converted", verify=False)
        >>> bundle.name
        'whisperkit-tools_whisper-micro-demo'
        >>> bundle.components()
        ('MelSpectrogram', 'AudioEncoder', 'TextDecoder')
    """
    progress = progress or SilentProgress()
    config = ConvertConfig(
        output_dir=Path(output_dir),
        deployment_target=deployment_target,
        kv_length=kv_length,
        turbo=turbo,
        stateful=stateful,
        audio_encoder_attention=audio_encoder_attention,
        text_decoder_attention=text_decoder_attention,
        attention_chunk_size=attention_chunk_size,
        logits_chunk_size=logits_chunk_size,
        word_timestamps=word_timestamps,
        verify=verify,
        compile=compile,
        force=force,
        draft_tokens=draft_tokens,
        prefill=_prefill(
            prefill,
            turbo,
            source=prefill_from,
            audio=prefill_audio,
            max_wer_delta=prefill_max_wer_delta,
            strict=strict or None,
        ),
    )
    if not isinstance(source, Checkpoint):
        with progress.stage("checkpoint", "open"):
            source = open_checkpoint(
                str(source),
                revision=revision,
                allow_pickle=allow_pickle,
                tokenizer=None if tokenizer is None else str(tokenizer),
                base=None if base is None else str(base),
            )
    result = conversion.convert(source, config, progress)
    bundle = Bundle.open(result.path)
    return ConvertedBundle(bundle.path, bundle.manifest, result)


def _prefill(prefill: bool | None, turbo: bool, **options: Any) -> PrefillOptions | bool | None:
    """Return how the prefill is made. Options that are None have their default.

    Raises:
        OptionsError: There is to be no prefill, but some of its options are given. All are named.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return prefill
    if not (turbo if prefill is None else prefill):
        names = ", ".join(option(_KEYWORDS[name]) for name in given)
        raise OptionsError(
            f"{names}: there is no prefill to apply to; add {option('prefill', True)} or {option('turbo', True)}"
        )
    return PrefillOptions(**given, required=bool(prefill))
