"""The variant folder: names, finding, hashes, and writing it so that nothing half made is ever in place."""

import json
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from whisperkit_tools.bundle import Bundle, find_bundle, list_bundles, new_bundle, variant_name
from whisperkit_tools.contract import COMPONENTS
from whisperkit_tools.errors import BundleError
from whisperkit_tools.manifest import NO_MANIFEST, write_manifest


def make(folder: Path, *, hour: int | None = 0, content: bytes = b"weights") -> Path:
    for name in COMPONENTS:
        weights = folder / f"{name}.mlpackage" / "Data" / "weight.bin"
        weights.parent.mkdir(parents=True)
        weights.write_bytes(content)
    if hour is not None:
        write_manifest(folder, NO_MANIFEST, clock=lambda: datetime(2026, 1, 1, hour, tzinfo=UTC))
    return folder


@pytest.mark.parametrize(
    ("arguments", "name"),
    [  # the examples of the runtime's own repository
        ({"org": "openai", "model": "whisper-large-v3"}, "openai_whisper-large-v3"),
        ({"org": "openai", "model": "whisper-large-v3", "turbo": True, "size_bytes": 954_900_000},
         "openai_whisper-large-v3_turbo_954MB"),
        ({"org": "distil-whisper", "model": "distil-large-v3", "size_bytes": 594_000_001},
         "distil-whisper_distil-large-v3_594MB"),
    ],
)  # fmt: skip
def test_variant_names_are_the_runtimes(arguments, name):
    assert variant_name(**arguments) == name


@pytest.mark.parametrize("part", ["", "..", "a/b", "a b", ".hidden", "x\n", "a..b"])
def test_unsafe_names_are_refused(part):
    with pytest.raises(BundleError, match="cannot be part of a variant's name"):
        variant_name("openai", part)


def test_open_names_all_missing_packages(tmp_path):
    (tmp_path / "AudioEncoder.mlpackage").mkdir()
    with pytest.raises(BundleError, match=r"missing MelSpectrogram\.mlpackage, TextDecoder\.mlpackage"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "not valid JSON"), ("[]", "holds a JSON list"), ('{"format": 99}', "format 99"), ("{}", "format None")],
)
def test_damaged_manifests_are_refused(tmp_path, text, message):
    make(tmp_path / "b", hour=None)
    (tmp_path / "b" / "wkt.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        Bundle.open(tmp_path / "b")


def test_the_last_converted_is_found(tmp_path):
    make(tmp_path / "a", hour=2)
    make(tmp_path / "b", hour=1)
    assert find_bundle(tmp_path).name == "a"


@pytest.mark.parametrize("other", [2, None])
def test_what_cannot_be_told_apart_is_listed(tmp_path, other):
    make(tmp_path / "a", hour=2)
    make(tmp_path / "b", hour=other)
    with pytest.raises(BundleError, match="a, b"):
        find_bundle(tmp_path)


def test_no_bundle_says_how_to_make_one(tmp_path):
    with pytest.raises(BundleError, match="wkt convert demo"):
        find_bundle(tmp_path / "nowhere")


def test_hidden_and_incomplete_folders_are_no_bundles(tmp_path):
    make(tmp_path / ".x.partial")
    (tmp_path / "empty").mkdir()
    assert list_bundles(tmp_path) == []


def test_an_intact_bundle_has_no_differences(tmp_path):
    assert Bundle.open(make(tmp_path / "b")).differing_files() == []


def test_every_kind_of_difference_is_found(tmp_path):
    bundle = Bundle.open(make(tmp_path / "b"))
    weights = [bundle.package(name).path / "Data" / "weight.bin" for name in COMPONENTS]
    weights[0].write_bytes(b"weighty")  # same length, another byte
    weights[1].write_bytes(b"more weights")
    weights[2].unlink()
    (bundle.path / "new.txt").write_text("x")
    found = bundle.differing_files()
    assert len(found) == 4
    for pattern in ("sha256", "12 bytes, recorded 7", "recorded, but missing", "present, but not recorded"):
        assert any(re.search(pattern, line) for line in found)


def test_a_bundle_appears_whole_or_not_at_all(tmp_path):
    with pytest.raises(RuntimeError), new_bundle(tmp_path / "b") as folder:
        make(folder)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with new_bundle(tmp_path / "b") as folder:
        make(folder)
        assert not (tmp_path / "b").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_an_existing_bundle_is_kept_without_force_and_on_failure(tmp_path):
    old = make(tmp_path / "b", content=b"old")
    with pytest.raises(BundleError, match="already exists"), new_bundle(old):
        pytest.fail("must be refused before the work")
    with pytest.raises(RuntimeError), new_bundle(old, force=True):
        raise RuntimeError
    assert (old / "AudioEncoder.mlpackage" / "Data" / "weight.bin").read_bytes() == b"old"
    with new_bundle(old, force=True) as folder:
        make(folder, content=b"new")
    assert (old / "AudioEncoder.mlpackage" / "Data" / "weight.bin").read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_force_does_not_delete_what_is_no_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "thesis.tex").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"), new_bundle(tmp_path / "b", force=True):
        pass
    assert (tmp_path / "b" / "thesis.tex").exists()


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file", tmp_path / "file" / "b"):
        with pytest.raises(BundleError, match="not a folder"), new_bundle(target, force=True):
            pass


def test_two_writers_do_not_meet(tmp_path):
    with new_bundle(tmp_path / "b") as folder:
        make(folder)
        with pytest.raises(BundleError, match="another command is writing"), new_bundle(tmp_path / "b"):
            pass


def test_what_a_killed_command_left_is_cleared_away(tmp_path):
    code = f"""
import time
from pathlib import Path
from whisperkit_tools.bundle import new_bundle
with new_bundle(Path({str(tmp_path / "b")!r})) as folder:
    (folder / "half").write_text("x")
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "writing\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not (tmp_path / "b").exists()
    with new_bundle(tmp_path / "b") as folder:
        assert list(folder.iterdir()) == []
        make(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["b"]


def test_the_manifest_records_every_file(tmp_path):
    bundle = make(tmp_path / "b")
    manifest = json.loads((bundle / "wkt.json").read_text())
    assert manifest["files"]["AudioEncoder.mlpackage/Data/weight.bin"] == {
        "sha256": "9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c",  # printf weights | sha256sum
        "size_bytes": 7,
    }
