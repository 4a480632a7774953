"""Datasets in folders: every layout, what is wrong with them, and which examples are taken."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from whisperkit_tools.errors import AudioError, DatasetError, OptionsError
from whisperkit_tools.eval.datasets import open as eval_datasets
from whisperkit_tools.eval.datasets.dataset import fingerprint
from whisperkit_tools.eval.datasets.open import NamedDataset, open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions
from whisperkit_tools.speech import Recording
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio


def tone(path: Path, seconds: float = 0.5, hz: float = 300.0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    at = np.arange(round(seconds * 16_000)) / 16_000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * hz * at), 16_000)
    return path


def read(path):
    return load_audio(AudioInput(str(path), path))


def folder_with(tmp_path, rows, name="metadata.json"):
    for index, row in enumerate(rows):
        if "file_name" in row:
            tone(tmp_path / row["file_name"], 0.2 + 0.1 * index)
    (tmp_path / name).write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path


ROWS = [{"file_name": f"{name}.wav", "text": f"word {name}", "language": "en"} for name in "abcdef"]


# LibriSpeech


def test_librispeech_in_its_original_layout(shared):
    found = open_dataset(str(shared / "audio" / "LibriSpeech"))
    assert len(found.examples) == 20
    assert found.problems == ()
    assert found.language == "en"
    assert found.audio_s == pytest.approx(139.645, abs=0.01)
    first = found.examples[0]
    assert first.id == "1688-142285-0000"
    assert first.speaker == "1688"
    assert first.text.startswith("THERE'S IRON THEY SAY IN ALL OUR BLOOD")
    assert len(first.audio(read)) == pytest.approx(first.duration_s * 16_000, abs=1)


def test_librispeech_of_one_chapter_and_of_several_splits(tmp_path):
    for split in ("test-clean", "dev-clean"):
        chapter = tmp_path / split / "19" / "198"
        tone(chapter / "19-198-0000.flac")
        (chapter / "19-198.trans.txt").write_text("19-198-0000 NORTHANGER ABBEY\n")
    with pytest.raises(OptionsError, match="several splits of LibriSpeech: dev-clean, test-clean; choose one with"):
        open_dataset(str(tmp_path))
    with pytest.raises(OptionsError, match="no split 'test-other' there: found dev-clean, test-clean"):
        open_dataset(str(tmp_path), DatasetOptions(split="test-other"))
    one = open_dataset(str(tmp_path), DatasetOptions(split="test-clean"))
    assert [example.text for example in one.examples] == ["NORTHANGER ABBEY"]
    assert open_dataset(str(tmp_path / "dev-clean" / "19" / "198")).examples[0].id == "19-198-0000"


# Earnings


@pytest.fixture
def earnings(tmp_path, shared) -> Path:
    """The real transcript and table in the layout of Earnings-22, with a tone for the call."""
    source = shared / "audio" / "rev-earnings"
    references = tmp_path / "transcripts" / "nlp_references"
    references.mkdir(parents=True)
    (references / "4330115.nlp").write_bytes((source / "4330115.nlp").read_bytes())
    other = tmp_path / "transcripts" / "other_system"
    other.mkdir()
    (other / "4330115.nlp").write_text("token|speaker|ts|endTs|punctuation|case|tags\nwrong|0||||LC|[]\n")
    (tmp_path / "earnings21-file-metadata.csv").write_bytes((source / "earnings21-file-metadata.csv").read_bytes())
    tone(tmp_path / "media" / "4330115.mp3", 1.0)
    return tmp_path


def test_earnings_transcripts_lose_what_is_not_to_be_scored(earnings):
    found = open_dataset(str(earnings))
    (call,) = found.examples
    assert call.id == "4330115"
    assert call.duration_s == 2458.904  # from the table
    assert call.text.startswith("Good day and welcome to Culp's third quarter 2020 earnings conference call.")
    assert "<crosstalk>" not in call.text
    assert found.ignored_segments == 2
    assert len(call.text.split()) == 6602 - 2
    assert call.words == ()


def test_earnings_22_table_and_times(tmp_path):
    tone(tmp_path / "media" / "7.wav")
    references = tmp_path / "transcripts" / "nlp_references"
    references.mkdir(parents=True)
    (references / "7.nlp").write_text(
        "token|speaker|ts|endTs|punctuation|case|tags|wer_tags\r\n"
        "Good|0|0.00|0.31||UC|[]|[]\r\n<laugh>|0|0.4|0.5||LC|[]|[]\r\nday|0|0.5|0.8|.|LC|[]|[]\r\n"
    )
    (tmp_path / "metadata.csv").write_text("File ID,File Length (seconds),Sampling Rate (Hz)\n7,3300,16000\n")
    (call,) = open_dataset(str(tmp_path)).examples
    assert call.text == "Good day."
    assert call.duration_s == 3300
    assert [(word.text, word.start_s, word.end_s) for word in call.words] == [("Good", 0.0, 0.31), ("day", 0.5, 0.8)]


def test_a_transcript_without_its_columns_is_refused(tmp_path):
    (tmp_path / "x.nlp").write_text("word,time\na,1\n")
    with pytest.raises(DatasetError, match=r"x\.nlp is not a transcript: its first line must name token\|speaker"):
        open_dataset(str(tmp_path))


# Common Voice


@pytest.fixture
def common_voice(tmp_path) -> Path:
    for language, sentences in {"es": ["Hola «mundo»", '"¿Qué?'], "sv-SE": ["Hej"]}.items():
        lines = ["client_id\tpath\tsentence\tup_votes\tlocale"]
        for index, sentence in enumerate(sentences):
            name = f"common_voice_{language}_{index}"
            tone(tmp_path / language / "clips" / f"{name}.mp3", 0.3)
            lines.append(f"speaker{index}\t{name}.mp3\t{sentence}\t2\t{language}")
        (tmp_path / language / "test.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_common_voice_by_language(common_voice):
    found = open_dataset(str(common_voice), DatasetOptions(language="es"))
    assert [example.text for example in found.examples] == ["Hola «mundo»", '"¿Qué?']
    assert found.examples[1].speaker == "speaker1"
    swedish = open_dataset(str(common_voice), DatasetOptions(language="sv"))
    assert swedish.examples[0].language == "sv"
    assert len(open_dataset(str(common_voice / "es")).examples) == 2


def test_common_voice_asks_which_language_and_split(common_voice):
    with pytest.raises(OptionsError, match="several languages of Common Voice: es, sv-SE; choose one with language"):
        open_dataset(str(common_voice))
    with pytest.raises(OptionsError, match=r"no split 'dev' in .*: found test"):
        open_dataset(str(common_voice / "es"), DatasetOptions(split="dev"))
    with pytest.raises(OptionsError, match=r"test\.tsv has no column 'text': found client_id, path, sentence"):
        open_dataset(str(common_voice / "es"), DatasetOptions(text_column="text"))


# Audio with metadata


def test_the_real_longform_folder(shared):
    found = open_dataset(str(shared / "audio" / "longform"))
    assert [example.id for example in found.examples] == ["1688-142285", "1998-15444"]
    assert found.audio_s == pytest.approx(145.645)
    assert found.language == "en"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.json", '[{"audio": "sub/a.wav", "text": "hello"}]'),
        ("metadata.json", '[{"path": "elsewhere/a.mp3", "normalized_text": "hello", "file_length": 3}]'),
        ("metadata.json", '{"audio_filepath": "sub/a.wav", "text": "hello"}\n'),
        ("metadata.jsonl", '{"file_name": "sub/a.wav", "transcription": "hello"}\n\n'),
        ("metadata.csv", "file_name,transcription\nsub/a.wav,hello\n"),
        ("metadata.csv", '\ufefffile_name,sentence\nsub/a.wav,"hello"\n'),
        ("metadata.tsv", "file\ttranscript\nsub/a.wav\thello\n"),
    ],
)
def test_tables_and_field_names_of_the_field(tmp_path, name, content):
    tone(tmp_path / "sub" / "a.wav")
    (tmp_path / name).write_text(content, encoding="utf-8")
    (example,) = open_dataset(str(tmp_path)).examples
    assert example.text == "hello"
    assert example.path == tmp_path / "sub" / "a.wav"
    assert example.duration_s in (0.5, 3.0)


def test_audiofolder_splits_are_folders(tmp_path):
    for split in ("train", "test"):
        tone(tmp_path / split / "a.wav")
        (tmp_path / split / "metadata.csv").write_text(f"file_name,text\na.wav,in {split}\n")
    assert [e.text for e in open_dataset(str(tmp_path), DatasetOptions(split="test")).examples] == ["in test"]
    with pytest.raises(OptionsError, match=r"no split 'dev' in .*: found test, train"):
        open_dataset(str(tmp_path), DatasetOptions(split="dev"))


def test_text_column_and_what_is_said_without_one(tmp_path):
    folder_with(tmp_path, [{"file_name": "a.wav", "gold": "the reference", "text_en": "x"}])
    with pytest.raises(
        OptionsError, match=r"no transcripts: looked for any of text, .*, found file_name, gold, text_en"
    ):
        open_dataset(str(tmp_path))
    found = open_dataset(str(tmp_path), DatasetOptions(text_column="gold"))
    assert found.examples[0].text == "the reference"


def test_a_line_separator_inside_a_transcript_is_no_new_line(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.wav", "text": "one\u2028two"}\n', encoding="utf-8")
    assert open_dataset(str(tmp_path)).examples[0].text == "one\u2028two"


def test_transcripts_of_two_hours_fit_into_a_table(tmp_path):
    tone(tmp_path / "a.wav")
    (tmp_path / "metadata.csv").write_text(f"file_name,text\na.wav,{'word ' * 40_000}\n")
    assert len(open_dataset(str(tmp_path)).examples[0].text.split()) == 40_000


def test_word_times_of_a_table(tmp_path):
    words = [{"word": "word", "start": 0.0, "end": 0.1}, {"word": "a", "start": 0.1, "end": 0.2}]
    folder_with(tmp_path, [ROWS[0] | {"words": words}, ROWS[1] | {"words": [*words, "broken"]}])
    timed, untimed = open_dataset(str(tmp_path)).examples
    assert [(word.text, word.start_s, word.end_s) for word in timed.words] == [("word", 0.0, 0.1), ("a", 0.1, 0.2)]
    assert untimed.words == ()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metadata.json", "[1, 2", "metadata.json is not JSON"),
        ("metadata.json", "3", "holds a int, expected a list of objects"),
        ("metadata.jsonl", '{"a": 1}\nnope\n', "line 2 is not JSON"),
        ("metadata.json", "[]", "has no examples"),
    ],
)
def test_broken_tables(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DatasetError, match=message):
        open_dataset(str(tmp_path))


def test_a_table_that_is_no_text(tmp_path):
    (tmp_path / "metadata.csv").write_bytes(b"file_name,text\n\xff\xfe,x\n")
    with pytest.raises(DatasetError, match="is not UTF-8 text"):
        open_dataset(str(tmp_path))


# The demo


def test_the_demo_with_word_times():
    from whisperkit_tools.demo import demo_longform, demo_utterances

    found = open_dataset("demo", DatasetOptions(split="utterances"))
    assert [(e.id, e.text, e.language) for e in found.examples] == [
        (item.id, item.text, item.language) for item in demo_utterances()
    ]
    assert [word.start_s for word in found.examples[0].words] == [word.start_s for word in demo_utterances()[0].words]
    long = open_dataset("demo", DatasetOptions(split="longform"))
    assert [example.path for example in long.examples] == [item.path for item in demo_longform()]


# Problems


def test_all_problems_are_listed_and_can_be_skipped(tmp_path):
    folder_with(tmp_path, ROWS)
    (tmp_path / "b.wav").unlink()
    (tmp_path / "e.wav").write_bytes(b"not audio")
    rows = [*ROWS, {"file_name": "c.wav", "text": "again", "id": "c"}, {"text": "no audio"}]
    rows[3] = {"file_name": "d.wav", "language": "en"}
    (tmp_path / "metadata.json").write_text(json.dumps(rows))
    with pytest.raises(DatasetError) as caught:
        open_dataset(str(tmp_path))
    message = str(caught.value)
    assert "5 examples cannot be evaluated; add skip_bad=True to continue without" in message
    for line in (
        "missing_audio: b: no audio file b.wav",
        "no_reference: d: the table has no transcript for it",
        "unreadable_audio: e: e.wav is not audio that can be decoded",
        "duplicate_id: c: 2 examples have this id; the first one counts",
        "missing_audio: row 8: no audio file (none of the fields file_name, audio",
    ):
        assert line in message
    found = open_dataset(str(tmp_path), DatasetOptions(skip_bad=True))
    assert [example.id for example in found.examples] == ["a", "c", "f"]
    assert [problem.kind for problem in found.problems] == [
        "missing_audio",
        "no_reference",
        "unreadable_audio",
        "duplicate_id",
        "missing_audio",
    ]


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_recordings_in_which_nothing_is_said_are_examples(tmp_path, name):
    folder_with(tmp_path, ROWS[:2])
    (tmp_path / "metadata.json").unlink()
    if name.endswith(".csv"):
        (tmp_path / name).write_text("file_name,text\na.wav,\nb.wav,[laughter]\n")
    else:
        (tmp_path / name).write_text('{"file_name": "a.wav", "text": ""}\n{"file_name": "b.wav", "text": "[laughter]"}')
    assert [(example.id, example.text) for example in open_dataset(str(tmp_path)).examples] == [
        ("a", ""),
        ("b", "[laughter]"),
    ]


@pytest.mark.parametrize("mark", ["ignore_time_segment_in_scoring", "IGNORE TIME SEGMENT IN SCORING"])
def test_segments_marked_to_be_ignored_are_dropped_and_counted(tmp_path, mark):
    folder_with(tmp_path, [ROWS[0], ROWS[1] | {"text": mark}])
    found = open_dataset(str(tmp_path))
    assert [example.id for example in found.examples] == ["a"]
    assert found.ignored_segments == 1


def test_nothing_usable_left(tmp_path):
    folder_with(tmp_path, [ROWS[0]])
    (tmp_path / "a.wav").unlink()
    with pytest.raises(DatasetError, match="none of its 1 examples can be evaluated"):
        open_dataset(str(tmp_path), DatasetOptions(skip_bad=True))


# Choosing


def test_limit_sample_and_filters(tmp_path):
    folder_with(tmp_path, [ROWS[0] | {"language": "es"}, *ROWS[1:5], {"file_name": "f.wav", "text": "no language"}])

    def ids(**options):
        return [example.id for example in open_dataset(str(tmp_path), DatasetOptions(**options)).examples]

    assert ids(limit=2) == ["a", "b"]
    assert ids(language="en") == ["b", "c", "d", "e", "f"]
    assert ids(language="es-MX", limit=1) == ["a"]
    assert ids(min_duration_s=0.35, max_duration_s=0.55) == ["c", "d"]
    drawn = ids(sample=3, seed=1)
    assert len(drawn) == 3
    assert drawn == sorted(drawn)
    assert drawn == ids(sample=3, seed=1)
    assert len({tuple(ids(sample=3, seed=seed)) for seed in range(8)}) > 1
    assert ids(sample=100) == ["a", "b", "c", "d", "e", "f"]
    with pytest.raises(OptionsError, match="none of its 6 examples has min_duration_s 100"):
        ids(min_duration_s=100)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit": 0}, "limit is 0; expected 1 or more"),
        ({"sample": -1}, "sample is -1"),
        ({"max_duration_s": 0}, "durations are seconds above 0"),
        ({"min_duration_s": 5, "max_duration_s": 2}, "min_duration_s 5 is more than max_duration_s 2"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(OptionsError, match=message):
        DatasetOptions(**options)


# Names


def test_unknown_names_list_the_known_and_the_nearest():
    with pytest.raises(OptionsError, match=r"no dataset 'librispech': did you mean librispeech.* earnings22-12hours"):
        open_dataset("librispech")


@pytest.mark.parametrize("path", ["/missing", "./missing", "~/missing-folder", "a/b/c"])
def test_a_missing_folder_is_a_failure_and_no_unknown_name(path):
    with pytest.raises(DatasetError, match=f"no dataset at {path}: no such folder"):
        open_dataset(path)


def test_folders_that_are_no_dataset(tmp_path):
    tone(tmp_path / "a.wav")
    with pytest.raises(DatasetError, match=r"does not hold a supported dataset; expected LibriSpeech \(\*.trans.txt"):
        open_dataset(str(tmp_path))
    with pytest.raises(OptionsError, match="is a file; pass the folder of a dataset"):
        open_dataset(str(tmp_path / "a.wav"))


def test_the_named_sets_of_the_field():
    assert list(eval_datasets.NAMED_DATASETS) == [
        "librispeech",
        "librispeech-200",
        "earnings22",
        "earnings22-12hours",
        "common_voice",
    ]
    assert all(isinstance(known, NamedDataset) for known in eval_datasets.NAMED_DATASETS.values())


# Fingerprint and examples


def test_the_fingerprint_is_of_the_content(tmp_path):
    here = folder_with(tmp_path / "here", ROWS[:2])
    there = folder_with(tmp_path / "there", ROWS[:2])
    assert open_dataset(str(here)).fingerprint == open_dataset(str(there)).fingerprint
    whole = open_dataset(str(here)).fingerprint
    assert open_dataset(str(here), DatasetOptions(limit=1)).fingerprint != whole
    audio = (here / "b.wav").read_bytes()
    (here / "b.wav").write_bytes(audio[:-1] + bytes([audio[-1] ^ 1]))
    assert open_dataset(str(here)).fingerprint != whole


@pytest.mark.parametrize("change", [{"id": "z"}, {"text": "z"}, {"language": "es"}])
def test_the_fingerprint_sees_every_part(tmp_path, change):
    example = Recording("a", "text", tone(tmp_path / "a.wav"), language="en")
    assert fingerprint((example,)) != fingerprint((replace(example, **change),))
    assert fingerprint((example,)) == fingerprint((replace(example, duration_s=3.0),))


def test_the_fingerprint_needs_the_audio(tmp_path):
    with pytest.raises(DatasetError, match=r"a: cannot read .*gone\.wav: No such file"):
        fingerprint((Recording("a", "text", tmp_path / "gone.wav"),))


def test_examples_travel_and_are_heard_through_their_alteration(tmp_path):
    example = Recording("a", "text", tone(tmp_path / "a.wav"))
    loud = pickle.loads(pickle.dumps(example)).altered(lambda samples: samples * 2)
    np.testing.assert_allclose(loud.audio(read), 2 * example.audio(read))
    with pytest.raises(AudioError, match="no audio file is known"):
        Recording("a", "text", None).audio(read)
