"""Where calibration speech and the gate's examples come from, and that bundles that do not compare are refused."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import audio_selection
from whisperkit_tools.compress.audio_selection import (
    SpeechPiece,
    samples_of,
    select_calibration,
    select_gate,
    select_held_out,
    select_tuning,
)
from whisperkit_tools.compress.gate_measurement import (
    GateMeasurement,
    ReferenceTranscriber,
    known_languages,
    tuning_windows,
)
from whisperkit_tools.compress.overlap import overlapping
from whisperkit_tools.errors import AudioError, BundleError, DatasetError, OptionsError
from whisperkit_tools.transcribe.audio.load import load_audio

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


# --- what a user names -----------------------------------------------------------------------------------------------


def tones(folder, names, seconds=2.0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        at = np.arange(int(seconds * 16_000)) / 16_000
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, 0.3 * np.sin(2 * np.pi * (300 + 10 * number) * at), 16_000)
    return folder


def librispeech(root, split="test-clean"):
    chapter = tones(root / split / "19" / "198", ["19-198-0000.flac", "19-198-0001.flac"])
    (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n19-198-0001 THIS LITTLE WORK\n")


def common_voice(root):
    tones(root / "clips", ["a.wav", "b.wav"])
    rows = "path\tsentence\tlocale\na.wav\tNORTHANGER ABBEY\ten\nb.wav\tTHIS LITTLE WORK\ten\n"
    (root / "test.tsv").write_text(rows)


def earnings(root):
    tones(root / "media", ["a.wav", "b.wav"])
    for name, words in (("a", "NORTHANGER ABBEY"), ("b", "THIS LITTLE WORK")):
        lines = "".join(f"{word}|1||||\n" for word in words.split())
        (root / f"{name}.nlp").write_text(f"token|speaker|ts|endTs|punctuation|case\n{lines}")


def table(name):
    def make(root):
        tones(root, ["a.wav", "b.wav"])
        rows = [{"file_name": "a.wav", "text": "NORTHANGER ABBEY"}, {"file_name": "b.wav", "text": "THIS LITTLE WORK"}]
        lines = {
            "metadata.json": json.dumps(rows),
            "metadata.jsonl": "\n".join(map(json.dumps, rows)),
            "metadata.csv": "\n".join(["file_name,text", *(",".join(row.values()) for row in rows)]),
        }
        (root / name).write_text(lines[name])

    return make


def texts_beside(root):
    tones(root, ["a.wav", "deep/b.wav"])
    (root / "a.txt").write_text("NORTHANGER ABBEY")
    (root / "deep" / "b.txt").write_text("THIS LITTLE WORK")


LAYOUTS = [
    librispeech, common_voice, earnings, texts_beside, table("metadata.json"), table("metadata.jsonl"),
    table("metadata.csv"),
]  # fmt: skip


@pytest.mark.parametrize("make", LAYOUTS)
def test_the_gate_and_calibration_read_every_layout(tmp_path, make):
    make(tmp_path)
    examples = select_gate(tmp_path, None, None, WINDOW)
    assert [example.text for example in examples] == ["NORTHANGER ABBEY", "THIS LITTLE WORK"]
    assert [len(example.samples) for example in examples] == [32_000, 32_000]
    pieces = select_calibration(tmp_path, 8, WINDOW)
    assert {piece.source_sha256 for piece in pieces} == {example.source_sha256 for example in examples}


def test_a_real_librispeech_folder_has_its_texts_at_the_gate(shared):
    examples = select_gate(shared / "audio" / "LibriSpeech", 4, ("en",), WINDOW)
    assert [example.id for example in examples] == [
        "1688-142285-0000", "1688-142285-0006", "1998-15444-0003", "1998-15444-0009"
    ]  # fmt: skip
    assert all(example.text.isupper() and example.language == "en" for example in examples)


def test_only_what_the_limit_takes_is_decoded(tmp_path, monkeypatch):
    tones(tmp_path, [f"{at:02}.wav" for at in range(20)])
    decoded = []

    def counted(source):
        decoded.append(source)
        return load_audio(source)

    monkeypatch.setattr(audio_selection, "load_audio", counted)
    assert [piece.source for piece in select_gate(tmp_path, 3, None, WINDOW)] == ["00.wav", "10.wav", "19.wav"]
    assert len(decoded) == 3
    assert len(select_calibration(tmp_path, 4, WINDOW)) == 4
    assert len(decoded) == 7
    soundfile.write(tmp_path / "00.wav", np.zeros(1000, np.float32), 16_000)  # too short, so that another one is read
    assert len(select_calibration(tmp_path, 4, WINDOW)) == 4
    assert len(decoded) == 12


def test_a_table_without_texts_leaves_a_folder_of_audio(tmp_path):
    tones(tmp_path, ["a.wav", "b.wav"])
    (tmp_path / "metadata.json").write_text(json.dumps([{"file": "a.wav", "text": ""}, {"file": "b.wav", "text": ""}]))
    assert [example.text for example in select_gate(tmp_path, None, None, WINDOW)] == [None, None]
    assert len(select_calibration(tmp_path, 8, WINDOW)) == 2


def test_errors_of_a_dataset_name_the_option(tmp_path):
    (tmp_path / "metadata.json").write_text("[")
    with pytest.raises(DatasetError, match=r"^gate_audio: .*metadata.json is not JSON"):
        select_gate(tmp_path, None, None, WINDOW)
    with pytest.raises(DatasetError, match=r"^calibration: .*metadata.json is not JSON"):
        select_calibration(tmp_path, 8, WINDOW)
    with pytest.raises(DatasetError, match=r"^gate_audio: no dataset at .*nowhere"):
        select_gate(tmp_path / "nowhere", None, None, WINDOW)
    file = tones(tmp_path / "audio", ["a.wav"]) / "a.wav"
    with pytest.raises(OptionsError, match=r"^calibration: .*a.wav is a file; pass the folder"):
        select_calibration(file, 8, WINDOW)
    for split in ("dev", "test"):
        librispeech(tmp_path / "several", split)
    with pytest.raises(OptionsError, match=r"^gate_audio: .*several splits of LibriSpeech: dev, test; name the folder"):
        select_gate(tmp_path / "several", None, None, WINDOW)


# --- recordings that two selections have in common -------------------------------------------------------------------


def test_pieces_and_clips_of_a_recording_are_known_by_its_samples(tmp_path):
    names = ["a.wav", "b.wav", "c.wav"]
    tones(tmp_path / "gate", names, seconds=40)
    tones(tmp_path / "other", ["x.wav", "y.wav"], seconds=40)  # the samples of a and b
    (tmp_path / "gate" / "a.txt").write_text("a")
    gate = select_gate(tmp_path / "gate", None, None, WINDOW)
    assert [clip.id for clip in gate] == ["a.wav", "b.wav#0", "b.wav#1", "c.wav#0", "c.wav#1"]
    heard = select_calibration(tmp_path / "other", 20, WINDOW)
    assert [clip.id for clip in overlapping(gate, heard)] == ["a.wav", "b.wav#0", "b.wav#1"]
    assert overlapping(gate, []) == []


def test_the_demos_gate_shares_its_long_recordings_with_its_calibration():
    gate = select_gate(None, None, ("en", "es"), WINDOW)
    assert [clip.id for clip in overlapping(gate, select_calibration(None, 8, WINDOW))] == [
        "longform_en", "longform_es"
    ]  # fmt: skip


# --- held-out speech -------------------------------------------------------------------------------------------------


def test_held_out_speech_is_of_other_speakers_before_it_is_of_the_same(tmp_path):
    tones(tmp_path, ["1-0.wav", "1-1.wav", "2-0.wav", "3-0.wav"])
    taken = select_calibration(tmp_path, 2, WINDOW)
    assert [piece.source for piece in taken] == ["1-0.wav", "3-0.wav"]
    assert [piece.source for piece in select_held_out(tmp_path, 1, WINDOW, taken)] == ["2-0.wav"]
    assert [piece.source for piece in select_held_out(tmp_path, 8, WINDOW, taken)] == ["2-0.wav", "1-1.wav"]
    assert select_held_out(tmp_path, 8, WINDOW, select_calibration(tmp_path, 8, WINDOW)) == []


def test_held_out_speech_of_real_readers(shared):
    source = shared / "audio" / "speech" / "librispeech_train_clean_5"
    taken = select_calibration(source, 8, WINDOW)
    held_out = select_held_out(source, 8, WINDOW, taken)
    assert len(held_out) == 8
    assert not {piece.speaker for piece in held_out} & {piece.speaker for piece in taken}


def test_held_out_speech_of_few_recordings_is_other_pieces_of_them():
    taken = select_calibration(None, 8, WINDOW)
    held_out = select_held_out(None, 8, WINDOW, taken)
    assert len(held_out) == 8
    assert {piece.source for piece in held_out} == {"longform_en", "longform_es"}
    for piece in held_out:
        same = [other for other in taken if other.source == piece.source]
        assert all(piece.stop <= other.start or other.stop <= piece.start for other in same)
    for piece in held_out:
        whole = samples_of(next(one for one in audio_selection.demo_longform() if one.id == piece.source))
        np.testing.assert_array_equal(piece.samples, whole[piece.start : piece.stop])


def test_a_copy_of_a_taken_recording_is_not_held_out(tmp_path):
    tones(tmp_path, ["a.wav"])
    taken = select_calibration(tmp_path, 1, WINDOW)
    (tmp_path / "b.wav").write_bytes((tmp_path / "a.wav").read_bytes())
    assert select_held_out(tmp_path, 8, WINDOW, taken) == []


def test_pieces_overlap_where_they_share_samples():
    one, two = (SpeechPiece("a", source_sha256="x", start=start, stop=start + 10) for start in (0, 9))
    assert one.overlaps(two)
    assert not one.overlaps(replace(two, start=10))
    assert not one.overlaps(replace(two, source_sha256="y"))


def test_the_languages_of_a_model_are_known_without_loading_it(demo_bundle):
    listed = json.loads((demo_bundle / "generation_config.json").read_text())["lang_to_id"]
    assert set(known_languages(Bundle.open(demo_bundle))) == {token.strip("<|>") for token in listed}


def test_what_is_refused(tmp_path):
    with pytest.raises(OptionsError, match="calibration: no dataset 'demp': did you mean demo"):
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
