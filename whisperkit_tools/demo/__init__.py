"""The loader of the embedded demo: a real, trained, tiny Whisper and its audio.

`python -m whisperkit_tools.distill.demo_model` made both.
"""

from pathlib import Path
from typing import Any

from whisperkit_tools.errors import AudioError
from whisperkit_tools.speech import (
    SAMPLE_RATE_HZ,
    WINDOW_SAMPLES,
    Recording,
    ReferencePhrase,
    ReferenceWord,
    Samples,
)
from whisperkit_tools.strict_json import parse_json

__all__ = [
    "demo_checkpoint_dir",
    "demo_longform",
    "demo_utterances",
    "read_demo_audio",
    "verification_speech",
]


def demo_checkpoint_dir() -> Path:
    """Return the folder of the demo checkpoint, in Hugging Face format."""
    return Path(__file__).parent / "checkpoint"


def demo_utterances() -> list[Recording]:
    """Return the short recordings, the English ones first, then the Spanish ones.

    The model was not trained on them. They have the start of each word, as the synthesizer reports it.
    """
    folder, metadata = _metadata()
    return [
        Recording(**_common(folder, entry), words=_words(entry["text"], entry["words_s"]))
        for entry in metadata["utterances"]
    ]


def demo_longform() -> list[Recording]:
    """Return the long recordings, one in English and one in Spanish, each of more than a minute by many speakers.

    They have the times of each sentence.
    """
    folder, metadata = _metadata()
    return [
        Recording(**_common(folder, entry), phrases=tuple(ReferencePhrase(**phrase) for phrase in entry["segments"]))
        for entry in metadata["longform"]
    ]


def verification_speech() -> Samples:
    """Return the speech on which packages are verified, `[480000]` samples at 16 kHz, so that no download is needed.

    It is the first window of the English long recording.

    Raises:
        AudioError: The installed demo audio is not what the package ships.
    """
    path = Path(__file__).parent / "audio" / "longform_en.ogg"
    samples = read_demo_audio(path, frames=WINDOW_SAMPLES)
    if len(samples) != WINDOW_SAMPLES:
        raise AudioError(f"{path} is damaged (shape {samples.shape}); install whisperkit-tools again")
    return samples


def read_demo_audio(path: Path, frames: int = -1) -> Samples:
    """Return the samples `[n]` of one of the demo's files at 16 kHz.

    Args:
        path: The file.
        frames: Maximum number of samples, or -1 for the whole file.

    Raises:
        AudioError: The installed demo audio is not what the package ships.
    """
    import soundfile

    samples, rate_hz = soundfile.read(path, frames=frames, dtype="float32")
    if rate_hz != SAMPLE_RATE_HZ or samples.ndim != 1:
        raise AudioError(f"{path} is damaged ({rate_hz} Hz, shape {samples.shape}); install whisperkit-tools again")
    found: Samples = samples
    return found


def _metadata() -> tuple[Path, dict[str, Any]]:
    folder = Path(__file__).parent / "audio"
    metadata: dict[str, Any] = parse_json((folder / "metadata.json").read_bytes())
    return folder, metadata


def _common(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "text", "language", "translation", "duration_s")
    return {"path": folder / entry["file"], **{name: entry[name] for name in names}}


def _words(text: str, starts_s: list[float]) -> tuple[ReferenceWord, ...]:
    return tuple(ReferenceWord(word, start_s) for word, start_s in zip(text.split(), starts_s, strict=True))
