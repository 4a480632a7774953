"""Conversion with other layouts: the same outputs, recorded in the manifest, and options that make no sense refused."""

import json
from collections import Counter

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.conversion.config import ConvertConfig
from whisperkit_tools.conversion.convert import convert
from whisperkit_tools.conversion.verify import verify_bundle
from whisperkit_tools.errors import OptionsError, QualityGateError
from whisperkit_tools.mil.graph import read_graph


def operations(bundle, name):
    return Counter(operation.type for operation in read_graph(bundle / f"{name}.mlpackage").operations)


@pytest.mark.parametrize(
    ("options", "encoder_has", "decoder_has"),
    [
        ({"turbo": True}, "einsum", "matmul"),
        (
            {"audio_encoder_attention": "split-heads", "text_decoder_attention": "split-kv",
             "attention_chunk_size": 256, "logits_chunk_size": 1024, "deployment_target": "ios18"},
            "einsum",
            "reduce_max",
        ),
    ],
    ids=["turbo", "split-heads and split-kv"],
)  # fmt: skip
def test_layouts_pass_the_gate_and_verify(options, encoder_has, decoder_has, tmp_path):
    config = ConvertConfig(output_dir=tmp_path, **options)
    result = convert(open_checkpoint("demo"), config)
    figures = [value for item in result.parity for value in item.float32_db.values()]
    assert min(figures) > 70  # against the plain attention in PyTorch
    assert operations(result.path, "AudioEncoder")[encoder_has]
    assert operations(result.path, "TextDecoder")[decoder_has]
    recorded = json.loads((result.path / "wkt.json").read_text())["conversion"]
    assert recorded["turbo"] is options.get("turbo", False)
    assert recorded["logits_chunk_size"] == options.get("logits_chunk_size")
    if config.turbo:
        assert result.path.name.endswith("_turbo")
        assert recorded["audio_encoder_attention"] == "split-heads-q"
        assert recorded["text_decoder_attention"] == "cat"
        assert recorded["attention_chunk_size"] == 512
        assert verify_bundle(Bundle.open(result.path), open_checkpoint("demo")).problems == ()


def test_the_gate_closes_on_a_layout_that_computes_something_else(tmp_path, monkeypatch):
    """Package and module would agree with each other; the reference computes the attention plainly."""
    from whisperkit_tools.compile_hints import attention

    plain = attention.SplitKeys.attend_one_head
    monkeypatch.setattr(attention.SplitKeys, "attend_one_head", lambda self, q, k, v: plain(self, 1.1 * q, k, v))
    config = ConvertConfig(output_dir=tmp_path, turbo=True)
    with pytest.raises(QualityGateError, match="AudioEncoder: encoder_output_embeds"):
        convert(open_checkpoint("demo"), config)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"audio_encoder_attention": "dog"}, "unknown attention implementation 'dog'; known are cat"),
        ({"attention_chunk_size": 64}, "attention_chunk_size is 64, but neither 'cat' for the encoder nor 'cat'"),
        ({"turbo": True, "attention_chunk_size": 0}, "chunk size is 0, expected a positive multiple of 32"),
        ({"turbo": True, "audio_encoder_attention": "cat"}, "turbo is the layout with 'split-heads-q'"),
        ({"logits_chunk_size": 0}, "logits_chunk_size is 0, expected at least 512"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(OptionsError, match=message):
        ConvertConfig(**options)


def test_a_chunk_that_holds_everything_is_refused(tmp_path):
    config = ConvertConfig(output_dir=tmp_path, turbo=True, attention_chunk_size=1504)
    with pytest.raises(OptionsError, match="is 1504, which leaves the audio's 1500 positions in one piece; allowed"):
        convert(open_checkpoint("demo"), config)
