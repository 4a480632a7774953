"""What a compression holds in memory, and when it lets go."""

import weakref

import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import compressor as palettizer
from whisperkit_tools.compress import package_builder as build
from whisperkit_tools.compress import planner as plan
from whisperkit_tools.compress.compressor import Palettizer, needed_memory
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.gate_measurement import Listener
from whisperkit_tools.compress.planner import Aim


class Reached(Exception):
    """The stage that the test is about has begun."""


@pytest.fixture
def work(demo_bundle, tmp_path, monkeypatch):
    """A palettizer whose listeners are watched in `work.listeners`."""
    listeners = []

    class Watched(Listener):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            listeners.append(weakref.ref(self))

    monkeypatch.setattr(palettizer, "Listener", Watched)
    config = PalettizeConfig(
        aim=Aim(nbits=8), windows=1, samples=1, gate_examples=1, tune_steps=2, profile_dir=tmp_path / "profile",
        output_dir=tmp_path / "out",
    )  # fmt: skip
    return Palettizer(Bundle.open(demo_bundle), config), listeners


@pytest.mark.parametrize(
    ("module", "stage", "heard"),
    [(plan, "curvatures", 1), (palettizer, "Tuning", 2), (build, "write_compressed", 2), (build, "_outputs", 2)],
)
def test_the_uncompressed_bundle_is_let_go_before_what_is_as_large(work, monkeypatch, module, stage, heard):
    run, listeners = work
    alive = []

    def reached(*_, **__):
        alive.extend(listener() for listener in listeners)
        raise Reached

    monkeypatch.setattr(module, stage, reached)
    with pytest.raises(Reached):
        run.run()
    assert alive == [None] * heard


def test_memory_that_is_asked_for_grows_with_the_model(work):
    model = work[0].model
    assert needed_memory(model) > 12 * model.largest_component()
