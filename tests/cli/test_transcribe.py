"""`wkt transcribe`: what it prints and writes, and how it fails."""

import io
import json
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner

from whisperkit_tools.cli import cli, main
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.transcribe.transcriber import Transcriber


@pytest.fixture(scope="module")
def loaded(demo_bundle):
    return Transcriber.load(demo_bundle)


@pytest.fixture
def run(loaded, demo_bundle, monkeypatch, capsys):
    """Call `wkt transcribe` on the demo's bundle, loaded once; returns exit code, stdout and stderr."""
    monkeypatch.setattr(Transcriber, "load", lambda *_, **__: loaded)

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["transcribe", "--bundle", str(demo_bundle), *map(str, arguments)])
        return stop.value.code, *capsys.readouterr()

    return call


@pytest.fixture(scope="module")
def files():
    return [u.path for u in demo_utterances()[:2]]


@pytest.fixture
def silence(tmp_path):
    path = tmp_path / "silence.wav"
    soundfile.write(path, np.zeros(16_000), 16_000)
    return path


def test_text_goes_to_stdout_bare(run, loaded, files):
    code, out, _ = run(*files)
    assert code == 0
    lines = out.splitlines()
    assert len(lines) == 2
    assert all(line and line == line.strip() for line in lines)


def test_silence_is_no_error(run, silence):
    code, out, err = run(silence)
    assert (code, out) == (0, "\n")
    assert "no speech was found" in err


def test_json_of_one_file_is_an_object_and_of_several_a_list(run, files):
    code, out, _ = run(files[0], "--json", "--word-timestamps")
    value = json.loads(out)
    assert (code, value["audio"]) == (0, str(files[0]))
    assert value["segments"][0]["words"]
    assert {"time_to_first_token_s", "tokens_per_second", "real_time_factor", "fallbacks"} <= value["timings"].keys()
    code, out, _ = run(*files, "--format", "json")
    assert [item["audio"] for item in json.loads(out)] == [str(path) for path in files]


@pytest.mark.parametrize("form", ["txt", "json", "srt", "vtt"])
def test_files_are_written_and_not_overwritten(run, files, tmp_path, form):
    out_dir = tmp_path / "new" / "out"
    code, out, err = run(*files, "--format", form, "-o", out_dir)
    assert (code, out) == (0, "")
    names = sorted(path.name for path in out_dir.iterdir())
    assert names == sorted(f"{path.stem}.{form}" for path in files)
    before = (out_dir / names[0]).read_bytes()
    code, _, err = run(*files, "--format", form, "-o", out_dir)
    assert code == 1
    assert all(name in err for name in names)
    assert "--force" in err
    assert run(*files, "--format", form, "-o", out_dir, "--force")[0] == 0
    if form != "json":  # which holds timings
        assert (out_dir / names[0]).read_bytes() == before


def test_json_beside_files(run, files, tmp_path):
    code, out, _ = run(files[0], "--format", "srt", "-o", tmp_path / "out", "--json")
    assert code == 0
    assert json.loads(out)["text"]
    assert (tmp_path / "out" / f"{files[0].stem}.srt").read_text().startswith("1\n00:00:0")


def test_files_of_the_same_name_keep_apart(run, tmp_path):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, np.zeros(8000), 16_000)
    out_dir = tmp_path / "out"
    assert run(tmp_path / "a.wav", tmp_path / "a.flac", "-o", out_dir)[0] == 0
    assert sorted(path.name for path in out_dir.iterdir()) == ["a.flac.txt", "a.wav.txt"]
    (tmp_path / "deep").mkdir()
    soundfile.write(tmp_path / "deep" / "a.wav", np.zeros(8000), 16_000)
    code, _, err = run(tmp_path / "a.wav", tmp_path / "deep" / "a.wav", "-o", out_dir, "--force")
    assert code == 1
    assert "several inputs would be written to" in err


def test_a_folder(run, tmp_path, silence):
    code, out, _ = run(tmp_path, "--json")
    assert code == 0
    assert [item["audio"] for item in json.loads(out)] == [str(silence)]


def test_standard_input(loaded, demo_bundle, files, monkeypatch):
    monkeypatch.setattr(Transcriber, "load", lambda *_, **__: loaded)
    result = CliRunner().invoke(
        cli, ["transcribe", "-", "--bundle", str(demo_bundle), "--json"], input=files[0].read_bytes()
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["audio"] == "standard input"


def test_one_broken_file_does_not_cost_the_others(run, files, tmp_path):
    samples = np.zeros(16_000)
    samples[3] = np.nan
    bad = tmp_path / "nan.wav"
    soundfile.write(bad, samples, 16_000, subtype="FLOAT")
    code, out, err = run(bad, files[0])
    assert code == 1
    assert len(out.splitlines()) == 1
    assert "1 of 2 inputs failed" in err
    assert "nan.wav: 1 samples are not numbers" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--language", "spanich"], 2, "did you mean"),
        (["--temperature", "warm"], 2, "is not a list of numbers"),
        (["--temperature", "-1"], 2, "--temperature [-1.0]"),
        (["--long-form", "chunked", "--chunk-length", "31"], 2, "--chunk-length is 31.0, allowed are 1 to 30 seconds"),
        (["--max-new-tokens", "0"], 2, "max-new-tokens"),
        (["--logprob-threshold", "x"], 2, "neither a number nor none"),
        (["--format", "doc"], 2, "doc"),
        (["--json", "--format", "srt"], 2, "both want stdout"),
        (["--prompt", "<|en|>"], 2, "special tokens"),
        ([demo_utterances()[1].path, "--format", "vtt"], 2, "name a folder with -o"),
    ],
)
def test_wrong_usage(run, files, arguments, code, message):
    found, out, err = run(files[0], *arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err


def test_an_answer_may_be_cut_short(run, files):
    whole = run(files[0])[1].strip()
    code, out, _ = run(files[0], "--max-new-tokens", "3")
    assert code == 0
    assert 0 < len(out.strip()) < len(whole)
    assert whole.startswith(out.strip())


def test_checks_can_be_switched_off(run, files):
    assert run(files[0], "--compression-ratio-threshold", "none", "--logprob-threshold", "NONE")[0] == 0


def test_all_bad_inputs_in_one_message(run, tmp_path):
    (tmp_path / "empty.wav").touch()
    code, out, err = run(tmp_path / "empty.wav", tmp_path / "missing.wav")
    assert (code, out) == (1, "")
    assert "empty.wav: the file is empty" in err
    assert "missing.wav: no such file" in err


def test_no_bundle_says_how_to_make_one(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["transcribe", str(files[0])])
    assert stop.value.code == 1
    assert "wkt convert" in capsys.readouterr().err


def test_a_failed_write_leaves_nothing(run, files, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("whisperkit_tools.files.os.fsync", full)
    code, _, err = run(files[0], "-o", tmp_path / "out")
    assert code == 1
    assert "disk is full" in err
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends a POSIX signal")
@pytest.mark.usefixtures("interruptible")
def test_interruption_leaves_nothing_half_written(demo_bundle, tmp_path):
    out_dir = tmp_path / "out"
    first = demo_utterances()[0].path
    audio = [first, *(tmp_path / f"long_{n}.ogg" for n in range(20))]  # more than a starved test is late by
    for path in audio[1:]:
        path.symlink_to(demo_longform()[0].path)
    command = [sys.executable, "-m", "whisperkit_tools", "transcribe", *map(str, audio), "--bundle", str(demo_bundle)]
    process = subprocess.Popen([*command, "-o", str(out_dir)], stderr=subprocess.PIPE, text=True)
    assert "->" in process.stderr.readline()  # the first is written, the long ones are to come
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode in (130, -signal.SIGINT)  # the same to a shell
    assert "Traceback" not in err
    assert "interrupted" in err
    written = sorted(path.name for path in out_dir.iterdir())
    assert f"{first.stem}.txt" in written and len(written) < len(audio)
    assert all((out_dir / name).read_text().endswith("\n") for name in written if name.endswith(".txt"))
    assert all(name.endswith(".txt") for name in written)


def test_standard_input_that_is_empty(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    code, _, err = run("-")
    assert code == 1
    assert "nothing came in" in err
