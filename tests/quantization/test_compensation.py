"""Errors passed on to later inputs: less error of the output at the same size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization import compensation
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.palette import palettize

RNG = np.random.default_rng(2)
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}
WEIGHT = (RNG.standard_t(5, (48, 160, 1, 1)) * 0.1).astype(np.float16)
INPUTS = RNG.standard_normal((160, 20)) @ RNG.standard_normal((20, 900)) + 0.3 * RNG.standard_normal((160, 900))
FITTED, HELD_OUT = (
    compensation.second_moment(torch.from_numpy(part.reshape(1, 160, 1, -1))).numpy()
    for part in (INPUTS[:, :600], INPUTS[:, 600:])
)


@pytest.mark.parametrize(
    "option",
    [
        Compression(3),
        Compression(4, **GROUPS),
        Compression(3, axis=1, **GROUPS),
        Compression(3, per_channel_scale=True),
        Compression(3, axis=1, per_channel_scale=True),
    ],
    ids=str,
)
def test_less_error_of_the_output_on_inputs_not_seen(option):
    plain = palettize(WEIGHT, option)
    found = compensation.compensate(plain, WEIGHT, FITTED)
    before, after = (
        compensation.output_error(part.dense().astype(np.float64) - WEIGHT, HELD_OUT) for part in (plain, found)
    )
    assert after < 0.5 * before
    assert found.nbytes == plain.nbytes
    np.testing.assert_array_equal(found.lut, plain.lut)


def test_independent_inputs_have_nothing_to_pass_on():
    plain = palettize(WEIGHT, Compression(3, **GROUPS))
    np.testing.assert_array_equal(compensation.compensate(plain, WEIGHT, np.eye(160)).indices, plain.indices)
    np.testing.assert_array_equal(compensation.compensate(plain, WEIGHT, np.zeros((160, 160))).indices, plain.indices)


def test_blocks_do_not_change_the_result(monkeypatch):
    plain = palettize(WEIGHT, Compression(3))
    whole = compensation.compensate(plain, WEIGHT, FITTED).indices
    monkeypatch.setattr(compensation, "_BLOCK", 7)
    assert np.mean(compensation.compensate(plain, WEIGHT, FITTED).indices != whole) < 1e-3


def test_two_inputs_by_hand():
    weight, moment = np.float16([[0.4, 0.4]]), np.ones((2, 2))
    plain = replace(palettize(np.float16([[0, 1]]), Compression(1)), indices=np.uint8([[0, 0]]))
    # Equal inputs: 0.4 is rounded to 0, the second takes the 0.4 over, and 0.8 is rounded to 1.
    np.testing.assert_array_equal(compensation.compensate(plain, weight, moment, 1e-6).indices, [[0, 1]])


def test_the_error_of_the_output_is_that_of_the_product():
    difference = RNG.standard_normal((8, 160))
    expected = np.square(difference @ INPUTS[:, :600]).sum()
    assert compensation.output_error(difference, FITTED) == pytest.approx(expected)
    found = compensation.second_moment(torch.from_numpy(INPUTS[:, :600].T))
    np.testing.assert_allclose(found.numpy(), FITTED)


@pytest.mark.parametrize(
    ("option", "moment", "message"),
    [
        (Compression(2, cluster_dim=2), FITTED, "palettes of numbers without outliers"),
        (Compression(2, outlier_share=0.01), FITTED, "palettes of numbers without outliers"),
        (Compression(2), np.eye(3), "the moment of 'fc1' is"),
        (Compression(2), np.full((160, 160), np.nan), "expected finite"),
    ],
)
def test_what_is_refused(option, moment, message):
    with pytest.raises(RecipeError, match=message):
        compensation.compensate(palettize(WEIGHT, option, name="fc1"), WEIGHT, moment)


def test_inputs_of_the_demo_s_layers(demo_bundle):
    graph = read_graph(demo_bundle / "TextDecoder.mlpackage")
    known = compensation.compensable(graph)
    assert "layers_0_fc1_weight" in known
    assert not [name for name in known if name.startswith("embed")]
    names = ["layers_0_fc1_weight", "layers_1_fc2_weight"]
    program = Program(compensation.with_inputs(graph, names))
    feeds = {name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for name, spec in graph.inputs.items()}
    found = program.predict(feeds)
    for name in names:
        size = graph.constants[name].spec.shape[1]
        assert compensation.second_moment(torch.from_numpy(found[known[name].name])).shape == (size, size)
