"""Transliteration from Cyrillic to Latin letters, for languages with both, such as Serbian, Uzbek or Azerbaijani."""

import unicodedata


def _letters(pairs: str) -> dict[str, str]:
    return dict(pair.split("=") for pair in pairs.split())


# Serbian, Bosnian, Montenegrin, Croatian: the two alphabets correspond letter by letter.
# Macedonian has additional letters. Source: Gaj's and Karadžić's alphabets; Macedonian: BGN/PCGN.
_SOUTH_SLAVIC = _letters(
    "а=a б=b в=v г=g д=d ђ=đ е=e ж=ž з=z и=i ј=j к=k л=l љ=lj м=m н=n њ=nj о=o п=p р=r с=s т=t ћ=ć у=u "
    "ф=f х=h ц=c ч=č џ=dž ш=š ѓ=ǵ ќ=ḱ ѕ=dz"
)
# All others. Letters of Turkic and Iranian languages follow those of Russian, Ukrainian and Belarusian.
# Source: the BGN/PCGN romanisations, without apostrophes.
_GENERAL = _letters(
    "а=a б=b в=v г=g д=d е=e ё=yo ж=zh з=z и=i й=y к=k л=l м=m н=n о=o п=p р=r с=s т=t у=u ф=f х=kh ц=ts "
    "ч=ch ш=sh щ=shch ъ= ы=y ь= э=e ю=yu я=ya і=i ї=yi є=ye ґ=g ў=w ә=ä ғ=gh қ=q ң=ng ө=ö ұ=u ү=ü һ=h ҳ=h "
    "ҷ=j ӣ=i ӯ=u җ=j"
)
# Source: the Latin alphabets of Uzbek (1995), Azerbaijani (1991) and Turkmen (1999), and the Kazakh one of 2021.
_OVERRIDES = {
    "uk": _letters("г=h и=y"),
    "be": _letters("г=h"),
    "uz": _letters("е=e ж=j й=y х=x ц=s ў=oʻ ғ=gʻ қ=q ҳ=h ё=yo ю=yu я=ya ъ=ʼ"),
    "az": _letters("ж=j ҹ=c ч=ç ш=ş ғ=ğ х=x ҝ=g ј=y һ=h ә=ə ө=ö ү=ü ы=ı"),
    "kk": _letters("ж=j й=i х=h ш=ş щ=ş ғ=ğ қ=q ң=ñ ө=ö ұ=ū ү=ü ә=ä ы=y і=ı"),
    "tk": _letters("ж=ž җ=j й=ý ң=ň ш=ş ы=y в=w ч=ç ц=s"),
}
_SOUTH_SLAVIC_LANGUAGES = frozenset({"sr", "bs", "hr", "sh", "cnr", "me", "mk"})


def differ_in_script(first: str, second: str) -> bool:
    """Return whether one text is mostly Cyrillic and the other one is not."""
    return {_mostly_cyrillic(first), _mostly_cyrillic(second)} == {True, False}


def _mostly_cyrillic(text: str) -> bool | None:
    """Return whether most letters are Cyrillic. None for a text without letters."""
    letters = [character for character in text if character.isalpha()]
    return sum(map(_is_cyrillic, letters)) * 2 > len(letters) if letters else None


def _is_cyrillic(character: str) -> bool:
    return "\u0400" <= character <= "\u052f"


def to_latin(text: str, language: str | None = None) -> str:
    """Replace Cyrillic letters by Latin ones. All others stay.

    Args:
        text: Any text.
        language: Code of the language, because one letter has different sounds. None or unknown for a romanisation
            that suits Russian.
    """
    if not any(map(_is_cyrillic, text)):
        return text
    table = _table(language)
    return "".join(_letter(character, table) for character in unicodedata.normalize("NFC", text))


def _table(language: str | None) -> dict[str, str]:
    if language in _SOUTH_SLAVIC_LANGUAGES:
        return _GENERAL | _SOUTH_SLAVIC
    return _GENERAL | _OVERRIDES.get(language or "", {})


def _letter(character: str, table: dict[str, str]) -> str:
    latin = table.get(character.lower(), character)
    return latin.capitalize() if character.isupper() else latin
