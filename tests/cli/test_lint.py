"""`wkt lint` and `wkt estimate` as a user meets them, on packages from anywhere."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.mil_programs import save

from whisperkit_tools.mil.coreml import import_coremltools, quiet_coremltools


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Packages with names of another publisher, no manifest: `sin` in the encoder, nothing amiss in the decoder."""
    import_coremltools()
    from coremltools.converters.mil import Builder as mb
    from coremltools.converters.mil.mil import types

    def write(path: Path, program: Any) -> None:
        save(program, [mb.TensorSpec(shape=(1, 64, 1, 32), dtype=types.fp16)], path, pass_pipeline=None)

    root = tmp_path_factory.mktemp("theirs") / "their-whisper"
    root.mkdir()
    kernel = np.ones((64, 64, 1, 1), np.float16)
    write(root / "whisper_encoder.mlpackage", lambda x: mb.relu(x=mb.sin(x=mb.conv(x=x, weight=kernel))))
    write(root / "whisper_decoder_second.mlpackage", lambda x: mb.relu(x=mb.conv(x=x, weight=kernel)))
    return root


def test_lint_says_what_leaves_and_why(wkt, folder):
    code, out, err = wkt("lint", folder, "--chip", "m1")
    assert (code, err) == (0, "")
    assert "their-whisper on M1" in out
    encoder = out[out.index("whisper_encoder ") :]
    assert "99.2% of FLOPs" in encoder  # all but 2048 of 2 * 64 * 64 * 32 + 2 * 2048
    assert "2 engine switches, 1 of 3 operations leave" in encoder
    assert "leaves  newer-chip (1)" in encoder
    assert "M1 has no sin; the first with it: A16 and M3" in encoder
    assert "source: ane-guide, measured elsewhere" in encoder
    assert "no findings" in out[out.index("whisper_decoder_second ") : out.index("whisper_encoder ")]


def test_strict_exits_3_with_findings_alone(wkt, folder):
    code, out, err = wkt("lint", folder, "--chip", "m1", "--strict")
    assert code == 3
    assert "newer-chip" in out
    assert "1 finding on M1; accept those of a rule with --ignore RULE" in err
    assert wkt("lint", folder, "--chip", "m1", "--strict", "--ignore", "newer-chip")[0] == 0
    assert wkt("lint", folder, "--chip", "m5", "--strict")[0] == 0
    assert wkt("lint", folder / "whisper_decoder_second.mlpackage", "--strict")[0] == 0


def test_lint_lists_every_operation(wkt, folder):
    package = folder / "whisper_encoder.mlpackage"
    code, out, _ = wkt("lint", package, "--json", "--chip", "m2")
    report = json.loads(out)["packages"]["whisper_encoder"]
    assert code == 0
    assert [(item["type"], item["on_engine"]) for item in report["operations"]] == [
        ("conv", True),
        ("sin", False),
        ("relu", True),
    ]
    assert [finding["rule"] for finding in report["findings"]] == ["newer-chip"]
    listing = wkt("lint", package, "--operations", "--chip", "m2")[1].splitlines()
    assert sum(line.startswith("    engine ") for line in listing) == 2
    assert sum(line.startswith("    leaves sin") and line.endswith("newer-chip") for line in listing) == 1


def test_estimate_tells_costs_errors_and_assumptions(wkt, folder, tmp_path):
    picture = tmp_path / "roof.png"
    code, out, err = wkt("estimate", folder, "--chip", "m1,A16", "--tokens", "7", "--plot", picture)
    assert (code, err) == (0, "")
    rows = [line for line in out.splitlines() if line.split()[:1] == ["whisper_encoder"]]
    assert [row.split()[1] for row in rows] == ["m1", "a16"]
    assert all("±31%" in row for row in rows)
    assert out.count("±31%") == 2 * 2 + 2 * 3
    assert "the decoder 7 times" in out
    assert "median 31%, measured elsewhere" in out
    assert "m1: 3.25 TFLOP/s (measured elsewhere)" in out
    assert "a16: 5.02 TFLOP/s (derived)" in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_estimate_compares_bundles(wkt, folder):
    single = folder / "whisper_encoder.mlpackage"
    code, out, _ = wkt("estimate", folder, single, "--chip", "m5", "--json")
    content = json.loads(out)
    assert code == 0
    assert [item["bundle"] for item in content["estimates"]] == ["their-whisper", "whisper_encoder"]
    assert content["estimates"][1]["window_s"] is None
    assert content["chips"]["m5"]["peak_flops_s"]["kind"] == "measured elsewhere"
    assert content["median_error"]["value"] == 0.31
    encoder = content["estimates"][1]["programs"][0]
    assert encoder["flops"] == 2 * 64 * 64 * 32 + 2 * 64 * 32


def test_the_demo_bundle(wkt, demo_bundle):
    """The encoder stays whole; the mel spectrogram, in float32 by design, does not.

    The decoder leaves the engine once, to find the chunk of the embedding that a token is in.
    """
    packages = json.loads(wkt("lint", demo_bundle, "--chip", "m5", "--json")[1])["packages"]
    assert packages["MelSpectrogram"]["flops_share"] == 0
    for name in ("AudioEncoder", "TextDecoder"):
        assert packages[name]["flops_share"] == pytest.approx(1, abs=1e-6)  # all but the arithmetic of the look-up
        leaves, rules = (0, set()) if name == "AudioEncoder" else (2, {"integer"})
        assert packages[name]["switches"] == leaves
        assert {finding["rule"] for finding in packages[name]["findings"]} <= {"alignment", "copy", *rules}
    code, out, _ = wkt("estimate", demo_bundle, "--json")
    content = json.loads(out)
    assert code == 0
    assert [item["chip"] for item in content["estimates"]] == ["m1", "m5"]
    assert all(item["window_s"] > 50 * item["decoder_step_s"] for item in content["estimates"])
    assert not any(program["uncounted"] for item in content["estimates"] for program in item["programs"])


@pytest.mark.parametrize("command", ["lint", "estimate"])
def test_unknown_chips_are_listed(wkt, folder, command):
    code, out, err = wkt(command, folder, "--chip", "m9")
    assert (code, out) == (2, "")
    assert "unknown chip 'm9'; known are a12, a13, a14" in " ".join(err.split())


def test_estimate_without_a_chip(wkt, folder):
    code, _, err = wkt("estimate", folder, "--chip", ",")
    assert code == 2
    assert "names no chip" in err


@pytest.mark.parametrize("command", ["lint", "estimate"])
def test_what_is_no_package(wkt, tmp_path, command):
    assert "no such bundle or package" in wkt(command, tmp_path / "none")[2]
    code, _, err = wkt(command, tmp_path)
    assert code == 1
    assert "found a folder with no .mlpackage" in err
    (tmp_path / "AudioEncoder.mlmodelc").mkdir()
    assert "only compiled models (AudioEncoder.mlmodelc)" in wkt(command, tmp_path)[2]
    (tmp_path / "x.txt").write_text("")
    assert "found a file" in wkt(command, tmp_path / "x.txt")[2]
    (tmp_path / "Bad.mlpackage").mkdir()
    assert "is not an .mlpackage (it has no Manifest.json)" in wkt(command, tmp_path / "Bad.mlpackage")[2]


def test_a_package_of_the_older_kind_is_refused(wkt, tmp_path):
    ct = import_coremltools()
    array = ct.models.datatypes.Array(3)
    builder = ct.models.neural_network.NeuralNetworkBuilder([("x", array)], [("y", array)])
    builder.add_activation("relu", "RELU", "x", "y")
    with quiet_coremltools():
        ct.models.MLModel(builder.spec, skip_model_load=True).save(str(tmp_path / "older.mlpackage"))
    for command in ("lint", "estimate"):
        code, out, err = wkt(command, tmp_path / "older.mlpackage")
        assert (code, out) == (1, "")
        assert "holds a model that is not an ML Program" in err


def test_an_estimate_says_what_open_axes_count_as(wkt, tmp_path):
    ct = import_coremltools()
    import torch

    layer = torch.jit.trace(torch.nn.Conv2d(32, 32, 1).eval(), torch.zeros(1, 32, 1, 64))
    shape = ct.Shape((1, 32, 1, ct.RangeDim(1, 512, default=64)))
    with quiet_coremltools():
        inputs = [ct.TensorType(name="x", shape=shape, dtype=np.float16)]
        model = ct.convert(layer, inputs=inputs, minimum_deployment_target=ct.target.iOS16, skip_model_load=True)
        model.save(str(tmp_path / "open.mlpackage"))
    code, out, _ = wkt("estimate", tmp_path / "open.mlpackage", "--chip", "m1")
    assert code == 0
    assert "too low: axes of open size count as 1, in x" in out
    assert "open-shape (1)" in wkt("lint", tmp_path / "open.mlpackage")[1]


def test_other_mistakes(wkt, folder, tmp_path, monkeypatch):
    code, _, err = wkt("lint", folder, "--ignore", "everything")
    assert code == 2
    assert "unknown rule everything; known are no-path" in " ".join(err.split())
    assert "no package has a function 'other'; there are main" in wkt("lint", folder, "--function", "other")[2]
    code, _, err = wkt("estimate", folder, "--plot", tmp_path / "a.pdf")
    assert code == 2
    assert "a.pdf is not a PNG file; give the picture a name that ends with .png" in err
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = wkt("estimate", folder, "--plot", tmp_path / "a.png")
    assert (code, out) == (1, "")
    assert "pip install 'whisperkit-tools[plot]'" in err


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac can be asked")
def test_measured_needs_a_mac(wkt, folder):
    code, out, err = wkt("lint", folder, "--measured")
    assert (code, out) == (1, "")
    assert "compute plan exists on macOS 14.4 and later only" in err


@pytest.mark.skipif(sys.platform != "darwin", reason="Core ML's compute plan is on macOS only")
def test_measured_shows_both_side_by_side(wkt, folder):
    code, out, _ = wkt("lint", folder / "whisper_decoder_second.mlpackage", "--measured", "--json")
    operations = json.loads(out)["packages"]["whisper_decoder_second"]["operations"]
    assert code == 0
    assert all(item["measured"] in ("ane", "gpu", "cpu") for item in operations)
    assert "Core ML plans " in wkt("lint", folder, "--measured")[1]
