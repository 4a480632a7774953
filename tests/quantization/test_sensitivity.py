"""Gradients through the programs against plain autograd, and the curvature against measured divergences."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.progress import SeenProgress

from whisperkit_tools.contract import EMBEDS, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder import batched
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, mean_divergence
from whisperkit_tools.errors import OptionsError
from whisperkit_tools.mil.activation_checkpointing import CheckpointedProgram
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.quantization import checkpointing
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.sensitivity import (
    FisherOptions,
    compressible_weights,
    cotangent,
    estimate_curvatures,
    predicted_divergence,
    reference_logits,
)
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey

TOKENS = (641, 642, 700, 30, 31, 32, 400, 401, 402, 500, 640)


@pytest.fixture(scope="module")
def window(noise_features):
    return SpeechWindow(noise_features, TOKENS, 4)


@pytest.fixture(scope="module")
def embeds(packages, window):
    return Program.load(packages["AudioEncoder"]).run({FEATURES: window.features})[EMBEDS]


def test_a_program_in_pieces_has_the_same_gradients(packages, window):
    program = Program.load(packages["AudioEncoder"])
    for parameter in program.parameters():
        parameter.requires_grad_(True)
    outputs = program.run({FEATURES: window.features})[EMBEDS]
    wanted = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(2))
    outputs.backward(wanted)
    expected = {name: weight.grad.clone() for name, weight in program.weights.items()}
    for parameter in program.parameters():
        parameter.grad = None
    pieces = CheckpointedProgram(program, 50 << 20)
    assert len(pieces) > 3
    assert len(CheckpointedProgram(program, 1 << 40)) == 1
    pieces.backward({FEATURES: window.features}, {EMBEDS: wanted})
    for name, weight in program.weights.items():
        torch.testing.assert_close(
            weight.grad, expected[name], rtol=1e-4, atol=1e-4 * float(expected[name].abs().max())
        )


def test_a_decoder_whose_steps_do_not_run_as_a_batch_is_said_once(packages, window, monkeypatch):
    monkeypatch.setattr(batched, "share_cache_columns", lambda nodes: None)
    progress = SeenProgress()
    windows = [replace(window, tokens=TOKENS[:6])] * 2
    estimate_curvatures(packages, windows, FisherOptions(samples=1), lambda name, value: None, progress)
    (note,) = progress.notes
    assert "TextDecoder.mlpackage: steps run one by one" in note


def test_cotangents_have_the_covariance_of_the_divergence():
    logits = torch.tensor([[2.0, 0.5, -1.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([cotangent(logits, generator) for _ in range(4000)])
    p = logits[0].softmax(-1)
    torch.testing.assert_close(draws.T @ draws / len(draws), torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.01)


@pytest.fixture(scope="module")
def curvature(packages, window):
    found = {}
    estimate_curvatures(packages, [window], FisherOptions(samples=24), lambda name, value: found.update({name: value}))
    return found


@pytest.fixture(scope="module")
def whole(packages, window):
    """Three windows, and the curvature of a pass over them without interruption."""
    windows = [
        window,
        SpeechWindow(window.features.flip(-1), TOKENS[:8], 4),
        SpeechWindow(window.features, TOKENS[:7], 4),
    ]
    found = {}
    estimate_curvatures(packages, windows, FisherOptions(samples=1), found.__setitem__)
    return windows, found


@pytest.mark.parametrize("stop", [("TextDecoder", 1), ("TextDecoder", 2), ("AudioEncoder", 1), ("AudioEncoder", 2)])
def test_an_interrupted_pass_goes_on_to_the_same_result(packages, whole, tmp_path, monkeypatch, stop):
    (windows, expected), options = whole, FisherOptions(samples=1)
    monkeypatch.setattr(checkpointing, "SAVE_EVERY_S", 0.0)
    found, done = {}, []

    class Killing(SilentProgress):
        def advance(self, component, number, total, detail=""):
            if (component, number) == stop and not done.count(stop):
                done.append(stop)
                raise KeyboardInterrupt
            done.append((component, number))

    cache = SensitivityCache(tmp_path, SensitivityKey({}, []))
    with pytest.raises(KeyboardInterrupt):
        estimate_curvatures(packages, windows, options, found.__setitem__, Killing(), cache)
    done.clear()
    done.append(stop)
    estimate_curvatures(packages, windows, options, found.__setitem__, Killing(), cache)
    for component in MODEL_COMPONENTS:
        for part in ("diagonal", "gradients"):
            for name, value in getattr(expected[component], part).items():
                np.testing.assert_array_equal(getattr(found[component], part)[name], value)
    assert len(expected["AudioEncoder"].gradients["embed_positions_weight"]) == len(windows)
    # The window at which it was killed is done again, those before are not.
    assert done[1] == stop
    assert not list(cache.path.glob("*unfinished*"))


def test_what_is_kept_of_a_pass_may_be_damaged(tmp_path):
    profile = SensitivityCache(tmp_path, SensitivityKey({}, []))
    assert profile.load("TextDecoder") is None
    profile.save("TextDecoder", {"a": torch.arange(3)})
    assert profile.load("TextDecoder")["a"].tolist() == [0, 1, 2]
    path = next(profile.path.glob("*unfinished*"))
    path.write_bytes(path.read_bytes()[:20])
    assert profile.load("TextDecoder") is None
    profile.drop("TextDecoder")
    profile.drop("TextDecoder")


@pytest.mark.parametrize(
    ("component", "name"),
    [("TextDecoder", "layers_0_self_attn_v_proj_weight"), ("TextDecoder", "layers_1_fc2_weight"),
     ("AudioEncoder", "layers_2_fc1_weight")],
)  # fmt: skip
def test_the_predicted_divergence_of_small_changes_is_the_measured_one(packages, window, curvature, component, name):
    programs = {key: Program.load(path) for key, path in packages.items()}
    forcing = TeacherForcing(programs["TextDecoder"])

    def logits():
        audio = programs["AudioEncoder"].run({FEATURES: window.features})[EMBEDS]
        return forcing.forward(window, audio).logits

    reference, weight = logits(), programs[component].weights[name]
    original, generator, measured, predicted = weight.detach().clone(), torch.Generator().manual_seed(3), 0.0, 0.0
    for _ in range(6):
        change = torch.randn(weight.shape, generator=generator) * original.std() * 0.02
        with torch.no_grad():
            weight.copy_(original + change)
        measured += mean_divergence([reference], [logits()])
        predicted += predicted_divergence(curvature[component].diagonal[name], change.numpy())
    assert 0.5 < measured / predicted < 2.0


def test_what_can_be_compressed(packages, curvature):
    for component, path in packages.items():
        names = compressible_weights(read_graph(path))
        assert set(names) == set(curvature[component].diagonal)
        weights = Program.load(path).weights
        assert all(curvature[component].diagonal[name].shape == tuple(weights[name].shape) for name in names)
        assert not any("bias" in name or "norm" in name for name in names)
    assert "embed_tokens_weight_piece_1" in curvature["TextDecoder"].diagonal
    assert np.all(curvature["TextDecoder"].diagonal["layers_0_fc1_weight"] >= 0)


def test_errors_of_what_is_added_add_up(packages, window, curvature):
    """The diagonal alone misses most of what a coarse palette of the encoder's positions does."""
    name, found = "embed_positions_weight", curvature["AudioEncoder"]
    assert [*found.gradients] == [name]
    assert not curvature["TextDecoder"].gradients
    encoder = Program.load(packages["AudioEncoder"])
    reference = reference_logits(packages, [window])
    weight = encoder.weights[name].detach().clone()
    change = palettize(weight.half().numpy(), Compression(3), name=name).dense().astype(np.float32) - weight.numpy()
    with torch.no_grad():
        encoder.weights[name].add_(torch.from_numpy(change))
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
    logits = forcing.forward(window, encoder.run({FEATURES: window.features})[EMBEDS]).logits
    measured = mean_divergence(reference, [logits])
    together = predicted_divergence(found.diagonal[name], change, found.gradients[name])
    alone = predicted_divergence(found.diagonal[name], change)
    assert 0.5 < measured / together < 2
    assert alone < together < measured


def test_the_reference_diverges_from_itself_by_nothing(packages, window):
    first, second = reference_logits(packages, [window]), reference_logits(packages, [window])
    assert mean_divergence(first, second) == 0


def test_options_are_checked():
    with pytest.raises(OptionsError, match="samples"):
        FisherOptions(samples=0)
