"""Tables as the written package has them, their gradients against autograd, and that tuning helps."""

import numpy as np
import pytest
import torch

from whisperkit_tools.decoder.teacher_forcing import SpeechWindow
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization import checkpointing
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.sensitivity import reference_logits
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey
from whisperkit_tools.quantization.tuning import TunablePalette, Tuning, TuningOptions

OPTIONS = [
    Compression(3),
    Compression(4, outlier_share=0.02),
    Compression(2, "per_grouped_channel", group_size=8),
    Compression(2, "per_grouped_channel", group_size=4, axis=1),
    Compression(4, cluster_dim=2),
    Compression(3, per_channel_scale=True),
]


def _weight():
    return np.random.default_rng(0).normal(size=(32, 16, 1, 1)).astype(np.float16)


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_a_table_gives_the_weight_that_is_written(option):
    made = palettize(_weight(), option)
    np.testing.assert_array_equal(TunablePalette(made).weight().numpy(), made.dense().astype(np.float32))


@pytest.mark.parametrize("option", OPTIONS, ids=str)
def test_the_gradient_of_entries_is_what_differences_say(option):
    table = TunablePalette(palettize(_weight(), option))
    direction = torch.randn(32, 16, 1, 1, generator=torch.Generator().manual_seed(1))
    gradient = table.gradient(direction)
    for at in (0, len(table.entries) // 2, len(table.entries) - 1):
        values, original = [], table.entries.clone()
        for step in (-0.25, 0.25):
            table.entries = original.clone()
            table.entries[at] += step
            values.append(float((table.weight() * direction).sum()))
        table.entries = original
        assert (values[1] - values[0]) / 0.5 == pytest.approx(float(gradient[at]), rel=0.02, abs=0.05)


@pytest.fixture(scope="module")
def window(noise_features):
    return SpeechWindow(noise_features, (641, 642, 700, 30, 31, 32, 400, 401, 402, 640), 4)


def _palettes(packages, component, names, nbits):
    weights = Program.load(packages[component]).weights
    return {
        component: {name: palettize(weights[name].detach().numpy(), Compression(nbits), name=name) for name in names}
    }


def test_tuning_lowers_the_divergence_and_leaves_indices_alone(packages, window):
    names = [f"layers_{layer}_{part}_weight" for layer in (0, 1) for part in ("fc1", "fc2", "self_attn_v_proj")]
    palettes = _palettes(packages, "TextDecoder", names, 2)
    references = reference_logits(packages, [window])
    tuning = Tuning(packages, palettes, [window], references, TuningOptions(steps=12, rate=0.15))
    before, after = tuning.run()
    assert after < 0.6 * before
    assert tuning.divergence() == pytest.approx(after, rel=1e-6)
    tuned = tuning.result()["TextDecoder"]
    for name in names:
        np.testing.assert_array_equal(tuned[name].indices, palettes["TextDecoder"][name].indices)
        assert tuned[name].nbytes == palettes["TextDecoder"][name].nbytes
    assert any((tuned[name].lut != palettes["TextDecoder"][name].lut).any() for name in names)


def test_tuning_reaches_the_encoder_and_keeps_the_start_when_steps_are_wild(packages, window):
    palettes = _palettes(packages, "AudioEncoder", ["layers_2_fc2_weight"], 2)
    references = reference_logits(packages, [window])
    tuning = Tuning(packages, palettes, [window], references, TuningOptions(steps=1, rate=1000.0))
    before, after = tuning.run()
    assert after == before
    part = tuning.result()["AudioEncoder"]["layers_2_fc2_weight"]
    np.testing.assert_array_equal(part.lut, palettes["AudioEncoder"]["layers_2_fc2_weight"].lut)


def test_integers_are_left_as_they_are(packages, window):
    palettes = _palettes(packages, "TextDecoder", ["layers_0_fc1_weight"], 2)
    weight = Program.load(packages["AudioEncoder"]).weights["layers_2_fc2_weight"].detach().numpy()
    palettes["AudioEncoder"] = {"layers_2_fc2_weight": palettize(weight, Compression(8, kind="linear"))}
    references = reference_logits(packages, [window])
    tuning = Tuning(packages, palettes, [window], references, TuningOptions(steps=4, rate=0.15))
    before, after = tuning.run()
    assert after < before
    assert tuning.result()["AudioEncoder"] == palettes["AudioEncoder"]
    alone = {"AudioEncoder": palettes["AudioEncoder"]}
    before, after = Tuning(packages, alone, [window], references, TuningOptions(steps=4)).run()
    assert 0 < before == after


def test_an_interrupted_tuning_goes_on_to_the_same_result(packages, window, tmp_path, monkeypatch):
    palettes = _palettes(packages, "TextDecoder", ["layers_0_fc1_weight", "layers_1_fc2_weight"], 2)
    references = reference_logits(packages, [window])
    options = TuningOptions(steps=5, rate=0.15)

    def tuning():
        return Tuning(packages, palettes, [window], references, options)

    whole = tuning()
    expected = whole.run()
    monkeypatch.setattr(checkpointing, "SAVE_EVERY_S", 0.0)
    profile, steps = SensitivityCache(tmp_path, SensitivityKey({}, [])), []

    def kill(number, _):
        steps.append(number)
        if steps == [1, 2, 3, 4]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning().run(kill, profile)
    again = tuning()
    assert again.run(kill, profile) == expected
    assert steps == [1, 2, 3, 4, 4, 5]
    later = tuning()
    assert later.run(kill, profile) == expected
    assert steps == [1, 2, 3, 4, 4, 5]  # all were done
    profile.drop(later.name)
    assert not list(profile.path.glob("*unfinished*"))
    for name, part in whole.result()["TextDecoder"].items():
        np.testing.assert_array_equal(again.result()["TextDecoder"][name].lut, part.lut)


def test_windows_that_judge_are_not_tuned_on(packages, window):
    other = SpeechWindow(window.features.flip(-1), window.tokens, window.first)
    palettes = _palettes(packages, "TextDecoder", ["layers_0_fc1_weight"], 2)
    references = reference_logits(packages, [other, window])
    options = TuningOptions(steps=3)
    tuning = Tuning(packages, palettes, [other, window], references, options, judging=[0])
    alone = Tuning(packages, palettes, [other], references[:1], options)
    assert tuning.divergence() == pytest.approx(alone.divergence(), rel=1e-6)
    heard = []
    tuning.run(lambda _, found: heard.append(found))
    first = Tuning(packages, palettes, [window], references[1:], options)
    assert heard[0] == pytest.approx(first.divergence(), rel=1e-4)


def test_options_are_checked():
    with pytest.raises(OptionsError, match="positive"):
        TuningOptions(steps=0)
