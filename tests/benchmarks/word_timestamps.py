"""How far word starts are from where the words are said, with a checkpoint's own alignment heads and with chosen ones.

The demo's short recordings are the audio: the synthesizer reported where each word begins. Words of the transcript are
matched to those of the reference; the error is over matched words, F1 counts those that begin within 100 ms, so that
a word that was not heard, or heard elsewhere, costs too.

    python tests/benchmarks/word_timestamps.py [CHECKPOINT] [--heads L.H,L.H ...] [--json FILE]

`--heads` adds sets of heads to compare, each as layer.head; the checkpoint is `demo` unless another knows its language.
"""

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass, replace
from difflib import SequenceMatcher
from pathlib import Path

import numpy as np
import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import Checkpoint, open_checkpoint
from whisperkit_tools.compile_hints.text_decoder import AlignmentHeads
from whisperkit_tools.conversion.alignment_heads import choose_alignment_heads
from whisperkit_tools.conversion.convert import ConversionConfig, convert
from whisperkit_tools.demo import demo_utterances, verification_speech
from whisperkit_tools.mil.coreml import quiet_coremltools
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

NEAR_S = 0.1


@dataclass(frozen=True, slots=True)
class Figures:
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


def measure(name: str, transcriber: Transcriber) -> Figures:
    rows = [errors(transcriber, utterance) for utterance in demo_utterances()]
    signed = np.array([error for row in rows for error in row[0]])
    wanted, found = sum(row[1] for row in rows), sum(row[2] for row in rows)
    near = int((np.abs(signed) <= NEAR_S).sum())
    return Figures(
        name,
        wanted,
        len(signed),
        float(np.median(np.abs(signed))),
        float(np.quantile(np.abs(signed), 0.9)),
        float(signed.mean()),
        2 * near / (wanted + found),
    )


def transcriber_with(checkpoint: Checkpoint, heads: AlignmentHeads, folder: Path) -> Transcriber:
    config = ConversionConfig(output_dir=folder, verify=False)
    with quiet_coremltools():
        convert(replace(checkpoint, alignment_heads=heads), config, verification_speech())
    return Transcriber.load(Bundle.open(next(path for path in folder.iterdir() if path.is_dir())))


def parsed(text: str) -> AlignmentHeads:
    return tuple((int(layer), int(head)) for layer, head in (pair.split(".") for pair in text.split(",")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", default="demo")
    parser.add_argument("--heads", nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    checkpoint = open_checkpoint(args.checkpoint)
    choice = choose_alignment_heads(checkpoint, [verification_speech()])
    print(choice.reason)
    sets = {"own": checkpoint.alignment_heads, "chosen": choice.heads} | {text: parsed(text) for text in args.heads}
    print(f"\n{'heads':34}{'words':>7}{'matched':>9}{'median ms':>11}{'90 % ms':>9}{'mean ms':>9}{'F1 100 ms':>11}")
    rows = []
    for name, heads in sets.items():
        if heads is None:
            print(f"{name:34}none")
            continue
        with tempfile.TemporaryDirectory() as folder:
            shown = name if name in args.heads else f"{name} {','.join(f'{layer}.{head}' for layer, head in heads)}"
            row = measure(shown, transcriber_with(checkpoint, heads, Path(folder)))
        rows.append(row)
        print(
            f"{row.heads:34}{row.words:>7}{row.matched:>9}{1e3 * row.median_s:>11.0f}{1e3 * row.p90_s:>9.0f}"
            f"{1e3 * row.mean_signed_s:>9.0f}{row.f1_100ms:>11.3f}",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


if __name__ == "__main__":
    main()
