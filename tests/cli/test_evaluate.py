"""`wkt evaluate` from end to end on the demo model and its audio."""

import json

import pytest
import soundfile

from whisperkit_tools.demo import demo_longform, demo_utterances


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Four of the demo's recordings as a folder of audio with a table."""
    folder = tmp_path_factory.mktemp("clips")
    rows = []
    for utterance in demo_utterances()[:4]:
        samples, rate = soundfile.read(utterance.path)
        soundfile.write(folder / f"{utterance.id}.flac", samples, rate)
        rows.append({"file_name": f"{utterance.id}.flac", "text": utterance.text, "language": "en"})
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluations")


def _rows(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def test_transcripts_are_those_of_wkt_transcribe(wkt, demo_bundle, clips, out):
    code, stdout, stderr = wkt(
        "evaluate", demo_bundle, "--dataset", clips, "--no-check-silence", "-o", out, "--word-timestamps", "--json"
    )
    assert code == 0, stderr
    report = json.loads(stdout)
    folder = out / report["folders"][0]
    audio = [clips / f"{u.id}.flac" for u in demo_utterances()[:4]]
    code, stdout, _ = wkt("transcribe", "--bundle", demo_bundle, "--language", "en", *audio)
    assert [row["hypothesis"] for row in _rows(folder)] == stdout.splitlines()
    figures = report["runs"][0]
    assert figures["bundle"]["component_bytes"].keys() >= {"AudioEncoder", "TextDecoder"}
    assert all(figures["speed"][name] > 0 for name in ("encoder_s", "token_s", "first_token_s", "rtfx_corpus"))
    assert figures["dataset"]["examples"] == 4
    assert all(row["words"] for row in _rows(folder))
    assert {"report.json", "report.md", "report.html", "run.json"} <= {path.name for path in folder.iterdir()}


def test_the_same_goes_for_long_audio_and_its_options(wkt, demo_bundle, tmp_path):
    chosen = ("--long-form", "vad", "--chunk-length", "12", "--temperature", "0")
    code, stdout, stderr = wkt(
        *("evaluate", demo_bundle, "--dataset", "demo", "--min-duration", "30", "--limit", "1", *chosen),
        *("--no-check-silence", "-o", tmp_path, "--json"),
    )
    assert code == 0, stderr
    (row,) = _rows(tmp_path / json.loads(stdout)["folders"][0])
    recording = next(item for item in demo_longform() if item.id == row["id"])
    code, stdout, _ = wkt(
        "transcribe", "--bundle", demo_bundle, "--language", recording.language, *chosen, recording.path
    )
    assert row["hypothesis"] == stdout.strip()
    assert row["timings"]["windows"] > 5


def test_two_backends_are_compared_and_judged(wkt, demo_bundle, clips, out):
    code, stdout, stderr = wkt(
        *("evaluate", demo_bundle, "--dataset", clips, "--limit", "2", "--no-check-silence", "-o", out),
        *("--backend", "executor", "--backend", "transformers", "--noise-snr", "20", "--noise-kind", "white"),
        *("--streaming",),
    )
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert lines[1].startswith(demo_bundle.name)
    assert lines[2].startswith("transformers-")
    assert " 100.0 " in lines[2]
    comparison = json.loads((next(out.glob("*/comparison-*")) / "report.json").read_text())
    assert len(comparison["runs"]) == 2
    assert comparison["comparisons"][0]["examples"] == 2
    assert [point["snr_db"] for point in comparison["runs"][0]["noise"]] == [20.0]
    assert comparison["runs"][0]["streaming"]["wer"] == 0.0
    assert comparison["runs"][1]["metrics"]["qoi"] == 1.0


def test_a_run_is_a_reference(wkt, demo_bundle, clips, out, tmp_path):
    common = ("evaluate", demo_bundle, "--dataset", clips, "--limit", "2", "--no-check-silence", "--json")
    _, stdout, _ = wkt(*common, "-o", out)
    reference = json.loads(stdout)["folders"][0]
    code, stdout, stderr = wkt(*common, "-o", tmp_path, "--temperature", "0", "--reference", reference)
    assert code == 0, stderr
    metrics = json.loads(stdout)["runs"][0]["metrics"]
    assert (metrics["qoi"], metrics["qoi_reference"]) == (1.0, demo_bundle.name)
    code, _, stderr = wkt(
        *("evaluate", demo_bundle, "--dataset", clips, "--limit", "1", "--no-check-silence", "-o", tmp_path),
        *("--reference", reference),
    )
    assert code == 2
    assert "ran on another dataset" in stderr


def test_a_broken_file_is_told_and_the_exit_code_is_1(wkt, demo_bundle, clips, tmp_path):
    broken = tmp_path / "data"
    broken.mkdir()
    for path in clips.iterdir():
        (broken / path.name).write_bytes(path.read_bytes())
    flac = sorted(broken.glob("*.flac"))[1]
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 2])
    command = ("evaluate", demo_bundle, "--dataset", broken, "--no-check-silence", "-o", tmp_path / "out", "--skip-bad")
    code, stdout, stderr = wkt(*command)
    assert code == 1
    assert flac.name in stderr
    assert "the same command tries again" in stderr
    assert "report:" in stdout
    code, _, stderr = wkt(*command, "--max-failures", "0")
    assert code == 1
    assert "--max-failures is 0" in stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--dataset", "librispeach"), 2, "did you mean librispeech"),
        (("--dataset", "demo", "--backend", "nonsense"), 2, "unknown backend 'nonsense'"),
        (("--dataset", "demo", "--backend", "openai"), 2, "needs a model: --backend openai:MODEL"),
        (("--dataset", "demo", "--backend", "executor:x"), 2, "name x as BUNDLE instead"),
        (("--dataset", "demo", "--noise-snr", "loud"), 2, "'loud' is not a list of numbers"),
        (("--dataset", "demo", "--noise-snr", "900"), 2, "are not ratios between"),
        (("--dataset", "demo", "--address", "auto"), 2, "add --engine ray"),
        (("--dataset", "demo", "--endpoint", "http://localhost:1"), 2, "add --backend openai:MODEL"),
        (("--dataset", "demo", "--backend-option", "beam_size=5"), 2, "belongs to no chosen backend"),
        (("--dataset", "demo", "--stride", "2"), 2, "--stride needs --long-form chunked"),
        (("--dataset", "demo", "--long-form", "chunked", "--vad", "energy"), 2, "--vad needs --long-form vad"),
        (("--dataset", "demo", "--compute-units", "all"), 2, "add --backend coreml"),
        (
            ("--dataset", "demo", "--long-form", "vad", "--backend", "transformers:demo"),
            2,
            "--long-form applies to bundles",
        ),
        (("--dataset", "demo", "--normalizer", "mine"), 2, "no normalizer 'mine'"),
        (("--dataset", "demo", "--workers", "0"), 2, "--workers"),
        (("--dataset", "demo", "--language", "fi"), 2, "language fi"),
        ((), 2, "--dataset"),
    ],
)
def test_bad_input_is_one_line(wkt, demo_bundle, tmp_path, arguments, code, message):
    found, _, stderr = wkt("evaluate", demo_bundle, "-o", tmp_path / "out", *arguments)
    assert (found, message in stderr) == (code, True), stderr
    assert not (tmp_path / "out").exists()


def test_two_bundles_of_one_name_are_told_apart(wkt, demo_bundle, clips, tmp_path):
    import shutil

    other = tmp_path / demo_bundle.name
    shutil.copytree(demo_bundle, other)
    (other / "README.txt").write_text("another")
    code, stdout, stderr = wkt(
        *("evaluate", demo_bundle, other, demo_bundle, "--dataset", clips, "--limit", "1", "--no-check-silence"),
        *("-o", tmp_path / "out", "--json"),
    )
    assert code == 0, stderr
    runs = json.loads(stdout)["runs"]
    assert [run["name"] for run in runs] == [str(demo_bundle), str(other)]
    assert len({run["key"] for run in runs}) == 2


def test_without_its_reference_nothing_else_is_the_reference(wkt, demo_bundle, clips, tmp_path):
    import shutil

    places = [tmp_path / name for name in ("damaged", "good")]
    for place in places:
        shutil.copytree(demo_bundle, place)
        (place / "NOTES.txt").write_text(place.name)
    weights = next(places[0].glob("TextDecoder.mlpackage/**/weight.bin"))
    weights.write_bytes(weights.read_bytes()[:1000])
    code, stdout, stderr = wkt(
        *("evaluate", places[1], demo_bundle, "--reference", places[0], "--dataset", clips, "--limit", "1"),
        *("--no-check-silence", "-o", tmp_path / "out", "--json"),
    )
    assert code == 1
    assert "damaged" in stderr
    runs = json.loads(stdout)["runs"]
    assert [run["metrics"]["qoi"] for run in runs] == [None, None]


def test_a_service_is_asked_with_the_key_of_the_environment(wkt, clips, tmp_path, monkeypatch):
    from helpers.evaluation_service import running_service

    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-environment")
    with running_service() as service:
        code, stdout, stderr = wkt(
            *("evaluate", "--backend", "openai:whisper-1", "--endpoint", service.address, "--dataset", clips),
            *("--limit", "2", "--no-check-silence", "-o", tmp_path / "out"),
        )
    assert code == 0, stderr
    assert len(service.requests) == 2
    assert all(headers["Authorization"] == "Bearer key-of-the-environment" for _, headers, _ in service.requests)
    assert stdout.splitlines()[1].startswith("openai-whisper-1")
    files = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 5
    assert not any("key-of-the-environment" in text for text in files)
