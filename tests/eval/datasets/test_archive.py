"""Archives of datasets: limits, damage and names that lead out."""

import zipfile

import pytest

from whisperkit_tools import limits
from whisperkit_tools.errors import DatasetError
from whisperkit_tools.eval.datasets.archive import unpack_zip


def archive(path, members, packing=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", packing) as made:
        for name, content in members.items():
            made.writestr(name, content)
    return path


def test_files_and_folders(tmp_path):
    unpack_zip(archive(tmp_path / "a.zip", {"a.wav": b"1", "./b/c.wav": b"2", "d/": b""}), tmp_path / "out")
    assert {
        str(path.relative_to(tmp_path / "out")): path.read_bytes() for path in (tmp_path / "out").rglob("*.wav")
    } == {
        "a.wav": b"1",
        "b/c.wav": b"2",
    }


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "a\x1b.wav"])
def test_names_that_lead_out(tmp_path, name):
    with pytest.raises(DatasetError, match="only files inside"):
        unpack_zip(archive(tmp_path / "a.zip", {name: b"1"}), tmp_path / "out")
    assert not (tmp_path / "x").exists()


def test_a_bomb(tmp_path, monkeypatch):
    monkeypatch.setattr(limits, "ARCHIVE_FREE_BYTES", 1000)
    with pytest.raises(DatasetError, match="unpacks to 1000000; the maximum is"):
        unpack_zip(archive(tmp_path / "a.zip", {"a.wav": bytes(1_000_000)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_header_that_lies_about_the_size(tmp_path, monkeypatch):
    """The module unpacks no more than the header says."""
    path = archive(tmp_path / "a.zip", {"a.wav": bytes(100_000)})
    size = (100_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(DatasetError, match="cannot be unpacked"):
        unpack_zip(path, tmp_path / "out")
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*")) <= 10


@pytest.mark.parametrize("at", [0, 40, 60, -1, -10, -30, -60])
def test_damage(tmp_path, at):
    path = archive(tmp_path / "a.zip", {"a.wav": bytes(range(256)) * 10, "b.wav": b"2"})
    content = bytearray(path.read_bytes())
    content[at] ^= 0x5A
    path.write_bytes(content)
    try:
        unpack_zip(path, tmp_path / "out")
    except DatasetError as error:
        assert "a.zip" in str(error)


def test_an_encrypted_one(tmp_path):
    path = archive(tmp_path / "a.zip", {"a.wav": b"1"})
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="is encrypted"):
        unpack_zip(path, tmp_path / "out")
