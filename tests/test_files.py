import hashlib
import os
import threading

import pytest

from whisperkit_tools.errors import BundleError, RecipeError
from whisperkit_tools.files import (
    content_files,
    content_sha256,
    first_line,
    folder_bytes,
    put_in_place,
    read_json_object,
    replace_whole,
    safe_name,
    sha256,
    sha256_of_json,
    write_json,
    write_whole,
)


def test_hashes_are_those_of_hashlib(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    assert sha256(tmp_path / "a") == hashlib.sha256(b"x" * 100_000).hexdigest()
    assert sha256_of_json({"b": 1, "a": 2}) == sha256_of_json({"a": 2, "b": 1})
    assert sha256_of_json({"a": 2}) != sha256_of_json({"a": 3})
    # Paths sort by their parts, as a walk through the folders meets them: `a/b` before `a-b`.
    lines = b"a/b 11\na-b 22\n"
    assert content_sha256({"a-b": "22", "a/b": "11"}) == hashlib.sha256(lines).hexdigest()


def test_content_omits_what_the_finder_leaves_and_what_is_named(tmp_path):
    for name in ("wkt.json", "sub/wkt.json", ".DS_Store", "sub/.DS_Store", "b", "sub/a"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("12")
    found = [path.relative_to(tmp_path).as_posix() for path in content_files(tmp_path, "wkt.json")]
    assert found == ["b", "sub/a", "sub/wkt.json"]
    assert folder_bytes(tmp_path) == 12


@pytest.mark.parametrize("before", [None, "old"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, before):
    path = tmp_path / "deep" / "file.txt"
    if before is not None:
        write_whole(path, before)
    with pytest.raises(RuntimeError, match="full"), replace_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError("full")
    assert [item.name for item in path.parent.iterdir()] == ([] if before is None else ["file.txt"])
    assert before is None or path.read_text() == before


def test_readers_never_see_a_part(tmp_path):
    path, whole = tmp_path / "file", "y" * 1_000_000
    write_whole(path, whole)
    seen, done = set(), threading.Event()

    def read():
        while not done.is_set():
            seen.add(len(path.read_bytes()))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        write_whole(path, whole)
    done.set()
    reader.join()
    assert seen == {len(whole)}


def test_text_is_utf8_with_its_own_line_ends_and_usual_permissions(tmp_path):
    write_whole(tmp_path / "text", "é\r\nb\n")
    assert (tmp_path / "text").read_bytes() == b"\xc3\xa9\r\nb\n"
    (tmp_path / "usual").write_text("")
    assert (tmp_path / "text").stat().st_mode == (tmp_path / "usual").stat().st_mode
    write_json(tmp_path / "json", {"b": "ñ"})
    assert (tmp_path / "json").read_text(encoding="utf-8") == '{\n  "b": "ñ"\n}\n'


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "content").write_text(name)
    put_in_place(tmp_path / "new", tmp_path / "target")
    assert (tmp_path / "target" / "content").read_text() == "new"
    put_in_place(tmp_path / "target", tmp_path / "elsewhere")
    assert (tmp_path / "elsewhere" / "content").read_text() == "new"


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "is not valid JSON"), (b"\xff", "is not valid JSON"), (b"[1]", "holds a JSON list, expected an object")],
)
def test_damaged_json_is_an_error_of_the_callers_kind(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(BundleError, match=message):
        read_json_object(tmp_path / "x.json")
    with pytest.raises(RecipeError, match=rf"{message}"):
        read_json_object(tmp_path / "x.json", RecipeError, "write it again")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a b/c", "a-b-c"),
        ("../../x", "x"),
        (".hidden", "hidden"),
        ("", "unnamed"),
        ("é", "unnamed"),
        ("a_1.5", "a_1.5"),
    ],
)
def test_safe_names(text, name):
    assert safe_name(text) == name
    assert os.sep not in safe_name(text)


def test_first_line():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "no message"
    assert len(first_line(ValueError("x" * 1000))) == 300
