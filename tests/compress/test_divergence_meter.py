"""Measured divergence against transformers, which runs the same weights on the same tokens."""

import pytest
import torch

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.divergence_meter import DivergenceMeter, block_format_weights
from whisperkit_tools.compress.gate_measurement import ReferenceTranscriber
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.demo import demo_checkpoint_dir, demo_utterances
from whisperkit_tools.quantization.block_formats import BLOCK_FORMATS, round_to_blocks


@pytest.fixture(scope="module")
def packages(demo_bundle):
    return {name: demo_bundle / f"{name}.mlpackage" for name in MODEL_COMPONENTS}


@pytest.fixture(scope="module")
def windows(demo_bundle):
    reference = ReferenceTranscriber(Bundle.open(demo_bundle), 101)
    return [reference.transcribe(one, whole=False).window for one in demo_utterances()[:2]]


def _logits(model, window):
    """The logits `[predicted, V]` that transformers gives each predicted token."""
    with torch.no_grad():
        given = torch.tensor([window.tokens[:-1]])
        return model(input_features=window.features[:, :, 0], decoder_input_ids=given).logits[0, window.first - 1 :]


def _total_kl(reference, found):
    first, second = (torch.log_softmax(logits.double(), -1) for logits in (reference, found))
    return torch.nn.functional.kl_div(second, first, log_target=True, reduction="sum").item()


def _with_blocks(model, wanted):
    """Round the matrices of a transformers model."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 2 and "embed_positions" not in name:
                value.copy_(torch.from_numpy(round_to_blocks(value.numpy(), wanted)))
    return model


def test_the_divergence_of_a_block_format_is_that_of_transformers(packages, windows):
    from transformers import WhisperForConditionalGeneration

    teacher, rounded = (
        WhisperForConditionalGeneration.from_pretrained(demo_checkpoint_dir(), dtype=torch.float32).eval()
        for _ in range(2)
    )
    wanted = BLOCK_FORMATS["q4_0"]
    _with_blocks(rounded, wanted)
    expected = sum(_total_kl(_logits(teacher, window), _logits(rounded, window)) for window in windows)
    tokens = sum(window.predicted for window in windows)
    meter = DivergenceMeter(packages, windows)
    found = meter.measure([block_format_weights(packages, wanted)])
    assert meter.tokens == tokens
    assert found == [pytest.approx(expected / tokens, rel=1e-3)]


def test_each_candidate_starts_from_the_uncompressed_weights(packages, windows):
    """What one candidate replaces does not stay for the next one."""
    meter = DivergenceMeter(packages, windows[:1])
    rounded = block_format_weights(packages, BLOCK_FORMATS["q4_0"])

    def nothing(_):
        return ()

    first, unchanged, again = meter.measure([rounded, nothing, rounded])
    assert unchanged == 0
    assert first == again > 0
    assert meter.measure([nothing]) == [0]
