"""A job that transcribes several inputs with one bundle."""

import numpy as np
import pytest
import soundfile

from whisperkit_tools.demo import demo_utterances
from whisperkit_tools.errors import AudioError, OptionsError
from whisperkit_tools.pipeline.transcribe import transcription_job


def test_results_come_one_by_one_and_failures_at_the_end(demo_bundle, tmp_path):
    samples = np.zeros(16_000)
    samples[3] = np.nan
    bad = tmp_path / "nan.wav"
    soundfile.write(bad, samples, 16_000, subtype="FLOAT")
    utterance = demo_utterances()[0]
    job = transcription_job([str(bad), str(utterance.path)], bundle=demo_bundle, language="en")
    assert len(job.inputs) == 2
    results = job.results()
    index, result = next(results)
    assert index == 1
    assert result.text
    with pytest.raises(AudioError, match=r"1 of 2 inputs failed:\n  .*nan.wav: 1 samples are not numbers"):
        next(results)


def test_options_are_checked_before_inputs_are_looked_for(tmp_path):
    with pytest.raises(OptionsError, match="temperature: 'warm' is not a list of numbers"):
        transcription_job([str(tmp_path / "missing.wav")], temperature="warm")
    with pytest.raises(AudioError, match="no such file"):
        transcription_job(str(tmp_path / "missing.wav"))


def test_progress_has_the_name_and_the_seconds(demo_bundle):
    heard = []

    class Listener:
        def advance(self, what, done, total, detail=""):
            heard.append((what, done, total))

    utterance = demo_utterances()[0]
    job = transcription_job(str(utterance.path), bundle=demo_bundle)
    list(job.results(Listener()))
    assert heard[-1] == (utterance.path.name, heard[-1][2], heard[-1][2])
