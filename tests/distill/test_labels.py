"""Pseudo-labels: what is written, what a broken run leaves, and which labels are chosen."""

import json
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jiwer
import numpy as np
import pytest

from whisperkit_tools.demo import demo_utterances
from whisperkit_tools.distill.label_filter import LabelFilter, join, judge, summary
from whisperkit_tools.distill.labels import JOURNAL, SEGMENTS, LabelledRecording, LabelledSegment, read_labels
from whisperkit_tools.distill.pseudo_label import LabelOptions, pseudo_label
from whisperkit_tools.errors import DatasetError, EvaluationError, OptionsError
from whisperkit_tools.eval.backends.base import BackendInfo, EvaluationTarget
from whisperkit_tools.eval.runs.engines import SerialEngine
from whisperkit_tools.speech import Recording, Segment, Timings, Transcription

RECORDINGS = [
    Recording(f"r{number}", f"words of {number}", samples=np.full(16_000 * (number + 1), 0.1, np.float32), speaker="a")
    for number in range(4)
]


@dataclass
class Scripted:
    """A teacher that writes a segment for each second, counts what it hears, and fails where it is told to."""

    heard: list = field(default_factory=list)
    fails_at: int | None = None
    silent: bool = False

    def check(self, languages):
        pass

    def transcribe(self, audio, *, language=None, words=False):
        seconds = len(audio) // 16_000
        self.heard.append(seconds)
        if seconds == self.fails_at:
            raise KeyboardInterrupt
        text = "" if self.silent else f" words of {seconds - 1}"
        segments = tuple(Segment(float(at), at + 1.0, text, (at,), 0.0, -0.1 * at, 1.0, 0.01) for at in range(seconds))
        return Transcription(text, "en", None, "transcribe", segments, (), float(seconds), Timings(0.1))


def label(folder, teacher, recordings=RECORDINGS, identity="1", **options):
    target = EvaluationTarget("scripted", lambda: teacher, BackendInfo("scripted", "model", identity))
    return pseudo_label(
        recordings, target, folder, LabelOptions(**options), engine=SerialEngine, read=lambda path: None
    )


def test_a_record_has_place_text_and_confidence(tmp_path):
    found = label(tmp_path, Scripted())
    assert (found.recordings, found.segments, found.empty, found.audio_s) == (4, 10, 0, 10.0)
    records = [json.loads(line) for line in (tmp_path / SEGMENTS).read_text().splitlines()]
    assert records[4] == {
        "id": "r2#0001", "recording": "r2", "audio": "r2", "start_s": 1.0, "end_s": 2.0, "text": "words of 2",
        "language": "en", "speaker": "a", "tokens": [1], "avg_logprob": -0.1, "no_speech_prob": 0.01,
        "compression_ratio": 1.0, "temperature": 0.0, "teacher": "model", "teacher_sha256": "1",
    }  # fmt: skip


def test_an_interrupted_run_goes_on_and_hears_nothing_twice(tmp_path):
    label(tmp_path / "whole", Scripted())
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path / "broken", Scripted(fails_at=3))
    second = Scripted()
    label(tmp_path / "broken", second)
    assert second.heard == [3, 4]
    assert (tmp_path / "broken" / SEGMENTS).read_bytes() == (tmp_path / "whole" / SEGMENTS).read_bytes()


def test_whatever_a_kill_leaves_the_result_is_the_same(tmp_path):
    label(tmp_path / "whole", Scripted())
    whole = (tmp_path / "whole" / JOURNAL).read_bytes()
    expected = (tmp_path / "whole" / SEGMENTS).read_text()
    for cut in np.linspace(0, len(whole), 20).astype(int):
        label(tmp_path / "cut", Scripted())
        (tmp_path / "cut" / JOURNAL).write_bytes(whole[:cut])
        label(tmp_path / "cut", Scripted())
        assert (tmp_path / "cut" / SEGMENTS).read_text() == expected


def test_windows_without_speech_are_mixed_in_with_empty_labels(tmp_path):
    found = label(tmp_path, Scripted(), no_speech_share=0.2)
    assert (found.segments, found.empty) == (12, 2)
    records = [json.loads(line) for line in (tmp_path / SEGMENTS).read_text().splitlines()][-2:]
    assert all(Path(record["audio"]).is_file() and record["text"] == "" for record in records)


def test_what_cannot_be_labelled_is_told(tmp_path):
    with pytest.raises(DatasetError, match="heard no speech in any recording"):
        label(tmp_path / "silent", Scripted(silent=True))
    label(tmp_path / "first", Scripted())
    with pytest.raises(OptionsError, match=r"holds labels of another run .other teacher_sha256"):
        label(tmp_path / "first", Scripted(), identity="2")
    bad = [replace(RECORDINGS[0], samples=None), *RECORDINGS[1:]]
    with pytest.raises(EvaluationError, match="1 recordings failed, max_failures is 0"):
        label(tmp_path / "bad", Scripted(), bad, max_failures=0)
    assert label(tmp_path / "bad2", Scripted(), bad).failures == ("r0: r0: no audio file is known for it",)
    with pytest.raises(OptionsError, match=r"no_speech_share is 0\.9"):
        LabelOptions(no_speech_share=0.9)
    with pytest.raises(DatasetError, match="holds no labels"):
        read_labels(tmp_path)


def test_a_broken_last_line_is_left_out(tmp_path):
    label(tmp_path, Scripted())
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"id": "r9", "audi')
    rows, notes = read_labels(tmp_path)
    assert [row.id for row in rows] == ["r0", "r1", "r2", "r3"]
    assert "1 damaged lines are left out (line 5)" in notes[0]


def recording(texts, reference=None, name="r", speaker=None, seconds=4.0, **values):
    segments = tuple(
        LabelledSegment(
            f"{name}#{at}", name, f"{name}.wav", at * seconds, (at + 1) * seconds, text, "en", speaker, **values
        )
        for at, text in enumerate(texts)
    )
    return LabelledRecording(name, f"{name}.wav", None, reference, "en", segments)


def test_errors_of_the_segments_are_those_of_the_recording():
    texts = ["the cat sat on", "a big mat and", "then it ran away today"]
    reference = "so the cat sat on the mat and then ran far away"
    judged = judge([recording(texts, reference)], LabelFilter())
    expected = jiwer.process_words(reference, " ".join(texts))
    errors = expected.substitutions + expected.deletions + expected.insertions
    assert sum(one.errors for one in judged) == errors
    assert sum(one.reference_words for one in judged) == len(reference.split())


def test_a_bad_segment_is_dropped_before_its_neighbours_are_joined():
    texts = ["turn on the lamp", "close the big door", "wrong words entirely here", "open a green window"]
    reference = "turn on the lamp close the big door quite other things said open a green window"
    judged = judge([recording(texts, reference)], LabelFilter())
    windows = join(judged)
    assert [[one.text for one in window.segments] for window in windows] == [texts[:2], texts[3:]]
    assert (windows[0].start_s, windows[0].end_s) == (0.0, 8.0)
    # After a gap there is no text before the window that a student could be prompted with.
    assert windows[1].previous == ""
    report = summary(judged, windows)
    assert (report["kept"], report["kept_wer"]) == (3, 0.0)
    assert report["dropped"]["max_wer"]["examples"][0]["text"] == texts[2]


def test_windows_hold_one_recording_and_one_speaker_and_fit():
    first = recording(["a"] * 9, name="x")
    second = recording(["b", "b"], name="y")
    third = recording(["c", "c"], name="y2", speaker="s1")
    mixed = replace(third, segments=(third.segments[0], replace(third.segments[1], speaker="s2")))
    windows = join(judge([first, second, mixed], LabelFilter(max_words_per_second=None)))
    assert [(window.recording, len(window.segments)) for window in windows] == [
        ("x", 7), ("x", 2), ("y", 2), ("y2", 1), ("y2", 1),
    ]  # fmt: skip
    assert max(window.end_s - window.start_s for window in windows) <= 30
    assert windows[1].previous == " ".join(["a"] * 7)
    assert windows[2].previous == ""


@pytest.mark.parametrize(
    ("texts", "values", "limits", "reason"),
    [
        (["so it goes " * 12], {}, {"max_words_per_second": None}, "max_repeats"),
        (["please turn on the lamp near me"], {}, {"max_words_per_second": 1.0}, "max_words_per_second"),
        (["hello"], {"avg_logprob": -1.5}, {}, "min_logprob"),
    ],
)
def test_labels_without_references_are_judged_by_themselves(texts, values, limits, reason):
    judged = judge([recording(texts, **values)], LabelFilter(**limits))
    assert judged[0].reasons == (reason,)


def test_a_second_opinion():
    labels, other = recording(["hello there", "good night"]), recording(["hello there good knight"])
    judged = judge([labels], LabelFilter(max_disagreement=10.0), second={"r": other})
    assert [one.reasons for one in judged] == [(), ("max_disagreement",)]


def test_the_commands_label_and_choose(wkt, demo_bundle, tmp_path):
    speech = tmp_path / "speech"
    speech.mkdir()
    for one in demo_utterances()[:2]:
        (speech / one.path.name).write_bytes(one.path.read_bytes())
        (speech / f"{one.path.stem}.txt").write_text(one.text)
    run = partial(wkt, "pseudo-label", speech, "--teacher", demo_bundle, "-o", tmp_path / "labels")
    code, out, _ = run()
    assert (code, out.splitlines()[0]) == (0, "recordings  2")
    code, _, err = run()
    assert (code, "2 of 2 are labelled already" in err) == (0, True)
    code, out, _ = wkt("filter-labels", tmp_path / "labels", "-o", tmp_path / "chosen", "--max-wer", "none")
    assert (code, out.splitlines()[0].startswith("kept      2 of 2 segments")) == (0, True)
    windows = [json.loads(line) for line in (tmp_path / "chosen" / "windows.jsonl").read_text().splitlines()]
    assert [window["recording"] for window in windows] == ["en_00.flac", "en_01.flac"]
    code, _, err = wkt("filter-labels", tmp_path / "labels", "-o", tmp_path / "none", "--max-words-per-second", "0")
    assert (code, "no segment of" in err, (tmp_path / "none").exists()) == (1, True, False)
    empty = tmp_path / "empty"
    empty.mkdir()
    code, _, err = wkt("pseudo-label", empty, "--teacher", demo_bundle, "-o", tmp_path / "x")
    assert (code, "AUDIO" in err) == (1, True)
