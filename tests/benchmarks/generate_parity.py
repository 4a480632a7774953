"""Are the tokens those of transformers' `generate`? The executor in float32 mode against the PyTorch model.

Both run on the same float16-rounded weights, on the same mel features (transformers' own, of the whole audio), with the
same options and seed. For each difference the table shows by how much transformers preferred its token: a margin of
rounding size is a tie. A second table compares the way that ships, where the bundle's MelSpectrogram computes
the features window by window.

    python tests/benchmarks/generate_parity.py CHECKPOINT BUNDLE AUDIO... [--only NAME ...] [--json FILE]
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

from whisperkit_tools.transcribe.audio import find_inputs, load_audio
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
SETTINGS: dict[str, TranscribeOptions] = {
    "text": TranscribeOptions(timestamps=False, **GREEDY),
    "timestamps": TranscribeOptions(**GREEDY),
    "spanish": TranscribeOptions(language="es", **GREEDY),
    "translate": TranscribeOptions(language="es", task="translate", timestamps=False, **GREEDY),
    "prompt": TranscribeOptions(prompt="Call Maria on Monday at eleven.", **GREEDY),
    "conditioned": TranscribeOptions(condition_on_previous_text=True, **GREEDY),
    "fallback": TranscribeOptions(seed=7, **FALLBACK),
    "conditioned fallback": TranscribeOptions(seed=7, condition_on_previous_text=True, **FALLBACK),
}


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
        spoken = {"language": options.language, "task": options.task} if multilingual else {}
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


def applies(setting: TranscribeOptions, transcriber: Transcriber, samples: int) -> bool:
    if not setting.timestamps and samples > N_SAMPLES:
        return False  # transformers refuses long audio without timestamps
    return transcriber.special.is_multilingual or (setting.language is None and setting.task == "transcribe")


def rows(oracle: Oracle, transcriber: Transcriber, audio: list[str], only: list[str]) -> Iterator[tuple[Row, Row]]:
    """Yield for each audio and setting the comparison on the same features, and that of the way that ships."""
    for item in find_inputs(audio):
        samples = load_audio(item)
        name = Path(item.name).name
        for setting in only:
            options = SETTINGS[setting]
            if applies(options, transcriber, len(samples)):
                expected = expect(oracle, transcriber, samples, options)
                same = list(transcriber.transcribe_features(expected.features[0], options).tokens)
                own = list(transcriber.transcribe(samples, options).tokens)
                found = [compare(transcriber, name, setting, expected, ids) for ids in (same, own)]
                print(f"{name:24}{setting:22}{found[0].equal!s:7}{found[1].equal!s:7}", file=sys.stderr, flush=True)
                yield found[0], found[1]


def show(title: str, table: list[Row]) -> None:
    print(f"\n{title}\n{'setting':22}{'equal':>12}{'tokens':>9}")
    for setting in SETTINGS:
        of = [row for row in table if row.setting == setting]
        if of:
            print(f"{setting:22}{sum(r.equal for r in of):>6} / {len(of):<3}{sum(r.tokens for r in of):>9}")
    for row in table:
        if not row.equal:
            margin = "not known" if row.margin is None else f"{row.margin:.2e}"
            print(f"  {row.audio} ({row.setting}) parts at token {row.parts_at} of {row.tokens}, margin {margin}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("audio", nargs="+")
    parser.add_argument("--only", choices=list(SETTINGS), nargs="+", default=list(SETTINGS))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    oracle, transcriber = Oracle(args.checkpoint), Transcriber.load(args.bundle)
    pairs = list(rows(oracle, transcriber, args.audio, args.only))
    same, own = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    show("the same features", same)
    show("the bundle's own features, against transformers with its own", own)
    if args.json:
        result = {"same_features": [asdict(row) for row in same], "own_features": [asdict(row) for row in own]}
        args.json.write_text(json.dumps(result, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    main()
