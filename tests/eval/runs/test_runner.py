"""The runner: what a run gives, that it resumes after any death, and that failures are told."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import jiwer
import pytest
from helpers.evaluation_runs import LoadFake, Notes, content, fake_target, heard, make_dataset, reference, run

from whisperkit_tools.errors import EvaluationError, OptionsError, WktError
from whisperkit_tools.eval.reports.markdown import render_markdown
from whisperkit_tools.eval.runs.engines import ProcessEngine
from whisperkit_tools.eval.runs.tasks import EvaluateConfig, run_key
from whisperkit_tools.eval.schema import ResultRow, read_report
from whisperkit_tools.eval.typed_json import from_json

NOISY = EvaluateConfig(noise_snr_db=(10.0, 0.0), noise_kinds=("white",), streaming=True)


def test_a_run_gives_the_corpus_figures_of_jiwer(tmp_path):
    done = run(tmp_path / "out", make_dataset(tmp_path / "audio", 10))
    expected = jiwer.process_words([reference(i) for i in range(10)], [heard(i) for i in range(10)])
    metrics = done.report.metrics
    assert metrics.wer == pytest.approx(expected.wer)
    assert (metrics.substitutions, metrics.deletions, metrics.insertions) == (4, 0, 0)
    assert metrics.reference_words == sum(len(reference(i).split()) for i in range(10))
    assert metrics.wer_interval[0] <= metrics.wer <= metrics.wer_interval[1]
    assert [bucket.examples for bucket in done.report.by_speaker] == [5, 5]
    assert sum(bucket.examples for bucket in done.report.by_duration) == 10


def test_words_on_silence_are_insertions_and_silence_is_no_error(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 4)
    texts = {0: "", 1: "[laughter] <inaudible>"}
    examples = tuple(replace(item, text=texts.get(at, item.text)) for at, item in enumerate(dataset.examples))
    metrics = run(tmp_path / "out", replace(dataset, examples=examples)).report.metrics
    spoken = sum(len(reference(at).split()) for at in (2, 3))
    invented = sum(len(heard(at).split()) for at in (0, 1))
    assert metrics.reference_words == spoken
    assert (metrics.empty_references, metrics.inserted_on_empty, metrics.insertions) == (2, invented, invented)
    wrong = jiwer.process_words([reference(2), reference(3)], [heard(2), heard(3)]).substitutions
    assert metrics.wer == pytest.approx((invented + wrong) / spoken)


def test_a_second_scorer_stands_beside_the_plain_one_in_the_same_run(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 2)
    plain = run(tmp_path / "out", dataset)
    assert plain.report.metrics.other_scores == ()
    config = EvaluateConfig(scorer="open-asr", checks_no_speech=False)
    both = run(tmp_path / "out", dataset, config=config)
    assert both.folder == plain.folder
    (score,) = both.report.metrics.other_scores
    assert (score.scorer, score.substitutions) == ("open-asr", plain.report.metrics.substitutions)
    assert both.report.metrics.wer == plain.report.metrics.wer
    assert both.report.options["normalizer_en"].startswith("english (2026-08")
    assert "WER by open-asr" in (render_markdown((both.report,), ()))
    with pytest.raises(OptionsError, match="scorer is 'other', allowed are plain, open-asr"):
        EvaluateConfig(scorer="other")


def test_the_speed_is_that_of_the_timings(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 4)
    speed = run(tmp_path / "out", dataset).report.speed
    words = sum(len(heard(i).split()) for i in range(4))
    assert speed.encoder_s == pytest.approx(0.004)
    assert speed.token_s == pytest.approx(4 * 0.005 / (2 * words))
    assert speed.tokens_per_s == pytest.approx(2 * words / 0.02)
    assert speed.first_token_s == pytest.approx(0.006)
    assert speed.rtfx_corpus == speed.rtfx_median == pytest.approx(50)
    assert speed.fallbacks == 0


def test_files_of_a_run_are_read_back_as_the_schema_says(tmp_path):
    done = run(tmp_path / "out", make_dataset(tmp_path / "audio", 3))
    report = read_report(done.folder / "report.json")
    assert report.runs == (done.report,)
    rows = [from_json(ResultRow, json.loads(line)) for line in (done.folder / "results.jsonl").read_text().splitlines()]
    assert [row.id for row in rows] == ["clip_000", "clip_001", "clip_002"]
    assert rows[0].wer == pytest.approx(1 / 3)
    assert [piece.type for piece in rows[0].alignment] == ["substitute", "equal"]
    assert done.report.machine["cpus"] >= 1
    assert "whisperkit-tools" in done.report.versions


def test_noise_silence_and_streams_are_parts_of_a_run(tmp_path):
    done = run(tmp_path / "out", make_dataset(tmp_path / "audio", 4), config=NOISY)
    assert [(point.kind, point.snr_db) for point in done.report.noise] == [("white", 10.0), ("white", 0.0)]
    assert done.report.metrics.no_speech.clips == 20
    assert done.report.streaming.examples == 4
    assert done.report.streaming.wer == pytest.approx(done.report.metrics.wer)


def test_workers_give_the_same_results_in_the_same_order(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 12)
    alone = run(tmp_path / "alone", dataset)
    together = run(tmp_path / "together", dataset, LoadFake(delay_s=0.01), engine=partial(ProcessEngine, workers=3))
    assert content(alone.folder) == content(together.folder)


def test_a_finished_run_is_not_done_again(tmp_path):
    dataset, log = make_dataset(tmp_path / "audio", 5), tmp_path / "log"
    first = run(tmp_path / "out", dataset, LoadFake(str(log)))
    notes = Notes()
    again = run(tmp_path / "out", dataset, LoadFake(str(log)), notes=notes)
    assert again == first
    assert len(log.read_text().split()) == 5
    assert "all 5 tasks are done already" in notes.notes[0]


def test_a_changed_input_starts_a_new_run(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 3)
    first = run(tmp_path / "out", dataset)
    other_model = run(tmp_path / "out", dataset, identity="two")
    other_data = run(tmp_path / "out", make_dataset(tmp_path / "more", 4))
    other_options = run(tmp_path / "out", dataset, config=EvaluateConfig(checks_no_speech=False, normalizer="basic"))
    assert len({done.folder for done in (first, other_model, other_data, other_options)}) == 4


def test_the_key_goes_by_content_not_by_name_or_place(tmp_path):
    here, there = make_dataset(tmp_path / "a", 3), make_dataset(tmp_path / "b", 3)
    config = EvaluateConfig()
    assert run_key(fake_target(), here, config) == run_key(fake_target(name="other"), there, config)
    assert run_key(fake_target(), here, config) == run_key(fake_target(), here, EvaluateConfig(max_failures=0))
    assert run_key(fake_target(), here, config) != run_key(fake_target(), here, EvaluateConfig(seed=1))


def test_a_failed_example_is_recorded_and_tried_again(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 6, broken=(4,))
    done = run(tmp_path / "out", dataset, LoadFake(fails=(2,)))
    errors = {failure.id: failure.error for failure in done.report.failures}
    assert errors["clip_002"] == "RuntimeError: clip 2 is"
    assert errors["broken_004"].endswith("broken_004.wav: broken after 0.2 s; get the file again")
    assert done.report.metrics.reference_words == sum(len(reference(i).split()) for i in (0, 1, 3, 5))
    better = run(tmp_path / "out", dataset, LoadFake())
    assert [failure.id for failure in better.report.failures] == ["broken_004"]
    rows = (better.folder / "results.jsonl").read_text().splitlines()
    assert [json.loads(row)["id"] for row in rows] == [example.id for example in dataset.examples]


def test_too_many_failures_stop_the_run_and_keep_what_is_done(tmp_path):
    dataset, log = make_dataset(tmp_path / "audio", 8), tmp_path / "log"
    config = EvaluateConfig(checks_no_speech=False, max_failures=1)
    with pytest.raises(EvaluationError, match=r"stopped: 2 examples failed, max_failures is 1 \(clip_001: Runtime"):
        run(tmp_path / "out", dataset, LoadFake(fails=(1, 3)), config)
    done = run(tmp_path / "out", dataset, LoadFake(str(log)), config)
    assert done.report.failures == ()
    assert sorted(map(int, log.read_text().split())) == [1, 3, 4, 5, 6, 7]


def test_progress_shows_wer_and_speed(tmp_path):
    notes = Notes()
    done = run(tmp_path / "out", make_dataset(tmp_path / "audio", 5), notes=notes)
    assert [(done, total) for done, total, _ in notes.counts] == [(number, 5) for number in range(1, 6)]
    details = [re.fullmatch(r"WER (\d+\.\d\d) %, (\d+\.\d)x real time", detail) for *_, detail in notes.counts]
    assert float(details[-1][1]) == pytest.approx(100 * done.report.metrics.wer, abs=0.005)
    assert details[0][1] == "33.33"
    assert float(details[2][2]) > 0


def test_progress_counts_failures(tmp_path):
    notes = Notes()
    run(tmp_path / "out", make_dataset(tmp_path / "audio", 2), LoadFake(fails=(1,)), notes=notes)
    assert notes.counts[-1][2].endswith(", 1 failed")


def test_an_unknown_language_stops_before_the_first_example(tmp_path):
    dataset, log = make_dataset(tmp_path / "audio", 3, language="fi"), tmp_path / "log"
    with pytest.raises(WktError, match=r"does not know \['fi'\]"):
        run(tmp_path / "out", dataset, LoadFake(str(log)))
    assert not log.exists()
    config = EvaluateConfig(checks_no_speech=False, gives_language=False)
    assert run(tmp_path / "out", dataset, LoadFake(), config).report.failures == ()


def test_an_empty_dataset_and_bad_settings_are_refused(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 0)
    with pytest.raises(OptionsError, match="no examples left"):
        run(tmp_path / "out", dataset)
    with pytest.raises(OptionsError, match=r"hop_s is 0.*max_failures is -1"):
        EvaluateConfig(hop_s=0, max_failures=-1)
    with pytest.raises(OptionsError, match="workers is 0"):
        run(tmp_path / "out", make_dataset(tmp_path / "audio", 1), engine=partial(ProcessEngine, workers=0))


def test_a_worker_that_cannot_load_ends_the_run(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 3)
    with pytest.raises(WktError, match="the model file is damaged"):
        run(tmp_path / "out", dataset, LoadFake(cannot_load=True), engine=partial(ProcessEngine, workers=2))


def test_a_worker_that_dies_twice_on_an_example_fails_it_alone(tmp_path):
    dataset = make_dataset(tmp_path / "audio", 5)
    done = run(tmp_path / "out", dataset, LoadFake(kills_itself_at=2), engine=partial(ProcessEngine, workers=2))
    assert [(f.id, f.error) for f in done.report.failures] == [
        ("clip_002", "its worker process died 2 times: signal 9 (out of memory?)")
    ]
    assert [row["id"] for row in content(done.folder)[1]["results.jsonl"]] == [x.id for x in dataset.examples]


SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from helpers.evaluation_runs import LoadFake, make_dataset, run
from whisperkit_tools.eval.runs.engines import ProcessEngine, SerialEngine
from whisperkit_tools.eval.runs.tasks import EvaluateConfig

if __name__ == "__main__":
    engine = SerialEngine if sys.argv[3] == "1" else partial(ProcessEngine, workers=int(sys.argv[3]))
    config = EvaluateConfig("none", noise_snr_db=(5.0,), noise_kinds=("white",), streaming=True, checks_no_speech=False)
    dataset = make_dataset(Path(sys.argv[1]), 12)
    print(run(Path(sys.argv[2]), dataset, LoadFake(delay_s=0.03), config, engine=engine).folder)
"""


def _command(tmp_path: Path, out: str, workers: int) -> list[str]:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return [sys.executable, str(script), str(tmp_path / "audio"), str(tmp_path / out), str(workers)]


@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_points_it_resumes_to_the_same_report(tmp_path, monkeypatch, workers):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
    config = EvaluateConfig("none", noise_snr_db=(5.0,), noise_kinds=("white",), streaming=True, checks_no_speech=False)
    whole = run(tmp_path / "whole", make_dataset(tmp_path / "audio", 12), config=config)
    command, chance = _command(tmp_path, "killed", workers), random.Random(workers)
    kills = 0
    for _ in range(3):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        results = tmp_path / "killed" / "clips"
        _wait_for_rows(process, results, 3 + chance.randrange(6))
        time.sleep(chance.random() * 0.05)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    resumed = subprocess.run(command, capture_output=True, text=True, check=True)
    assert kills >= 2
    assert len(list(results.iterdir())) == 1
    assert content(Path(resumed.stdout.strip())) == content(whole.folder)


def _wait_for_rows(process: subprocess.Popen, folder: Path, more: int) -> None:
    """Wait until the run has written so many rows more, or has ended."""

    def rows() -> int:
        return sum(path.read_bytes().count(b"\n") for path in folder.glob("*/*.jsonl"))

    before = rows()
    while process.poll() is None and rows() < before + more:
        time.sleep(0.01)
