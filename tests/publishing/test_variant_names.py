import pytest

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.variant_names import check_together, check_variant, variants_of


@pytest.mark.parametrize(
    "name",
    ["openai_whisper-large-v3_turbo_954MB", "distil-whisper_distil-large-v3_594MB", "a_b", "openai_whisper-tiny.en"],
)
def test_names_of_the_contract(name):
    check_variant(name)


@pytest.mark.parametrize(
    "name", ["", "reports", "whisper", "../x_y", "a_b/c", "a_b..c", ".a_b", "a_b*", "a_b\n", "ä_b", "a_" + "b" * 99]
)
def test_other_names_are_refused(name):
    with pytest.raises(PublishError, match="not a variant's name"):
        check_variant(name)


def test_a_name_that_ends_with_another():
    check_together(["openai_whisper-tiny", "openai_whisper-tiny_20MB", "openai_whisper-tiny.en", "openai_whisper-tiny"])
    with pytest.raises(PublishError, match="x_openai_whisper-tiny ends with openai_whisper-tiny"):
        check_together(["openai_whisper-tiny", "x_openai_whisper-tiny", "acme_base"])


def test_variants_are_the_folders_with_three_packages():
    paths = ["README.md", "reports/a.json", "acme_tts/Model.mlpackage/x"]
    paths += [f"acme_w/{name}.mlpackage/Manifest.json" for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder")]
    paths += [f"old_w/{name}.mlmodelc/model.mil" for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder")]
    assert list(variants_of(paths)) == ["acme_w", "old_w"]
