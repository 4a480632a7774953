"""Second moments of layers' inputs against those that hooks see in transformers' model."""

import numpy as np
import pytest
import torch
from transformers import WhisperForConditionalGeneration

from whisperkit_tools.contract import DECODER, ENCODER
from whisperkit_tools.decoder import batched
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.demo import demo_checkpoint_dir
from whisperkit_tools.quantization.input_moments import estimate_moments
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey

TOKENS = (641, 642, 700, 30, 31, 32, 400, 640)
LAYERS = {
    (ENCODER, "layers_0_fc1_weight"): "encoder.layers.0.fc1",
    (ENCODER, "layers_1_self_attn_k_proj_weight"): "encoder.layers.1.self_attn.k_proj",
    (DECODER, "layers_0_self_attn_q_proj_weight"): "decoder.layers.0.self_attn.q_proj",
    (DECODER, "layers_1_fc2_weight"): "decoder.layers.1.fc2",
    (DECODER, "layers_1_encoder_attn_v_proj_weight"): "decoder.layers.1.encoder_attn.v_proj",
}


@pytest.fixture(scope="module")
def expected(noise_features):
    """By layer the moment of its input, over the same window twice."""
    model = WhisperForConditionalGeneration.from_pretrained(demo_checkpoint_dir(), dtype=torch.float32).eval().model
    found = {}

    def watch(key, name):
        def see(_, inputs):
            found[key] = inputs[0].flatten(0, 1)

        model.get_submodule(name).register_forward_pre_hook(see)

    for key, name in LAYERS.items():
        watch(key, name)
    with torch.no_grad():
        model(input_features=noise_features[:, :, 0], decoder_input_ids=torch.tensor([TOKENS[:-1]]))
    return {key: 2 * (value.T @ value).numpy() for key, value in found.items()}


@pytest.mark.parametrize("shares", [True, False])
def test_moments_are_those_of_the_checkpoint(packages, noise_features, expected, tmp_path, monkeypatch, shares):
    if not shares:  # steps that run one by one
        monkeypatch.setattr(batched, "share_cache_columns", lambda nodes: None)
    cache = SensitivityCache(tmp_path, SensitivityKey({}, []))
    assert not cache.has_moments(DECODER)
    estimate_moments(packages, [SpeechWindow(noise_features, TOKENS, 4)] * 2, cache.save_moments)
    for key, moment in expected.items():
        found = cache.moment(key)
        assert found is not None
        np.testing.assert_allclose(found, moment, rtol=0, atol=2e-3 * np.abs(moment).max())


def test_the_embedding_and_wide_kernels_have_none(packages, noise_features, tmp_path):
    cache = SensitivityCache(tmp_path, SensitivityKey({}, []))
    estimate_moments(packages, [SpeechWindow(noise_features, TOKENS, 4)], cache.save_moments)
    assert cache.moment((DECODER, "embed_tokens_weight_piece_0")) is None
    assert cache.moment((ENCODER, "conv1_weight")) is None
