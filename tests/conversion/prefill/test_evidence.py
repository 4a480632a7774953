"""The verdict on a prefill's evidence, and its word errors."""

import math

import pytest

from whisperkit_tools.conversion.prefill.evidence import NullTest, PrefillEvidence, percent_wer


def evidence(*, with_, nulls, psnr=30.0, clips=20, changed=1, most=0.2):
    return PrefillEvidence(
        psnr_db={"en": {"transcribe": psnr}}, held_out_windows=8, held_out_from="demo", clips=clips, judged_on="demo",
        changed=changed, wer_without=5.0, wer_with=with_, nulls=nulls, max_wer_delta=most,
    )  # fmt: skip


WORSE = NullTest(psnr_db=12.0, clips=12, changed=8, changed_by_prefill=1, wer=60.0)


def test_the_gate_is_the_wer():
    assert not evidence(with_=5.2, nulls={"zeros": WORSE}).is_harmful
    assert evidence(with_=5.21, nulls={"zeros": WORSE}).is_harmful
    assert not evidence(with_=4.0, nulls={"zeros": WORSE}).is_harmful
    assert evidence(with_=math.nan, nulls={"zeros": WORSE}).is_harmful


@pytest.mark.parametrize(
    "null",
    [
        NullTest(psnr_db=29.0, clips=12, changed=8, changed_by_prefill=1, wer=60.0),
        NullTest(psnr_db=12.0, clips=12, changed=1, changed_by_prefill=1, wer=5.0),
        NullTest(psnr_db=12.0, clips=12, changed=2, changed_by_prefill=1, wer=5.0),
        NullTest(psnr_db=29.0, clips=0, changed=0, changed_by_prefill=0, wer=None),
    ],
)
def test_null_tests_that_do_as_well_empty_the_evidence(null):
    good = evidence(with_=5.0, nulls={"zeros": WORSE, "gaussian": WORSE})
    assert (good.inconclusive, good.alike) == ("", ())
    found = evidence(with_=5.0, nulls={"zeros": WORSE, "gaussian": null})
    assert found.alike == ("gaussian",)
    assert found.inconclusive == "Gaussian caches do about as well, so this measurement is inconclusive"
    assert found.recorded().means_nothing == found.inconclusive


def test_word_errors_are_counted_after_normalisation():
    assert percent_wer(["Turn it off.", "One two"], ["turn it off", "one too"]) == pytest.approx(20.0)
