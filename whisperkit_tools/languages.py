"""Languages as people, data sets and systems write them, and the codes by which Whisper knows them.

Source: BCP 47 (RFC 5646) for tags, ISO 639-2 and 639-3 for codes of three letters, and openai/whisper's tokenizer for
the languages, their names and its own code of Javanese.
"""

import re

# Code: the English names, the first one as OpenAI writes it, then codes of three letters and deprecated ones. Where a
# code stands for several languages, such as Arabic, those that speakers count to it are among them.
_TABLE = """
en: english; eng
zh: chinese, mandarin, mandarin chinese; zho chi cmn nan wuu hak gan hsn cdo cjy mnp czo lzh
de: german; deu ger
es: spanish, castilian; spa
ru: russian; rus
ko: korean; kor
fr: french; fra fre
ja: japanese; jpn
pt: portuguese; por
tr: turkish; tur
pl: polish; pol
ca: catalan, valencian; cat
nl: dutch, flemish; nld dut vls
ar: arabic; ara arb arz ary apc ajp acm aeb apd ars afb
sv: swedish; swe
it: italian; ita
id: indonesian; ind in
hi: hindi; hin
fi: finnish; fin
vi: vietnamese; vie
he: hebrew; heb iw
uk: ukrainian; ukr
el: greek, modern greek; ell gre
ms: malay; msa may zsm zlm
cs: czech; ces cze
ro: romanian, moldavian, moldovan; ron rum mol mo
da: danish; dan
hu: hungarian; hun
ta: tamil; tam
no: norwegian, norwegian bokmål, norwegian bokmal, bokmål; nor nob nb
th: thai; tha
ur: urdu; urd
hr: croatian; hrv
bg: bulgarian; bul
lt: lithuanian; lit
la: latin; lat
mi: maori; mri mao
ml: malayalam; mal
cy: welsh; cym wel
sk: slovak; slk slo
te: telugu; tel
fa: persian, farsi; fas per pes prs
lv: latvian; lav lvs
bn: bengali, bangla; ben
sr: serbian; srp sh
az: azerbaijani; aze azj azb
sl: slovenian; slv
kn: kannada; kan
et: estonian; est ekk
mk: macedonian; mkd mac
br: breton; bre
eu: basque; eus baq
is: icelandic; isl ice
hy: armenian; hye arm hyw
ne: nepali; nep npi
mn: mongolian; mon khk
bs: bosnian; bos
kk: kazakh; kaz
sq: albanian; sqi alb als aln
sw: swahili; swa swh swc
gl: galician; glg
mr: marathi; mar
pa: punjabi, panjabi; pan pnb
si: sinhala, sinhalese; sin
km: khmer; khm
sn: shona; sna
yo: yoruba; yor
so: somali; som
af: afrikaans; afr
oc: occitan; oci
ka: georgian; kat geo
be: belarusian; bel
tg: tajik; tgk
sd: sindhi; snd
gu: gujarati; guj
am: amharic; amh
yi: yiddish; yid ydd ji
lo: lao; lao
uz: uzbek; uzb uzn
fo: faroese; fao
ht: haitian creole, haitian; hat
ps: pashto, pushto; pus pbt pst
tk: turkmen; tuk
nn: nynorsk, norwegian nynorsk; nno
mt: maltese; mlt
sa: sanskrit; san
lb: luxembourgish, letzeburgesch; ltz
my: myanmar, burmese; mya bur
bo: tibetan; bod tib
tl: tagalog, filipino; tgl fil
mg: malagasy; mlg plt
as: assamese; asm
tt: tatar; tat
haw: hawaiian;
ln: lingala; lin
ha: hausa; hau
ba: bashkir; bak
jw: javanese; jav jv
su: sundanese; sun
yue: cantonese;
"""


def _read() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Return the code of each name, the code of each other code, and the first name of each code."""
    names, others, first = dict[str, str](), dict[str, str](), dict[str, str]()
    for line in _TABLE.strip().splitlines():
        code, _, rest = line.partition(":")
        written, _, aliases = rest.partition(";")
        listed = [name.strip() for name in written.split(",")]
        first[code] = listed[0]
        names.update(dict.fromkeys(listed, code))
        others.update(dict.fromkeys(aliases.split(), code))
    return names, others, first


LANGUAGE_CODES, _OTHER_CODES, LANGUAGE_NAMES = _read()
# What a model knows a language by when it lacks the language's own code.
_INSTEAD = {"yue": ("zh",), "nn": ("no",), "he": ("iw",), "jw": ("jv",), "tl": ("fil",), "no": ("nb",)}
# Registered tags that are not made of subtags in the usual way.
_WHOLE_TAGS = {"no-bok": "no", "no-nyn": "nn", "i-lux": "lb", "i-hak": "zh", "zh-min-nan": "zh", "zh-cantonese": "yue"}


def language_candidates(written: str) -> tuple[str, ...]:
    """Return the codes that a written language may stand for, the most fitting one first.

    Args:
        written: A code, a token such as `<|es|>`, an English name (`Portuguese (Brazil)`), a BCP 47 tag (`pt-BR`,
            `zh-Hans`) or a system's locale (`en_US.UTF-8`). Script, region and variants are dropped.

    Returns:
        Whisper's codes. For a language that it does not know, the first subtag as it stands. Empty for nothing.
    """
    text = written.strip().lower().removeprefix("<|").removesuffix("|>")
    name = re.sub(r"\s*\(.*\)$", "", text)
    if name in LANGUAGE_CODES:
        return _with_instead(LANGUAGE_CODES[name])
    tag = re.split(r"[.@]", text)[0].replace("_", "-")
    if tag in _WHOLE_TAGS:
        return _with_instead(_WHOLE_TAGS[tag])
    primary, *subtags = tag.split("-")
    if not re.fullmatch(r"[a-z]{2,8}", primary):
        return ()
    extended = subtags[0] if subtags and re.fullmatch(r"[a-z]{3}", subtags[0]) else None
    found = [_known(extended)] if extended is not None else []
    found.append(_known(primary) or primary)
    codes = [code for code in found if code]
    return tuple(dict.fromkeys(other for code in codes for other in _with_instead(code)))


def _known(code: str | None) -> str | None:
    if code in LANGUAGE_NAMES:
        return code
    return _OTHER_CODES.get(code or "")


def _with_instead(code: str) -> tuple[str, ...]:
    return (code, *_INSTEAD.get(code, ()))


def base_language(language: str | None) -> str | None:
    """Return the code of a language without region or script: `zh` of `zh-CN`, `en` of `English`, `no` of `nb-NO`.

    A language that Whisper does not know keeps its first subtag, and what is no language at all stays as it is.
    """
    if not language:
        return None
    found = language_candidates(language)
    return found[0] if found else re.split(r"[-_]", language.lower())[0]
