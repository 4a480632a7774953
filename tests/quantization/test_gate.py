"""The gate opens and closes where it should, and its figures are what can be worked out by hand or by SciPy."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from whisperkit_tools.errors import OptionsError, QualityGateError
from whisperkit_tools.quantization.gate import Gate, GateExample, mean_divergence, next_pending

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


# --- stopping as soon as the decision is certain ---------------------------------------------------------------------


def _pending(examples):
    return [replace(example, errors=None, is_cut=False) for example in examples]


def _stopped(gate, examples):
    """Transcribe one pending example after the other, as a compression does, until the decision is certain."""
    known = _pending(examples)
    while not gate.is_decided(known):
        at = next_pending(known)
        known[at] = examples[at] if known[at].errors is None else replace(examples[at], is_cut=False)
    return gate.judge(known)


def test_with_twenty_examples_and_95_percent_the_second_that_is_worse_ends_it():
    examples = [GateExample(str(i), 10, 1, 1 + (i in (5, 17)), 20, 20 - (i in (5, 9, 17)), 0.1) for i in range(20)]
    verdict = _stopped(Gate(), examples)
    assert not verdict.passed
    assert (verdict.stopped_after, verdict.qoi, verdict.wer, verdict.wer_delta) == (3, None, None, None)
    assert verdict.shortfalls == ("2 of the first 3 of 20 examples are worse; at least 95 % must be no worse",)
    assert verdict.kl_divergence.value == pytest.approx(2 / 400) == mean_divergence(examples)
    assert _stopped(Gate(qoi_min=90), examples) == Gate(qoi_min=90).judge(examples)


def test_a_rise_of_the_word_error_rate_that_nothing_can_undo_ends_it():
    examples = [GateExample(str(i), 10, 1, 1 + 30 * (i == 4), 20, 20 - (i == 4), 0.1) for i in range(20)]
    verdict = _stopped(Gate(), examples)
    assert (verdict.passed, verdict.stopped_after) == (False, 1)
    assert verdict.shortfalls == (
        "WER delta 5.50 points or more after the first 1 of 20 examples, at most 1 is allowed",
    )


def test_a_divergence_above_its_limit_ends_it_before_any_transcription():
    verdict = _stopped(Gate(max_kl=1e-3), GOOD + BAD)
    assert (verdict.passed, verdict.stopped_after) == (False, 0)
    assert "KL divergence 0.007907" in verdict.shortfalls[0]
    assert Gate(max_kl=1e-2).is_decided(_pending(GOOD + BAD)) is False


def test_a_confident_gate_of_few_examples_needs_no_transcription_to_stay_closed():
    verdict = _stopped(Gate(confident=True), GOOD[:20])
    assert (verdict.passed, verdict.stopped_after) == (False, 0)
    assert "the pessimistic end of 95 % is at most 83.89 %" in verdict.shortfalls[0]


def test_a_decision_that_depends_on_pending_examples_is_refused():
    with pytest.raises(ValueError, match="20 of 20 examples are pending"):
        Gate().judge(_pending(GOOD[:20]))
    with pytest.raises(ValueError, match="1 of 20 examples are pending"):
        Gate(qoi_min=0).judge([*GOOD[:19], replace(GOOD[0], errors=2, is_cut=True)])


def test_the_example_that_is_likeliest_to_be_worse_comes_first():
    examples = _pending(
        [
            GateExample("agrees", 10, 1, 1, 20, 20, 0.9),
            GateExample("long", 100, 1, 1, 0, 0, 0.0),
            GateExample("diverges", 10, 1, 1, 20, 18, 0.2),
            GateExample("differs", 10, 1, 1, 20, 15, 0.1),
            GateExample("diverges more", 10, 1, 1, 20, 18, 0.3),
        ]
    )
    examples.append(GateExample("cut", 10, 1, 9, 20, 2, 7.0, is_cut=True))
    order = []
    while not all(example.is_final for example in examples):
        order.append(next_pending(examples))
        examples[order[-1]] = replace(examples[order[-1]], errors=1, is_cut=False)
    assert [examples[at].name for at in order] == [
        "differs", "diverges more", "diverges", "agrees", "long", "cut",
    ]  # fmt: skip


_OUTCOMES = st.builds(
    lambda words, reference, errors, tokens, apart, divergence, is_cut: GateExample(
        "e", words, reference, errors, tokens, max(0, tokens - apart), divergence, is_cut and errors > reference
    ),
    st.integers(0, 12),
    st.integers(0, 3),
    st.integers(0, 6),
    st.integers(0, 20),
    st.integers(0, 3),
    st.floats(0, 2),
    st.booleans(),
)
_GATES = st.builds(
    Gate,
    st.sampled_from([0, 40, 80, 90, 95, 100]),
    st.sampled_from([-5, 0, 1, 10, 1000]),
    st.sampled_from([None, 0, 0.01, 0.1]),
    st.booleans(),
    st.integers(0, 3),
)


@settings(max_examples=60, deadline=None)
@given(_GATES, st.lists(_OUTCOMES, min_size=1, max_size=25))
def test_stopping_early_never_changes_the_decision(gate, examples):
    """A cut transcript has at least as many errors as it was cut with; here it has twice as many in the end."""
    in_full = [replace(e, errors=e.errors * (1 + e.is_cut), is_cut=False) for e in examples]
    known, steps = _pending(examples), 0
    while not gate.is_decided(known):
        at = next_pending(known)
        known[at] = in_full[at] if known[at].is_cut else examples[at]
        steps += 1
    verdict, expected = gate.judge(known), gate.judge(in_full)
    assert verdict.passed == expected.passed
    assert steps <= 2 * len(examples)
    assert (verdict.stopped_after is None) == all(example.is_final for example in known)
    if verdict.stopped_after is None:
        assert verdict == expected
