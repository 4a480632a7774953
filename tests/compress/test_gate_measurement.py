"""How recordings are transcribed for the gate, and what is known of a candidate before and after it transcribes."""

from types import SimpleNamespace

import numpy as np
import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import select_gate
from whisperkit_tools.compress.compressor import palettes_of, sense
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.gate_measurement import GateMeasurement, ReferenceTranscriber, decoding_options
from whisperkit_tools.compress.package_builder import write_packages
from whisperkit_tools.compress.planner import CompressionTarget
from whisperkit_tools.compress.workspace import open_workspace
from whisperkit_tools.eval.metrics.normalize import Normalization
from whisperkit_tools.eval.metrics.wer import word_counts
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.transcriber import Transcriber


@pytest.mark.parametrize(("is_multilingual", "language"), [(True, "en"), (False, None)])
@pytest.mark.parametrize(("length", "is_long"), [(100, False), (101, True)])
def test_a_model_of_english_alone_is_given_no_language(is_multilingual, language, length, is_long):
    """Such a model refuses a language, though the demo's recordings name theirs."""
    transcriber = SimpleNamespace(
        special=SimpleNamespace(is_multilingual=is_multilingual),
        models=SimpleNamespace(sizes=SimpleNamespace(n_samples=100)),
    )
    recording = Recording("a", samples=np.zeros(length, np.float32), language="en")
    options = decoding_options(recording, transcriber)
    assert (options.language, options.timestamps, options.temperatures) == (language, is_long, (0.0,))


@pytest.fixture(scope="module")
def recordings():
    clips = [clip for clip in select_gate("demo", 8, ("en", "es"), 480_000) if len(clip.samples) <= 480_000]
    # Without a language, candidates detect it.
    return [*clips, *(Recording(f"{clip.id}, any language", clip.text, samples=clip.samples) for clip in clips[:2])]


@pytest.fixture(scope="module")
def measurement(demo_bundle, recordings):
    return GateMeasurement(ReferenceTranscriber(Bundle.open(demo_bundle), 128), recordings)


@pytest.fixture(scope="module")
def candidates(demo_bundle, tmp_path_factory):
    """The demo with weights of eight, four, two bits and one."""
    place = tmp_path_factory.mktemp("candidates")
    work = open_workspace(
        Bundle.open(demo_bundle), PalettizeConfig(windows=1, samples=1, profile_dir=place / "profile")
    )
    sense(work)
    for nbits in (8, 4, 2, 1):
        (place / str(nbits)).mkdir()
        recipe = work.planner.plan(CompressionTarget(nbits=nbits)).recipe
        write_packages(work.bundle, palettes_of(work, recipe), place / str(nbits))
    return place


def test_forcing_settles_the_transcripts_of_the_bundle_itself(demo_bundle, measurement):
    examples = measurement.load(demo_bundle).forced()
    assert all(example.errors == example.reference_errors for example in examples)
    assert all(0 < example.tokens == example.agreeing for example in examples)
    assert sum(example.divergence for example in examples) < 1e-6


@pytest.mark.parametrize("nbits", [8, 4, 2, 1])
def test_what_forcing_settles_is_what_transcribing_finds(candidates, measurement, recordings, nbits):
    folder = candidates / str(nbits)
    transcriber = Transcriber.load(folder)
    settled = 0
    for recording, example in zip(recordings, measurement.load(folder).forced(), strict=True):
        settled += example.is_final
        if example.is_final:
            text = transcriber.transcribe(recording.samples, decoding_options(recording, transcriber)).text
            pair = Normalization().pair(recording.text, text, recording.language)
            assert example.errors == word_counts(*pair).errors
    assert settled == len(recordings) if nbits == 8 else nbits > 1 or settled < len(recordings)


@pytest.mark.parametrize("nbits", [2, 1])
def test_a_cut_transcript_is_worse_and_its_errors_are_a_minimum(candidates, measurement, nbits):
    candidate = measurement.load(candidates / str(nbits))
    for at, example in enumerate(candidate.forced()):
        cut, whole = candidate.transcribed(at, example), candidate.transcribed(at, example, whole=True)
        assert not whole.is_cut
        assert (cut.errors > cut.reference_errors and cut.errors <= whole.errors) if cut.is_cut else cut == whole


def test_all_is_measured_where_no_gate_stops_it(candidates, measurement):
    examples = measurement.measure(candidates / "1")
    assert all(example.is_final for example in examples)
    assert sum(example.errors for example in examples) > sum(example.reference_errors for example in examples)
