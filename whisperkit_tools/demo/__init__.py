"""The embedded demo: a real, trained, tiny Whisper, its audio, and (`make_demo.py`) the script that made both."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["DemoLongform", "DemoSegment", "DemoUtterance", "demo_checkpoint_dir", "demo_longform", "demo_utterances"]


@dataclass(frozen=True, slots=True)
class DemoUtterance:
    """One short recording that the model was not trained on.

    Attributes:
        id: Its name, for example "en_03".
        path: The audio file.
        text: What is said.
        language: The language spoken: "en" or "es".
        translation: What is said, in English.
        duration_s: Length of the audio in seconds.
        words_s: Start of each word of the text in seconds, as the synthesizer reports it.
    """

    id: str
    path: Path
    text: str
    language: str
    translation: str
    duration_s: float
    words_s: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class DemoSegment:
    """One sentence of a long recording; times in seconds."""

    start_s: float
    end_s: float
    text: str
    translation: str


@dataclass(frozen=True, slots=True)
class DemoLongform:
    """One recording of more than a minute, by many speakers of one language.

    Attributes:
        id: Its name, for example "longform_en".
        path: The audio file.
        text: All that is said.
        language: The language spoken: "en" or "es".
        translation: All that is said, in English.
        duration_s: Length of the audio in seconds.
        segments: The sentences with their times.
    """

    id: str
    path: Path
    text: str
    language: str
    translation: str
    duration_s: float
    segments: tuple[DemoSegment, ...]


def demo_checkpoint_dir() -> Path:
    """The folder of the demo checkpoint, in Hugging Face format."""
    return Path(__file__).parent / "checkpoint"


def demo_utterances() -> list[DemoUtterance]:
    """The short recordings: the English ones, then the Spanish ones."""
    folder, metadata = _metadata()
    return [
        DemoUtterance(**_common(folder, entry), words_s=tuple(entry["words_s"])) for entry in metadata["utterances"]
    ]


def demo_longform() -> list[DemoLongform]:
    """The long recordings: one in English, one in Spanish."""
    folder, metadata = _metadata()
    return [
        DemoLongform(**_common(folder, entry), segments=tuple(DemoSegment(**segment) for segment in entry["segments"]))
        for entry in metadata["longform"]
    ]


def _metadata() -> tuple[Path, dict[str, Any]]:
    folder = Path(__file__).parent / "audio"
    metadata: dict[str, Any] = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
    return folder, metadata


def _common(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    names = ("id", "text", "language", "translation", "duration_s")
    return {"path": folder / entry["file"], **{name: entry[name] for name in names}}
