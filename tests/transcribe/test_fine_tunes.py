"""Fine-tunes: without timestamps in the vocabulary, with timestamps that mean nothing, with a language of their own."""

import json
import shutil
from dataclasses import replace

import pytest

from whisperkit_tools.decoder.session import DecoderSession
from whisperkit_tools.demo import demo_longform, demo_utterances
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.speech import SAMPLE_RATE_HZ
from whisperkit_tools.transcribe.audio.load import load_audio
from whisperkit_tools.transcribe.engine import TranscriptionEngine
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.run import TranscriptionRun
from whisperkit_tools.transcribe.tokenizer import WhisperTokenizer
from whisperkit_tools.transcribe.transcriber import Transcriber

SPANISH = next(item for item in demo_utterances() if item.language == "es")


@pytest.fixture(scope="module")
def long_audio():
    return load_audio(next(item.path for item in demo_longform() if item.language == "es"))[: 45 * SAMPLE_RATE_HZ]


class Session:
    """The demo's decoder with other logits."""

    perform = DecoderSession.perform

    def __init__(self, session, change):
        self._session, self._change = session, change

    def __getattr__(self, name):
        return getattr(self._session, name)

    def read(self, tokens, start=0):
        return map(self._changed, self._session.read(tokens, start))

    def step(self, token, position):
        return self._changed(self._session.step(token, position))

    def step_ahead(self, *arguments):
        return self._changed(self._session.step_ahead(*arguments))

    def _changed(self, step):
        logits = step.logits.clone()
        self._change(logits)
        return step._replace(logits=logits)


def run(transcriber, audio, options, change, **special):
    tokenizer = transcriber.tokenizer
    tokenizer = WhisperTokenizer(tokenizer._tokenizer, replace(tokenizer.special, **special))
    engine = TranscriptionEngine(transcriber.models, tokenizer, Session(transcriber.models.new_session(), change), 448)
    one = TranscriptionRun(engine, options, len(audio) / SAMPLE_RATE_HZ, SilentProgress(), "audio")
    engine.session.perform(one.decode(audio))
    return one.result()


def test_a_vocabulary_without_timestamps_goes_without_them(transcriber, long_audio):
    begin = transcriber.special.timestamp_begin

    def cut(logits):
        logits[begin:] = -1e4  # as if the rows were not there

    def transcribe(audio, **options):
        return run(transcriber, audio, TranscribeOptions(**options), cut, has_timestamps=False, timestamp_end=begin)

    short = transcribe(load_audio(SPANISH.path))
    assert short.notices == ("the model's vocabulary has no timestamps; it is transcribed without them",)
    assert short.text == transcriber.transcribe(SPANISH.path, TranscribeOptions(timestamps=False)).text
    long = transcribe(long_audio)
    assert long.long_form == "chunked"
    assert long.notices[0].endswith("without them, and in overlapping chunks")
    assert len(long.text.split()) > 60
    assert transcribe(long_audio, long_form="vad", timestamps=False).notices == ()
    words = transcribe(load_audio(SPANISH.path), word_timestamps=True).words
    assert [word.text.strip() for word in words] == short.text.split()


def test_timestamps_that_are_guesses_are_not_followed(transcriber, long_audio):
    special = transcriber.special

    def flatten(logits):
        logits[special.timestamp_begin + 1 : special.timestamp_end] = logits[: special.end_of_text].mean()

    found = run(transcriber, long_audio, TranscribeOptions(language="es"), flatten)
    plain = transcriber.transcribe(long_audio, TranscribeOptions(language="es", timestamps=False))
    assert found.text == plain.text
    assert "timestamps are guesses" in found.notices[0]
    assert "long_form=chunked" in found.notices[0]


def test_windows_that_never_close_keep_their_text_with_a_notice(transcriber, long_audio):
    special = transcriber.special

    def never(logits):
        logits[special.timestamp_begin + 1 : special.timestamp_end] = -100.0

    found = run(transcriber, long_audio, TranscribeOptions(language="es"), never)
    assert [round(item.start_s) for item in found.segments] == [0, 30]
    assert len(found.text.split()) > 60
    assert any("no closing timestamps" in notice for notice in found.notices)


@pytest.mark.parametrize("language", ["es", "spanish", "es-MX"])
def test_a_fine_tunes_language_and_task_are_the_defaults(demo_bundle, models, transcriber, tmp_path, language, wkt):
    folder = tmp_path / "tuned"
    shutil.copytree(demo_bundle, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "language": language, "task": "translate"}))
    tuned = Transcriber.load(folder)
    english = next(item for item in demo_utterances() if item.language == "en")
    found = tuned.transcribe(SPANISH.path)
    assert (found.language, found.language_probability, found.task) == ("es", None, "translate")
    assert found.text == transcriber.transcribe(SPANISH.path, TranscribeOptions(language="es", task="translate")).text
    detected = tuned.transcribe(english.path, TranscribeOptions(language="auto", task="transcribe"))
    assert (detected.language, detected.task) == ("en", "transcribe")
    assert detected.language_probability is not None
    assert "  language     es, unless another one is asked for\n" in wkt("info", folder)[1]


@pytest.mark.parametrize(
    ("given", "language", "task"),
    [
        ({"forced_decoder_ids": [[1, "es"], [2, "translate"]]}, "es", "translate"),
        ({"forced_decoder_ids": [[1, None], [2, "transcribe"]]}, None, "transcribe"),
        ({"language": "klingon", "task": "sing"}, None, "transcribe"),
        ({"language": None}, None, "transcribe"),
    ],
)
def test_older_ways_to_state_them(demo_bundle, transcriber, given, language, task):
    special = transcriber.special
    ids = {**special.languages, **special.tasks}
    if "forced_decoder_ids" in given:
        given = {"forced_decoder_ids": [[at, ids.get(name)] for at, name in given["forced_decoder_ids"]]}
    generation = {**json.loads((demo_bundle / "generation_config.json").read_text()), **given}
    found = WhisperTokenizer.load(demo_bundle / "tokenizer.json", generation, vocab_size=2248, n_audio_ctx=1500).special
    assert (found.default_language, found.default_task) == (language, task)
