"""`wkt palettize` on the embedded demo model: plans, bundles, the gate that closes, and what is refused."""

import json
import shlex
import shutil

import numpy as np
import pytest
import soundfile

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.demo import demo_utterances
from whisperkit_tools.publishing.provenance import commands
from whisperkit_tools.quantization.package_writer import read_dense

QUICK = ("--windows", "1", "--gate-examples", "2")
OPEN = ("--qoi-min", "0", "--wer-delta-max", "1000")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The profile that the tests of this file share, so that the sensitivity pass runs once."""
    return tmp_path_factory.mktemp("palettize")


@pytest.fixture
def palettize(wkt, demo_bundle, place, tmp_path):
    def run(*arguments, bundle=demo_bundle):
        return wkt("palettize", bundle, "--profile", place, "-o", tmp_path / "out", *QUICK, *arguments)

    return run


def test_a_dry_run_prints_the_plan_and_makes_nothing(palettize, tmp_path):
    recipe, plot = tmp_path / "r.json", tmp_path / "curves.png"
    code, out, err = palettize(
        "--target-bits", "3", "--allowed-nbits", "2,4,6", "--keep", "TextDecoder/embed_pos*", "--dry-run",
        "--json", "--recipe-out", recipe, "--plot", plot,
    )  # fmt: skip
    assert code == 0, err
    plan = json.loads(out)
    assert plan["bits"] <= 3
    assert plan["nbytes"] < plan["original_nbytes"] / 3
    tensors = plan["recipe"]["tensors"]
    assert tensors["TextDecoder"]["embed_positions_weight"]["compression"] is None
    widths = {e["compression"]["nbits"] for part in tensors.values() for e in part.values() if e["compression"]}
    assert widths <= {2, 4, 6}
    assert len(widths) > 1
    assert json.loads(recipe.read_text())["tensors"] == tensors
    assert plot.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    curves = json.loads(plot.with_suffix(".json").read_text())
    falling = [point["predicted_kl"] for point in curves["mixed"]]
    assert falling == sorted(falling, reverse=True)
    theirs = {point["name"]: point for point in curves["block_formats"]}
    assert list(theirs) == ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0"]
    assert theirs["q4_0"]["kl"] > theirs["q8_0"]["kl"] > 0
    assert all(point["nbytes"] <= 1.001 * theirs[point["name"]]["nbytes"] for point in curves["plans"])
    assert curves["chosen"][0]["kl"] > 0
    assert not (tmp_path / "out").exists()


def test_a_bundle_is_made_verified_and_recorded(palettize, wkt, demo_bundle, tmp_path):
    code, out, err = palettize("--target-bits", "6", *OPEN, "--json", "--plot", tmp_path / "curve.png")
    assert code == 0, err
    result = json.loads(out)
    bundle = Bundle.open(result["path"])
    size = sum(bundle.package(name).nbytes for name in ("AudioEncoder", "TextDecoder"))
    assert bundle.name == f"whisperkit-tools_whisper-micro-demo_{int(size / 1e6)}MB"
    assert abs(result["predicted_nbytes"] - size) <= 0.005 * size
    assert min(result["psnr_db"].values()) >= 70
    assert bundle.differing_files() == []
    recorded = bundle.manifest.to_json()["compression"]
    assert recorded["gate"]["examples"] == 2
    assert recorded["nbytes"] == size
    assert not recorded["rejected"]
    compared = recorded["comparison"]
    assert compared["windows"] <= 2
    # Both sum float32 logits, in batches of another order: that is worth 1e-7 nats, however small the divergence.
    assert compared["chosen"]["kl"] == pytest.approx(recorded["gate"]["kl_divergence"]["value"], rel=1e-3, abs=2e-7)
    assert compared == json.loads(json.dumps(result["compared"]))
    assert (tmp_path / "curve.png").is_file()
    assert (bundle.path / recorded["original"]["path"]).resolve() == demo_bundle.resolve()
    entry = recorded["recipe"]["tensors"]["TextDecoder"]["layers_0_fc1_weight"]
    _, dense = next(read_dense(bundle.package("TextDecoder").path, ["layers_0_fc1_weight"]))
    assert len(np.unique(dense)) <= 2 ** entry["compression"]["nbits"] + 0.006 * dense.size

    # Asked to compress it again, the original is taken.
    code, out, err = palettize("--target-bits", "5", "--dry-run", bundle=bundle.path)
    assert code == 0, err
    assert "working from its original" in err
    moved = tmp_path / "some" / "where" / "else" / bundle.name
    shutil.copytree(bundle.path, moved)
    code, _, err = palettize("--target-bits", "5", "--dry-run", bundle=moved)
    assert code == 1
    assert "compressed already, and its original is not at" in err


def test_a_stateful_bundle_is_refused_with_the_way_out(palettize, stateful_bundle):
    code, _, err = palettize("--bits", "4", bundle=stateful_bundle)
    assert code == 1
    assert "convert without --stateful" in err


def test_the_gate_closes_and_nothing_is_published(palettize, tmp_path):
    code, _, err = palettize("--bits", "1")
    assert code == 3
    assert "is not good enough: 1 of the first 1 of 2 examples are worse; at least 95 % must be no worse" in err
    assert "nothing was published" in err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())


def test_a_rejected_bundle_is_kept_under_a_name_that_is_never_published(palettize, wkt, tmp_path):
    code, _, err = palettize("--bits", "1", "--keep-rejected")
    assert code == 3
    kept = [path for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")]
    assert [path.name.endswith("MB.rejected") for path in kept] == [True]
    assert Bundle.open(kept[0]).manifest.compression.rejected
    code, _, err = wkt("publish", kept[0], "--to", tmp_path / "published")
    assert code == 1
    assert "was rejected by its quality gate" in err


def test_the_search_shows_its_path(palettize):
    code, out, err = palettize("--trials", "2", *OPEN, "--allowed-nbits", "2,4")
    assert code == 0, err
    lines = out.splitlines()
    assert len(lines) == 3
    assert all(" MB  KL 0." in line for line in lines[:2])
    assert "QoI" in lines[1]
    assert lines[1].endswith("pass")
    assert "note: the search takes about" in err
    assert lines[-1].endswith("MB")


def test_a_recipe_is_edited_and_given_back(palettize, tmp_path):
    recipe = tmp_path / "r.json"
    assert palettize("--bits", "4", "--dry-run", "--recipe-out", recipe)[0] == 0
    content = json.loads(recipe.read_text())
    content["tensors"]["AudioEncoder"]["conv1_weight"]["compression"] = {"nbits": 8}
    recipe.write_text(json.dumps(content))
    code, out, err = palettize("--recipe", recipe, "--dry-run", "--json")
    assert code == 0, err
    tensors = json.loads(out)["recipe"]["tensors"]
    assert tensors["AudioEncoder"]["conv1_weight"]["compression"] == {"nbits": 8}
    assert tensors["AudioEncoder"]["conv2_weight"]["compression"] == {"nbits": 4}
    del content["tensors"]["TextDecoder"]
    recipe.write_text(json.dumps(content))
    code, _, err = palettize("--recipe", recipe, "--dry-run")
    assert code == 1
    assert "belongs to another model" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--bits", "3"), 2, "3 bits needs deployment target iOS 18 / macOS 15, but the bundle is for iOS 16"),
        (("--group-size", "16", "--target-bits", "4"), 2, "needs deployment target iOS 18"),
        (("--allow", "blocks", "--target-bits", "4"), 2, "--allow: unknown form 'blocks'; choose from vectors, scales"),
        (("--allow", "vectors", "--target-bits", "4"), 2, "vectors of 2 needs deployment target iOS 18"),
        (("--keep", "nothing_like_it", "--target-bits", "4"), 2, "--keep nothing_like_it matches no weight"),
        (("--allowed-nbits", "5", "--target-bits", "4"), 2, "--allowed-nbits: unsupported bit width 5"),
        (("--bits", "4", "--target-bits", "4"), 2, "set exactly one target: --bits, --target-bits, "),
        (("--target-size", "10KB"), 2, "is below the smallest possible size"),
        (("--target-bits", "1.5"), 2, "--target-bits is 1.5, below the minimum of 2.0"),
        (("--target-bits", "0"), 2, "--target-bits is 0.0, expected a positive number"),
        (("--bits", "7"), 2, "--bits: unsupported bit width 7; choose from 1, 2, 3, 4, 6, 8"),
        (("--target-size", "big"), 2, "--target-size: 'big' is not a size such as 600MB"),
        (("--bits", "few"), 2, "neither 'mixed' nor a number"),
        (("--qoi-min", "200"), 2, "0 to 100"),
        (("--recipe", "missing.json"), 1, "missing.json: cannot be read"),
        (("--calibration", "missing"), 2, "no dataset 'missing'"),
        (("--plot", "x.pdf", "--target-bits", "4"), 2, "does not end in .png"),
    ],
)
def test_bad_wishes_are_refused_in_one_line_before_the_work(palettize, tmp_path, arguments, code, message):
    found, out, err = palettize(*arguments, "--dry-run", "--profile", tmp_path / "fresh")
    assert (found, out) == (code, "")
    assert message in err
    assert "sensitivity" not in err
    assert not list(tmp_path.rglob("*.curvature.npz"))


@pytest.mark.parametrize("option", ["--gate-audio", "--reference"])
def test_a_gate_without_its_audio_or_reference_is_refused_before_the_work(palettize, tmp_path, option):
    code, out, err = palettize("--bits", "4", option, tmp_path / "missing", "--profile", tmp_path / "fresh")
    assert (code, out) == (1, "")
    assert "missing" in err
    assert "sensitivity" not in err


@pytest.fixture
def speech(tmp_path):
    """Two folders of demo sentences with their texts, without a sentence in common."""
    for name, sentences in (("heard", demo_utterances()[:2]), ("judged", demo_utterances()[2:5])):
        (tmp_path / name).mkdir()
        for sentence in sentences:
            shutil.copy(sentence.path, tmp_path / name)
            (tmp_path / name / f"{sentence.id}.txt").write_text(sentence.text)
    return tmp_path


def test_a_gate_that_was_calibrated_on_is_refused_before_the_work(palettize, speech):
    common = ("--bits", "8", "--gate-audio", speech / "judged", "--gate-examples", "3", "--profile", speech / "fresh")
    code, out, err = palettize(*common, "--calibration", speech / "judged", "--windows", "2")
    assert (code, out) == (2, "")
    assert len(err.strip().splitlines()) == 1
    assert "2 of the gate's 3 examples were also used for calibration: en_02.flac, en_04.flac; name distinct" in err
    assert "--allow-overlap" in err
    shutil.copy(speech / "judged" / "en_03.flac", speech / "heard" / "another_name.flac")
    code, _, err = palettize(*common, "--calibration", speech / "heard", "--windows", "9", "--tune-palettes", "1")
    assert code == 2
    assert "1 of the gate's 3 examples were also used for calibration or tuning: en_03.flac; choose other speech" in err
    assert "sensitivity" not in err


def test_an_overlap_that_is_allowed_is_recorded(palettize, speech):
    code, out, err = palettize(
        "--bits", "8", "--gate-audio", speech / "judged", "--calibration", speech / "judged", "--gate-examples", "3",
        "--windows", "2", "--allow-overlap", *OPEN,
    )  # fmt: skip
    assert code == 0, err
    assert "have no text" not in err
    recorded = Bundle.open(out.splitlines()[-1]).manifest.compression
    assert (recorded.gate.overlap, recorded.gate.examples) == (2, 3)
    assert recorded.settings.allow_overlap


def test_the_commands_of_the_card_make_the_same_bundle_again(palettize, wkt, demo_bundle, place, speech, monkeypatch):
    (speech / "judged" / "en_04.txt").unlink()
    code, out, err = palettize(
        "--target-size", "1.2MB", "--gate-audio", speech / "judged", "--gate-examples", "3", "--keep", "*/conv1_weight",
        "--allowed-nbits", "2,4,8", "--tune-palettes", "2", "--seed", "1", *OPEN,
    )  # fmt: skip
    assert code == 0, err
    assert "1 of the gate's 3 examples have no text" in err
    made = Bundle.open(out.splitlines()[-1])
    (line,) = [line for line in commands(made.name, made.manifest) if line.startswith("wkt palettize")]
    assert str(speech) not in line
    assert "--target-size 1200000" in line
    (speech / "bundles").mkdir()
    (speech / "bundles" / demo_bundle.name).symlink_to(demo_bundle)
    monkeypatch.chdir(speech)
    code, out, err = wkt(*shlex.split(line)[1:], "--profile", place, "-o", "again")
    assert code == 0, err
    again = Bundle.open(out.splitlines()[-1])
    assert again.manifest.compression.settings == made.manifest.compression.settings
    assert (again.name, again.content_sha256()) == (made.name, made.content_sha256())


def test_a_recipe_for_another_model_is_refused_before_the_work(palettize, tmp_path):
    recipe = tmp_path / "r.json"
    recipe.write_text(json.dumps({"format": 1, "tensors": {"AudioEncoder": {"other": {"compression": None}}}}))
    code, _, err = palettize("--recipe", recipe, "--profile", tmp_path / "fresh")
    assert code == 1
    assert "belongs to another model" in err
    assert "sensitivity" not in err


def test_an_interrupted_search_takes_its_candidates_up_again(palettize, place, monkeypatch):
    from whisperkit_tools.compress import compressor

    arguments = ("--trials", "2", *OPEN, "--allowed-nbits", "4,8", "--json")
    written, write = [], compressor.write_packages

    def interrupted(source, palettes, folder):
        write(source, palettes, folder)
        written.append(folder)
        if len(written) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(compressor, "write_packages", interrupted)
    code, out, _ = palettize(*arguments)
    assert code != 0
    assert out == ""
    assert len(list(place.rglob("measured.json"))) == 1
    code, out, err = palettize(*arguments)
    assert code == 0, err
    resumed = json.loads(out)
    assert len(resumed["trials"]) == 2  # the second is the smallest there is
    assert len(written) == 3
    assert [path for folder in place.rglob("candidates") for path in folder.iterdir()] == []
    code, out, err = palettize(*arguments, "--force")
    assert code == 0, err
    assert json.loads(out) == resumed


def test_calibration_audio_without_speech_is_refused(palettize, tmp_path):
    folder = tmp_path / "silence"
    folder.mkdir()
    soundfile.write(folder / "a.wav", np.zeros(32000, np.float32), 16000)
    code, _, err = palettize("--calibration", folder, "--target-bits", "4", "--dry-run")
    assert code == 1
    assert "has no speech" in err


def test_too_little_memory_is_stated_before_the_work(palettize, monkeypatch):
    from whisperkit_tools.compress import workspace

    monkeypatch.setattr(workspace, "available_memory", lambda: 1 << 20)
    code, _, err = palettize("--target-bits", "4", "--dry-run")
    assert code == 1
    assert "GB of memory, and 0.0 GB are free" in err


def test_the_default_bundle_must_be_clear(wkt, demo_bundle, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = wkt("palettize", "--dry-run")
    assert code == 1
    assert "no bundle in bundles" in err
    for name in ("one", "two"):
        shutil.copytree(demo_bundle, tmp_path / "bundles" / name)
    code, _, err = wkt("palettize", "--dry-run")
    assert code == 1
    assert "one, two" in err
    assert "as BUNDLE" in err
