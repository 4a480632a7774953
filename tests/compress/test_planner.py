"""Plans: resumed after an interruption, and with outliers only where the writer can add them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.mil_programs import save

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.compress import planner as planning
from whisperkit_tools.compress.config import PalettizeConfig
from whisperkit_tools.compress.planner import CompressionTarget, Planner
from whisperkit_tools.compress.weight_inventory import WeightInventory
from whisperkit_tools.contract import MODEL_COMPONENTS
from whisperkit_tools.errors import OptionsError, RecipeError
from whisperkit_tools.mil.coreml import import_coremltools
from whisperkit_tools.mil.graph import read_graph
from whisperkit_tools.mil.program import Program
from whisperkit_tools.quantization.compressed_ops import OUTLIER_INPUTS, outlier_obstacles
from whisperkit_tools.quantization.compression import Compression
from whisperkit_tools.quantization.package_writer import write_compressed
from whisperkit_tools.quantization.palette import palettize
from whisperkit_tools.quantization.recipe import AllowedCompressions, check_recipe, read_recipe
from whisperkit_tools.quantization.sensitivity import Curvature
from whisperkit_tools.quantization.sensitivity_cache import SensitivityCache, SensitivityKey


def test_a_killed_run_goes_on_where_it_was(demo_bundle, tmp_path, monkeypatch):
    weights, made = WeightInventory(Bundle.open(demo_bundle)), []
    allowed = AllowedCompressions(nbits=(2, 4), outlier_shares=())
    real = planning.palettize

    def planner():
        cache = SensitivityCache(tmp_path, SensitivityKey(weights.weights_sha256(), []))
        if not cache.has_curvature("AudioEncoder"):
            for component in MODEL_COMPONENTS:
                ones = {n: np.ones(s, np.float32) for (c, n), s in weights.shapes.items() if c == component}
                cache.save_curvature(component, Curvature(ones))
        return Planner(weights, cache, allowed)

    def counted(weight, compression, importance, name, **kwargs):
        made.append((name, compression))
        if len(made) == kill_at:
            raise KeyboardInterrupt
        return real(weight, compression, importance, name, **kwargs)

    monkeypatch.setattr(planning, "palettize", counted)
    kill_at = 11
    with pytest.raises(KeyboardInterrupt):
        planner().recipe(CompressionTarget(target_bits=3))
    kill_at = -1
    whole, _ = planner().recipe(CompressionTarget(target_bits=3))
    assert len(made) <= 2 * len(weights.shapes) + 2  # what was lost is one weight under its two options
    assert planner().recipe(CompressionTarget(target_bits=3))[0] == whole
    assert len(made) <= 2 * len(weights.shapes) + 2


# --- where outliers are offered --------------------------------------------------------------------------------------

RNG = np.random.default_rng(4)
ROWS = RNG.standard_normal((64, 48)).astype(np.float16)
KERNEL = RNG.standard_normal((64, 48, 1, 1)).astype(np.float16)


def _readers():
    """A program for each type of operation that reads a weight as the parameter named."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb

    def flat(x, width):
        return mb.reshape(x=x, shape=[1, width])

    def image(x, channels):
        return mb.reshape(x=x, shape=[1, channels, 1, 1])

    return {
        ("conv", "weight"): (KERNEL, lambda x, w: mb.conv(x=image(x, 48), weight=w)),
        ("conv_transpose", "weight"): (KERNEL, lambda x, w: mb.conv_transpose(x=image(x, 64), weight=w)),
        ("linear", "weight"): (ROWS, lambda x, w: mb.linear(x=flat(x, 48), weight=w)),
        ("matmul", "y"): (ROWS, lambda x, w: mb.matmul(x=flat(x, 64), y=w)),
        ("matmul", "x"): (ROWS, lambda x, w: mb.matmul(x=w, y=mb.reshape(x=x, shape=[48, 1]))),
        ("gather", "x"): (ROWS, lambda x, w: mb.add(x=mb.gather(x=w, indices=[3], axis=0), y=flat(x, 48))),
        ("add", "y"): (ROWS, lambda x, w: mb.add(x=flat(x, 48), y=w)),
        ("mul", "y"): (ROWS, lambda x, w: mb.mul(x=flat(x, 48), y=w)),
        ("layer_norm", "gamma"): (ROWS[0], lambda x, w: mb.layer_norm(x=flat(x, 48), axes=[1], gamma=w)),
        ("matmul", "twice"): (ROWS, lambda x, w: mb.add(x=flat(x, 64), y=mb.matmul(x=w, y=w, transpose_y=True))),
    }


READERS = [
    ("conv", "weight"), ("conv_transpose", "weight"), ("linear", "weight"), ("matmul", "x"), ("matmul", "y"),
    ("gather", "x"), ("add", "y"), ("mul", "y"), ("layer_norm", "gamma"), ("matmul", "twice"),
]  # fmt: skip


def test_every_operation_of_the_rule_has_a_program():
    assert {(kind, key) for kind, keys in OUTLIER_INPUTS.items() for key in keys} <= set(READERS)


@pytest.mark.parametrize(("kind", "parameter"), READERS)
def test_outliers_are_offered_exactly_where_the_writer_adds_them(kind, parameter, tmp_path):
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    weight, reads = _readers()[kind, parameter]
    size = 64 if (parameter in ("y", "twice") and kind == "matmul") or kind == "conv_transpose" else 48
    source = save(
        lambda x: reads(x, mb.const(val=weight, name="w")),
        [mb.TensorSpec(shape=(size,), dtype=types.fp16)],
        tmp_path / "Source.mlpackage",
        compute_precision=None,
    )
    graph = read_graph(source)
    offered = not outlier_obstacles("w", graph)
    assert offered == (parameter in OUTLIER_INPUTS.get(kind, ()))
    compressed = {"w": palettize(weight, Compression(4, outlier_share=0.05), name="w")}
    target = tmp_path / "Target.mlpackage"
    if not offered:
        with pytest.raises(RecipeError, match="w has outliers"):
            write_compressed(source, compressed, target)
        return
    write_compressed(source, compressed, target)
    x = RNG.standard_normal(size).astype(np.float32)
    dense = Program.load(source)
    with torch.no_grad():
        dense.weights["w"].copy_(torch.from_numpy(compressed["w"].dense().astype(np.float32)))
    (found,), (expected,) = (program.predict({"x": x}).values() for program in (Program.load(target), dense))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_plan_offers_outliers_by_the_same_rule(demo_bundle):
    weights = WeightInventory(Bundle.open(demo_bundle))
    graphs = {name: read_graph(path) for name, path in weights.packages.items()}
    offered = {key: weights.allows_outliers(key) for key in weights.shapes}
    assert offered == {key: not outlier_obstacles(key[1], graphs[key[0]]) for key in weights.shapes}
    assert not offered["AudioEncoder", "embed_positions_weight"]  # it is added
    assert offered["AudioEncoder", "layers_0_fc1_weight"]


# --- recipes and targets ---------------------------------------------------------------------------------------------


def test_a_recipe_of_an_earlier_version_gives_the_same_choices(demo_bundle, tmp_path):
    """Written by hand in format 1: keys in any order, figures that no longer hold, settings left at their defaults."""
    weights = WeightInventory(Bundle.open(demo_bundle))
    tensors = {component: {} for component in MODEL_COMPONENTS}
    for component, name in weights.shapes:
        tensors[component][name] = {"divergence": 9.9, "compression": {"nbits": 4}, "nbytes": 1}
    tensors["AudioEncoder"]["conv1_weight"] = {"compression": {"outlier_share": 0.005, "nbits": 2}}
    tensors["TextDecoder"]["embed_tokens_weight_piece_0"] = {"compression": None}
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps({"tensors": tensors, "format": 1}))
    choices = read_recipe(path)
    check_recipe(choices, weights.shapes, weights.spec_version)
    assert choices.pop(("AudioEncoder", "conv1_weight")) == Compression(2, outlier_share=0.005)
    assert choices.pop(("TextDecoder", "embed_tokens_weight_piece_0")) is None
    assert set(choices.values()) == {Compression(4)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "set exactly one target: bits, target_bits, target_size, max_kl or recipe"),
        ({"nbits": 4, "max_kl": 0.1}, "set exactly one target"),
        ({"nbits": 5}, "bits: unsupported bit width 5; choose from 1, 2, 3, 4, 6, 8"),
        ({"target_bytes": -1}, "target_size is -1, expected a positive number"),
        ({"max_kl": float("nan")}, "max_kl is nan, expected a positive number"),
    ],
)
def test_targets_are_checked(settings, message):
    with pytest.raises(OptionsError, match=message):
        CompressionTarget(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"windows": 0, "tune_steps": -1}, "windows is 0, expected 1 or more; tune_steps is -1"),
        ({"samples": 0}, "samples is 0"),
        ({"plot": Path("x.pdf")}, "does not end in .png"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(OptionsError, match=message):
        PalettizeConfig(**settings)
