"""The demo's audio files: short held-out utterances and two long-form recordings, with their transcripts."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf

from whisperkit_tools.distill.demo_model.grammar import Sentence
from whisperkit_tools.distill.demo_model.synthesis import Utterance, speak_all
from whisperkit_tools.files import write_whole
from whisperkit_tools.speech import SAMPLE_RATE_HZ

SHORT_COUNTS = {"en": 28, "es": 20}
LONGFORM_SECONDS = 72.0
LEAD_S, TAIL_S = 0.12, 0.25  # silence around a short utterance
GAIN = 1.5  # espeak-ng mostly speaks at a fifth of full scale
PEAK = 0.8  # but some voices reach full scale, and lossy compression overshoots
SEED = 7


def speak_held_out(sentences: list[Sentence], count: int, seed: int = SEED) -> dict[str, list[Utterance]]:
    """Speak `count` held-out sentences per language. No sentence is spoken in both.

    The first `SHORT_COUNTS` of each language become the committed files.
    """
    pools = {"en": sentences[:count], "es": sentences[count : 2 * count]}
    return {code: speak_all([(item, code) for item in chosen], seed, 1) for code, chosen in pools.items()}


def _scaled(utterance: Utterance) -> np.ndarray:
    speech = utterance.audio.astype(np.float32) / 32768
    return np.asarray(speech * min(GAIN, PEAK / float(np.abs(speech).max())), dtype=np.float32)


def pad_utterance(utterance: Utterance) -> np.ndarray:
    """Return an utterance as its file holds it: float32 [n], with a little silence around it."""
    return np.pad(_scaled(utterance), (round(LEAD_S * SAMPLE_RATE_HZ), round(TAIL_S * SAMPLE_RATE_HZ)))


def _entry(name: str, file: str, language: str, samples: int, sentences: list[Sentence]) -> dict[str, Any]:
    return {
        "id": name,
        "file": file,
        "language": language,
        "text": " ".join(sentence.text(language) for sentence in sentences),
        "translation": " ".join(sentence.english for sentence in sentences),
        "duration_s": round(samples / SAMPLE_RATE_HZ, 3),
    }


def _write_short(folder: Path, utterances: list[Utterance], language: str) -> list[dict[str, Any]]:
    entries = []
    for index, utterance in enumerate(utterances[: SHORT_COUNTS[language]]):
        name = f"{language}_{index:02d}"
        audio = pad_utterance(utterance)
        sf.write(folder / f"{name}.flac", audio, SAMPLE_RATE_HZ, subtype="PCM_16", compression_level=1.0)
        entry = _entry(name, f"{name}.flac", language, len(audio), [utterance.sentence])
        entries.append({**entry, "words_s": [round(start + LEAD_S, 3) for start in utterance.words_s]})
    return entries


def _write_longform(folder: Path, utterances: list[Utterance], language: str) -> dict[str, Any]:
    """String utterances together, with pauses of 0.3 to 1.5 s, until the recording is long enough.

    The format is Ogg Vorbis. As FLAC, the two recordings alone would take the size that all audio may have.
    """
    rng = random.Random(SEED)
    pieces: list[np.ndarray] = []
    segments: list[dict[str, Any]] = []
    used: list[Sentence] = []
    at = 0
    for utterance in utterances:
        pause = np.zeros(round(rng.uniform(0.3, 1.5) * SAMPLE_RATE_HZ), dtype=np.float32)
        speech = _scaled(utterance)
        start = at + len(pause)
        at = start + len(speech)
        pieces += [pause, speech]
        used.append(utterance.sentence)
        times = {"start_s": round(start / SAMPLE_RATE_HZ, 3), "end_s": round(at / SAMPLE_RATE_HZ, 3)}
        segments.append({**times, "text": utterance.text, "translation": utterance.sentence.english})
        if at > LONGFORM_SECONDS * SAMPLE_RATE_HZ:
            break
    audio = np.concatenate([*pieces, np.zeros(SAMPLE_RATE_HZ // 2, dtype=np.float32)])
    name = f"longform_{language}"
    with sf.SoundFile(folder / f"{name}.ogg", "w", SAMPLE_RATE_HZ, 1, format="OGG", subtype="VORBIS") as file:
        for start in range(0, len(audio), SAMPLE_RATE_HZ):  # libsndfile overruns its stack on one long Vorbis write
            file.write(audio[start : start + SAMPLE_RATE_HZ])
    return {**_entry(name, f"{name}.ogg", language, len(audio), used), "segments": segments}


def write_recordings(folder: Path, held_out: dict[str, list[Utterance]]) -> None:
    """Write all audio files and metadata.json. The long recordings use sentences that no short one has."""
    folder.mkdir(parents=True, exist_ok=True)
    short = [entry for code, spoken in held_out.items() for entry in _write_short(folder, spoken, code)]
    long = [_write_longform(folder, spoken[SHORT_COUNTS[code] :], code) for code, spoken in held_out.items()]
    metadata = {"utterances": short, "longform": long}
    write_whole(folder / "metadata.json", json.dumps(metadata, ensure_ascii=False, indent=1) + "\n")
