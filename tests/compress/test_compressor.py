"""What a compression holds in memory, and when it lets go."""

import weakref

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import compressor, package_builder, planner, workspace
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.gate_measurement import ReferenceTranscriber
from whisperkit_tools.compress.planner import CompressionTarget
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.compress.workspace import needed_memory


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
        (compressor, "Tuning", 2),
        (package_builder, "write_compressed", 2),
        (package_builder, "_outputs", 2),
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


def test_memory_that_is_asked_for_grows_with_the_model(demo_bundle):
    weights = WeightInventory(Bundle.open(demo_bundle))
    assert needed_memory(weights) > 12 * weights.largest_component
