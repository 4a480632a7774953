"""The gate opens and closes where it should, and its figures are what can be worked out by hand or by SciPy."""

from dataclasses import replace

import numpy as np
import pytest

from whisperkit_tools.errors import OptionsError, QualityGateError
from whisperkit_tools.quantization.gate import Gate, GateExample

GOOD = [GateExample(f"e{i}", 10, 1, 1, 20, 20, 0.02) for i in range(40)]
BAD = [GateExample(f"b{i}", 10, 1, 3, 20, 10, 2.0) for i in range(3)]


def test_figures_by_hand():
    verdict = Gate().judge(GOOD + BAD)
    assert verdict.examples == 43
    assert verdict.qoi.value == pytest.approx(100 * 40 / 43)
    assert verdict.wer.value == pytest.approx(100 * 49 / 430)
    assert verdict.reference_wer.value == pytest.approx(10)
    assert verdict.wer_delta.value == pytest.approx(100 * 6 / 430)
    assert verdict.kl_divergence.value == pytest.approx((40 * 0.02 + 3 * 2) / 860)
    assert verdict.token_agreement.value == pytest.approx(100 * 830 / 860)


def test_the_gate_opens_for_an_equal_bundle():
    verdict = Gate().judge(GOOD)
    assert verdict.passed
    assert (verdict.wer_delta.low, verdict.wer_delta.high) == (0, 0)


def test_the_gate_closes_and_says_why():
    verdict = Gate().judge(GOOD + BAD)
    assert not verdict.passed
    assert len(verdict.shortfalls) == 2
    assert "QoI 93.02 (95 %: " in verdict.shortfalls[0]
    assert "at least 95 % is required" in verdict.shortfalls[0]
    assert "WER delta 1.40" in verdict.shortfalls[1]
    assert not Gate(qoi_min=0, wer_delta_max=50, max_kl=1e-3).judge(GOOD + BAD).passed
    assert Gate(qoi_min=90, wer_delta_max=1.5).judge(GOOD + BAD).passed


def test_a_confident_gate_judges_by_the_pessimistic_end():
    mixed = GOOD + BAD[:1]
    assert Gate().judge(mixed).passed
    verdict = Gate(confident=True).judge(mixed)
    assert not verdict.passed
    assert "pessimistic end" in verdict.shortfalls[0]
    assert not Gate(confident=True).judge(GOOD).passed
    assert Gate(confident=True).judge(GOOD * 2).passed


@pytest.mark.parametrize("count", [1, 20, 72, 73, 500])
def test_few_examples_are_never_sure_even_when_none_is_worse(count):
    from scipy.stats import binomtest

    verdict = Gate(confident=True).judge(GOOD[:1] * count)
    interval = binomtest(count, count).proportion_ci(method="wilson")
    assert verdict.qoi.low == pytest.approx(100 * interval.low)
    assert verdict.qoi.high == 100
    assert verdict.passed == (count >= 73)


def test_what_is_not_a_number_closes_the_gate():
    broken = [GateExample("x", 10, 0, 0, 20, 0, float("nan"))]
    assert not Gate(max_kl=1.0).judge(broken).passed


def test_no_examples_close_the_gate():
    with pytest.raises(QualityGateError, match="no examples"):
        Gate().judge([])


def test_intervals_hold_scipys_and_repeat_with_the_seed():
    from scipy.stats import binomtest, bootstrap

    rng = np.random.default_rng(3)
    examples = [
        GateExample(str(i), 10, int(a), int(b), 20, 18, 0.1) for i, (a, b) in enumerate(rng.integers(0, 4, (60, 2)))
    ]
    better = np.array([e.errors <= e.reference_errors for e in examples], float)
    oracle = bootstrap((better,), np.mean, method="percentile", n_resamples=20000, rng=1).confidence_interval
    score = binomtest(int(better.sum()), 60).proportion_ci(method="wilson")
    found = Gate().judge(examples).qoi
    assert found.low == pytest.approx(100 * min(oracle.low, score.low), abs=2)
    assert found.high == pytest.approx(100 * max(oracle.high, score.high), abs=2)
    agreeing = Gate().judge([replace(e, agreeing=20 * int(b)) for e, b in zip(examples, better, strict=True)])
    assert agreeing.token_agreement.low == pytest.approx(100 * oracle.low, abs=2)
    assert agreeing.token_agreement.high == pytest.approx(100 * oracle.high, abs=2)
    assert Gate().judge(examples) == Gate().judge(examples)
    assert Gate(seed=1).judge(examples).wer_delta != Gate().judge(examples).wer_delta


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"qoi_min": 101}, "0 to 100"), ({"wer_delta_max": float("nan")}, "percentage"), ({"max_kl": -1}, "nats")],
)
def test_limits_are_checked(settings, message):
    with pytest.raises(OptionsError, match=message):
        Gate(**settings)
