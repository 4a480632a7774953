"""Names in data lead nowhere but into their folder."""

import os

import pytest

from whisperkit_tools.errors import BundleError, DatasetError
from whisperkit_tools.paths import expanded, found_inside, inside


@pytest.mark.parametrize("name", ["a", "a/b.json", "a b", "ä/ö.flac", "a..b", "-x", "...", "~x"])
def test_names_inside(tmp_path, name):
    assert inside(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("../x", "leads out by '..'"),
        ("a/../../x", "leads out by '..'"),
        ("..", "leads out by '..'"),
        ("/etc/passwd", "is an absolute path"),
        ("C:/x", "is an absolute path"),
        ("", "is empty"),
        (" ", "is empty"),
        (".", "has empty parts"),
        ("a//b", "has empty parts"),
        ("a/", "has empty parts"),
        ("./a", "has empty parts"),
        ("a\nb", "has characters"),
        ("a\x1b[31m", "has characters"),
        ("a\x00", "has characters"),
        ("a\u202eb", "has characters"),
        ("a\\b", "has characters"),
        ("a\udc80", "has characters"),
        ("x" * 2000, "is too long"),
        (None, "is not a name of a file"),
        (3, "is not a name of a file"),
        (["a"], "is not a name of a file"),
    ],
)
def test_names_outside(tmp_path, name, reason):
    with pytest.raises(DatasetError, match=reason) as caught:
        inside(tmp_path, name, DatasetError)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).isprintable()


def test_links_that_lead_out(tmp_path):
    home, outside = tmp_path / "home", tmp_path / "outside"
    home.mkdir()
    outside.mkdir()
    (outside / "file").write_text("mine")
    (home / "folder").symlink_to(outside)
    (home / "file").symlink_to(outside / "file")
    (home / "gone").symlink_to(tmp_path / "nothing")
    (home / "circle").symlink_to(home / "circle")
    for name in ("folder/file", "folder/new", "file", "gone", "circle"):
        with pytest.raises(BundleError, match="is a symbolic link"):
            inside(home, name)


def test_links_that_stay_are_followed_for_reading_only(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert inside(tmp_path, "link") == tmp_path / "link"
    with pytest.raises(BundleError, match="is a symbolic link"):
        inside(tmp_path, "link", links=False)


def test_the_links_of_the_hubs_cache(tmp_path):
    """As huggingface_hub lays them out: snapshots of links to blobs."""
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / ("0" * 40)
    blobs.mkdir(parents=True)
    (snapshot / "v").mkdir(parents=True)
    (blobs / "abc").write_text("x")
    (snapshot / "v" / "a.bin").symlink_to("../../../blobs/abc")
    assert inside(snapshot, "v/a.bin").read_text() == "x"
    assert inside(snapshot / "v", "a.bin").read_text() == "x"
    (tmp_path / "secret").write_text("mine")
    (snapshot / "b.bin").symlink_to(tmp_path / "secret")
    with pytest.raises(BundleError, match="is a symbolic link"):
        inside(snapshot, "b.bin")


def test_tables_name_files_of_their_folder_in_any_way(tmp_path):
    (tmp_path / "tables").mkdir()
    (tmp_path / "a.wav").write_bytes(b"x")
    for name in ("a.wav", str(tmp_path / "a.wav"), "tables/../a.wav"):
        assert found_inside(tmp_path, name) == tmp_path / "a.wav"
    assert found_inside(tmp_path, "../a.wav", tmp_path / "tables") == tmp_path / "a.wav"
    assert found_inside(tmp_path, "none.wav") is None
    assert found_inside(tmp_path, "a\x00.wav") is None
    os.mkfifo(tmp_path / "pipe.wav")
    assert found_inside(tmp_path, "pipe.wav") is None
    assert found_inside(tmp_path / "tables", "../a.wav") is None
    assert found_inside(tmp_path / "tables", str(tmp_path / "a.wav")) is None


def test_a_home_that_does_not_exist():
    assert str(expanded("~nosuchuser/x")) == "~nosuchuser/x"
    assert str(expanded("~/x")) != "~/x"
