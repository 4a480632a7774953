"""The embedded demo: what ships, and that it is a working Whisper by transformers' own `generate`."""

import json
import re
import subprocess
import sys

import jiwer
import numpy as np
import pytest
import soundfile as sf

from whisperkit_tools.demo import demo_checkpoint_dir, demo_longform, demo_utterances

MEGABYTE = 1_000_000
SAMPLE_RATE_HZ = 16000
# figures.json: 0.15 in English and 0.03 in Spanish; the same words over and over, or none, would be near 1.
LONGFORM_WER_LIMIT = 0.25


def plain(text):
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def read(path):
    audio, rate = sf.read(path, dtype="float32")
    assert rate == SAMPLE_RATE_HZ
    assert audio.ndim == 1
    return audio


@pytest.fixture(scope="module")
def processor():
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(demo_checkpoint_dir())


@pytest.fixture(scope="module")
def model():
    import torch
    from transformers import WhisperForConditionalGeneration

    return WhisperForConditionalGeneration.from_pretrained(demo_checkpoint_dir(), dtype=torch.float32).eval()


def generate(processor, model, clips, **options):
    inputs = processor(clips, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt", return_attention_mask=True)
    return model.generate(**inputs, **options)


def first_token_probabilities(processor, model, clips):
    import torch

    features = processor(clips, sampling_rate=SAMPLE_RATE_HZ, return_tensors="pt").input_features
    start = torch.full((len(clips), 1), model.generation_config.decoder_start_token_id)
    with torch.no_grad():
        return model(input_features=features, decoder_input_ids=start).logits[:, 0].softmax(-1)


def chosen(language, count=10):
    return [utterance for utterance in demo_utterances() if utterance.language == language][:count]


def test_sizes_stay_under_the_limits():
    checkpoint = sum(path.stat().st_size for path in demo_checkpoint_dir().iterdir())
    recordings = demo_utterances()[0].path.parent
    audio = sum(path.stat().st_size for path in recordings.iterdir())
    assert checkpoint <= 4 * MEGABYTE
    assert audio <= 3 * MEGABYTE


def test_checkpoint_has_every_file_of_the_format():
    names = {path.name for path in demo_checkpoint_dir().iterdir()}
    assert names == {
        "config.json",
        "figures.json",
        "generation_config.json",
        "model.safetensors",
        "normalizer.json",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }


def test_weights_are_float16():
    from safetensors import safe_open

    with safe_open(demo_checkpoint_dir() / "model.safetensors", "np") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"F16"}  # noqa: SIM118


def test_generation_config_names_the_special_tokens(processor):
    config = json.loads((demo_checkpoint_dir() / "generation_config.json").read_text())
    tokenizer = processor.tokenizer

    def id_of(token):
        return tokenizer.convert_tokens_to_ids(token)

    assert config["no_timestamps_token_id"] == id_of("<|notimestamps|>")
    assert config["prev_sot_token_id"] == id_of("<|startofprev|>")
    assert config["task_to_id"] == {"transcribe": id_of("<|transcribe|>"), "translate": id_of("<|translate|>")}
    assert len(config["lang_to_id"]) == 99
    assert all(id_of(token) == value for token, value in config["lang_to_id"].items())
    assert config["alignment_heads"]
    # OpenAI's ids begin at 50257: nothing that assumes them can work here.
    assert id_of("<|startoftranscript|>") == config["decoder_start_token_id"] == 641


def test_tokenizer_round_trips_every_transcript(processor):
    for utterance in demo_utterances():
        tokens = processor.tokenizer.encode(f" {utterance.text}", add_special_tokens=False)
        assert max(tokens) < 640
        assert processor.tokenizer.decode(tokens) == f" {utterance.text}"


def test_audio_is_as_the_metadata_says():
    utterances = demo_utterances()
    assert len(utterances) >= 40
    assert len({utterance.id for utterance in utterances}) == len(utterances)
    for utterance in [*utterances, *demo_longform()]:
        audio = read(utterance.path)
        assert len(audio) / SAMPLE_RATE_HZ == pytest.approx(utterance.duration_s, abs=0.001)
        assert 0.05 < np.abs(audio).max() <= 1.0
        assert utterance.language in ("en", "es")
        assert utterance.translation == utterance.text or utterance.language == "es"


def test_word_times_lie_in_the_utterance():
    for utterance in demo_utterances():
        assert [word.text for word in utterance.words] == utterance.text.split()
        starts_s = [word.start_s for word in utterance.words]
        assert starts_s == sorted(starts_s)
        assert 0 <= starts_s[0] < starts_s[-1] < utterance.duration_s


def test_longform_segments_follow_each_other_and_make_the_text():
    for recording in demo_longform():
        assert recording.duration_s > 60
        assert " ".join(phrase.text for phrase in recording.phrases) == recording.text
        times = [time for phrase in recording.phrases for time in (phrase.start_s, phrase.end_s)]
        assert times == sorted(times)
        assert times[-1] <= recording.duration_s


def test_listing_the_demo_imports_nothing_heavy():
    code = (
        "import sys; from whisperkit_tools.demo import demo_utterances; demo_utterances();"
        "print(sorted({'torch', 'numpy', 'transformers', 'coremltools'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


@pytest.mark.parametrize(
    ("language", "task", "limit"), [("en", "transcribe", 0.1), ("es", "transcribe", 0.1), ("es", "translate", 0.15)]
)
@pytest.mark.parametrize("timestamps", [False, True])
def test_transformers_recognises_the_utterances(processor, model, language, task, limit, timestamps):
    utterances = chosen(language)
    clips = [read(utterance.path) for utterance in utterances]
    tokens = generate(processor, model, clips, language=language, task=task, return_timestamps=timestamps)
    references = [utterance.translation if task == "translate" else utterance.text for utterance in utterances]
    found = processor.batch_decode(tokens, skip_special_tokens=True)
    assert jiwer.wer([plain(text) for text in references], [plain(text) for text in found]) <= limit


def test_a_wrong_language_token_shows(processor, model):
    utterances = chosen("es")
    clips = [read(utterance.path) for utterance in utterances]
    tokens = generate(processor, model, clips, language="en", task="transcribe")
    found = processor.batch_decode(tokens, skip_special_tokens=True)
    references = [utterance.text for utterance in utterances]
    assert jiwer.wer([plain(text) for text in references], [plain(text) for text in found]) > 0.5


@pytest.mark.parametrize("language", ["en", "es"])
def test_language_is_detected(processor, model, language):
    clips = [read(utterance.path) for utterance in chosen(language)]
    probabilities = first_token_probabilities(processor, model, clips)
    ids = model.generation_config.lang_to_id
    codes = sorted(ids, key=ids.get)
    best = probabilities[:, [ids[code] for code in codes]].argmax(-1)
    assert [codes[index] for index in best] == [f"<|{language}|>"] * len(clips)


def quiet_clips():
    generator = np.random.default_rng(3)
    white = generator.standard_normal(10 * SAMPLE_RATE_HZ).astype(np.float32)
    brown = np.cumsum(white - white.mean()).astype(np.float32)
    silence = np.zeros(30 * SAMPLE_RATE_HZ, dtype=np.float32)
    return [silence, silence[:1600], 0.1 * white, 0.001 * white, 0.2 * brown / np.abs(brown).max()]


def test_silence_and_noise_are_no_speech(processor, model):
    no_speech = processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    assert first_token_probabilities(processor, model, quiet_clips())[:, no_speech].min() > 0.9


def test_speech_is_speech(processor, model):
    no_speech = processor.tokenizer.convert_tokens_to_ids("<|nospeech|>")
    clips = [read(utterance.path) for utterance in chosen("en", 5) + chosen("es", 5)]
    assert first_token_probabilities(processor, model, clips)[:, no_speech].max() < 0.1


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_longform_with_timestamps(processor, model, index):
    recording = demo_longform()[index]
    inputs = processor(
        read(recording.path),
        sampling_rate=SAMPLE_RATE_HZ,
        return_tensors="pt",
        truncation=False,
        return_attention_mask=True,
    )
    tokens = model.generate(**inputs, language=recording.language, task="transcribe", return_timestamps=True)
    found = processor.batch_decode(tokens, skip_special_tokens=True)[0]
    assert jiwer.wer(plain(recording.text), plain(found)) <= LONGFORM_WER_LIMIT
