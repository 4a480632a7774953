"""Normalisers against OpenAI's own, letters against jiwer's character error rate, and scripts against each other."""

import importlib
import importlib.util
import json
import pickle
import sys
import types
import warnings

import jiwer
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.metrics.normalize import (
    LETTER_LANGUAGES,
    NORMALIZERS,
    OPENAI_2025,
    BasicTextNormalizer,
    EnglishTextNormalizer,
    Normalization,
    default_spellings,
    read_spellings,
)
from whisperkit_tools.eval.metrics.transliterate import to_latin
from whisperkit_tools.eval.metrics.wer import score

WORDS = """
one two three nine ten eleven twelve fifteen nineteen twenty thirty forty sixty ninety hundred thousand million billion
trillion o oh zero double triple point and a half first second third fifth twelfth twentieth hundredth thirds tens
nines twenties dollars dollar cents cent pounds pound euros euro percent per cent plus minus negative dozen
$5 $0.05 £3.20 €1,000,000 ¢50 5¢ 5% 5%. 3rd 1st 22nd 10th 1960s 60's 10 007 0 00 1.5 .5 5. 1.2.3 12:30 3-4 1/2 ½ 3/4
won't can't I'm he's we'll they've gonna gotta wanna let's y'all 'til ain't mr. mrs. dr. st. prof. capt. gov. sen. jr.
he'd been she'd gone it's been who's done colour grey realise centre tyre favourite travelled mm hmm uh um mhm
hello , . ! ? - -- ' " ( laughs ) [noise] <unk> naïve café œuvre ß Ø ł ... … — “quoted” x% $x ² ³ Ⅻ ٣ 十 é
"""
PIECES = WORDS.split()
TEXTS = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=5).map("".join),
    st.tuples(
        st.sampled_from("$£€ "), st.decimals(0, 10**7, places=2), st.sampled_from([" million", "%", " dollars", ""])
    ).map(lambda parts: f"{parts[0]}{parts[1]:,}{parts[2]}"),
    st.text(max_size=30),
)


@pytest.fixture(scope="session")
def openai():
    """The normalizers of an installed openai-whisper, without the rest of it, which needs numba and tiktoken."""
    found = importlib.util.find_spec("whisper")
    if found is None or not found.submodule_search_locations:
        pytest.skip("openai-whisper is not installed: pip install --no-deps openai-whisper more-itertools regex")
    folder = f"{found.submodule_search_locations[0]}/normalizers"
    package = types.ModuleType("openai_normalizers")
    package.__path__ = [folder]
    sys.modules["openai_normalizers"] = package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it leaves its table to the garbage collector
        english = importlib.import_module("openai_normalizers.english").EnglishTextNormalizer()
    basic = importlib.import_module("openai_normalizers.basic").BasicTextNormalizer
    yield types.SimpleNamespace(english=english, basic=basic)
    for name in [name for name in sys.modules if name.startswith("openai_normalizers")]:
        del sys.modules[name]


@pytest.fixture(scope="session")
def english():
    return EnglishTextNormalizer()


@pytest.fixture(scope="session")
def english_2025():
    return EnglishTextNormalizer(edition=OPENAI_2025)


# Equal to OpenAI's


def test_english_is_openais(openai, english_2025):
    @given(TEXTS)
    @settings(deadline=None, max_examples=1000)
    def same(text):
        assert english_2025(text) == openai.english(text)

    same()


def test_basic_is_openais(openai):
    @given(TEXTS, st.booleans(), st.booleans())
    @settings(deadline=None, max_examples=300)
    def same(text, remove_diacritics, split_letters):
        ours = BasicTextNormalizer(remove_diacritics, split_letters, OPENAI_2025)
        assert ours(text) == openai.basic(remove_diacritics, split_letters)(text)

    same()


def test_every_spelling_is_openais(openai, english):
    for british in default_spellings():
        assert english(f"the {british}") == openai.english(f"the {british}")


def test_real_references_are_normalised_as_by_openai(openai, english, english_2025, shared):
    texts = [path.read_text() for path in sorted(shared.glob("audio/LibriSpeech/*/*/*/*.trans.txt"))]
    lines = (shared / "audio" / "rev-earnings" / "4330115.nlp").read_text().splitlines()
    tokens = [line.split("|") for line in lines[1:]]
    texts += [" ".join(row[0] + row[4] for row in tokens[start : start + 40]) for start in range(0, len(tokens), 40)]
    for text in texts:
        assert english_2025(text) == openai.english(text)
        assert BasicTextNormalizer()(text) == openai.basic()(text)
        if "1" not in openai.english(text) and "one" not in text.lower():
            assert english(text) == openai.english(text)


# The corrections of 2026


@pytest.mark.parametrize(
    ("text", "before", "after"),
    [  # source: openai/whisper, pull request 2836; the last two lines are our own
        ("three point one", "3 one", "3.1"),
        ("one point five", "one.5", "1.5"),
        ("one dollar", " one", "$1"),
        ("one percent", "one ", "1%"),
        ("minus one", "-one", "-1"),
        ("PyTorch 1.10.1", "pytorch one.10 one", "pytorch 1.10.1"),
        ("the ones and the 1s and one", "the ones and the ones and one", "the ones and the ones and one"),
        ("-1 degree, 3-4", "one degree 3 4", "-1 degree 3 4"),
        ("minus twenty and \u221220", "-20 and 20", "-20 and -20"),
    ],
)
def test_one_keeps_what_belongs_to_it(english, english_2025, text, before, after):
    assert english_2025(text) == before
    assert english(text) == after


@pytest.mark.parametrize(
    ("language", "reference", "hypothesis", "words", "errors"),
    [
        ("hi", "मैं कल दिल्ली जाऊँगा", "मैं कल दिल्ली जाउंगा", 4, 1),
        ("ta", "வணக்கம் நண்பர்களே", "வணக்கம் நண்பர்கள்", 2, 1),
        ("bn", "আমি বাংলায় গান গাই", "আমি বাংলায় গান গাই।", 4, 0),
        ("ml", "എന്റെ വീട് ഇവിടെയാണ്", "എന്റെ വീട് അവിടെയാണ്", 3, 1),
        ("kn", "ನಾನು ಮನೆಗೆ ಹೋಗುತ್ತೇನೆ", "ನಾನು ಮನೆಗೆ ಹೋಗುತ್ತೇವೆ", 3, 1),
        ("si", "මම ගෙදර යනවා", "මම ගෙදර යනවා", 3, 0),
        ("km", "ខ្ញុំ ទៅ ផ្ទះ", "ខ្ញុំ ទៅ ផ្ទះ", 3, 0),
        ("dv", "އަހަރެން ގެއަށް ދަނީ", "އަހަރެން ގެއަށް ދަން", 3, 1),
        ("ar", "كَتَبَ الوَلَدُ الدَّرْسَ", "كتب الولد الدرس", 3, 0),
        ("he", "שָׁלוֹם עוֹלָם", "שלום עולם", 2, 0),
        ("vi", "ti\u00ea\u0301ng Vi\u1ec7t", "tiếng Việt", 2, 0),
        ("es", "corazo\u0301n ❤\ufe0f 5\ufe0f\u20e3", "corazón 5", 2, 0),
    ],
)
def test_marks_that_spell_vowels_stay(language, reference, hypothesis, words, errors):
    found = score(*Normalization().pair(reference, hypothesis, language)).words
    assert (found.reference, found.errors) == (words, errors)


def test_letters_keep_their_marks():
    assert Normalization().text("ที่นี่!", "th") == "ที่ นี่"
    assert Normalization("openai-2025").text("ที่นี่!", "th") == "ท น"


def test_the_normaliser_is_named_with_its_version():
    assert Normalization().described("en") != Normalization("openai-2025").described("en")
    assert Normalization("openai-2025").described("hi") == "basic (20250625, all marks dropped)"
    assert Normalization("none").described(None) == "none (1)"


@pytest.mark.parametrize("case", ["17-marks-of-brahmic-scripts", "18-the-number-one"])
def test_pairs_from_the_field(shared, case):
    for line in (shared / "cases" / case / "pairs.jsonl").read_text(encoding="utf-8").splitlines():
        pair = json.loads(line)
        found = score(*Normalization().pair(pair["reference"], pair["hypothesis"], pair["language"])).words
        assert found.errors == pair["errors"]
        assert found.reference == pair.get("words", found.reference)


# By hand, so that something holds where OpenAI's package is absent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Mr. O'Brien won't pay $1,000.50 — that's 5 percent!", "mister 0 brien will not pay $1000.50 that is 5%"),
        ("one hundred and twenty-five thousand", "125000"),
        ("twenty twenty-six", "2026"),
        ("The colour, um, of [noise] the centre (laughs)", "the color of the center"),
    ],
)
def test_english_by_hand(english, text, expected):
    assert english(text) == expected


def test_a_loop_of_digits_is_normalised_too(english):
    """OpenAI's edition fails on more digits than Python reads as one number."""
    assert english("9" * 5000 + " times").split()[-1] == "times"
    assert english("9," * 5000 + "9") == "9" * 4300 + " " + "9" * 701
    assert english("1" * 4300) == "1" * 4300


# Spellings


def test_the_spellings_are_those_of_the_published_checkpoints(shared):
    assert default_spellings() == read_spellings(shared / "checkpoints" / "whisper-tiny" / "normalizer.json")


def test_a_folders_own_spellings(tmp_path):
    (tmp_path / "normalizer.json").write_text('{"foo": "bar"}')
    assert EnglishTextNormalizer(read_spellings(tmp_path / "normalizer.json"))("foo colour") == "bar colour"
    for content, message in (("[1", "is not JSON"), ('{"a": 1}', "is not a table of spellings")):
        (tmp_path / "normalizer.json").write_text(content)
        with pytest.raises(DatasetError, match=message):
            read_spellings(tmp_path / "normalizer.json")
    with pytest.raises(DatasetError, match="No such file"):
        read_spellings(tmp_path / "gone.json")


# Choice by language


@pytest.mark.parametrize(
    ("language", "kind"),
    [
        ("en", "english"),
        ("en-US", "english"),
        ("zh_CN", "letters"),
        ("yue", "letters"),
        ("es", "basic"),
        (None, "basic"),
    ],
)
def test_auto_goes_by_language(language, kind):
    assert Normalization().kind(language) == kind
    assert Normalization("none").kind(language) == "none"


def test_letter_languages():
    assert sorted(LETTER_LANGUAGES) == ["ja", "lo", "my", "th", "yue", "zh"]


@pytest.mark.parametrize("language", sorted(LETTER_LANGUAGES))
def test_letters_are_counted_where_words_have_no_spaces(language):
    reference, hypothesis = Normalization().pair("今日は、良い天気。", "今日 良い天气", language)
    assert reference == "今 日 は 良 い 天 気"
    expected = jiwer.process_characters("今日は良い天気", "今日良い天气")
    found = score(reference, hypothesis).words
    assert (found.substitutions, found.deletions) == (expected.substitutions, expected.deletions) == (1, 1)
    assert found.rate == expected.cer


def test_unknown_choice_and_none():
    with pytest.raises(
        OptionsError, match="no normalizer 'foo'; known: auto, english, basic, letters, none, openai-2025"
    ):
        Normalization("foo")
    assert Normalization("none").pair(" It's  $5. ", "Да", "sr") == ("It's $5.", "Да")


@pytest.mark.parametrize("choice", NORMALIZERS)
def test_a_normalization_travels(choice):
    made = Normalization(choice, {"foo": "bar"})
    made.text("foo", "en")
    again = pickle.loads(pickle.dumps(made))
    assert again == made
    assert again.text("foo", "en") == made.text("foo", "en")


# Scripts


def test_serbian_is_the_same_in_both_scripts():
    cyrillic = "Сва људска бића рађају се слободна и једнака у достојанству и правима. Њих џеп Ђорђе чекић"
    latin = "Sva ljudska bića rađaju se slobodna i jednaka u dostojanstvu i pravima. Njih džep Đorđe čekić"
    assert to_latin(cyrillic, "sr") == latin
    for pair in ((cyrillic, latin), (latin, cyrillic)):
        assert len(set(Normalization().pair(*pair, "sr"))) == 1


@pytest.mark.parametrize(
    ("language", "cyrillic", "latin"),
    [
        ("uz", "Ўзбекистон ғалаба қиз шаҳар", "Oʻzbekiston gʻalaba qiz shahar"),
        ("az", "Азәрбајҹан ҝөзәл шәһәр", "Azərbaycan gözəl şəhər"),
        ("ru", "Щука живёт в реке", "Shchuka zhivyot v reke"),
        ("uk", "Київ є столицею", "Kyyiv ye stolytseyu"),
        ("mk", "Ѓорче и ќерка му", "Ǵorče i ḱerka mu"),
        (None, "Москва", "Moskva"),
    ],
)
def test_other_languages_by_hand(language, cyrillic, latin):
    assert to_latin(cyrillic, language) == latin


def test_scripts_stay_where_they_agree_or_say_nothing():
    both = Normalization()
    assert both.pair("Да, сэр", "да сэр", "ru") == ("да сэр", "да сэр")
    assert both.pair("Да", "", "ru") == ("да", "")
    assert both.pair("Да", "5", "ru") == ("да", "5")
    assert both.pair("Да", "da", "ru") == ("da", "da")
    assert both.pair("日本", "nihon", "ja") == ("日 本", "n i h o n")


def test_the_table_that_ships_is_json():
    assert json.loads(json.dumps(default_spellings()))["colour"] == "color"
