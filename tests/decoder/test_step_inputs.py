"""Masks and positions of decoding steps, one by one and stacked."""

import pytest
import torch

from whisperkit_tools.decoder.step_inputs import StepInputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_step_sees_itself_and_what_is_before_it(dtype):
    steps = StepInputs(5, dtype=dtype)
    for position in range(5):
        found = steps.step(position)
        assert found["cache_length"].tolist() == [position]
        assert found["cache_length"].dtype == torch.int32
        assert found["kv_cache_update_mask"].tolist() == [[float(at == position) for at in range(5)]]
        assert found["decoder_key_padding_mask"].tolist() == [[0.0 if at <= position else -10000.0 for at in range(5)]]
        assert found["kv_cache_update_mask"].dtype == found["decoder_key_padding_mask"].dtype == dtype


@pytest.mark.parametrize("positions", [slice(1, 4), torch.tensor([3, 0])])
def test_a_batch_is_its_steps_on_top_of_each_other(positions):
    steps, wide = StepInputs(4), StepInputs(6)
    chosen = range(6)[positions] if isinstance(positions, slice) else positions.tolist()
    for name, value in wide.batch(positions, 4).items():
        assert torch.equal(value, torch.stack([steps.step(at)[name] for at in chosen]))
