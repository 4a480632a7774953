"""The audio behind a prefill: what the mean is taken over and what it is judged on have nothing in common."""

import numpy as np
import pytest

from whisperkit_tools.conversion.prefill.audio import (
    HELD_OUT_WINDOWS,
    demo_audio,
    demo_clips,
    demo_speech_windows,
    own_audio,
)
from whisperkit_tools.speech import SAMPLE_RATE_HZ, WINDOW_SAMPLES, Recording


def test_the_demo_is_split_so_that_nothing_is_in_both():
    audio = demo_audio("mixed")
    assert len(audio.windows) == len(demo_audio("speech").windows) + len(demo_audio("noise").windows)
    used = {window.tobytes() for window in audio.windows}
    assert len(used) == len(audio.windows)
    assert not used & {window.tobytes() for window in audio.held_out}
    assert len(audio.held_out) == HELD_OUT_WINDOWS
    assert {clip.language for clip in audio.clips} == {"en", "es"}
    assert all(window.shape == (WINDOW_SAMPLES,) and window.dtype == np.float32 for window in audio.windows)
    assert all(np.array_equal(a, b) for a, b in zip(demo_speech_windows(), audio.windows, strict=False))


def recordings(*seconds, text="hello there"):
    generator = np.random.default_rng(1)
    return [
        Recording(f"r{at}", text, samples=generator.standard_normal(length * SAMPLE_RATE_HZ).astype(np.float32))
        for at, length in enumerate(seconds)
    ]


def test_every_other_recording_of_ones_own_is_held_out():
    audio = own_audio("speech", recordings(3, 4, 65, 31))
    assert len(audio.windows) == 1 + 3
    assert len(audio.held_out) == 1 + 2
    assert [clip.id for clip in audio.clips] == ["r1", "r3"]
    assert (audio.judged_on, audio.held_out_from) == ("recordings", "recordings")
    assert [clip.language for clip in audio.clips] == [None, None]


@pytest.mark.parametrize("own", [recordings(3), recordings(3, 3, text=None), recordings(3, 3, text=" ?! ")])
def test_the_demo_judges_what_ones_own_recordings_cannot(own):
    audio = own_audio("speech", own)
    assert audio.judged_on == "demo"
    assert audio.held_out_from == ("demo" if len(own) == 1 else "recordings")
    assert audio.clips == () or audio.clips[0].id == demo_clips()[0].id
