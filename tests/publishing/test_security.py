"""The token stays with its endpoint, and nothing that a repository says leads out of the folder or breaks the card."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.hub_server import PART_BYTES, Fault, HubHandler
from helpers.publish_bundles import NOW, REPO, make_bundle, write_report

from whisperkit_tools.errors import PublishError
from whisperkit_tools.manifest import MANIFEST
from whisperkit_tools.publishing.eligibility import check_bundle
from whisperkit_tools.publishing.index import INDEX, list_variants
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.publication_plan import (
    plan_publication,
)
from whisperkit_tools.publishing.publish import commit_with_retry
from whisperkit_tools.publishing.pull import pull
from whisperkit_tools.publishing.registry.base import RegistryChange
from whisperkit_tools.publishing.registry.hub import HubRegistry

TOKEN = "hf_writer"


@pytest.fixture
def on_hub(hub):
    return HubRegistry(REPO, token=TOKEN, endpoint=hub.url, sleep=lambda seconds: None)


def publish(registry, bundle, reports=None):
    options = PublishOptions(create=True)
    evidence = [check_bundle(bundle, reports)]
    return commit_with_retry(registry, lambda: plan_publication(registry, evidence, options, NOW), options)


def stored(hub):
    """What the other host was sent."""
    return [item for item in hub.log if item.server == "storage"]


def has_no_token(hub):
    return all(TOKEN not in str(item.headers) + item.path for item in stored(hub))


# The token.


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_to_another_host_gets_no_token(hub, on_hub, status):
    on_hub.create(private=False)
    place = f"/api/models/{REPO}"
    hub.faults = [Fault("GET", f"^{place}$", status=status, headers={"Location": f"{hub.storage_url}{place}"})]
    with pytest.raises(PublishError):
        on_hub.snapshot()
    assert stored(hub)
    assert has_no_token(hub)
    assert on_hub.snapshot().commit is not None  # and the next request to the Hub has it again
    assert hub.log[-1].headers["Authorization"] == f"Bearer {TOKEN}"


def test_a_redirected_commit_takes_no_token_along(hub, on_hub):
    on_hub.create(private=False)
    path = f"/api/models/{REPO}/commit/main"
    hub.faults = [Fault("POST", "/commit/", status=307, headers={"Location": f"{hub.storage_url}{path}"})]
    with pytest.raises(PublishError):
        on_hub.commit(RegistryChange({"a": b"1"}, title="test"), on_hub.snapshot())
    assert [item.path.split("?")[0] for item in stored(hub)] == [path]
    assert has_no_token(hub)


@pytest.mark.parametrize("size", [5000, PART_BYTES + 1])
def test_where_the_server_sends_large_files_gets_no_token(hub, on_hub, monkeypatch, size):
    """The client itself would send the token wherever the batch's answer says that uploads are verified."""
    on_hub.create(private=False)
    upload = HubHandler.upload_actions

    def elsewhere(self, oid, size):
        return {**upload(self, oid, size), "verify": {"href": f"{hub.storage_url}/lfs/verify", "header": {}}}

    monkeypatch.setattr(HubHandler, "upload_actions", elsewhere)
    with pytest.raises(PublishError):
        on_hub.commit(RegistryChange({"weight.bin": b"\0" * size}, title="test"), on_hub.snapshot())
    assert any(item.path == "/lfs/verify" for item in stored(hub))
    assert has_no_token(hub)


def test_a_server_that_repeats_the_token_does_not_make_us_say_it(hub, on_hub):
    on_hub.create(private=False)
    said = f"bad token {TOKEN}, or hf_abcdefghijklmnop"
    for status in (400, 403, 404, 418):
        hub.faults = [Fault("POST", "/commit/", status=status, headers={"X-Error-Message": said})]
        with pytest.raises(PublishError) as stop:
            on_hub.commit(RegistryChange({"a": b"1"}, title="test"), on_hub.snapshot())
        assert "***" in str(stop.value)
        assert TOKEN not in str(stop.value)
        assert "abcdefghijklmnop" not in str(stop.value)


def test_the_token_is_on_no_disk(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    pull(on_hub, bundle.name, tmp_path / "down")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 40
    assert [path for path in files if TOKEN.encode() in path.read_bytes()] == []
    assert has_no_token(hub)


# A repository that means harm.


def test_an_index_that_names_places_outside(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    index = json.loads(hub.files(REPO)[INDEX])
    for name in ("../../evil_x", "/etc/evil_x", "a/evil_x", "evil_x\n"):
        index["versions"][0]["variant"] = name
        hub.push(REPO, {INDEX: json.dumps(index).encode()})
        for call in (lambda: list_variants(on_hub), lambda: pull(on_hub, bundle.name, tmp_path / "down")):
            with pytest.raises(PublishError, match="not a variant's name"):
                call()
    assert not (tmp_path / "down" / bundle.name).exists()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"../../../evil": {"sha256": "0" * 64, "size_bytes": 4}}, "not a path"),
        ({"/etc/passwd": {"sha256": "0" * 64, "size_bytes": 4}}, "not a path"),
        ({"config.json": "evil"}, "not what was published"),
        ([], "records no files"),
        ({"config.json": {"sha256": "0" * 64, "size_bytes": 2}}, "config.json: sha256"),
        ({"config.json": {"sha256": "0" * 64, "size_bytes": 1 << 40}}, "config.json: 2 bytes"),
    ],
)
def test_a_manifest_that_lies(hub, on_hub, tmp_path, files, message):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["files"] = {**manifest["files"], **files} if isinstance(files, dict) else files
    hub.push(REPO, {f"{bundle.name}/{MANIFEST}": json.dumps(manifest).encode()})
    with pytest.raises(PublishError, match=message):
        pull(on_hub, bundle.name, tmp_path / "down")
    assert list((tmp_path / "down").iterdir()) == []


def test_a_folder_of_links_is_not_followed(tmp_path):
    """A registry that came from elsewhere with links in it: neither read through them nor written."""
    from whisperkit_tools.publishing.registry.folder import FolderRegistry

    registry, bundle = FolderRegistry(tmp_path / "registry"), make_bundle(tmp_path / "a")
    publish(registry, bundle)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "config.json").write_text("{}")
    variant = tmp_path / "registry" / bundle.name
    (variant / "tokenizer.json").unlink()
    (variant / "tokenizer.json").symlink_to(secret / "config.json")
    with pytest.raises(PublishError, match="recorded, but missing"):
        pull(registry, bundle.name, tmp_path / "down")
    shutil.rmtree(variant)
    variant.symlink_to(secret)
    with pytest.raises(PublishError, match="symbolic link"):
        publish(registry, bundle)
    assert sorted(path.name for path in secret.iterdir()) == ["config.json"]


def test_names_of_datasets_cannot_break_the_card(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    write_report(
        tmp_path / "runs" / "1", bundle, wer=0.02, dataset="x | <script>alert(1)</script>\n<!-- wkt:end use -->"
    )
    publish(on_hub, bundle, tmp_path / "runs")
    text = hub.files(REPO)["README.md"].decode()
    body = text.split("---\n", 2)[2]
    assert "<script>" not in body
    assert body.count("<!-- wkt:end use -->") == 1
    heading, rule = (line for line in body.splitlines() if line.startswith(("| Variant | Size", "| --- | ---:")))
    assert heading.replace("\\|", "").count("|") == rule.count("|")


def test_nothing_from_outside_moves_the_terminal(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    hub.faults = [Fault("POST", "/commit/", status=400, headers={"X-Error-Message": "no \x9b2J room"})]
    with pytest.raises(PublishError) as stop:
        on_hub.commit(RegistryChange({"a": b"1"}, title="test"), on_hub.snapshot())
    assert str(stop.value).isprintable()
    evil = {f"evil_\x1b[2J/{name}.mlmodelc/x": b"1" for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder")}
    hub.push(REPO, evil)
    with pytest.raises(PublishError) as stop:
        pull(on_hub, "acme_other", tmp_path / "down")
    assert str(stop.value).isprintable()


# Storage that ends.


def test_a_disk_that_is_full_in_the_middle_of_a_download(hub, on_hub, tmp_path, monkeypatch):
    """Injected where the client writes what it receives; before our own copy, which another test fills."""
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    opened = Path.open

    class Full:
        def __init__(self, file):
            self._file = file

        def __enter__(self):
            return self

        def __exit__(self, *details):
            self._file.close()

        def write(self, content):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def __getattr__(self, name):
            return getattr(self._file, name)

    def fill(path, *arguments, **options):
        file = opened(path, *arguments, **options)
        return Full(file) if path.name.endswith(".incomplete") else file

    monkeypatch.setattr(Path, "open", fill)
    with pytest.raises(OSError, match="No space left"):
        pull(on_hub, bundle.name, tmp_path / "down")
    monkeypatch.setattr(Path, "open", opened)
    assert list((tmp_path / "down").iterdir()) == []
    assert pull(on_hub, bundle.name, tmp_path / "down").has_manifest


def test_a_quota_that_the_server_refuses_with_a_status(hub, on_hub):
    on_hub.create(private=False)
    said = {"X-Error-Message": "Private repository storage limit reached"}
    hub.faults = [Fault("POST", "/preupload/", status=403, headers=said)]
    with pytest.raises(PublishError, match="has no room for it") as stop:
        on_hub.commit(RegistryChange({"weight.bin": b"\0" * 5000}, title="test"), on_hub.snapshot())
    assert "write access" not in str(stop.value)
    assert hub.files(REPO) == {}
