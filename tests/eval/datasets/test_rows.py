"""Search for audio files in the folder of a dataset."""

import io

import numpy as np
import soundfile

from whisperkit_tools.eval.datasets.rows import AudioFolder
from whisperkit_tools.speech import AUDIO_EXTENSIONS
from whisperkit_tools.transcribe.audio.load import find_inputs


def test_every_audio_ending_is_found_in_a_folder_and_by_transcribe(tmp_path):
    """A folder of recordings holds the same files for every command, films included."""
    sound = io.BytesIO()
    soundfile.write(sound, np.zeros(1600), 16_000, format="WAV")
    for number, ending in enumerate(AUDIO_EXTENSIONS):
        (tmp_path / f"clip{number}{ending}").write_bytes(sound.getvalue())
    (tmp_path / "notes.txt").touch()
    folder = AudioFolder(tmp_path)
    found = {folder.find(f"clip{number}").name for number in range(len(AUDIO_EXTENSIONS))}
    assert found == {item.path.name for item in find_inputs([str(tmp_path)])}
    assert "clip11.mov" in found
