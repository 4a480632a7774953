"""Palettes, against coremltools' own k-means, exhaustive search and scikit-learn."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import BundleError, RecipeError
from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools
from whisperkit_tools.quantization.compression import NBITS, Compression, outlier_count
from whisperkit_tools.quantization.kmeans import Histogram, histogram, scalar_palette
from whisperkit_tools.quantization.palette import GroupHistograms, Palettized, palettize

RNG = np.random.default_rng(5)
GROUPS = {"granularity": "per_grouped_channel", "group_size": 16}


def weight(shape, seed=0, tails=5):
    return (np.random.default_rng(seed).standard_t(tails, shape) * 0.03).astype(np.float16)


def coremltools_dense(array, nbits, group_size=0, axis=0, exact=False, cluster_dim=1):
    """What coremltools' k-means makes of an array; `exact` also below 10,000 weights, where it approximates."""
    import_coremltools()
    from coremltools.models.neural_network import quantization_utils
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    original = quantization_utils._get_kmeans_lookup_table_and_weight

    def forced(nbits, weight, force_kmeans1d=False, **rest):
        return original(nbits, weight, True, **rest)

    passes = __import__("coremltools.optimize.coreml._quantization_passes", fromlist=["x"])
    kept = passes._get_kmeans_lookup_table_and_weight
    try:
        if exact:
            passes._get_kmeans_lookup_table_and_weight = forced
        with quiet_coremltools():
            found = palettize_weights.grouped_channelwise_compress(
                array, "KMEANS", nbits, axis, group_size, cluster_dim=cluster_dim
            )
    finally:
        passes._get_kmeans_lookup_table_and_weight = kept
    return palettize_weights.decompress(found)


def squared_error(array, dense, importance=1.0):
    """The weighted squared error of a dense weight, or of a palettized one."""
    found = dense.dense() if isinstance(dense, Palettized) else dense
    return float((np.square(array.astype(np.float64) - found) * importance).sum())


# --- numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbits", [1, 2, 3, 4, 6])
def test_no_worse_than_coremltools_per_tensor(nbits):
    array = weight((128, 80))
    ours = squared_error(array, palettize(array, Compression(nbits)))
    assert ours <= squared_error(array, coremltools_dense(array, nbits)) * (1 + 1e-6)


@pytest.mark.slow
def test_no_worse_than_coremltools_at_eight_bits():
    array = weight((128, 80))
    ours = squared_error(array, palettize(array, Compression(8)))
    assert ours <= squared_error(array, coremltools_dense(array, 8)) * (1 + 1e-6)


@pytest.mark.parametrize(("nbits", "axis"), [(1, 0), (2, 1), (3, 0), (4, 1)])
def test_no_worse_than_exact_groups(nbits, axis):
    array = weight((32, 48), seed=nbits)
    ours = squared_error(array, palettize(array, Compression(nbits, axis=axis, **GROUPS)))
    theirs = squared_error(array, coremltools_dense(array, nbits, 16, axis, exact=True))
    assert ours == pytest.approx(theirs, rel=1e-3)  # the same clusters
    assert ours <= theirs * (1 + 1e-6)


@pytest.mark.parametrize("nbits", [2, 4])
def test_no_worse_than_coremltools_groups_where_it_approximates(nbits):
    pytest.importorskip("sklearn")
    array = weight((64, 64), seed=7)
    ours = squared_error(array, palettize(array, Compression(nbits, **GROUPS)))
    assert ours <= squared_error(array, coremltools_dense(array.astype(np.float32), nbits, 16)) * (1 + 1e-6)


def best_by_search(values, mass, entries):
    best = np.inf
    for cuts in itertools.combinations(range(1, len(values)), min(entries, len(values)) - 1):
        parts = zip((0, *cuts), (*cuts, len(values)), strict=True)
        cost = 0.0
        for start, end in parts:
            part, counts = values[start:end], mass[start:end]
            center = (part * counts).sum() / counts.sum()
            cost += (counts * (part - center) ** 2).sum()
        best = min(best, cost)
    return best


@given(data=st.data(), nbits=st.sampled_from([1, 2]))
@settings(deadline=None, max_examples=60)
def test_the_least_weighted_error_there_is(data, nbits):
    numbers = data.draw(st.lists(st.integers(-40, 40), min_size=1, max_size=9, unique=True))
    mass = np.array(data.draw(st.lists(st.floats(0.01, 10), min_size=len(numbers), max_size=len(numbers))))
    values = np.sort(np.array(numbers, np.float64)) * 16
    points = Histogram(values, mass, values.astype(np.float16).view(np.uint16))
    lut = scalar_palette(points, 2**nbits).astype(np.float64)
    found = (mass * np.square(values[:, None] - lut).min(axis=1)).sum()
    # Entries are rounded to float16, which is eleven bits.
    assert found <= best_by_search(values, mass, 2**nbits) + mass.sum() * (640 * 2**-11) ** 2


@pytest.mark.parametrize("size", [1000, 40000])
def test_the_histogram_counts_elements_and_importance(size):
    array = np.concatenate([weight(size), np.float16([0.0, -0.0])])
    importance = RNG.random(array.size).astype(np.float32)
    found = histogram(array, importance)
    values, inverse = np.unique(array, return_inverse=True)
    np.testing.assert_array_equal(np.unique(found.values), values)
    assert np.all(np.diff(found.values) >= 0)
    merged = np.bincount(np.searchsorted(values, found.values), found.mass)
    np.testing.assert_allclose(merged, np.bincount(inverse, importance), rtol=1e-9)
    np.testing.assert_array_equal(found.codes.view(np.float16), found.values)


def test_importance_decides_whom_the_palette_serves():
    array = weight((64, 64))
    importance = np.where(array > 0, 1.0, 1e-4).astype(np.float32)
    plain, weighted = (palettize(array, Compression(2), given) for given in (None, importance))
    assert squared_error(array, weighted, importance) < 0.6 * squared_error(array, plain, importance)
    assert squared_error(array, weighted) > squared_error(array, plain)


def test_elements_without_importance_have_no_say_but_a_place():
    array = np.float16([[1, 1, 2, 2, 900, 901]])
    importance = np.float32([[1, 1, 1, 1, 0, 0]])
    found = palettize(array, Compression(1), importance)
    np.testing.assert_array_equal(found.dense(), np.float16([[1, 1, 2, 2, 2, 2]]))
    nothing = palettize(array, Compression(1), np.zeros_like(importance))
    np.testing.assert_array_equal(nothing.dense(), palettize(array, Compression(1)).dense())


@pytest.mark.parametrize("nbits", NBITS)
@pytest.mark.parametrize("kind", ["zeros", "constant", "two values", "subnormal", "largest"])
def test_few_values_are_kept_exactly(kind, nbits):
    array = {
        "zeros": np.zeros((16, 8)),
        "constant": np.full((16, 8), -0.1),
        "two values": RNG.choice([-3.0, 0.5], (16, 8)),
        "subnormal": RNG.choice([6e-8, -6e-8], (16, 8)),
        "largest": RNG.choice([65504.0, -65504.0], (16, 8)),
    }[kind].astype(np.float16)
    for option in (Compression(nbits), Compression(nbits, **GROUPS), Compression(nbits, outlier_share=0.05)):
        found = palettize(array, option)
        np.testing.assert_array_equal(found.dense(), array)
        assert found.lut.shape[-2] == 2**nbits


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e6])
def test_values_that_are_no_numbers_are_refused_by_name(bad):
    array = np.ones((4, 4), np.float32)
    array[1, 2] = bad
    with pytest.raises(BundleError, match="weight 'fc1' holds 1 values that are NaN or infinite"):
        palettize(array, Compression(2), name="fc1")


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (np.ones((2, 2)), r"importance of 'w' has shape \[2, 2\], the weight \[4, 4\]"),
        (np.full((4, 4), -1.0), "negative"),
        (np.full((4, 4), np.nan), "NaN"),
    ],
)
def test_importance_that_is_refused(importance, message):
    with pytest.raises(RecipeError, match=message):
        palettize(weight((4, 4)), Compression(1), importance, "w")


def test_an_option_that_does_not_fit_is_refused():
    with pytest.raises(RecipeError, match=r"weight 'w' \[20, 4\] cannot be stored with 2 bits, groups of 16"):
        palettize(weight((20, 4)), Compression(2, **GROUPS), name="w")


@pytest.mark.parametrize("tails", [2, 5, 50])
@pytest.mark.parametrize("nbits", [2, 4, 6])
def test_the_quick_search_comes_near(nbits, tails):
    array = weight((64, 200), tails=tails)
    importance = RNG.gamma(0.3, 1, array.shape).astype(np.float32)
    exact, quick = (palettize(array, Compression(nbits), importance, exact=kind) for kind in (True, False))
    assert squared_error(array, quick, importance) <= 1.01 * squared_error(array, exact, importance)


# --- forms -----------------------------------------------------------------------------------------------------------


def test_dense_is_what_coremltools_decompresses():
    import_coremltools()
    from coremltools.optimize._utils import LutParams
    from coremltools.optimize.coreml._quantization_passes import palettize_weights

    for option in (
        Compression(3),
        Compression(2, axis=1, **GROUPS),
        Compression(4, cluster_dim=2),
        Compression(2, axis=1, cluster_dim=4, **GROUPS),
    ):
        found = palettize(weight((32, 48, 1, 1), seed=3), option)
        axis = option.axis if option.cluster_dim > 1 else None
        expected = palettize_weights.decompress(LutParams(found.indices, found.lut, axis))
        np.testing.assert_array_equal(found.dense(), expected)


def test_scales_serve_channels_of_different_size():
    array = weight((64, 96)) * np.geomspace(0.01, 1, 64, dtype=np.float16)[:, None]
    plain, scaled = (palettize(array, Compression(3, per_channel_scale=given)) for given in (False, True))
    relative = [
        np.square((part.dense() - array).astype(np.float64)).sum(1) / np.square(array.astype(np.float64)).sum(1)
        for part in (plain, scaled)
    ]
    assert relative[1].max() < 0.1 < relative[0].max()
    np.testing.assert_array_equal(scaled.scale[:, 0], np.abs(array).max(axis=1))


def test_each_group_is_served_no_worse_than_by_one_palette():
    array = weight((64, 96)) * np.geomspace(0.01, 1, 64, dtype=np.float16)[:, None]
    grouped, plain = (palettize(array, option).dense() for option in (Compression(3, **GROUPS), Compression(3)))
    errors = [np.square(array.astype(np.float64) - dense).reshape(4, -1).sum(axis=1) for dense in (grouped, plain)]
    assert np.all(errors[0] <= errors[1] * (1 + 1e-6))
    assert errors[0][0] < 0.1 * errors[1][0]


@pytest.mark.parametrize("cluster_dim", [2, 4])
def test_vectors_are_no_worse_than_scikit_learn(cluster_dim):
    cluster = pytest.importorskip("sklearn.cluster")
    array = weight((64, 96))
    rows = np.moveaxis(array.reshape(64 // cluster_dim, cluster_dim, 96), 1, 2).reshape(-1, cluster_dim)
    theirs = cluster.KMeans(16, n_init=1, tol=1e-2, random_state=0).fit(rows.astype(np.float32)).inertia_
    assert squared_error(array, palettize(array, Compression(4, cluster_dim=cluster_dim))) <= 1.02 * theirs


def test_vectors_use_what_neighbours_have_in_common():
    base = weight((32, 96))
    array = np.repeat(base, 2, axis=0)
    found = palettize(array, Compression(4, cluster_dim=2))
    assert squared_error(array, found) <= 1.1 * 2 * squared_error(base, palettize(base, Compression(4)))


def test_a_vector_counts_by_its_important_elements():
    array = weight((64, 64))
    importance = np.ones((64, 64), np.float32)
    importance[1::2] = 1e-4
    plain, weighted = (palettize(array, Compression(4, cluster_dim=2), given) for given in (None, importance))
    assert squared_error(array, weighted, importance) < 0.3 * squared_error(array, plain, importance)


@pytest.mark.parametrize(
    "option",
    [
        Compression(3),
        Compression(3, "per_grouped_channel", group_size=8),
        Compression(3, "per_grouped_channel", group_size=8, axis=1),
        Compression(3, per_channel_scale=True),
        Compression(4, cluster_dim=2),
        Compression(2, outlier_share=0.01),
    ],
    ids=str,
)
def test_histograms_that_are_given_change_nothing(option):
    rng = np.random.default_rng(0)
    weight, importance = rng.normal(size=(64, 48)).astype(np.float16), rng.random((64, 48))
    counted = GroupHistograms(weight, [option, Compression(2, axis=1, **GROUPS)], importance)
    found, expected = (palettize(weight, option, importance, histograms=given) for given in (counted, None))
    assert np.array_equal(found.lut, expected.lut)
    assert np.array_equal(found.indices, expected.indices)


def test_equal_arguments_give_equal_palettes():
    array = weight((64, 64))
    for option in (
        Compression(4),
        Compression(3, **GROUPS),
        Compression(4, cluster_dim=2),
        Compression(2, outlier_share=0.01),
    ):
        first, second = palettize(array, option), palettize(array, option)
        np.testing.assert_array_equal(first.lut, second.lut)
        np.testing.assert_array_equal(first.indices, second.indices)


# --- outliers --------------------------------------------------------------------------------------------------------


def test_outliers_are_those_that_the_palette_serves_worst():
    array = np.random.default_rng(0).uniform(-1, 1, (32, 32)).astype(np.float16)
    array[3, 4], array[20, 1] = 500, -700
    found = palettize(array, Compression(4, outlier_share=2 / 1024))
    np.testing.assert_array_equal(found.outlier_positions, [3 * 32 + 4, 20 * 32 + 1])
    np.testing.assert_allclose(found.dense()[[3, 20], [4, 1]], [500, -700], rtol=1e-3)
    without = array.copy()
    without[3, 4] = without[20, 1] = 0
    assert squared_error(without, found) - 500**2 - 700**2 < 1.1 * squared_error(
        without, palettize(without, Compression(4))
    )
    # A palette of everything has 14 entries left for the rest instead of 16, and the error goes with their square.
    assert squared_error(array, found) < 0.8 * squared_error(array, palettize(array, Compression(4)))


def test_the_palette_is_made_of_the_rest():
    array = np.random.default_rng(0).uniform(-1, 1, (32, 32)).astype(np.float16)
    array[3, 4] = 500
    assert np.abs(palettize(array, Compression(2, outlier_share=1 / 1024)).lut).max() < 1
    assert np.abs(palettize(array, Compression(2)).lut).max() > 400


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1])
def test_the_share_is_rounded_up(share):
    array = np.random.default_rng(0).standard_normal((30, 31)).astype(np.float16)
    found = palettize(array, Compression(2, outlier_share=share))
    assert len(found.outlier_positions) == outlier_count(930, found.compression) == int(np.ceil(930 * share))
    assert np.all(np.diff(found.outlier_positions) > 0)


def test_importance_chooses_outliers():
    array = np.random.default_rng(0).standard_t(3, (32, 32)).astype(np.float16)
    importance = np.full(array.shape, 1e-6, np.float32)
    importance[5] = 1
    found = palettize(array, Compression(1, outlier_share=10 / 1024), importance)
    assert set(found.outlier_positions // 32) == {5}


def test_outliers_with_groups_and_scales():
    array = np.random.default_rng(0).standard_t(2, (32, 40)).astype(np.float16)
    option = Compression(3, "per_grouped_channel", 16, per_channel_scale=True, outlier_share=0.02)
    found = palettize(array, option)
    kept = np.ravel(array)[found.outlier_positions].astype(np.float32)
    np.testing.assert_allclose(np.ravel(found.dense())[found.outlier_positions], kept, rtol=2e-3, atol=1e-4)


# --- integers --------------------------------------------------------------------------------------------------------

LINEAR = Compression(8, kind="linear")


def coremltools_linear(array):
    """Integers, scales and dense weight that coremltools makes, by output channel and symmetric."""
    import_coremltools()
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights

    sizes = [1, *(0 for _ in array.shape[1:])]
    found = linear_quantize_weights.blockwise_compress(array, 8, "LINEAR_SYMMETRIC", True, sizes)
    return linear_quantize_weights.decompress(found)


@pytest.mark.parametrize("shape", [(64, 96), (64, 32, 1, 3)])
@pytest.mark.parametrize("axis", [0, 1])
def test_dense_integers_are_what_coremltools_decompresses(shape, axis):
    import_coremltools()
    from coremltools.converters.mil.mil.ops.defs.iOS16.constexpr_ops import constexpr_affine_dequantize

    found = palettize(weight(shape), Compression(8, kind="linear", axis=axis))
    integers = (found.indices.astype(np.int16) - 128).astype(np.int8)
    assert integers.min() >= -127
    zeros = np.zeros(shape[axis], np.int8)
    expected = constexpr_affine_dequantize.decompress(integers, zeros, found.scale.reshape(-1), axis)
    assert expected.dtype == np.float16
    np.testing.assert_array_equal(found.dense(), expected)


@pytest.mark.parametrize("tails", [3, 30])
def test_scales_are_better_than_those_that_span_the_largest_magnitude(tails):
    array = weight((48, 300), tails=tails)
    importance = RNG.gamma(0.3, 1, array.shape).astype(np.float32)
    theirs = np.square(array.astype(np.float64) - coremltools_linear(array))
    for factors in (None, importance):
        found = np.square(array.astype(np.float64) - palettize(array, LINEAR, factors).dense())
        given = 1 if factors is None else factors
        assert np.all((found * given).sum(1) <= (theirs * given).sum(1) * 1.02)
        assert (found * given).sum() < (theirs * given).sum()
    assert (found * importance).sum() < 0.98 * (theirs * importance).sum()


def test_channels_of_zeros_and_of_tiny_numbers():
    array = np.zeros((4, 64), np.float16)
    array[1] = 6e-8
    array[2] = np.linspace(-2e-5, 2e-5, 64)
    array[3] = 65504
    found = palettize(array, LINEAR, np.zeros(array.shape)).dense()
    np.testing.assert_array_equal(found[:2], array[:2])
    np.testing.assert_allclose(found[2].astype(np.float64), array[2].astype(np.float64), atol=1.2e-7)
    np.testing.assert_allclose(found[3].astype(np.float64), 65504, rtol=1e-3)  # and not infinity
