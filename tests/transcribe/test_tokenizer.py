"""Special ids come from the bundle's own files, whatever vocabulary it has."""

import json
from dataclasses import replace

import pytest

from whisperkit_tools.errors import BundleError, OptionsError
from whisperkit_tools.transcribe.tokenizer import WhisperTokenizer, special_tokens


def load(folder, *, vocab_size, generation_config=None):
    if generation_config is None:
        generation_config = json.loads((folder / "generation_config.json").read_text())
    return WhisperTokenizer.load(folder / "tokenizer.json", generation_config, vocab_size=vocab_size, n_audio_ctx=1500)


# Ids of OpenAI's published vocabularies; no_speech is what transformers takes: the one before no_timestamps.
@pytest.mark.parametrize(
    ("name", "vocab_size", "end", "start", "previous", "no_speech", "begin", "languages"),
    [
        ("whisper-tiny", 51865, 50257, 50258, 50361, 50362, 50364, 99),
        ("whisper-tiny.en", 51864, 50256, 50257, 50360, 50361, 50363, 0),
        ("whisper-large-v3", 51866, 50257, 50258, 50362, 50363, 50365, 100),
        ("whisper-micro", 2248, 640, 641, 744, 745, 747, 99),
    ],
)
@pytest.mark.parametrize("with_config", [True, False])
def test_ids_of_real_vocabularies(
    shared, name, vocab_size, end, start, previous, no_speech, begin, languages, with_config
):
    """The same from the tokenizer alone, for a checkpoint whose generation config says nothing."""
    config = None if with_config else {}
    special = load(shared / "checkpoints" / name, vocab_size=vocab_size, generation_config=config).special
    assert (special.end_of_text, special.start_of_transcript, special.start_of_previous) == (end, start, previous)
    assert (special.no_speech, special.no_timestamps, special.timestamp_begin) == (no_speech, begin - 1, begin)
    assert special.timestamp_end == begin + 1501
    assert len(special.languages) == languages
    assert set(special.tasks) == ({"transcribe", "translate"} if languages else set())
    assert special.is_multilingual == bool(languages)


def test_text_goes_there_and_back_without_special_tokens(demo_bundle):
    tokenizer = load(demo_bundle, vocab_size=2248)
    special = tokenizer.special
    ids = tokenizer.encode(" Abre la cámara, por favor.")
    around = [special.start_of_transcript, special.timestamp_begin, *ids, special.timestamp_begin + 50]
    assert tokenizer.decode([*around, special.end_of_text]) == " Abre la cámara, por favor."


def test_timestamps_that_the_tokenizer_does_not_know_have_no_text(shared):
    tokenizer = load(shared / "checkpoints" / "whisper-tiny.en", vocab_size=51864)
    assert tokenizer.decode([tokenizer.special.timestamp_begin + 3, *tokenizer.encode(" yes")]) == " yes"


@pytest.mark.parametrize("language", ["es", "ES", " Spanish ", "<|es|>", "castilian", "es-419", "spa"])
def test_languages_by_code_and_name(demo_bundle, language):
    special = load(demo_bundle, vocab_size=2248).special
    assert special.language_of(special.language_id(language)) == "es"


@pytest.mark.parametrize(("language", "hint"), [("spanich", "spanish"), ("esp", "es"), ("xqzzy", "known codes are")])
def test_an_unknown_language_gets_a_hint(demo_bundle, language, hint):
    special = load(demo_bundle, vocab_size=2248).special
    with pytest.raises(OptionsError, match=hint):
        special.language_id(language)


def test_a_language_that_only_other_models_know_is_named(demo_bundle):
    special = replace(load(demo_bundle, vocab_size=2248).special, languages={"en": 1, "es": 2})
    with pytest.raises(OptionsError, match=r"language 'ko-KR' is korean \(ko\), which this model does not know"):
        special.language_id("ko-KR")


def test_cantonese_is_chinese_where_the_model_has_no_token_for_it(shared):
    special = load(shared / "checkpoints" / "whisper-tiny", vocab_size=51865).special
    assert special.language_of(special.language_id("yue-Hant-HK")) == "zh"
    large = load(shared / "checkpoints" / "whisper-large-v3", vocab_size=51866).special
    assert large.language_of(large.language_id("yue-Hant-HK")) == "yue"


def test_an_english_model_takes_no_language(shared):
    special = load(shared / "checkpoints" / "whisper-tiny.en", vocab_size=51864).special
    with pytest.raises(OptionsError, match="knows only English"):
        special.language_id("en")


def test_a_prompt_is_cut_from_the_front_with_a_notice(demo_bundle):
    tokenizer = load(demo_bundle, vocab_size=2248)
    whole, none = tokenizer.encode_prompt("  Call Maria on Monday. ", 100)
    assert none is None
    assert tokenizer.decode(whole) == " Call Maria on Monday."
    cut, notice = tokenizer.encode_prompt("Call Maria on Monday.", 3)
    assert cut == whole[-3:]
    assert f"{len(whole)} tokens; the last 3" in notice


def test_a_prompt_may_not_spell_special_tokens(demo_bundle):
    with pytest.raises(OptionsError, match=r"special tokens \(<\|en\|>\)"):
        load(demo_bundle, vocab_size=2248).encode_prompt("say <|en|> now", 100)


def test_all_missing_ids_are_named():
    with pytest.raises(BundleError, match=r"<\|endoftext\|> is None, <\|notimestamps\|> is 99; .*another model"):
        special_tokens({"<|startoftranscript|>": 4, "<|notimestamps|>": 99}, {}, vocab_size=50, n_audio_ctx=1500)


def test_a_file_that_is_no_tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text('{"a": 1}')
    with pytest.raises(BundleError, match="is not a tokenizer"):
        WhisperTokenizer.load(path, {}, vocab_size=10, n_audio_ctx=1500)


def test_of_several_ends_of_text_the_first_counts():
    names = {"<|startoftranscript|>": 4, "<|notimestamps|>": 9}
    special = special_tokens(names, {"eos_token_id": [2, 3]}, vocab_size=2000, n_audio_ctx=1500)
    assert special.end_of_text == 2
