"""Errors of word starts, with a checkpoint's own alignment heads and with chosen ones.

The demo's short recordings are the audio: the synthesizer reported where each word begins. Words of the transcript are
matched to those of the reference; the error is over matched words, F1 counts those that begin within 100 ms, so that
a word that was not heard, or heard elsewhere, costs too.

    python -m tests.benchmarks word-timestamps [CHECKPOINT] [--heads L.H,L.H ...]

`--heads` adds sets of heads to compare, each as layer.head; the checkpoint is `demo` unless another knows its language.
"""

import tempfile
from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np

from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark, progress, threads_option
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads
from whisperkit_tools.conversion.alignment_heads import choose_alignment_heads
from whisperkit_tools.conversion.config import ConvertConfig
from whisperkit_tools.conversion.convert import convert
from whisperkit_tools.demo import demo_utterances, verification_speech
from whisperkit_tools.mil.coreml import quiet_coremltools
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

NEAR_S = 0.1


@dataclass(frozen=True, slots=True)
class Errors:
    """Word starts against the reference: errors in seconds, over matched words."""

    heads: str
    words: int
    matched: int
    median_s: float
    p90_s: float
    mean_signed_s: float
    f1_100ms: float


def spoken(word: str) -> str:
    return "".join(letter for letter in word.lower() if letter.isalnum())


def errors(transcriber: Transcriber, utterance: Recording) -> tuple[list[float], int, int]:
    """Signed errors of the matched words' starts, and the number of words in the reference and in the transcript."""
    audio = load_audio(AudioInput(str(utterance.path), utterance.path))
    result = transcriber.transcribe(audio, TranscribeOptions(language=utterance.language, word_timestamps=True))
    words = [word for segment in result.segments for word in segment.words]
    wanted, found = utterance.text.split(), [word.text for word in words]
    if len(wanted) != len(utterance.words):
        raise SystemExit(f"{utterance.id}: {len(wanted)} words and {len(utterance.words)} times")
    blocks = SequenceMatcher(None, [spoken(w) for w in wanted], [spoken(w) for w in found], False).get_matching_blocks()
    pairs = [(block.a + i, block.b + i) for block in blocks for i in range(block.size)]
    return [words[there].start_s - utterance.words[here].start_s for here, there in pairs], len(wanted), len(found)


def measure(name: str, transcriber: Transcriber) -> Errors:
    rows = [errors(transcriber, utterance) for utterance in demo_utterances()]
    signed = np.array([error for row in rows for error in row[0]])
    wanted, found = sum(row[1] for row in rows), sum(row[2] for row in rows)
    near = int((np.abs(signed) <= NEAR_S).sum())
    return Errors(
        name,
        wanted,
        len(signed),
        float(np.median(np.abs(signed))),
        float(np.quantile(np.abs(signed), 0.9)),
        float(signed.mean()),
        2 * near / (wanted + found),
    )


def transcriber_with(checkpoint: Checkpoint, heads: AlignmentHeads, folder: Path) -> Transcriber:
    config = ConvertConfig(output_dir=folder, verify=False)
    with quiet_coremltools():
        convert(replace(checkpoint, alignment_heads=heads), config)
    return Transcriber.load(Bundle.open(next(path for path in folder.iterdir() if path.is_dir())))


def parsed(text: str) -> AlignmentHeads:
    return tuple((int(layer), int(head)) for layer, head in (pair.split(".") for pair in text.split(",")))


def options(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", nargs="?", default="demo")
    parser.add_argument("--heads", nargs="*", default=[])
    threads_option(parser)


@benchmark("word-timestamps", options)
def word_timestamps(args: Namespace) -> Result:
    checkpoint = open_checkpoint(args.checkpoint)
    choice = choose_alignment_heads(checkpoint, [verification_speech()])
    progress(choice.reason)
    sets = {"own": checkpoint.alignment_heads, "chosen": choice.heads} | {text: parsed(text) for text in args.heads}
    table = Table((
        Column("heads", "heads"), Column("words", "words"), Column("matched", "matched"),
        Column("median_s", "median ms", ".0f", 1e3), Column("p90_s", "90 % ms", ".0f", 1e3),
        Column("mean_signed_s", "mean ms", ".0f", 1e3), Column("f1_100ms", "F1 100 ms", ".3f"),
    ))  # fmt: skip
    figures, notes = [], [choice.reason]
    for name, heads in sets.items():
        if heads is None:
            notes.append(f"{name}: none")
            continue
        with tempfile.TemporaryDirectory() as folder:
            shown = name if name in args.heads else f"{name} {','.join(f'{layer}.{head}' for layer, head in heads)}"
            row = table.add(**asdict(measure(shown, transcriber_with(checkpoint, heads, Path(folder)))))
        figures += [
            Figure("median error of word starts", 1e3 * row["median_s"], "ms", f"{name} heads", ".0f"),
            Figure("90 % within", 1e3 * row["p90_s"], "ms", f"{name} heads", ".0f"),
        ]
    return Result([table], figures, notes)
