"""Whole transcriptions by the demo's packages, against transformers' `generate` and against what is said."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.progress import SeenProgress

from tests.benchmarks import generate_parity as parity
from whisperkit_tools.bundle import Bundle
from whisperkit_tools.contract import ALIGNMENT, COMPONENTS
from whisperkit_tools.decoder.adapters import ArrayModelAdapter, FunctionModel
from whisperkit_tools.decoder.loading import load_models
from whisperkit_tools.decoder.models import Models
from whisperkit_tools.demo import demo_checkpoint_dir, demo_longform, demo_utterances
from whisperkit_tools.errors import AudioError, BundleError, OptionsError, UnsupportedOperationError
from whisperkit_tools.mil.backend import load_backend
from whisperkit_tools.mil.tensor_spec import TensorSpec
from whisperkit_tools.transcribe.audio.load import AudioInput, load_audio
from whisperkit_tools.transcribe.options import TranscribeOptions
from whisperkit_tools.transcribe.transcriber import Transcriber


def read(path):
    return load_audio(AudioInput(str(path), Path(path)))


def utterances(count):
    """A few of each language."""
    found = demo_utterances()
    return [u for language in ("en", "es") for u in [x for x in found if x.language == language][:count]]


def assert_parity(oracle, transcriber, path, setting):
    audio = read(path)
    expected = parity.expect(oracle, transcriber, audio, parity.SETTINGS[setting])
    found = list(transcriber.transcribe_features(expected.features[0], parity.SETTINGS[setting]).tokens)
    row = parity.compare(transcriber, path.name, setting, expected, found)
    assert row.tokens >= 1
    assert row.equal, row


@pytest.mark.parametrize("setting", ["text", "timestamps", "translate", "prompt", "fallback"])
def test_short_utterances_give_the_tokens_of_transformers(oracle, transcriber, setting):
    for utterance in utterances(1):
        assert_parity(oracle, transcriber, utterance.path, setting)


@pytest.mark.parametrize("setting", ["timestamps", "conditioned fallback"])
def test_long_audio_gives_the_tokens_of_transformers(oracle, transcriber, setting):
    assert_parity(oracle, transcriber, demo_longform()[0].path, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["text", "timestamps"])
def test_every_demo_utterance_gives_the_tokens_of_transformers(oracle, transcriber, setting):
    for utterance in demo_utterances():
        assert_parity(oracle, transcriber, utterance.path, setting)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["spanish", "prompt", "conditioned", "fallback"])
def test_all_long_demo_audio_gives_the_tokens_of_transformers(oracle, transcriber, setting):
    for recording in demo_longform():
        assert_parity(oracle, transcriber, recording.path, setting)


@pytest.mark.slow
def test_real_speech_gives_the_tokens_of_transformers(oracle, transcriber, shared):
    rows = [
        parity.compare(transcriber, path.name, setting, expected, found)
        for path in sorted((shared / "audio" / "LibriSpeech").rglob("*.flac"))
        for setting in ("text", "timestamps")
        for expected in [parity.expect(oracle, transcriber, read(path), parity.SETTINGS[setting])]
        for found in [list(transcriber.transcribe_features(expected.features[0], parity.SETTINGS[setting]).tokens)]
    ]
    parted = [row for row in rows if not row.equal]
    assert len(parted) <= 0.05 * len(rows), parted


def test_audio_gives_the_tokens_of_transformers_own_features(oracle, transcriber):
    """The way that ships, through the bundle's own MelSpectrogram."""
    options = parity.SETTINGS["timestamps"]
    for utterance in utterances(1):
        audio = read(utterance.path)
        expected = parity.expect(oracle, transcriber, audio, options)
        assert list(transcriber.transcribe(audio, options).tokens) == expected.ids


def test_word_times_are_near_those_of_the_synthesizer(transcriber):
    errors = []
    for utterance in utterances(6):
        options = TranscribeOptions(language=utterance.language, word_timestamps=True)
        result = transcriber.transcribe(read(utterance.path), options)
        words = [word for segment in result.segments for word in segment.words]
        assert "".join(word.text for word in words).strip() == result.text
        times = [time for word in words for time in (word.start_s, word.end_s)]
        assert times == sorted(times)
        assert all(0 <= time <= result.audio_duration_s for time in times)
        if len(words) == len(utterance.words):
            errors += [abs(word.start_s - said.start_s) for word, said in zip(words, utterance.words, strict=True)]
    assert len(errors) > 10
    assert np.median(errors) < 0.2


def test_transformers_times_its_tokens_alike(oracle, transcriber):
    """Its time of a token is where the decoder looked while it read that token, ours while it predicted it."""
    utterance = utterances(1)[0]
    audio = read(utterance.path)
    features = oracle.features(audio)
    # Only eager attention gives weights; a model of its own, for the option stays set.
    model = parity.Oracle(demo_checkpoint_dir()).model
    with torch.no_grad():
        output = model.generate(
            features,
            language=utterance.language,
            task="transcribe",
            return_timestamps=True,
            return_token_timestamps=True,
            attention_mask=torch.ones(1, 3000).cumsum(1).le(len(audio) // 160).long(),
        )
    ids, times = output["sequences"][0].tolist(), output["token_timestamps"][0].tolist()
    options = replace(parity.SETTINGS["timestamps"], language=utterance.language, word_timestamps=True)
    result = transcriber.transcribe(audio, options)
    words = [word for segment in result.segments for word in segment.words]
    firsts = [i for i, token in enumerate(ids) if transcriber.tokenizer.decode([token]).startswith(" ")]
    assert len(firsts) == len(words)
    # One token later there: the next word's start here is not before this word's time there.
    for index, word in zip(firsts, words, strict=True):
        assert word.start_s <= times[index] + 0.25


@pytest.mark.parametrize("kind", ["silence", "noise", "a tenth of a second"])
@pytest.mark.parametrize("timestamps", [True, False])
def test_no_speech_gives_no_text(transcriber, kind, timestamps):
    audio = {
        "silence": np.zeros(80_000, dtype=np.float32),
        "noise": np.random.default_rng(0).normal(0, 0.05, 80_000).astype(np.float32),
        "a tenth of a second": np.zeros(1600, dtype=np.float32),
    }[kind]
    result = transcriber.transcribe(audio, TranscribeOptions(timestamps=timestamps))
    assert (result.text, result.segments) == ("", ())
    assert result.timings.windows == 1


def test_language_is_detected(transcriber):
    for utterance in utterances(1):
        result = transcriber.transcribe(read(utterance.path))
        assert result.language == utterance.language
        assert 0.5 < result.language_probability <= 1
    given = transcriber.transcribe(read(utterance.path), TranscribeOptions(language="Spanish"))
    assert (given.language, given.language_probability) == ("es", None)


def test_a_language_tag_is_resolved_and_shown(transcriber):
    audio = read(utterances(1)[1].path)
    tagged = transcriber.transcribe(audio, TranscribeOptions(language="es-419"))
    assert tagged.language == "es"
    assert tagged.notices == ("the language es-419 is read as es (spanish)",)
    named = transcriber.transcribe(audio, TranscribeOptions(language="Spanish"))
    assert (named.text, named.notices) == (tagged.text, ())


def test_long_audio_without_timestamps_goes_on_by_windows(transcriber):
    result = transcriber.transcribe(read(demo_longform()[0].path), TranscribeOptions(timestamps=False))
    assert result.timings.windows == 3
    assert [s.start_s for s in result.segments] == [0.0, 30.0, 60.0]
    assert result.segments[-1].end_s == pytest.approx(result.audio_duration_s, abs=0.02)


def test_segments_are_in_order_and_within_the_audio(transcriber):
    result = transcriber.transcribe(read(demo_longform()[0].path))
    times = [(segment.start_s, segment.end_s) for segment in result.segments]
    assert times == sorted(times)
    assert all(0 <= start <= end <= result.audio_duration_s for start, end in times)
    assert result.text == "".join(segment.text for segment in result.segments).strip()


def test_timings_add_up(transcriber):
    timings = transcriber.transcribe(read(demo_utterances()[0].path)).timings
    assert 0 < timings.mel_s + timings.encoder_s + timings.decoder_s <= timings.total_s
    assert timings.mel_s + timings.encoder_s < timings.time_to_first_token_s < timings.total_s
    assert timings.real_time_factor > 0
    assert timings.decoder_steps > timings.tokens > 0


def test_progress_ends_with_the_audio(transcriber):
    progress = SeenProgress()
    audio = read(demo_longform()[0].path)
    transcriber.transcribe(audio, progress=progress)
    assert progress.seen == sorted(progress.seen)
    assert progress.seen[-1] == ("audio", round(len(audio) / 16_000, 1), round(len(audio) / 16_000, 1))


def test_a_bundle_and_a_file_are_enough(demo_bundle, tmp_path):
    path = demo_utterances()[0].path
    opened = Transcriber.load(Bundle.open(demo_bundle))
    progress = SeenProgress()
    found = opened.transcribe(path, progress=progress)
    assert found.text == Transcriber.load(str(demo_bundle)).transcribe(read(path)).text
    assert {what for what, *_ in progress.seen} == {path.name}
    assert opened.transcribe(str(path)).tokens == found.tokens
    with pytest.raises(AudioError, match="no such file"):
        opened.transcribe(tmp_path / "missing.m4a")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"language": "tlh"}, "unknown language 'tlh'"),
        ({"prompt": "<|en|>"}, "the prompt spells special tokens"),
    ],
)
def test_options_that_do_not_fit_the_model_are_wrong_usage(transcriber, options, message):
    with pytest.raises(OptionsError, match=message) as error:
        transcriber.transcribe(np.zeros(1600, np.float32), TranscribeOptions(**options))
    assert error.value.exit_code == 2


def test_a_transcription_is_json_ready(transcriber):
    options = TranscribeOptions(word_timestamps=True)
    value = transcriber.transcribe(read(demo_utterances()[0].path), options).to_dict()
    assert json.loads(json.dumps(value))["segments"][0]["words"]


def test_a_long_prompt_is_cut_with_a_notice(transcriber):
    options = TranscribeOptions(prompt="Call Maria on Monday at eleven. " * 60)
    result = transcriber.transcribe(read(demo_utterances()[0].path), options)
    assert "the last 223 are used" in result.notices[0]


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(0, np.float32), "no samples"),
        (np.zeros((2, 10), np.float32), r"shape \[2, 10\]"),
        (np.array([0, np.nan], np.float32), "1 samples that are not numbers"),
    ],
)
def test_audio_that_cannot_be_transcribed(transcriber, audio, message):
    with pytest.raises(AudioError, match=message):
        transcriber.transcribe(audio)


def test_float16_mode_transcribes_too(demo_bundle):
    utterance = demo_utterances()[0]
    options = TranscribeOptions(language="en", temperatures=(0.0,))
    halves = Transcriber.load(demo_bundle, precision="float16").transcribe(read(utterance.path), options)
    singles = Transcriber.load(demo_bundle).transcribe(read(utterance.path), options)
    assert halves.text == singles.text


def test_arrays_in_and_out_are_enough(demo_bundle, transcriber):
    """Anything with Core ML's `predict` can run the packages; here the executor's own stands in for it."""
    bundle = Bundle.open(demo_bundle)
    components = [ArrayModelAdapter(load_backend(bundle.package(name).path)) for name in COMPONENTS]
    found = Transcriber.from_models(Models(*components), bundle)
    utterance = demo_utterances()[0]
    options = TranscribeOptions(word_timestamps=True, temperatures=(0.0,))
    one, two = (t.transcribe(read(utterance.path), options) for t in (found, transcriber))
    assert one.tokens == two.tokens
    assert [segment.words for segment in one.segments] == [segment.words for segment in two.segments]


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML runs on macOS only")
@pytest.mark.parametrize("units", [None, "cpu_only"])
def test_core_ml_gives_the_same_text(demo_bundle, transcriber, units):
    found = Transcriber.load(demo_bundle, backend="coreml", compute_units=units)
    utterance = demo_utterances()[0]
    assert found.transcribe(read(utterance.path)).text == transcriber.transcribe(read(utterance.path)).text


@pytest.mark.skipif(sys.platform == "darwin", reason="there it works")
def test_core_ml_elsewhere_is_a_clear_error(demo_bundle):
    with pytest.raises(UnsupportedOperationError, match="macOS only"):
        Transcriber.load(demo_bundle, backend="coreml")


def test_packages_that_do_not_belong_together(demo_bundle):
    bundle = Bundle.open(demo_bundle)
    mel, encoder, decoder = (bundle.package(name).program() for name in COMPONENTS)
    with pytest.raises(BundleError, match="the packages lack MelSpectrogram input audio"):
        Models(decoder, encoder, decoder)
    wide = SimpleNamespace(
        inputs=encoder.inputs,
        outputs={"encoder_output_embeds": TensorSpec("encoder_output_embeds", (1, 999, 1, 1500), "float16")},
    )
    with pytest.raises(BundleError, match=r"made as \[1, 999, 1, 1500\] and read as"):
        Models(mel, wide, decoder)


def test_devices_that_are_not_there(demo_bundle):
    with pytest.raises(OptionsError, match="device is 'abacus', but PyTorch computes on cpu"):
        Transcriber.load(demo_bundle, device="abacus")


def without(demo_bundle, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(demo_bundle, copy)
    (copy / name).unlink()
    return copy


def test_a_bundle_without_tokenizer(demo_bundle, tmp_path):
    with pytest.raises(BundleError, match=r"no tokenizer\.json"):
        Transcriber.load(without(demo_bundle, tmp_path, "tokenizer.json"))


def test_a_bundle_without_generation_config_takes_the_ids_from_the_tokenizer(demo_bundle, transcriber, tmp_path):
    found = Transcriber.from_models(
        load_models(Bundle.open(demo_bundle)), Bundle.open(without(demo_bundle, tmp_path, "generation_config.json"))
    )
    assert found.special.languages == dict(transcriber.special.languages)
    assert found.special.timestamp_begin == transcriber.special.timestamp_begin


def test_word_timestamps_need_the_output(models, demo_bundle):
    decoder = models.decoder
    outputs = {name: spec for name, spec in decoder.outputs.items() if name != ALIGNMENT}
    models = replace(models, decoder=FunctionModel(decoder.run, decoder.inputs, outputs))
    with pytest.raises(OptionsError, match="no word timestamps"):
        Transcriber.from_models(models, Bundle.open(demo_bundle)).check(TranscribeOptions(word_timestamps=True))
