"""Largest difference of the mel features from transformers' extractor, by the use of float16.

Four ways to declare MelSpectrogram: float32 throughout, float16 output only (what is exported), float16 audio as well,
and float16 for every operation. Features lie between -1.5 and 1.7; 1e-3 is the limit the tests keep.

    python -m tests.benchmarks mel-precision [AUDIO ...]
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WhisperFeatureExtractor

from tests.benchmarks.harness import Column, Figure, Result, Table, benchmark
from whisperkit_tools.compile_hints.mel_spectrogram import MelSpectrogram
from whisperkit_tools.speech import WINDOW_SAMPLES


class RoundEveryResult(TorchDispatchMode):
    """Round the result of each operation to float16, with its overflow and underflow."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float32:
            return result.to(torch.float16).to(torch.float32)
        return result


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.half().float()


def all_float16(mel: MelSpectrogram, audio: torch.Tensor) -> torch.Tensor:
    with RoundEveryResult():
        return mel(rounded(audio))


WAYS: dict[str, Callable[[MelSpectrogram, torch.Tensor], torch.Tensor]] = {
    "float32": lambda mel, audio: mel(audio),
    "float16 output": lambda mel, audio: rounded(mel(audio)),
    "float16 audio": lambda mel, audio: rounded(mel(rounded(audio))),
    "float16 compute": all_float16,
}


def window(audio: np.ndarray) -> np.ndarray:
    return np.pad(audio[:WINDOW_SAMPLES], (0, max(0, WINDOW_SAMPLES - len(audio)))).astype(np.float32)


def read(path: Path) -> np.ndarray:
    audio, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return window(soxr.resample(audio.mean(axis=1), rate, 16000))


def cases(paths: list[Path]) -> dict[str, np.ndarray]:
    noise = np.random.default_rng(0).uniform(-1, 1, WINDOW_SAMPLES).astype(np.float32)
    speech = {path.stem: read(path) for path in paths}
    quiet = {f"{name} at -60 dBFS": audio / np.abs(audio).max() * np.float32(1e-3) for name, audio in speech.items()}
    return {**speech, **quiet, "silence": window(np.zeros(0)), "full-scale noise": noise}


def measure(audio: np.ndarray, n_mels: int) -> dict[str, float]:
    extractor = WhisperFeatureExtractor(feature_size=n_mels)
    expected = extractor(audio, sampling_rate=16000, return_tensors="pt").input_features[0]
    mel = MelSpectrogram(n_mels)
    found = {name: way(mel, torch.from_numpy(audio))[0, :, 0] for name, way in WAYS.items()}
    return {name: float((features - expected).abs().max()) for name, features in found.items()}


def options(parser: ArgumentParser) -> None:
    parser.add_argument("audio", nargs="*", type=Path, help="speech files [default: two of the demo's]")


@benchmark("mel-precision", options)
def mel_precision(args: Namespace) -> Result:
    from whisperkit_tools.demo import demo_utterances

    paths = args.audio or [utterance.path for utterance in demo_utterances()[:2]]
    table = Table((Column("audio", "audio"), Column("n_mels", "mels"), *(Column(way, way, ".2e") for way in WAYS)))
    for n_mels in (80, 128):
        for name, audio in cases(paths).items():
            table.add(audio=name, n_mels=n_mels, **measure(audio, n_mels))
    worst = {way: max(row[way] for row in table.rows) for way in WAYS}
    return Result([table], [Figure(f"largest difference, {way}", value, spec=".0e") for way, value in worst.items()])
