"""Teacher forcing: batches of steps against single ones, and gradients against plain autograd."""

from dataclasses import replace

import pytest
import torch
from helpers.progress import SeenProgress

from whisperkit_tools.contract import EMBEDS, ENCODER, FEATURES, MODEL_COMPONENTS
from whisperkit_tools.decoder import batched
from whisperkit_tools.decoder.teacher_forcing import SpeechWindow, TeacherForcing, divergence
from whisperkit_tools.errors import BundleError
from whisperkit_tools.mil.program import Program

TOKENS = (641, 642, 700, 30, 31, 32, 400, 401, 402, 500, 640)


@pytest.fixture(scope="module")
def packages(demo_bundle):
    return {name: demo_bundle / f"{name}.mlpackage" for name in MODEL_COMPONENTS}


@pytest.fixture(scope="module")
def window():
    features = torch.randn(1, 80, 1, 3000, generator=torch.Generator().manual_seed(0)) * 0.3
    return SpeechWindow(features, TOKENS, 4)


@pytest.fixture(scope="module")
def embeds(packages, window):
    return Program.load(packages[ENCODER]).run({FEATURES: window.features})[EMBEDS]


def _recurrent(forcing, window, embeds, wanted):
    """The same loss as one graph from the first call to the last, caches and all."""
    shape = [axis or 0 for axis in forcing.program.inputs["key_cache"].shape]
    keys, values = torch.zeros(shape), torch.zeros(shape)
    audio, total = embeds.clone().requires_grad_(True), torch.zeros(())
    ids, length = forcing.ids(window), shape[3]
    for at in range(len(ids)):
        here = torch.eye(length)[at : at + 1]
        padding = torch.full((1, length), -10000.0)
        padding[:, : at + 1] = 0
        outputs = forcing.program.run(
            input_ids=ids[at], cache_length=torch.tensor([at], dtype=torch.int32), key_cache=keys, value_cache=values,
            kv_cache_update_mask=here, encoder_output_embeds=audio, decoder_key_padding_mask=padding,
        )  # fmt: skip
        updates = outputs["key_cache_updates"], outputs["value_cache_updates"]
        keys, values = (
            torch.cat([cache[..., :at], update, cache[..., at + 1 :]], dim=-1)
            for cache, update in zip((keys, values), updates, strict=True)
        )
        if at >= window.first - 1:
            total = total + (outputs["logits"].reshape(-1) * wanted[at - window.first + 1]).sum()
    total.backward()
    return audio.grad


def _cut(monkeypatch, forcing, size):
    """Let chunks be of `size` positions; None leaves them."""
    if size:
        monkeypatch.setattr(
            forcing, "_chunks", lambda count, length: [slice(at, min(at + size, count)) for at in range(0, count, size)]
        )


@pytest.mark.parametrize("chunk", [None, 3])
@pytest.mark.parametrize("shares_columns", [True, False])
def test_gradients_through_the_caches_are_those_of_the_whole_recurrence(
    packages, window, embeds, chunk, shares_columns, monkeypatch
):
    if not shares_columns:
        monkeypatch.setattr(batched, "share_cache_columns", lambda nodes: None)
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
    assert forcing.batch.shares_columns == shares_columns
    _cut(monkeypatch, forcing, chunk)
    forced = forcing.forward(window, embeds)
    wanted = torch.randn(forced.logits.shape, generator=torch.Generator().manual_seed(1))
    for parameter in forcing.program.parameters():
        parameter.requires_grad_(True)
    arrived = forcing.backward(window, forced, embeds, wanted)
    found = {name: weight.grad.clone() for name, weight in forcing.program.weights.items()}
    for parameter in forcing.program.parameters():
        parameter.grad = None
    expected = _recurrent(forcing, window, embeds, wanted)
    torch.testing.assert_close(arrived, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))
    for name, weight in forcing.program.weights.items():
        scale = float(weight.grad.abs().max())
        torch.testing.assert_close(found[name], weight.grad, rtol=1e-3, atol=1e-4 * scale + 1e-6)


@pytest.mark.parametrize("failure", ["wrong", "raises"])
def test_short_caches_are_given_up_where_they_do_not_compute_the_same(packages, window, embeds, failure, monkeypatch):
    found = []
    for broken in (False, True):
        forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
        forced = forcing.forward(window, embeds)
        weight = forcing.program.weights["layers_0_self_attn_k_proj_weight"]
        weight.requires_grad_(True)
        run = forcing.batch.run

        def fails(inputs, run=run):
            if failure == "raises":
                raise RuntimeError("operation reshape 'x' failed")
            return {name: value * 1.1 for name, value in run(inputs).items()}

        if broken:
            monkeypatch.setattr(forcing.batch, "run", fails)
        wanted = torch.randn(forced.logits.shape, generator=torch.Generator().manual_seed(1))
        arrived = forcing.backward(window, forced, embeds, wanted)
        assert forcing.is_batched != broken
        found.append((arrived, weight.grad))
    for short, whole in zip(*found, strict=True):
        torch.testing.assert_close(short, whole, rtol=1e-3, atol=1e-4 * float(whole.abs().max()))


@pytest.mark.parametrize("chunk", [None, 3])
def test_all_calls_at_once_give_what_they_give_one_by_one(packages, window, embeds, chunk, monkeypatch):
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
    _cut(monkeypatch, forcing, chunk)
    found, expected = forcing.forward(window, embeds), forcing.sequential(window, embeds)
    assert forcing.is_batched
    for one, other in zip(found.tensors, expected.tensors, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))
    calls = []
    monkeypatch.setattr(forcing, "sequential", lambda *arguments: calls.append(1))
    again = forcing.forward(replace(window, tokens=TOKENS[:8]), embeds)
    assert not calls  # a shorter transcript is not tried again
    torch.testing.assert_close(again.logits, found.logits[: len(again.logits)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("failure", ["wrong", "raises"])
def test_calls_are_made_one_by_one_where_all_at_once_do_not_compute_the_same(
    packages, window, embeds, failure, monkeypatch
):
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
    run = forcing.batch.run

    def fails(inputs):
        if failure == "raises":
            raise RuntimeError("operation reshape 'x' failed")
        return {name: value * (1.1 if name == "value_cache_updates" else 1) for name, value in run(inputs).items()}

    monkeypatch.setattr(forcing.batch, "run", fails)
    found = forcing.forward(window, embeds)
    assert not forcing.is_batched
    for one, other in zip(found.tensors, forcing.sequential(window, embeds).tensors, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("failure", ["wrong", "raises", "unlinked"])
def test_giving_up_batches_is_counted_and_said_once(packages, window, embeds, failure, monkeypatch):
    progress = SeenProgress()
    if failure == "unlinked":
        monkeypatch.setattr(batched, "share_cache_columns", lambda nodes: None)
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]), progress)
    run = forcing.batch.run

    def fails(inputs):
        if failure == "raises":
            raise RuntimeError("operation reshape 'x' failed")
        return {name: value * 1.1 for name, value in run(inputs).items()}

    if failure != "unlinked":
        assert (forcing.fallback, forcing.sequential_runs, progress.notes) == (None, 0, [])
        monkeypatch.setattr(forcing.batch, "run", fails)
    for _ in range(2):
        forcing.forward(window, embeds)
    assert forcing.sequential_runs == 2
    reason = {
        "wrong": "computes something else",
        "raises": "operation reshape 'x' failed",
        "unlinked": "not split into the layers' parts",
    }[failure]
    assert reason in forcing.fallback
    (note,) = progress.notes
    assert note.startswith("TextDecoder.mlpackage: steps run one by one")
    assert reason in note


def test_a_decoder_that_runs_in_batches_says_nothing(packages, window, embeds):
    progress = SeenProgress()
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]), progress)
    forcing.forward(window, embeds)
    assert (forcing.fallback, forcing.sequential_runs, progress.notes) == (None, 0, [])


def test_divergence_is_that_of_torch():
    first, second = torch.randn(2, 5, 9, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.kl_div(
        second.log_softmax(-1), first.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    torch.testing.assert_close(divergence(first, second).float(), expected)


def test_windows_and_caches_are_checked(packages, window):
    with pytest.raises(ValueError, match="there is none"):
        SpeechWindow(window.features, (1, 2), 2)
    forcing = TeacherForcing(Program.load(packages["TextDecoder"]))
    with pytest.raises(BundleError, match="does not fit the caches of 448"):
        forcing.ids(SpeechWindow(window.features, tuple(range(500)), 1))
    with pytest.raises(BundleError, match="lacks the inputs cache_length"):
        TeacherForcing(Program.load(packages["AudioEncoder"]))
