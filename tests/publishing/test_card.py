"""The model card's table of variants beside ggml's block formats."""

from whisperkit_tools.compression_records import ComparedSizeRecord, ComparisonRecord
from whisperkit_tools.publishing.card import CardModel, CardVariant, render_card
from whisperkit_tools.publishing.index import PublishedVersion

MODEL = CardModel("acme/models", (), (), (), {})


def _variant(name, comparison=None):
    version = PublishedVersion(name, "c" * 64, "2026-01-02", "1", "acme/whisper", None, 25_000_000)
    return CardVariant(version, "ios16", comparison=comparison)


def _comparison(*formats):
    found = tuple(ComparedSizeRecord(name=name, nbytes=size, kl=kl) for name, size, kl in formats)
    chosen = ComparedSizeRecord(nbytes=24_900_000, kl=0.0123, predicted_kl=0.01)
    return ComparisonRecord(windows=12, tokens=345, chosen=chosen, block_formats=found)


def test_measured_variants_stand_beside_the_block_formats():
    both = _comparison(("q5_0", 27_705_024, 0.0202), ("q4_1", 25_428_096, 0.0718))
    one = _comparison(("q4_1", 25_428_096, 0.07))
    text = render_card(MODEL, [_variant("w"), _variant("w_25MB", both), _variant("w_24MB", one)], None).decode()
    assert "| Variant | As published | ggml q5\\_0 | ggml q4\\_1 |" in text
    assert "| `w_25MB` | 0.0123 (24.9 MB) | 0.0202 (27.7 MB) | 0.0718 (25.4 MB) |" in text
    assert "| `w_24MB` | 0.0123 (24.9 MB) | - | 0.0700 (25.4 MB) |" in text
    assert "lower is better" in text


def test_without_measurements_the_card_has_no_such_table():
    text = render_card(MODEL, [_variant("w"), _variant("w_25MB", ComparisonRecord())], None).decode()
    assert "ggml" not in text
