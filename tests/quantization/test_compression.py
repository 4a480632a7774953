"""What a compression may be, which target it needs, and its readable form."""

import pytest

from whisperkit_tools.errors import RecipeError
from whisperkit_tools.quantization.compression import NBITS, Compression

GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}


@pytest.mark.parametrize(
    ("settings", "target"),
    [
        ({"nbits": 4}, "iOS 16"),
        ({"nbits": 1}, "iOS 16"),
        ({"nbits": 6, "outlier_share": 0.01}, "iOS 16"),
        ({"nbits": 3}, "iOS 18"),
        ({"nbits": 4, **GROUPS}, "iOS 18"),
        ({"nbits": 4, "cluster_dim": 2}, "iOS 18"),
        ({"nbits": 4, "per_channel_scale": True}, "iOS 18"),
    ],
)
def test_the_target_that_a_form_needs(settings, target):
    assert Compression(**settings).target.startswith(target)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 5}, "nbits is 5, allowed are 1, 2, 3, 4, 6, 8"),
        ({"nbits": 4, "cluster_dim": 3}, "cluster_dim is 3"),
        ({"nbits": 4, "granularity": "per_block"}, "granularity is 'per_block'"),
        ({"nbits": 4, "group_size": 16}, "group_size is 16 with granularity per_tensor"),
        ({"nbits": 4, "granularity": "per_grouped_channel"}, "group_size is 0"),
        ({"nbits": 4, "granularity": "per_grouped_channel", "group_size": 6, "cluster_dim": 4}, "no multiple"),
        ({"nbits": 4, "axis": -1}, "axis is -1"),
        ({"nbits": 4, "outlier_share": 0.5}, "outlier_share is 0.5"),
        ({"nbits": 4, "outlier_share": float("nan")}, "outlier_share is nan"),
        ({"nbits": 4, "cluster_dim": 2, "per_channel_scale": True}, "does not go with"),
    ],
)
def test_settings_that_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Compression(**settings)


def test_all_problems_are_named_at_once():
    with pytest.raises(RecipeError, match=r"nbits is 7.*axis is -2"):
        Compression(7, axis=-2)


def test_palettes_along_each_axis():
    option = Compression(4, **GROUPS, axis=1)
    assert option.palettes((128, 64, 1, 1)) == (1, 4, 1, 1)
    assert Compression(4).palettes((128, 64)) == (1, 1)


@pytest.mark.parametrize(
    ("option", "shape", "message"),
    [
        (Compression(4, **GROUPS), (40, 8), "40 channels are no multiple of 16"),
        (Compression(4, cluster_dim=4), (6, 8), "6 channels are no multiple of 4"),
        (Compression(4, axis=2), (6, 8), "axis 2 of a weight with 2 axes"),
        (Compression(4), (), "at least one axis"),
        (Compression(4), (0, 3), "at least one axis and one element"),
        (Compression(4, **GROUPS), (32, 8), ""),
    ],
)
def test_what_fits_a_weight(option, shape, message):
    assert message in option.misfit(shape)
    assert bool(option.misfit(shape)) == bool(message)


@pytest.mark.parametrize("nbits", NBITS)
def test_the_readable_form_comes_back(nbits):
    option = Compression(nbits, **GROUPS, axis=1, per_channel_scale=True, outlier_share=0.01)
    assert Compression.from_json(option.to_json()) == option
    assert Compression(nbits).to_json() == {"nbits": nbits}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nbits": 4, "group": 2}, "unknown compression settings group"),
        ({}, "without nbits"),
        ({"nbits": "4"}, "wrong type: nbits is '4'"),
        ({"nbits": True}, "wrong type: nbits is True"),
        ({"nbits": 4, "per_channel_scale": 1}, "per_channel_scale is 1"),
    ],
)
def test_readable_forms_that_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        Compression.from_json(settings)


def test_it_says_what_it_is():
    option = Compression(3, **GROUPS, per_channel_scale=True, outlier_share=0.005)
    assert str(option) == "3 bits, groups of 16 along axis 0, scales, 0.5 % outliers"
