"""Rows of runs: files of earlier versions open, and what is written keeps its format byte by byte."""

import json

import pytest

from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.metrics.wer import Counts
from whisperkit_tools.eval.runs.store import RunStore
from whisperkit_tools.eval.schema import ResultRow, RowTimings, StreamRow, read_row

ROW = (
    '{"id": "clip_000", "index": 0, "audio": "audio/clip_000.wav", "duration_s": 1.5, "language": "en", '
    '"speaker": "ana", "reference": "Red, orange.", "hypothesis": "Red or range", '
    '"reference_normalized": "red orange", "hypothesis_normalized": "red or range", "wer": 1.0, "cer": 0.3, '
    '"hits": 1, "substitutions": 1, "deletions": 0, "insertions": 1, "reference_words": 2, "alignment": ['
    '{"type": "equal", "reference": ["red"], "hypothesis": ["red"]}, '
    '{"type": "insert", "reference": [], "hypothesis": ["or"]}, '
    '{"type": "substitute", "reference": ["orange"], "hypothesis": ["range"]}], "error": null, "timings": '
    '{"audio_s": 1.5, "total_s": 0.25, "mel_s": 0.01, "encoder_s": 0.1, "decoder_s": 0.14, "first_token_s": 0.12, '
    '"tokens": 5, "windows": 1, "fallbacks": 0}, "segments": [{"text": " Red or range", "start_s": 0.0, '
    '"end_s": 1.2}], "words": [{"text": " Red", "start_s": 0.0, "end_s": 0.4}]}\n'
)
FAILED = (
    '{"id": "clip_001", "index": 1, "audio": null, "duration_s": null, "language": null, "speaker": null, '
    '"reference": "año", "hypothesis": "", "reference_normalized": "", "hypothesis_normalized": "", "wer": null, '
    '"cer": null, "hits": 0, "substitutions": 0, "deletions": 0, "insertions": 0, "reference_words": 0, '
    '"alignment": [], "error": "RuntimeError: no", "timings": null, "segments": [], "words": []}\n'
)
STREAM = (
    FAILED.replace('"error": "RuntimeError: no"', '"error": null').rstrip("}\n")
    + ', "stream": {"text": "red", "words": [{"text": " red", "end_s": 0.5, "hypothesis_latency_s": 0.6, '
    '"confirmed_latency_s": 1.6}], "compute_s": [0.1, 0.1], "duration_s": 2.0, "end_lag_s": 0.1, '
    '"has_word_times": true}}\n'
)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "results.jsonl").write_text(ROW + FAILED, encoding="utf-8")
    (tmp_path / "streaming.jsonl").write_text(STREAM, encoding="utf-8")
    with RunStore.hold(tmp_path, {"key": "k"}, ("results", "streaming")) as opened:
        yield opened


def test_rows_of_earlier_versions_open(store):
    assert store.repairs == []
    row, failed = store.parts["results"].rows.values()
    assert type(row) is ResultRow
    assert (row.counts, row.errors) == (Counts(hits=1, substitutions=1, insertions=1), 2)
    assert row.timings == RowTimings(1.5, 0.25, 0.01, 0.1, 0.14, 0.12, 5, 1, 0)
    assert row.words[0].end_s == 0.4
    assert (failed.error, failed.timings) == ("RuntimeError: no", None)
    (streamed,) = store.parts["streaming"].rows.values()
    assert isinstance(streamed, StreamRow)
    assert streamed.stream.words[0].confirmed_latency_s == 1.6


def test_rows_are_written_as_they_were(store):
    for part, text in (("results", ROW + FAILED), ("streaming", STREAM)):
        lines = store.parts[part]
        lines.rewrite(lines.rows.values())
        assert lines.path.read_text(encoding="utf-8") == text
        lines.append(next(iter(lines.rows.values())))
        assert lines.path.read_text(encoding="utf-8") == text + text.splitlines(keepends=True)[0]


def test_unknown_fields_are_ignored_and_missing_ones_named():
    assert read_row({**json.loads(ROW), "new": 1}, "here") == read_row(json.loads(ROW), "here")
    with pytest.raises(DatasetError, match="here has no reference"):
        read_row({name: value for name, value in json.loads(ROW).items() if name != "reference"}, "here")
    with pytest.raises(DatasetError, match="here holds a JSON list, expected an object"):
        read_row([], "here")
