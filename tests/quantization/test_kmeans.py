"""k-means of numbers against trying every clustering, and against coremltools' kmeans1d."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.quantization import kmeans
from whisperkit_tools.quantization.kmeans import cluster


def _error(values, mass, labels):
    total = 0.0
    for label in np.unique(labels):
        x, m = values[labels == label], mass[labels == label]
        total += float((m * (x - np.average(x, weights=m)) ** 2).sum())
    return total


def _every_clustering(count, clusters):
    for cuts in combinations(range(1, count), clusters - 1):
        yield np.searchsorted(cuts, np.arange(count), side="right")


numbers = st.lists(st.integers(-300, 300), min_size=1, max_size=9, unique=True)


@given(numbers, st.data())
@settings(max_examples=150, deadline=None)
def test_no_clustering_has_a_smaller_error(found, data):
    values = np.sort(np.array(found, np.float64)) / 16
    clusters = data.draw(st.integers(1, len(values)))
    mass = np.array(data.draw(st.lists(st.integers(1, 50), min_size=len(values), max_size=len(values))), np.float64)
    labels = cluster(values, mass, clusters)
    assert np.unique(labels).tolist() == list(range(clusters))
    assert (np.diff(labels) >= 0).all()
    least = min(_error(values, mass, other) for other in _every_clustering(len(values), clusters))
    assert _error(values, mass, labels) <= least + 1e-9


@pytest.mark.parametrize("clusters", [1, 2, 7, 16, 64, 256])
@pytest.mark.parametrize("offset", [0.0, 30.0])
def test_the_error_is_that_of_kmeans1d(clusters, offset):
    import_coremltools()
    from coremltools._deps import kmeans1d

    random = np.random.default_rng(clusters)
    drawn = (random.standard_t(3, 6000) * 0.03 + offset).astype(np.float16).astype(np.float64)
    values, counts = np.unique(drawn, return_counts=True)
    mass = counts * random.uniform(0.01, 1, len(values))
    clusters = min(clusters, len(values))
    found = cluster(values, mass, clusters)
    expected = np.array(kmeans1d.cluster(values - offset, clusters, weights=mass).clusters)
    assert _error(values, mass, found) == pytest.approx(_error(values, mass, expected), rel=1e-9, abs=1e-15)


def test_the_machine_code_computes_what_is_written(monkeypatch):
    random = np.random.default_rng(0)
    values, mass = np.sort(random.normal(size=80)), random.uniform(0.1, 1, 80)
    coarse = np.arange(80) // 14
    compiled = cluster(values, mass, 6), kmeans.compiled(kmeans.refined_labels)(values, mass, coarse, 9)
    monkeypatch.setattr(kmeans, "compiled", lambda function: function)
    np.testing.assert_array_equal(cluster(values, mass, 6), compiled[0])
    np.testing.assert_array_equal(kmeans.refined_labels(values, mass, coarse, 9), compiled[1])


@pytest.mark.parametrize("clusters", [2, 5, 40])
def test_steps_end_where_lloyds_algorithm_ends(clusters):
    cluster_module = pytest.importorskip("sklearn.cluster")
    random = np.random.default_rng(clusters)
    values, mass = np.sort(random.standard_t(4, 900)), random.uniform(0.1, 1, 900)
    start = np.arange(900) * clusters // 900
    found = kmeans.refined_labels(values, mass, start, 500)
    centers = [np.average(values[start == at], weights=mass[start == at]) for at in range(clusters)]
    theirs = cluster_module.KMeans(clusters, init=np.array(centers)[:, None], n_init=1, max_iter=500, tol=0)
    theirs.fit(values[:, None], sample_weight=mass)
    assert _error(values, mass, found) == pytest.approx(theirs.inertia_, rel=1e-9)
