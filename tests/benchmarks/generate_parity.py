"""Tokens of the executor in float32 mode against those of transformers' `generate`.

Both run on the same float16-rounded weights with the same options and seed. There are three sources of features:
transformers' own, those that the bundle's MelSpectrogram makes of the whole file, and those it makes window by window
as on the device. The last differ by design when the audio is longer than a window. For each difference the notes show
by how much transformers preferred its token. A margin of rounding size is a tie.

    python -m tests.benchmarks generate-parity CHECKPOINT BUNDLE AUDIO... [--demo] [--only NAME ...]

`--demo` adds the embedded recordings. Settings that name a language skip recordings in another language.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark, bundle_argument, progress, threads_option
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.transcribe.audio.load import AudioInput, find_inputs, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber

N_SAMPLES = 480_000
GREEDY: dict[str, Any] = {
    "temperatures": (0.0,),
    "compression_ratio_threshold": None,
    "logprob_threshold": None,
    "no_speech_threshold": None,
}
FALLBACK: dict[str, Any] = {
    "temperatures": (0.0, 0.4, 0.8),
    "compression_ratio_threshold": 1.35,
    "logprob_threshold": -0.7,
    "no_speech_threshold": 0.6,
}
PROMPT = "Call Maria on Monday at eleven."
SETTINGS: dict[str, TranscribeOptions] = {
    "text": TranscribeOptions(timestamps=False, **GREEDY),
    "timestamps": TranscribeOptions(**GREEDY),
    "spanish text": TranscribeOptions(language="es", timestamps=False, **GREEDY),
    "spanish": TranscribeOptions(language="es", **GREEDY),
    "translate": TranscribeOptions(language="es", task="translate", timestamps=False, **GREEDY),
    "translate timestamps": TranscribeOptions(language="es", task="translate", **GREEDY),
    "prompt text": TranscribeOptions(prompt=PROMPT, timestamps=False, **GREEDY),
    "prompt": TranscribeOptions(prompt=PROMPT, **GREEDY),
    "conditioned": TranscribeOptions(condition_on_previous_text=True, **GREEDY),
    "fallback text": TranscribeOptions(seed=7, timestamps=False, **FALLBACK),
    "fallback": TranscribeOptions(seed=7, **FALLBACK),
    "conditioned fallback": TranscribeOptions(seed=7, condition_on_previous_text=True, **FALLBACK),
}
SOURCES = {
    "same": "the same features",
    "file": "the bundle's own features of the whole file",
    "window": "the bundle's own features window by window",
}
EVERY = (
    Column("audio", "audio"), Column("setting", "setting"), Column("tokens", "tokens"), Column("equal", "equal"),
    Column("parts_at", "parts at"), Column("margin", "margin", ".2e"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One audio under one setting; `margin` is None unless the tokens part."""

    audio: str
    setting: str
    tokens: int
    equal: bool
    parts_at: int | None
    margin: float | None
    expected: str
    found: str


class Oracle:
    """transformers' Whisper in float32."""

    def __init__(self, checkpoint: Path) -> None:
        transformers.logging.set_verbosity_error()
        self.model = WhisperForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
        self.extractor = WhisperFeatureExtractor.from_pretrained(checkpoint)

    def features(self, audio: np.ndarray) -> torch.Tensor:
        """Features `[1, n_mels, frames]`: 30 s filled up with silence, or all of a longer audio."""
        extra = {} if len(audio) <= N_SAMPLES else {"truncation": False, "padding": "longest"}
        features: torch.Tensor = self.extractor(
            audio, sampling_rate=16_000, return_tensors="pt", **extra
        ).input_features
        return features

    def generate(self, features: torch.Tensor, options: TranscribeOptions, prompt: list[int] | None) -> Any:
        """Generate with the options of a transcription."""
        torch.manual_seed(options.seed)
        multilingual = self.model.generation_config.is_multilingual
        spoken = {"language": options.language, "task": options.task or "transcribe"} if multilingual else {}
        checks = {
            "temperature": options.temperatures,
            "compression_ratio_threshold": options.compression_ratio_threshold,
            "logprob_threshold": options.logprob_threshold,
            "no_speech_threshold": options.no_speech_threshold,
        }
        with torch.no_grad():
            return self.model.generate(
                features,
                return_timestamps=options.timestamps,
                condition_on_prev_tokens=options.condition_on_previous_text,
                prompt_ids=None if prompt is None else torch.tensor(prompt),
                return_segments=True,
                return_dict_in_generate=True,
                output_scores=True,
                **spoken,
                **(checks if options.logprob_threshold is not None else {}),
            )


def generated(output: Any, special: Any) -> tuple[list[int], list[torch.Tensor]]:
    """The generated ids of all windows, and the processed scores that each was chosen from."""
    if "segments" not in output:  # one call without timestamps
        scores = [step[0] for step in output.scores]
        ids = output.sequences[0, -len(scores) :].tolist()
        end = ids.index(special.end_of_text) if special.end_of_text in ids else len(ids)
        return ids[:end], scores[:end]
    ids, scores = [], []
    for segment in output["segments"][0]:
        all_scores = segment["result"]["scores"]
        first = len(segment["result"]["sequences"]) - len(all_scores)
        begin, end = segment["idxs"]
        ids += segment["tokens"].tolist()
        scores += [row[0] if row.dim() == 2 else row for row in all_scores[begin - first : end - first]]
    return ids, scores


@dataclass(frozen=True, slots=True)
class Expected:
    """What transformers gives for one audio under one setting."""

    features: torch.Tensor
    ids: list[int]
    scores: list[torch.Tensor]


def expect(oracle: Oracle, transcriber: Transcriber, audio: np.ndarray, options: TranscribeOptions) -> Expected:
    prompt = None
    if options.prompt is not None:
        ids, _ = transcriber.tokenizer.encode_prompt(options.prompt, 200)
        prompt = [transcriber.special.start_of_previous, *ids]
    features = oracle.features(audio)
    return Expected(features, *generated(oracle.generate(features, options, prompt), transcriber.special))


def compare(transcriber: Transcriber, name: str, setting: str, expected: Expected, found: list[int]) -> Row:
    """Compare the ids of one audio under one setting."""
    at = None
    if found != expected.ids:
        pairs = enumerate(zip(expected.ids, found, strict=False))
        at = next((i for i, pair in pairs if pair[0] != pair[1]), min(len(expected.ids), len(found)))
    margin = _margin(expected.ids, found, expected.scores, at)
    decode = transcriber.tokenizer.decode
    return Row(name, setting, len(expected.ids), at is None, at, margin, decode(expected.ids), decode(found))


def _margin(expected: list[int], found: list[int], scores: list[torch.Tensor], at: int | None) -> float | None:
    """By how much transformers preferred its own token, as a difference of logits."""
    if at is None or at >= min(len(expected), len(found), len(scores)):
        return None
    return float(scores[at][expected[at]] - scores[at][found[at]])


def applies(setting: TranscribeOptions, transcriber: Transcriber, samples: int, language: str | None) -> bool:
    """Whether a setting says something about an audio of this length and (where known) language."""
    if samples > N_SAMPLES and not setting.timestamps:
        return False  # transformers refuses long audio without timestamps
    if samples <= N_SAMPLES and setting.condition_on_previous_text:
        return False  # nothing comes before the only window
    if not transcriber.special.is_multilingual:
        return setting.language is None and setting.task in (None, "transcribe")
    return setting.language is None or language in (None, setting.language)


def found_by(
    transcriber: Transcriber, audio: np.ndarray, expected: Expected, options: TranscribeOptions
) -> dict[str, list[int]]:
    """The bundle's tokens from each source of features."""
    same = transcriber.transcribe_features(expected.features[0], options)
    file = transcriber.transcribe(audio, replace(options, features="file"))
    # Up to one window both are the same.
    window = transcriber.transcribe(audio, options) if len(audio) > N_SAMPLES else file
    return {name: list(result.tokens) for name, result in (("same", same), ("file", file), ("window", window))}


def rows(
    oracle: Oracle, transcriber: Transcriber, audio: dict[str, str | None], only: list[str]
) -> Iterator[dict[str, Row]]:
    """Yield for each audio and setting the comparison by source of features."""
    for path, language in audio.items():
        samples = load_audio(AudioInput(path, Path(path)))
        for setting in only:
            options = SETTINGS[setting]
            if not applies(options, transcriber, len(samples), language):
                continue
            expected = expect(oracle, transcriber, samples, options)
            found = found_by(transcriber, samples, expected, options)
            name = Path(path).name
            row = {source: compare(transcriber, name, setting, expected, ids) for source, ids in found.items()}
            equal = "".join(f"{row[source].equal!s:7}" for source in SOURCES)
            progress(f"{name:24}{setting:22}{equal}")
            yield row


def show(title: str, found: list[Row]) -> Table:
    """Sum up a source of features by setting."""
    table = Table(tuple(Column(key, key) for key in ("setting", "equal", "of", "tokens")), title)
    by_setting = {setting: [row for row in found if row.setting == setting] for setting in SETTINGS}
    for setting, rows_of in {**by_setting, "all": found}.items():
        if rows_of:
            equal, tokens = sum(r.equal for r in rows_of), sum(r.tokens for r in rows_of)
            table.rows.append({"setting": setting, "equal": equal, "of": len(rows_of), "tokens": tokens})
    return table


def parts(row: Row) -> str:
    """Say where the tokens part."""
    margin = "not known" if row.margin is None else f"{row.margin:.2e}"
    return f"{row.audio} ({row.setting}) parts at token {row.parts_at} of {row.tokens}, margin {margin}"


def options(parser: ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path)
    bundle_argument(parser)
    parser.add_argument("audio", nargs="*")
    parser.add_argument("--demo", action="store_true", help="also the embedded recordings")
    parser.add_argument("--only", choices=list(SETTINGS), nargs="+", default=list(SETTINGS))
    threads_option(parser)


@benchmark("generate-parity", options)
def generate_parity(args: Namespace) -> Result:
    audio: dict[str, str | None] = {str(item.path): None for item in find_inputs(args.audio)} if args.audio else {}
    if args.demo:
        audio |= {str(item.path): item.language for item in [*demo_utterances(), *demo_longform()]}
    oracle, transcriber = Oracle(args.checkpoint), Transcriber.load(args.bundle)
    found = list(rows(oracle, transcriber, audio, args.only))
    result = Result()
    for source, title in SOURCES.items():
        of = [row[source] for row in found]
        every = Table(EVERY, f"every audio on {title}", [asdict(row) for row in of])
        result.tables += [show(title, of), every]
        result.figures.append(Figure(f"equal on {title}", f"{sum(row.equal for row in of)} of {len(of)}"))
        result.notes += [f"{title}: {parts(row)}" for row in of if not row.equal]
    return result
