"""Quality of inference by hand, and runs that cannot be compared."""

import pytest

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.metrics.qoi import quality_of_inference

# id: optimised, original. By hand: b and e are worse; a, c, d, f are not; c and f are better; 4 of 6.
TABLE = {"a": (0.0, 0.0), "b": (0.2, 0.1), "c": (0.1, 0.2), "d": (0.5, 0.5), "e": (1.5, 0.0), "f": (0.0, 0.25)}
OPTIMISED = {id: pair[0] for id, pair in TABLE.items()}
ORIGINAL = {id: pair[1] for id, pair in TABLE.items()}


def test_a_small_table_by_hand():
    found = quality_of_inference(OPTIMISED, ORIGINAL)
    assert found.qoi == 4 / 6
    assert found.examples == 6
    assert found.better == ("c", "f")
    assert found.worse == ("e", "b")  # the worst first
    assert found.equal == 2
    assert found.interval == pytest.approx((0.3000, 0.9032), abs=1e-4)


def test_the_other_way_round_and_against_itself():
    assert quality_of_inference(ORIGINAL, OPTIMISED).qoi == 4 / 6
    same = quality_of_inference(ORIGINAL, ORIGINAL)
    assert (same.qoi, same.interval[1], same.worse) == (1.0, 1.0, ())


def test_it_is_unweighted_and_hides_no_example():
    """Nine utterances get a little better and one falls apart: the corpus' WER improves, the users' view does not."""
    found = quality_of_inference(dict.fromkeys("abcdefghi", 0.0) | {"j": 0.3}, dict.fromkeys("abcdefghij", 0.1))
    assert found.qoi == 0.9
    assert found.worse == ("j",)


def test_no_examples():
    found = quality_of_inference({}, {})
    assert (found.qoi, found.interval, found.examples) == (None, None, 0)


def test_runs_of_different_examples_are_refused():
    with pytest.raises(OptionsError, match=r"1 only in the reference run \(b\); 1 only in the other run \(z\)"):
        quality_of_inference({"a": 0.0, "z": 0.0}, {"a": 0.0, "b": 0.0})
    with pytest.raises(DatasetError, match="rates that are not numbers: a"):
        quality_of_inference({"a": float("nan")}, {"a": 0.0})
