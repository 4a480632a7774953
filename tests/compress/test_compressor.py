"""The stages of a compression: what they hold in memory, when a divergence is planned again, and resuming."""

import weakref

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import compressor, package_builder, planner, workspace
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.gate_measurement import LoadedCandidate, ReferenceTranscriber
from whisperkit_tools.compress.planner import CompressionTarget
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.compress.workspace import needed_memory
from whisperkit_tools.quantization.gate import Gate
from whisperkit_tools.quantization.recipe import AllowedCompressions


class Reached(Exception):
    """The stage that the test is about has begun."""


@pytest.fixture
def work(demo_bundle, tmp_path, monkeypatch):
    """A run whose references are watched, as a callable and the list of them."""
    references = []

    class Watched(ReferenceTranscriber):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            references.append(weakref.ref(self))

    monkeypatch.setattr(workspace, "ReferenceTranscriber", Watched)
    config = PalettizeConfig(
        target=CompressionTarget(nbits=8),
        windows=1,
        samples=1,
        gate_examples=1,
        tune_steps=2,
        profile_dir=tmp_path / "profile",
        output_dir=tmp_path / "out",
    )
    return lambda: compressor.palettize(Bundle.open(demo_bundle), config), references


@pytest.mark.parametrize(
    ("module", "stage", "loaded"),
    [
        (planner, "estimate_curvatures", 1),
        (compressor, "Tuning", 3),
        (package_builder, "write_compressed", 3),
        (package_builder, "_outputs", 3),
    ],
)
def test_the_uncompressed_bundle_is_let_go_before_what_is_as_large(work, monkeypatch, module, stage, loaded):
    run, references = work
    alive = []

    def reached(*_, **__):
        alive.extend(reference() for reference in references)
        raise Reached

    monkeypatch.setattr(module, stage, reached)
    with pytest.raises(Reached):
        run()
    assert alive == [None] * loaded


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The measurements that some tests share."""
    return tmp_path_factory.mktemp("profile")


def _config(profile, place, target, **settings):
    return PalettizeConfig(
        target=target, windows=1, samples=1, profile_dir=profile, output_dir=place / "out", **settings
    )


def test_a_divergence_is_planned_again_until_it_is_measured_and_only_then_transcribed(
    demo_bundle, profile, tmp_path, monkeypatch
):
    transcribe, heard = LoadedCandidate.transcribed, set()

    def watched(self, *arguments, **keywords):
        heard.add(self.folder)
        return transcribe(self, *arguments, **keywords)

    monkeypatch.setattr(LoadedCandidate, "transcribed", watched)
    limit = 1e-4
    gate, allowed = Gate(qoi_min=0, wer_delta_max=1000, max_kl=limit), AllowedCompressions((4, 8))
    config = _config(profile, tmp_path, CompressionTarget(max_kl=0.1), gate=gate, gate_examples=3, allowed=allowed)
    result = compressor.palettize(Bundle.open(demo_bundle), config)
    *before, last = result.trials
    assert before
    assert all(trial.kl_divergence > limit and "KL divergence" in trial.verdict.shortfalls[0] for trial in before)
    assert result.verdict.kl_divergence.value <= limit
    assert result.verdict == last.verdict
    assert result.verdict.passed
    assert len(heard) <= 1


def test_an_interrupted_gate_continues_with_the_next_example(demo_bundle, profile, tmp_path, monkeypatch):
    transcribe, heard = LoadedCandidate.transcribed, []

    def interrupted(self, at, *arguments, **keywords):
        if len(heard) == 1:
            heard.append(None)
            raise KeyboardInterrupt
        heard.append(at)
        return transcribe(self, at, *arguments, **keywords)

    monkeypatch.setattr(LoadedCandidate, "transcribed", interrupted)
    gate = Gate(qoi_min=0, wer_delta_max=1000)
    config = _config(profile, tmp_path, CompressionTarget(nbits=1), gate=gate, gate_examples=3)
    with pytest.raises(KeyboardInterrupt):
        compressor.palettize(Bundle.open(demo_bundle), config)
    result = compressor.palettize(Bundle.open(demo_bundle), config)
    first, _, *rest = heard
    assert len({first, *rest[:2]}) == 3  # cut transcripts are heard once more, after the others
    assert result.verdict.stopped_after is None


def test_memory_that_is_asked_for_grows_with_the_model(demo_bundle):
    weights = WeightInventory(Bundle.open(demo_bundle))
    assert needed_memory(weights) > 12 * weights.largest_component
