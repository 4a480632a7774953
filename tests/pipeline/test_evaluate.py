"""What an evaluation of several candidates gives: runs, the reference, failures."""

import json
from dataclasses import replace

import pytest

import whisperkit_tools as wkt
from whisperkit_tools.errors import EvaluationError, OptionsError
from whisperkit_tools.eval.runs.runner import FinishedRun
from whisperkit_tools.eval.schema import read_report
from whisperkit_tools.pipeline.candidates import BackendChoice, CandidateOptions
from whisperkit_tools.pipeline.evaluate import Evaluation, judged

TEXT = "the quick brown fox jumps over the lazy dog"


def _run(folder):
    return FinishedRun(folder, read_report(folder / "report.json").runs[0])


def test_runs_are_judged_against_one_of_them(write_run):
    base = _run(write_run("base", [(TEXT, TEXT), (TEXT, TEXT)], key="aaaaaaaa"))
    small = _run(write_run("small", [(TEXT, TEXT), (TEXT, "the dog")], key="bbbbbbbb"))
    first, second = judged([base, small], base.folder)
    assert first is base
    assert second.report.metrics.qoi == 0.5
    assert second.report.metrics.qoi_reference == "base"
    written = json.loads((small.folder / "report.json").read_text())["runs"][0]
    assert written["metrics"]["qoi"] == 0.5


def test_an_evaluation_is_its_runs(write_run):
    runs = tuple(_run(write_run(name, [(TEXT, TEXT)], key=name * 8)) for name in "ab")
    evaluation = Evaluation(runs)
    assert len(evaluation) == 2
    assert evaluation[1] is runs[1]
    assert tuple(evaluation) == evaluation[:] == runs
    evaluation.require_complete()


def test_failures_are_named(write_run):
    run = _run(write_run("a", [(TEXT, TEXT)], key="aaaaaaaa"))
    with pytest.raises(EvaluationError, match="tries again:\n  b: it stopped"):
        Evaluation((run,), stopped=("b: it stopped",)).require_complete()
    failure = type("Failure", (), {"id": "x", "error": "broken"})()
    failed = replace(run, report=replace(run.report, failures=(failure,) * 7))
    lines = Evaluation((failed,)).failures
    assert lines[0] == "a: x: broken"
    assert lines[-1] == "a: and 2 more, listed in its report"
    assert len(lines) == 6


@pytest.mark.parametrize(
    ("backends", "options", "message"),
    [
        (
            ["transformers:demo"],
            {"decoding": {"features": "file"}},
            "features applies to bundles: add backend=",
        ),
        (["executor"], {"decoding": {"stride_s": 2}}, "stride_s needs long_form=chunked"),
        (["executor"], {"decoding": {"vad": "energy", "long_form": "chunked"}}, "vad needs long_form=vad"),
        (["executor"], {"compute_units": "all"}, "compute_units applies to Core ML: add backend=coreml"),
        (["coreml"], {"precision": "float16"}, "precision applies to the executor: add backend=executor"),
        (["executor"], {"endpoint": "http://x"}, "endpoint needs a service: add backend=openai:MODEL"),
        (["executor"], {"backend_options": ("beam=5",)}, "backend_option=beam=5 belongs to no chosen backend"),
        (["openai:x"], {"backend_options": ("mlx-whisper:a=5",)}, "belongs to no chosen backend"),
    ],
)
def test_options_that_nothing_uses_are_refused(backends, options, message):
    choices = [BackendChoice.parse(text) for text in backends]
    with pytest.raises(OptionsError) as found:
        CandidateOptions(**options).check_used(choices)
    assert message in str(found.value)


def test_options_that_something_uses_are_taken():
    choices = [BackendChoice.parse(text) for text in ("executor", "openai:whisper-1")]
    options = CandidateOptions(
        decoding={"long_form": "chunked", "stride_s": 2, "chunk_length_s": 10},
        precision="float16",
        endpoint="http://x",
        backend_options=("openai:timeout_s=5",),
    )
    options.check_used(choices)
    assert options.own == ["long_form", "chunk_length_s", "stride_s"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "slurm"}, "engine is 'slurm'; choose from local, ray"),
        ({"workers": 0}, "workers is 0; the minimum is 1"),
        ({"address": "auto"}, "address names a Ray cluster; add engine=ray"),
        ({"normalizer": "mine"}, "normalizer: no normalizer 'mine'"),
        ({"noise_snr": "loud"}, "noise_snr: 'loud' is not a list"),
    ],
)
def test_wrong_values_are_option_errors(demo_bundle, options, message):
    with pytest.raises(OptionsError) as found:
        wkt.evaluate(demo_bundle, dataset="demo", limit=1, **options)
    assert message in str(found.value)
