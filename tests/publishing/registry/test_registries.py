"""What every registry does, and what the Hub's faults lead to; the Hub is a real server, the client the real one."""

import contextlib
import json
import os
import shutil
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from helpers.hub_server import PART_BYTES, Fault

from whisperkit_tools.errors import OptionsError, PublishError
from whisperkit_tools.publishing.registry.base import ConflictError, RegistryChange, RemoteFile, Snapshot, check_path
from whisperkit_tools.publishing.registry.folder import FolderRegistry
from whisperkit_tools.publishing.registry.hub import HubRegistry
from whisperkit_tools.publishing.registry.journal import STATE

REPO = "acme/whisper-coreml"
TOKEN = "hf_writer"


@pytest.fixture
def waits():
    return []


@pytest.fixture
def on_hub(hub, waits):
    return HubRegistry(REPO, token=TOKEN, endpoint=hub.url, sleep=waits.append)


@pytest.fixture(params=["folder", "hub"])
def registry(request, tmp_path):
    return FolderRegistry(tmp_path / "registry") if request.param == "folder" else request.getfixturevalue("on_hub")


def publish(registry, additions, deletions=(), tag=None, parent=None):
    change = RegistryChange(additions, frozenset(deletions), title="test", tag=tag)
    return registry.commit(change, registry.snapshot() if parent is None else parent)


def test_commit_and_read_back(registry, tmp_path):
    assert registry.snapshot().commit is None
    registry.create(private=False)
    weights = tmp_path / "weight.bin"
    weights.write_bytes(b"\0" + os.urandom(PART_BYTES))
    made = publish(registry, {"v/a.json": b"{}", "v/weight.bin": weights, "README.md": b"---\nlicense: mit\n---\n"})
    snapshot = registry.snapshot()
    assert snapshot.commit == made.id
    assert set(snapshot.files) == {"v/a.json", "v/weight.bin", "README.md"}
    assert registry.read("v/a.json", snapshot) == b"{}"
    assert registry.read("v/none", snapshot) is None
    registry.fetch("v/weight.bin", snapshot, tmp_path / "down" / "weight.bin")
    assert (tmp_path / "down" / "weight.bin").read_bytes() == weights.read_bytes()
    assert snapshot.files["v/weight.bin"].holds(weights)
    assert snapshot.files["v/a.json"].holds(b"{}")
    assert not snapshot.files["v/a.json"].holds(b"[]")


def test_deletions_leave_no_empty_folders(registry):
    registry.create(private=False)
    publish(registry, {"a/b/c": b"1", "a/d": b"2"})
    publish(registry, {}, ["a/b/c"])
    assert set(registry.snapshot().files) == {"a/d"}


def test_a_commit_on_an_old_state_is_a_conflict(registry):
    registry.create(private=False)
    old = registry.snapshot()
    publish(registry, {"a": b"1"})
    with pytest.raises(ConflictError, match="changed"):
        publish(registry, {"a": b"2"}, parent=old)
    assert registry.read("a", registry.snapshot()) == b"1"


def test_a_tag_names_a_state(registry):
    registry.create(private=False)
    made = publish(registry, {"a": b"1"}, tag="v1")
    assert registry.snapshot("v1").commit == made.id
    with pytest.raises(PublishError, match="v9"):
        registry.snapshot("v9")


@pytest.mark.parametrize(
    "path", ["", "/etc/passwd", "../x", "a/../b", "a//b", "a/.env", ".git/config", "a\\b", "a\nb", "C:/x", "a/\u202eb"]
)
def test_paths_stay_inside(path):
    with pytest.raises(PublishError, match="not a path"):
        check_path(path)
    with pytest.raises(PublishError):
        RegistryChange({path: b""})


def test_added_and_removed_at_once_is_refused():
    with pytest.raises(PublishError, match="in one commit"):
        RegistryChange({"a": b""}, frozenset({"a"}))


def test_size_alone_is_not_the_same_content():
    assert not RemoteFile(1).holds(b"a")


# The folder.


@pytest.mark.parametrize("done", [0, 1, 2])
def test_a_killed_commit_has_happened_or_has_not(tmp_path, monkeypatch, done):
    """Killed while staging: the old state. Killed after the journal, at any move: the new one."""
    from pathlib import Path

    registry = FolderRegistry(tmp_path / "registry")
    registry.create(private=False)
    publish(registry, {"old": b"1", "kept": b"2"})
    moves = 0
    replace = Path.replace

    def stop(path, target):
        nonlocal moves
        if path.parent.name == "stage":
            if moves == done:
                raise KeyboardInterrupt
            moves += 1
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        publish(registry, {"a": b"a", "b": b"b", "c": b"c"}, ["old"])
    monkeypatch.setattr(Path, "replace", replace)
    again = FolderRegistry(tmp_path / "registry")
    before = listing(tmp_path)
    seen = again.snapshot()
    assert {path: again.read(path, seen) for path in seen.files} == {"a": b"a", "b": b"b", "c": b"c", "kept": b"2"}
    again.fetch("c", seen, tmp_path / "fetched")
    assert (tmp_path / "fetched").read_bytes() == b"c"
    (tmp_path / "fetched").unlink()
    assert listing(tmp_path) == before  # whoever reads changes nothing
    publish(again, {"d": b"d"})
    assert set(again.snapshot().files) == {"a", "b", "c", "d", "kept"}
    assert not (tmp_path / "registry" / STATE / "stage").exists()


def listing(folder):
    """Every path below a folder with its bytes and times."""
    return {
        path: (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def hostile(folder, journal):
    (folder / STATE / "stage").mkdir(parents=True, exist_ok=True)
    (folder / STATE / "stage" / "0").write_bytes(b"new")
    (folder / STATE / "journal.json").write_text(journal if isinstance(journal, str) else json.dumps(journal))


@pytest.mark.parametrize(
    ("journal", "reason"),
    [
        ({"moves": {"../x": "0"}, "deletions": []}, "not a path"),
        ({"moves": {"x": "../../outside"}, "deletions": []}, "not the name of a staged file"),
        ({"moves": {"x": 1.5}, "deletions": []}, "moves.x is 1.5, expected a string"),
        ({"moves": {"x": "7"}, "deletions": []}, "the content of x is missing"),
        ({"moves": {"x": "0"}, "deletions": [], "sha256": {"x": "0" * 64}}, "not what was to be published"),
        ({"moves": {}, "deletions": ["folder"]}, "is not a file"),
        ({"moves": {"a/b": "0"}, "deletions": []}, "is not a folder"),
        ({"moves": {"x": "0", "x/y": "0"}, "deletions": []}, "named twice"),
        ({"moves": {}, "deletions": [], "tag": ["x"]}, "tag is .*, expected a string"),
        ({"moves": {}}, "has no deletions"),
        ("[" * 100_000, "nested deeper"),
        ("[1]", "expected an object"),
        ("", "Expecting value"),
    ],
)
def test_a_journal_is_checked_whole_before_anything_moves(tmp_path, journal, reason):
    folder = tmp_path / "registry"
    (folder / "folder").mkdir(parents=True)
    (folder / "a").write_bytes(b"1")
    (tmp_path / "outside").write_bytes(b"mine")
    hostile(folder, journal)
    before = listing(tmp_path)
    registry = FolderRegistry(folder)
    with pytest.raises(PublishError, match=f"journal of an unfinished commit.*{reason}"):
        registry.snapshot()
    parent = Snapshot("0" * 40, {})
    with pytest.raises(PublishError, match=f"journal of an unfinished commit.*{reason}"):
        registry.commit(RegistryChange({"z": b"z"}), parent)
    assert {path: was for path, was in listing(tmp_path).items() if path in before and path.name != STATE} == {
        path: was for path, was in before.items() if path.name != STATE
    }


@pytest.mark.parametrize(
    "link", [STATE, f"{STATE}/stage", f"{STATE}/journal.json", f"{STATE}/tags.json", f"{STATE}/lock"]
)
def test_no_link_leads_out_of_a_registry(tmp_path, link):
    """Neither a reader nor a writer goes through it."""
    folder, outside = tmp_path / "registry", tmp_path / "outside"
    outside.mkdir()
    (outside / "0").write_bytes(b"my only copy")
    (outside / "notes.json").write_text("{}")
    folder.mkdir()
    (folder / "a").write_bytes(b"1")
    if link != STATE:
        hostile(folder, {"moves": {"stolen": "0"}, "deletions": [], "tag": "t"})
    place = folder / link
    if place.is_dir():
        shutil.rmtree(place)
    place.unlink(missing_ok=True)
    place.symlink_to(outside if link.endswith((STATE, "stage")) else outside / "notes.json")
    before = listing(outside)
    registry = FolderRegistry(folder)
    with contextlib.suppress(PublishError):
        registry.snapshot()
    with contextlib.suppress(PublishError):
        publish(registry, {"b": b"2"}, tag="v1")
    with contextlib.suppress(PublishError):
        registry.set_tag("v2", "0" * 40)
    assert listing(outside) == before
    assert not (folder / "stolen").exists() or link.endswith("lock")


@pytest.mark.parametrize("content", ["[1]", "", "null", '{"a"', '{"a": 1}', "[" * 100_000])
def test_damaged_tags_are_one_line(tmp_path, content):
    registry = FolderRegistry(tmp_path)
    (tmp_path / STATE).mkdir()
    (tmp_path / STATE / "tags.json").write_text(content)
    with pytest.raises(PublishError, match="remove it to continue without tags"):
        registry.snapshot()


def test_a_full_disk_leaves_nothing_staged(tmp_path, monkeypatch):
    registry = FolderRegistry(tmp_path)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr("shutil.copyfile", lambda *paths: (_ for _ in ()).throw(full))
    (tmp_path / "source").write_bytes(b"x")
    with pytest.raises(OSError, match="space"):
        publish(registry, {"a": b"a", "b": tmp_path / "source"})
    assert not (tmp_path / STATE / "stage").exists()


def test_killed_while_staging_nothing_has_happened(tmp_path, monkeypatch):
    registry = FolderRegistry(tmp_path / "registry")
    registry.create(private=False)
    publish(registry, {"old": b"1"})
    source = tmp_path / "source"
    source.write_bytes(b"x")
    monkeypatch.setattr("shutil.copyfile", lambda *paths: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="space"):
        publish(registry, {"a": b"a", "b": source}, ["old"])
    assert set(FolderRegistry(tmp_path / "registry").snapshot().files) == {"old"}


def test_links_and_hidden_files_are_not_published(tmp_path):
    folder = tmp_path / "registry"
    registry = FolderRegistry(folder)
    registry.create(private=False)
    publish(registry, {"a": b"1"})
    (folder / ".env").write_text("HF_TOKEN=1")
    (folder / "link").symlink_to("/etc/passwd")
    assert set(registry.snapshot().files) == {"a"}


def test_a_folder_has_no_pull_requests(tmp_path):
    registry = FolderRegistry(tmp_path)
    with pytest.raises(OptionsError, match="omit pr, or publish to the Hub with repo"):
        registry.commit(RegistryChange({"a": b""}), registry.snapshot(), pull_request=True)


# The Hub.


def test_a_cut_upload_goes_on(hub, on_hub, tmp_path):
    on_hub.create(private=False)
    weights = tmp_path / "weight.bin"
    weights.write_bytes(os.urandom(4 * PART_BYTES))
    hub.faults = [Fault("PUT", "/parts/.*/3", cut_after=5000)]
    publish(on_hub, {"weight.bin": weights})
    assert hub.files(REPO)["weight.bin"] == weights.read_bytes()
    # The parts before the cut were not sent again.
    assert hub.uploads() < 5 * PART_BYTES


def test_a_cut_download_goes_on(hub, on_hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # usually 10 MB: whole chunks are kept
    on_hub.create(private=False)
    weights = tmp_path / "weight.bin"
    weights.write_bytes(os.urandom(PART_BYTES))
    publish(on_hub, {"weight.bin": weights})
    hub.faults = [Fault("GET", "/objects/", send_only=600_000)]
    snapshot = on_hub.snapshot()
    on_hub.fetch("weight.bin", snapshot, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == weights.read_bytes()
    asked = [item.headers.get("Range") for item in hub.log if item.method == "GET" and "/objects/" in item.path]
    assert asked == [None, "bytes=600000-"]  # what had come was not asked for again


@pytest.mark.parametrize(
    ("method", "path"), [("HEAD", "/resolve/"), ("GET", "/tree/"), ("GET", "^/api/models/[^/]+/[^/]+$")]
)
def test_a_rate_limit_on_reading_is_waited_for(hub, on_hub, waits, method, path):
    on_hub.create(private=False)
    publish(on_hub, {"a": b"1"})
    hub.faults = [Fault(method, path, status=429, headers={"Retry-After": "0"})]
    assert on_hub.read("a", on_hub.snapshot()) == b"1"
    assert [fault.times for fault in hub.faults] == [0]


def test_a_rate_limit_is_waited_for(hub, on_hub, waits):
    on_hub.create(private=False)
    hub.faults = [Fault("POST", "/commit/", status=429, headers={"Retry-After": "7"})]
    publish(on_hub, {"a": b"1"})
    assert waits == [7.0]


def test_a_rate_limit_that_names_a_time_is_waited_for(hub, on_hub, waits):
    on_hub.create(private=False)
    later = datetime.now(UTC) + timedelta(seconds=30)
    hub.faults = [Fault("POST", "/commit/", status=429, headers={"Retry-After": format_datetime(later, usegmt=True)})]
    publish(on_hub, {"a": b"1"})
    assert len(waits) == 1
    assert 15 < waits[0] <= 30


def test_errors_of_the_server_are_tried_again(hub, on_hub, waits):
    on_hub.create(private=False)
    hub.faults = [Fault("POST", "/commit/", times=2, status=500)]
    publish(on_hub, {"a": b"1"})
    assert waits == [1.0, 2.0]
    assert len(hub.repository(REPO).history("main")) == 2


def test_errors_that_do_not_end_are_said(hub, on_hub, waits):
    on_hub.create(private=False)
    hub.faults = [Fault("POST", "/commit/", times=99, status=503)]
    with pytest.raises(PublishError, match="HTTP 503"):
        publish(on_hub, {"a": b"1"})
    assert hub.files(REPO) == {}


def test_a_lost_answer_does_not_lead_to_a_second_commit(hub, on_hub):
    on_hub.create(private=False)
    hub.faults = [Fault("POST", "/commit/", lose_answer=True)]
    made = publish(on_hub, {"a": b"1"})
    assert hub.repository(REPO).history("main")[0].oid == made.id
    assert len(hub.repository(REPO).history("main")) == 2


@pytest.mark.parametrize(
    ("token", "message"), [("hf_reader", "no write access"), ("hf_nobodynobody", "does not know the token")]
)
def test_without_write_access_nothing_is_uploaded(hub, token, message, tmp_path):
    HubRegistry(REPO, token=TOKEN, endpoint=hub.url).create(private=False)
    reader = HubRegistry(REPO, token=token, endpoint=hub.url)
    with pytest.raises(PublishError, match=message) as stop:
        publish(
            reader, {"weight.bin": b"\0" * 100000}, parent=HubRegistry(REPO, endpoint=hub.url, token=TOKEN).snapshot()
        )
    assert token not in str(stop.value)
    assert hub.uploads() == 0


def test_quota(hub, on_hub):
    on_hub.create(private=False)
    hub.quota_bytes = 1000
    with pytest.raises(PublishError, match="quota"):
        publish(on_hub, {"weight.bin": b"\0" * 100000})
    assert hub.files(REPO) == {}


def test_a_server_that_lies_about_what_it_holds(hub, on_hub, monkeypatch):
    on_hub.create(private=False)
    from helpers.hub_repository import Entry
    from helpers.hub_server import HubHandler

    monkeypatch.setattr(HubHandler, "_entry", lambda self, path, entry: {
        "type": "file", "path": path, "size": entry.size, "oid": Entry("0" * 40, 1, False).oid})  # fmt: skip
    with pytest.raises(PublishError, match="does not hold what was sent: a;"):
        publish(on_hub, {"a": b"1"})


def test_a_hub_that_is_not_there():
    registry = HubRegistry(REPO, token=TOKEN, endpoint="http://127.0.0.1:9", sleep=lambda seconds: None)
    with pytest.raises(PublishError, match="cannot be reached"):
        registry.snapshot()


@pytest.mark.parametrize("name", ["whisper", "a/b/c", "acme/..", "acme/a b", ""])
def test_names_of_repositories(name):
    with pytest.raises(OptionsError, match="is not a repository"):
        HubRegistry(name, token=TOKEN)
