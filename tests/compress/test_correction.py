"""A plan's predictions, corrected by what its palettes do on speech that calibration did not take."""

from dataclasses import replace

import numpy as np
import pytest

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress.compressor import palettes_of, plan_for, sense
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.correction import corrected_plan
from whisperkit_tools.compress.divergence_meter import DivergenceMeter
from whisperkit_tools.compress.package_builder import write_packages
from whisperkit_tools.compress.plan_measurement import EMBEDDING, PARTS, PartDivergences
from whisperkit_tools.compress.planner import CompressionTarget, importance
from whisperkit_tools.compress.workspace import open_workspace
from whisperkit_tools.contract import DECODER, ENCODER
from whisperkit_tools.progress import SilentProgress
from whisperkit_tools.quantization.package_writer import read_dense

TARGET = CompressionTarget(target_bits=3.5)


@pytest.fixture(scope="module")
def work(demo_bundle, tmp_path_factory):
    config = PalettizeConfig(windows=2, samples=1, profile_dir=tmp_path_factory.mktemp("profile"))
    found = open_workspace(Bundle.open(demo_bundle), config)
    sense(found)
    return found


class Scaled:
    """Speech on which every part causes a multiple of what the uncorrected plan predicts for it."""

    def __init__(self, planner, factors, joint):
        self.factors, self.joint, self.planner, self.count = factors, joint, planner, 0

    def decoder_alone(self, palettes):
        options = [self.planner.options(key, [found.compression])[0] for key, found in palettes.items()]
        return self.factors[EMBEDDING] * sum(option.divergence for option in options)

    def measure(self, palettes):
        self.count += 1
        parts = dict.fromkeys(PARTS, 0.0)
        for key, found in palettes.items():
            part = EMBEDDING if key in self.planner.weights.embeddings else key[0]
            option = self.planner.options(key, [found.compression])[0]
            parts[part] += self.factors[part] * option.divergence
        return PartDivergences(parts, self.joint * sum(parts.values()))


def test_predictions_that_are_wrong_are_corrected(demo_bundle, work):
    found = replace(work, planner=open_workspace(work.bundle, work.config).planner)
    planner = found.planner
    speech = Scaled(planner, {ENCODER: 0.3, DECODER: 2.0, EMBEDDING: 5.0}, 1.5)
    plan = corrected_plan(
        planner, lambda: planner.plan(TARGET), lambda: speech, SilentProgress(), keeps_size=True, rounds=4
    )
    assert plan.recipe.divergence == pytest.approx(plan.measured.together, rel=1e-6)
    assert 2 <= speech.count <= 4
    # The corrections stay: a plan of another size agrees at once.
    other = CompressionTarget(target_bits=5)
    again = corrected_plan(
        planner, lambda: planner.plan(other), lambda: speech, SilentProgress(), keeps_size=True, rounds=1
    )
    assert again.measured.together == pytest.approx(planner.plan(other).recipe.divergence, rel=1e-6)


def test_what_is_measured_is_what_the_written_packages_do(work, tmp_path):
    plan = plan_for(work, TARGET)
    write_packages(work.bundle, palettes_of(work, plan.recipe), tmp_path)
    names = {component: plan.recipe.compressions(component) for component in (ENCODER, DECODER)}

    def written(component):
        return read_dense(tmp_path / f"{component}.mlpackage", names[component])

    meter = DivergenceMeter(work.weights.packages, work.held_out)
    (expected,) = meter.measure([written])
    assert plan.measured.together == pytest.approx(expected, rel=1e-3)
    assert all(plan.measured.parts[part] > 0 for part in PARTS)


def test_importance_has_the_profiles_of_the_curvature_alone():
    rng = np.random.default_rng(0)
    rows, columns = rng.gamma(1, 1, (6, 1)), rng.gamma(1, 1, (1, 8))
    noisy = (rows * columns * rng.gamma(0.1, 10, (6, 8))).astype(np.float32)
    found = importance(noisy.reshape(6, 8, 1, 1))[..., 0, 0]
    product = noisy.mean(1, keepdims=True) * noisy.mean(0, keepdims=True) / noisy.mean()
    np.testing.assert_allclose(found, product + 0.1 * noisy.mean(), rtol=1e-5)
    assert importance(np.zeros((4, 4), np.float32)).tolist() == np.ones((4, 4)).tolist()
    positions = rng.gamma(1, 1, (1, 5, 1, 7)).astype(np.float32)
    assert importance(positions).shape == positions.shape
