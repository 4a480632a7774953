"""Several transcripts through one decoder at once, against sessions of their own."""

import pytest
import torch

from whisperkit_tools.decoder.lanes import DecoderLanes
from whisperkit_tools.decoder.session import CacheColumns, CacheSession, StepRequest
from whisperkit_tools.mil.program import Program

TOKENS = ([3, 14, 15, 92, 65, 35], [27, 18, 28, 18], [16, 18, 3])


@pytest.fixture(scope="module")
def decoder(demo_bundle):
    return Program.load(demo_bundle / "TextDecoder.mlpackage")


@pytest.fixture(scope="module")
def embeds(decoder):
    shape = decoder.inputs["encoder_output_embeds"].shape
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator) for _ in TOKENS]


def _alone(decoder, embeds, tokens, dtype=torch.float32):
    session = CacheSession(decoder, dtype=dtype)
    session.begin(embeds.to(dtype))
    return [session.step(token, at) for at, token in enumerate(tokens)], session.columns(0, len(tokens))


def _assert_same(found, wanted, tolerance=1e-5):
    torch.testing.assert_close(found.logits, wanted.logits, rtol=0, atol=tolerance * float(wanted.logits.abs().max()))
    torch.testing.assert_close(found.alignment, wanted.alignment, rtol=0, atol=tolerance)


def test_lanes_at_different_positions_give_what_sessions_give(decoder, embeds):
    lanes = DecoderLanes(decoder, len(TOKENS))
    for session, one in zip(lanes.sessions(), embeds, strict=True):
        session.begin(one)
    alone = [_alone(decoder, *pair) for pair in zip(embeds, TOKENS, strict=True)]
    # The first lane is two tokens ahead of the others.
    for at, token in enumerate(TOKENS[0][:2]):
        (found,) = lanes.step([token], [at])
        _assert_same(found, alone[0][0][at])
    for at in range(3):
        positions = [at + 2, at, at]
        found = lanes.step([tokens[p] for tokens, p in zip(TOKENS, positions, strict=True)], positions)
        for lane, position in enumerate(positions):
            _assert_same(found[lane], alone[lane][0][position])
    assert [session.steps for session in lanes.sessions()] == [5, 3, 3]
    columns = lanes.sessions()[1].columns(0, 3)
    torch.testing.assert_close(columns.keys, alone[1][1].keys[..., :3], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(columns.values, alone[1][1].values[..., :3], rtol=1e-4, atol=1e-4)


def test_caches_grow_beyond_their_first_positions(decoder, embeds):
    tokens = [at % 90 for at in range(40)]
    lanes = DecoderLanes(decoder, 2)
    for session in lanes.sessions():
        session.begin(embeds[0])
    wanted, _ = _alone(decoder, embeds[0], tokens)
    for at, token in enumerate(tokens):
        for found in lanes.step([token] * 2, [at] * 2):
            _assert_same(found, wanted[at])


def test_a_session_moves_and_one_in_the_middle_steps_alone(decoder, embeds):
    lanes = DecoderLanes(decoder, 3)
    first, second, third = lanes.sessions()
    first.begin(embeds[0])
    third.begin(embeds[2])
    wanted, _ = _alone(decoder, embeds[2], TOKENS[2])
    _assert_same(third.step(TOKENS[2][0], 0), wanted[0])
    lanes.move(2, 1)
    assert [session.lane for session in (first, second, third)] == [0, 2, 1]
    assert lanes.sessions() == [first, third, second]
    _assert_same(third.step(TOKENS[2][1], 1), wanted[1])
    second.begin(embeds[1])
    _assert_same(second.step(TOKENS[1][0], 0), _alone(decoder, embeds[1], TOKENS[1][:1])[0][0])
    assert (third.steps, second.steps) == (2, 1)


def test_filled_and_forgotten_positions(decoder, embeds):
    lanes = DecoderLanes(decoder, 2)
    session = lanes.sessions()[1]
    wanted, columns = _alone(decoder, embeds[0], TOKENS[0])
    session.begin(embeds[0])
    session.fill(None, 3)
    session.fill(CacheColumns(columns.keys[..., :3], columns.values[..., :3]), 3)
    _assert_same(session.step(TOKENS[0][3], 3), wanted[3])
    session.rewind(1)
    assert not session.columns(1, lanes.length).keys.any()
    assert session.columns(0, 1).keys.any()
    _assert_same(session.step(TOKENS[0][1], 1), wanted[1])
    session.begin(embeds[0])
    assert not session.columns(0, lanes.length).values.any()


def test_work_on_a_lane_is_performed_by_its_session(decoder, embeds):
    def work():
        first = yield StepRequest(3, 0)
        second = yield StepRequest(14, 1)
        return first, second

    session = DecoderLanes(decoder, 2).sessions()[1]
    session.begin(embeds[0])
    wanted, _ = _alone(decoder, embeds[0], TOKENS[0][:2])
    for found, expected in zip(session.perform(work()), wanted, strict=True):
        _assert_same(found, expected)


def test_float16_rounds_as_alone(demo_bundle, embeds):
    decoder = Program.load(demo_bundle / "TextDecoder.mlpackage", precision="float16")
    lanes = DecoderLanes(decoder, 2, torch.float16)
    for session, one in zip(lanes.sessions(), embeds, strict=False):
        session.begin(one.half())
    alone = [_alone(decoder, one, TOKENS[2], torch.float16)[0] for one in embeds[:2]]
    for at, token in enumerate(TOKENS[2]):
        for lane, found in enumerate(lanes.step([token] * 2, [at] * 2)):
            _assert_same(found, alone[lane][at], 5e-3)


def test_a_decoder_whose_calls_insist_on_its_caches_length_gets_them_whole(decoder, embeds, monkeypatch):
    monkeypatch.setattr("whisperkit_tools.decoder.lanes.with_open_length", _refusing)
    lanes = DecoderLanes(decoder, 2)
    session = lanes.sessions()[1]
    session.begin(embeds[0])
    wanted, _ = _alone(decoder, embeds[0], TOKENS[0])
    for at, token in enumerate(TOKENS[0]):
        _assert_same(session.step(token, at), wanted[at])


def _refusing(node, length):
    """Let an operation on the masks take one length only."""
    from dataclasses import replace

    if node.type != "fused_cached_attention":
        return node

    def function(*arguments, **values):
        if arguments[1].shape[-1] != length:
            raise RuntimeError("another length")
        return node.kernel.function(*arguments, **values)

    return replace(node, kernel=replace(node.kernel, function=function))
