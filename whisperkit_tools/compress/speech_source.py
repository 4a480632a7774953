"""Speech that the user names: a dataset as an evaluation takes it, or a folder of audio."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from whisperkit_tools.errors import WktError, option, show_options
from whisperkit_tools.eval.datasets.layouts import has_layout
from whisperkit_tools.eval.datasets.open import is_copied_by_row, is_plain_folder, open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.paths import expanded
from whisperkit_tools.progress import Progress
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import recordings_in

# Choices that an evaluation has and a compression has not.
_CHOICES = {"split", "language", "text_column", "audio_column"}


def open_speech(
    source: str | Path, field: str, rows: int | None = None, progress: Progress | None = None
) -> Sequence[Recording]:
    """Find the recordings of a dataset, or of a folder of audio. Nothing is decoded yet.

    Args:
        source: A named dataset, a Hub id, a dataset's folder in any layout, or a folder of audio, each file with its
            transcript in a `.txt` of the same name or without one.
        field: The option that names it.
        rows: Maximum number of rows to fetch of a dataset that is copied row by row. None for all.
        progress: Told of downloads, and of examples that cannot be used.

    Raises:
        OptionsError: There is no such dataset. As all errors, it names the option.
        DatasetError: The dataset cannot be found or read.
        AudioError: The folder has no audio, or files are broken.
    """
    try:
        if is_plain_folder(str(source)):
            return recordings_in(expanded(source))
        limit = rows if is_copied_by_row(str(source)) else None
        return _examples(str(source), DatasetOptions(limit=limit, skip_bad=True), progress)
    except WktError as error:
        raise _of_option(error, field) from error


def _examples(source: str, options: DatasetOptions, progress: Progress | None) -> Sequence[Recording]:
    folder = expanded(source)
    try:
        found = open_dataset(source, options, progress, with_fingerprint=False)
    except WktError as error:
        # Its table has no transcripts at all, which speech does not need here.
        if "text_column" in error.options and folder.is_dir() and has_layout(folder):
            return recordings_in(folder)
        raise
    if found.problems and progress is not None:
        first = found.problems[0]
        progress.note(f"{source}: {len(found.problems)} broken examples are left out; the first: {first.message}")
    if any(example.text for example in found.examples):
        return found.examples
    # A table without any transcript says nothing about what is said, not that nothing is.
    return [replace(example, text=None) for example in found.examples]


def _of_option(error: WktError, field: str) -> WktError:
    """Return a dataset's error as one about the option, without advice on choices that compressions do not have."""
    message = show_options(error.message, lambda name, value: option(field if name == "dataset" else name, value))
    if _CHOICES & set(error.options):
        message = f"{message.rpartition(';')[0]}; name the folder of one part, or a folder of audio files"
    return type(error)(f"{option(field)}: {message}")
