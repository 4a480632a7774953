"""Where calibration speech and the gate's examples come from, and that bundles that do not compare are refused."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.audio_selection import select_calibration, select_gate, select_tuning
from whisperkit_tools.compress.gate_measurement import GateMeasurement, ReferenceTranscriber, tuning_windows
from whisperkit_tools.errors import AudioError, BundleError, OptionsError

WINDOW = 480_000


def test_the_demos_calibration_speech_is_short_and_long_and_never_half_a_window_of_nothing():
    clips = select_calibration(None, 8, WINDOW)
    lengths = [len(clip.samples) for clip in clips]
    assert len(clips) == 8
    assert max(lengths) <= WINDOW
    assert max(lengths) > 3 * min(lengths)
    assert {clip.id.split("#")[0] for clip in clips} == {"longform_en", "longform_es"}
    assert all(float(np.abs(clip.samples).max()) > 0.01 for clip in clips)


def test_tuning_takes_sentences_and_plays_them_slower_and_faster():
    tuned_on, judging = select_tuning(None, 20, WINDOW, 240)
    assert (len(tuned_on), len(judging)) == (15 * 3, 5)
    assert all(16_000 <= len(clip.samples) <= 0.15 * WINDOW for clip in [*tuned_on[:15], *judging])
    assert not {clip.id for clip in judging} & {clip.id.split("@")[0] for clip in tuned_on}
    slower, faster = tuned_on[15:17]
    assert slower.id == f"{tuned_on[0].id}@0.9"
    assert len(slower.samples) == pytest.approx(len(tuned_on[0].samples) / 0.9, abs=1)
    assert len(faster.samples) == pytest.approx(len(tuned_on[0].samples) / 1.1, abs=1)


def test_tuning_takes_no_more_clips_than_steps():
    tuned_on, judging = select_tuning(None, 20, WINDOW, 18)
    assert (len(tuned_on), len(judging)) == (18, 5)
    assert sum("@" in clip.id for clip in tuned_on) == 3


def test_few_sentences_judge_and_are_tuned_on(demo_bundle):
    tuned_on, judging = select_tuning(None, 3, WINDOW, 8)
    assert (len(tuned_on), judging) == (8, [])
    listener = ReferenceTranscriber(Bundle.open(demo_bundle), 16)
    windows, judges = tuning_windows(listener, None, 3, 3)
    assert (len(windows), judges) == (3, [])
    windows, judges = tuning_windows(listener, None, 4, 4)
    assert (len(windows), judges) == (5, [0])


def test_speech_without_pauses_is_cut_all_the_same(tmp_path):
    tone = 0.3 * np.sin(np.arange(16_000 * 40) * 0.05).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, 16_000)
    clips = select_calibration(tmp_path, 20, WINDOW)
    assert all(len(clip.samples) <= WINDOW for clip in clips)
    assert sum(len(clip.samples) for clip in clips) > 16_000 * 35


def test_a_data_set_is_taken_by_its_name():
    clips = select_gate("demo", 4, ("en",), WINDOW)
    assert len(clips) == 4
    assert all(clip.text and clip.language for clip in clips)
    assert len(select_calibration("demo", 3, WINDOW)) == 3


def test_the_gate_hears_long_recordings_whole_where_what_is_said_is_known(tmp_path):
    demo = select_gate(None, None, ("en", "es"), WINDOW)
    assert [clip.id for clip in demo if len(clip.samples) > WINDOW] == ["longform_en", "longform_es"]
    assert all(clip.text for clip in demo)
    tone = 0.3 * np.sin(np.arange(16_000 * 70) * 0.05).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", tone, 16_000)
    assert [len(clip.samples) for clip in select_gate(tmp_path, None, (), WINDOW)] == [WINDOW, WINDOW, 160_000]
    (tmp_path / "a.txt").write_text("a tone\n")
    assert [(clip.text, len(clip.samples)) for clip in select_gate(tmp_path, None, (), WINDOW)] == [
        ("a tone", len(tone))
    ]


def test_a_long_recording_is_judged_by_its_words(demo_bundle):
    listener = ReferenceTranscriber(Bundle.open(demo_bundle), 200)
    clip = next(clip for clip in select_gate(None, None, ("es",), WINDOW) if clip.id == "longform_es")
    (example,) = GateMeasurement(listener, [clip]).measure(demo_bundle)
    assert example.words == len(clip.text.split())
    assert example.errors == example.reference_errors < 0.3 * example.words
    assert (example.tokens, example.divergence) == (0, 0)


def test_what_is_refused(tmp_path):
    with pytest.raises(OptionsError, match="no dataset 'demp': did you mean demo"):
        select_calibration("demp", 3, WINDOW)
    soundfile.write(tmp_path / "a.wav", np.zeros(1000, np.float32), 16_000)
    with pytest.raises(AudioError, match="shorter than 1 s"):
        select_calibration(tmp_path, 3, WINDOW)


def test_a_reference_of_other_sizes_is_refused():
    def listener(vocabulary):
        return SimpleNamespace(
            models=SimpleNamespace(sizes=SimpleNamespace(vocab_size=vocabulary, n_frames=3000, n_samples=WINDOW)),
            mel=None,
        )

    with pytest.raises(BundleError, match="vocab_size 51865, the reference 51864"):
        GateMeasurement(listener(51864), [], listener(51865))
