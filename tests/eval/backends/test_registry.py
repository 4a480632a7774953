"""Backends beside the executor: the PyTorch original, services over HTTP, registered ones, and those not installed."""

import io
import sys

import numpy as np
import pytest
import soundfile
from helpers.evaluation_service import Service, running_service

from whisperkit_tools.demo import demo_checkpoint_dir, demo_longform, demo_utterances
from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.backends import registry
from whisperkit_tools.eval.backends.registry import BUILT_IN, BackendOptions, LoadBackend, backend_target
from whisperkit_tools.pipeline.bundle_backend import LoadBundle, read_audio
from whisperkit_tools.transcribe.options import TranscribeOptions


@pytest.fixture
def service():
    with running_service() as server:
        yield server


def _endpoint(service: Service, **options: str):
    return LoadBackend(BackendOptions("openai", "whisper-1", endpoint=service.address, extra=options))()


def _tone(seconds: float = 1.5) -> np.ndarray:
    return (0.3 * np.sin(np.arange(round(seconds * 16_000)) / 20)).astype(np.float32)


def test_a_service_gets_the_audio_and_its_answer_is_read(service, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    heard = _endpoint(service).transcribe(_tone(), language="en", words=True)
    path, headers, fields = service.requests[0]
    assert path == "/v1/audio/transcriptions"
    assert headers["Authorization"] == "Bearer key-of-the-test"
    assert (fields["model"], fields["language"], fields["response_format"]) == (
        [b"whisper-1"],
        [b"en"],
        [b"verbose_json"],
    )
    assert fields["timestamp_granularities[]"] == [b"segment", b"word"]
    samples, rate = soundfile.read(io.BytesIO(fields["file"][0]), dtype="float32")
    assert rate == 16_000
    assert np.abs(samples - _tone()).max() < 1 / 32000
    assert (heard.text, heard.language) == ("Hello there.", "en")
    assert [(word.text, word.start_s) for word in heard.words] == [("Hello", 0.1), ("there.", 0.6)]
    assert heard.segments[0].end_s == 1.5
    assert heard.audio_duration_s == 1.5
    assert heard.timings.total_s > 0


def test_a_service_without_a_key_gets_none(service, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    _endpoint(service, response_format="json").transcribe(_tone())
    _, headers, fields = service.requests[0]
    assert "Authorization" not in headers
    assert "timestamp_granularities[]" not in fields
    with pytest.raises(OptionsError, match="needs a key: set OPENAI_API_KEY"):
        LoadBackend(BackendOptions("openai", "whisper-1"))()


def test_what_passes_is_sent_again(service):
    service.answers = [(503, {}, b"busy"), (429, {"Retry-After": "0.01"}, b"slow down")]
    assert _endpoint(service).transcribe(_tone()).text == "Hello there."
    assert len(service.requests) == 3


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            (401, {}, b'{"error": {"message": "Incorrect API key"}}'),
            "answered 401: Incorrect API key; check OPENAI_API",
        ),
        ((404, {}, b"<html>"), "answered 404: <html>"),
        ((302, {"Location": "http://127.0.0.1:9/"}, b""), "answered 302, moved to http://127.0.0.1:9/; give that"),
        ((200, {}, b"hello"), "answered no JSON: b'hello'"),
        ((200, {}, b"[]"), "answered a JSON list"),
        ((200, {}, b'{"task": "x"}'), "without a usable text"),
        ((200, {}, b'{"text": "x", "segments": [{"start": "?"}]}'), "without a usable text"),
    ],
)
def test_a_refusal_is_told_in_the_services_words(service, answer, message):
    service.answers = [answer]
    with pytest.raises(EvaluationError, match=message):
        _endpoint(service).transcribe(_tone())
    assert len(service.requests) == 1


def test_a_service_that_is_not_there():
    spec = BackendOptions("openai", "m", endpoint="http://127.0.0.1:9/v1", extra={"retries": "0"})
    with pytest.raises(EvaluationError, match=r"127\.0\.0\.1:9.*cannot be reached.*is the service running"):
        LoadBackend(spec)().transcribe(_tone())
    with pytest.raises(OptionsError, match="'localhost' is not an address"):
        LoadBackend(BackendOptions("openai", "m", endpoint="localhost"))()
    for secret in ("http://me:secret@localhost/v1", "http://localhost/v1?key=secret"):
        with pytest.raises(OptionsError, match="key is read from OPENAI_API_KEY") as error:
            LoadBackend(BackendOptions("openai", "m", endpoint=secret))()
        assert "secret" not in str(error.value)


def test_wrong_options_are_all_named(service):
    with pytest.raises(OptionsError, match=r"unknown option 'beam'.*retries is 'x', expected int.*options are"):
        _endpoint(service, beam="1", retries="x")


def test_the_key_is_in_no_file_of_a_run(service, monkeypatch, tmp_path):
    from helpers.evaluation_runs import Notes, make_dataset

    from whisperkit_tools.eval.runs.engines import SerialEngine
    from whisperkit_tools.eval.runs.runner import evaluate
    from whisperkit_tools.eval.runs.tasks import EvaluateConfig

    monkeypatch.setenv("OPENAI_API_KEY", "key-of-the-test")
    done = evaluate(
        backend_target(BackendOptions("openai", "whisper-1", endpoint=service.address)),
        make_dataset(tmp_path / "audio", 2),
        EvaluateConfig(checks_no_speech=False),
        root=tmp_path / "out",
        engine=SerialEngine,
        read=read_audio,
        progress=Notes(),
    )
    assert done.report.failures == ()
    files = [path for path in done.folder.rglob("*") if path.is_file()]
    assert len(files) >= 3
    assert not any(b"key-of-the-test" in path.read_bytes() for path in files)
    assert done.report.speed.encoder_s is None


@pytest.mark.parametrize("name", [name for name, backend in BUILT_IN.items() if backend.requires])
def test_a_missing_library_is_one_line_on_what_to_install(name, monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(EvaluationError, match=rf"pip install 'whisperkit-tools\[{BUILT_IN[name].extra}\]'"):
        backend_target(BackendOptions(name, "tiny"))


def test_a_library_that_is_broken_is_one_line_too(monkeypatch, tmp_path):
    (tmp_path / "faster_whisper.py").write_text("import no_such_library")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "faster_whisper", raising=False)
    with pytest.raises(
        EvaluationError, match="faster-whisper needs a library that cannot be imported: No module named"
    ):
        backend_target(BackendOptions("faster-whisper", "tiny")).load()


def test_the_extras_that_are_named_exist():
    import tomllib
    from pathlib import Path

    settings = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    extras = settings["project"]["optional-dependencies"]
    assert {backend.extra for backend in BUILT_IN.values() if backend.extra} <= set(extras)


ECHO = """
from whisperkit_tools.eval.backends.base import transcription
from whisperkit_tools.speech import Timings


class Echo:
    def __init__(self, options):
        self.options = options

    def check(self, languages):
        pass

    def transcribe(self, audio, *, language=None, words=False):
        return transcription(f"{self.options.model} {len(audio)}", audio, Timings(0.0))
"""


def test_others_register_theirs_by_entry_point(monkeypatch, tmp_path):
    package = tmp_path / "echo_backend-2.5.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: echo-backend\nVersion: 2.5\n")
    points = f"[{registry.GROUP}]\necho = echo_backend:Echo\nbroken = no.such.module:load\n"
    (package / "entry_points.txt").write_text(points)
    (tmp_path / "echo_backend.py").write_text(ECHO)
    monkeypatch.syspath_prepend(tmp_path)
    found = backend_target(BackendOptions("echo", "m"))
    assert found.load().transcribe(_tone(1)).text == "m 16000"
    assert found.backend.versions == {"echo-backend": "2.5"}
    with pytest.raises(EvaluationError, match=r"broken is registered as no\.such\.module:load, which cannot be"):
        backend_target(BackendOptions("broken", "m")).load()
    with pytest.raises(OptionsError, match=r"unknown backend 'ecko'; did you mean echo\? there are .*broken, echo"):
        backend_target(BackendOptions("ecko", "m"))


def test_a_local_model_is_known_by_its_content(tmp_path):
    path = tmp_path / "model.bin"
    path.write_bytes(b"one")
    first = backend_target(BackendOptions("openai", str(path)))
    path.write_bytes(b"two")
    second = backend_target(BackendOptions("openai", str(path)))
    assert first.backend.identity != second.backend.identity
    assert backend_target(BackendOptions("openai", "whisper-1")).backend.identity == ""


@pytest.fixture(scope="module")
def original():
    return LoadBackend(BackendOptions("transformers", str(demo_checkpoint_dir())))()


def test_the_original_hears_what_its_bundle_hears(original, demo_bundle):
    bundle = LoadBundle(str(demo_bundle), TranscribeOptions())()
    chosen = [*demo_utterances()[:3], *demo_utterances()[-2:]]
    for utterance in chosen:
        audio = read_audio(utterance.path)
        ours = bundle.transcribe(audio, language=utterance.language)
        theirs = original.transcribe(audio, language=utterance.language)
        assert theirs.text == ours.text
        assert [(s.text, s.start_s) for s in theirs.segments] == [(s.text, s.start_s) for s in ours.segments]
        assert theirs.timings.tokens == ours.timings.tokens
        assert 0 < theirs.timings.encoder_s < theirs.timings.total_s
        assert 0 < theirs.timings.time_to_first_token_s < theirs.timings.total_s


def test_the_original_transcribes_long_audio(original):
    long = demo_longform()[0]
    heard = original.transcribe(read_audio(long.path), language=long.language)
    assert heard.timings.windows >= 3
    assert heard.segments[-1].end_s > 60
    assert len(heard.text.split()) == pytest.approx(len(long.text.split()), rel=0.1)


def test_the_original_says_which_languages_it_lacks(original, demo_bundle):
    for transcriber in (original, LoadBundle(str(demo_bundle), TranscribeOptions())()):
        transcriber.check(["en", "es"])
        with pytest.raises(OptionsError, match=r"does not know the languages xx, yy.*it knows .*en"):
            transcriber.check(["en", "yy", "xx"])


def test_a_checkpoint_that_is_not_there(tmp_path):
    with pytest.raises(EvaluationError, match="transformers cannot load"):
        LoadBackend(BackendOptions("transformers", str(tmp_path)))()
    with pytest.raises(OptionsError, match="dtype is 'int8', allowed are float32"):
        LoadBackend(BackendOptions("transformers", str(demo_checkpoint_dir()), extra={"dtype": "int8"}))()
