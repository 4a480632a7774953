"""What float16 does to the mel features: the largest difference from transformers' feature extractor.

Four ways to declare MelSpectrogram: float32 throughout, float16 output only (what is exported), float16 audio as well,
and float16 for every operation. Features lie between -1.5 and 1.7; 1e-3 is the limit the tests keep.

    python tests/benchmarks/mel_precision.py [AUDIO ...] [--json FILE]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import WhisperFeatureExtractor

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("audio", nargs="*", type=Path, help="speech files (default: two of the demo's)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if not options.audio:
        from whisperkit_tools.demo import demo_utterances

        options.audio = [utterance.path for utterance in demo_utterances()[:2]]
    rows = [
        {"audio": name, "n_mels": n_mels, "max_abs_difference": measure(audio, n_mels)}
        for n_mels in (80, 128)
        for name, audio in cases(options.audio).items()
    ]
    print(f"{'audio':34} {'mels':>4} " + " ".join(f"{way:>15}" for way in WAYS))
    for row in rows:
        figures = " ".join(f"{row['max_abs_difference'][way]:15.2e}" for way in WAYS)
        print(f"{row['audio']:34} {row['n_mels']:4} {figures}")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
