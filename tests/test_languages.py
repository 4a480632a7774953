"""Languages as they are written, against Whisper's own tables and the tags of systems and data sets."""

import pytest
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from whisperkit_tools.languages import LANGUAGE_CODES, LANGUAGE_NAMES, base_language, language_candidates


def test_names_and_codes_are_whispers():
    assert dict(LANGUAGES) == LANGUAGE_NAMES
    assert {name: LANGUAGE_CODES[name] for name in TO_LANGUAGE_CODE} == TO_LANGUAGE_CODE


@pytest.mark.parametrize("code", sorted(LANGUAGES))
def test_every_code_and_name_is_itself(code):
    for written in (code, code.upper(), f"<|{code}|>", LANGUAGES[code].title(), f"{code}-001", f"{code}_Latn_ZZ"):
        assert language_candidates(written)[0] == code


@pytest.mark.parametrize(
    ("written", "code"),
    [
        ("pt-BR", "pt"), ("zh-Hans", "zh"), ("zh-TW", "zh"), ("en_US", "en"), ("cmn-Hans-CN", "zh"), ("nb-NO", "no"),
        ("iw", "he"), ("es-419", "es"), ("yue-Hant-HK", "yue"), ("zh-yue", "yue"), ("fil", "tl"), ("fil-PH", "tl"),
        ("en_US.UTF-8", "en"), ("de_DE@euro", "de"), ("nn-NO", "nn"), ("in", "id"), ("ji", "yi"), ("jv-ID", "jw"),
        ("mo", "ro"), ("ger", "de"), ("deu", "de"), ("fre", "fr"), ("cze", "cs"), ("zsm", "ms"), ("arb", "ar"),
        ("pes-IR", "fa"), ("sr-Latn-RS", "sr"), ("sh", "sr"), ("zh-min-nan", "zh"), ("no-bok", "no"), ("eng", "en"),
        ("Portuguese (Brazil)", "pt"), ("Chinese (Simplified)", "zh"), ("Filipino", "tl"), ("Norwegian Bokmål", "no"),
        ("en-GB-oxendict", "en"), ("de-DE-u-co-phonebk", "de"), ("en-x-private", "en"), ("hy-AM", "hy"),
    ],
)  # fmt: skip
def test_tags_of_systems_and_data_sets(written, code):
    assert language_candidates(written)[0] == code
    assert base_language(written) == code


def test_a_model_without_the_language_itself_gets_its_nearest():
    assert language_candidates("yue-HK") == ("yue", "zh")
    assert language_candidates("zh-cmn") == ("zh",)
    assert language_candidates("nno") == ("nn", "no", "nb")[:2]


@pytest.mark.parametrize("written", ["", " ", "x-private", "i", "123", "a_b", "-"])
def test_what_is_no_language(written):
    assert language_candidates(written) == ()


def test_unknown_languages_keep_their_code():
    assert base_language("tlh-QO") == "tlh"
    assert base_language("x") == "x"
    assert base_language(None) is None
