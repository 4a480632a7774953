"""The test Hub against the real client."""

import os

import pytest
from helpers.hub_server import PART_BYTES, Fault, TestHub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

REPO = "acme/whisper"


@pytest.fixture
def hub(tmp_path):
    with TestHub(tmp_path / "hub") as running:
        yield running


@pytest.fixture
def api(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return HfApi(endpoint=hub.url, token="hf_writer")


def commit(api, files, **options):
    operations = [CommitOperationAdd(path, content) for path, content in files.items()]
    return api.create_commit(REPO, operations, commit_message="test", **options)


def test_what_goes_up_comes_down(hub, api, tmp_path):
    api.create_repo(REPO)
    large = os.urandom(2 * PART_BYTES + 17)
    files = {
        "a.json": b"{}",
        "b/weight.bin": large,
        "b/c.txt": "ä\n".encode(),
        **{f"many/{i}": b"x%d" % i for i in range(60)},
    }
    commit(api, files)
    assert hub.files(REPO) == files
    # Several parts were really used.
    assert sum(item.method == "PUT" and "/parts/" in item.path for item in hub.log) == 3
    folder = api.snapshot_download(REPO, local_dir=tmp_path / "down")
    for path, content in files.items():
        assert (tmp_path / "down" / path).read_bytes() == content, folder
    assert {item.path for item in api.list_repo_tree(REPO, recursive=True)} == set(files)


def test_the_token_stays_with_the_hub(hub, api, tmp_path):
    api.create_repo(REPO)
    commit(api, {"weight.bin": os.urandom(PART_BYTES + 1)})
    api.snapshot_download(REPO, local_dir=tmp_path / "down")
    storage = [item for item in hub.log if item.server == "storage"]
    assert {item.method for item in storage} >= {"PUT", "GET"}
    assert all("hf_writer" not in str(item.headers) + item.path for item in storage)
    assert any(item.headers.get("Authorization") == "Bearer hf_writer" for item in hub.log)


def test_commits_are_checked_against_their_parent(api):
    api.create_repo(REPO)
    first = commit(api, {"a": b"1"}).oid
    commit(api, {"a": b"2"}, parent_commit=first)
    with pytest.raises(HfHubHTTPError) as stop:
        commit(api, {"a": b"3"}, parent_commit=first)
    assert stop.value.response.status_code == 412


def test_tags_branches_and_pull_requests(api):
    api.create_repo(REPO)
    oid = commit(api, {"a": b"1"}).oid
    api.create_tag(REPO, tag="v1")
    api.create_branch(REPO, branch="next")
    commit(api, {"a": b"2"}, revision="next")
    made = commit(api, {"a": b"3"}, create_pr=True)
    assert made.pr_url is not None
    assert made.pr_num == 1
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1": oid}
    assert {ref.name for ref in refs.branches} == {"main", "next"}
    assert [ref.target_commit for ref in refs.pull_requests] == [made.oid]
    assert api.model_info(REPO).sha == oid
    with pytest.raises(HfHubHTTPError):
        api.create_tag(REPO, tag="v1")


def test_deleting_a_folder(hub, api):
    api.create_repo(REPO)
    commit(api, {"a/1": b"1", "a/2": b"2", "ab": b"3"})
    api.create_commit(REPO, [CommitOperationDelete("a/", is_folder=True)], commit_message="away")
    assert hub.files(REPO) == {"ab": b"3"}


def test_who_may_what(hub, api):
    with pytest.raises(RepositoryNotFoundError):
        api.model_info(REPO)
    reader = HfApi(endpoint=hub.url, token="hf_reader")
    with pytest.raises(HfHubHTTPError) as stop:
        reader.create_repo(REPO)
    assert stop.value.response.status_code == 403
    api.create_repo(REPO, private=True)
    with pytest.raises(HfHubHTTPError) as stop:
        commit(reader, {"a": b"1"})
    assert stop.value.response.status_code == 403
    with pytest.raises(RepositoryNotFoundError):
        HfApi(endpoint=hub.url, token=False).model_info(REPO)
    with pytest.raises(HfHubHTTPError):
        HfApi(endpoint=hub.url, token="hf_nobody").whoami()
    assert api.whoami()["auth"]["accessToken"]["role"] == "write"


def test_faults_are_met_and_end(hub, api):
    api.create_repo(REPO)
    hub.faults = [Fault("PUT", "/parts/.*/2", cut_after=1000), Fault("POST", "batch", status=500)]
    large = os.urandom(2 * PART_BYTES)
    commit(api, {"weight.bin": large})
    assert hub.files(REPO) == {"weight.bin": large}
    assert [fault.times for fault in hub.faults] == [0, 0]


def test_quota_is_an_error_of_the_batch(hub, api):
    api.create_repo(REPO)
    hub.quota_bytes = 10
    with pytest.raises(ValueError, match="quota"):
        commit(api, {"weight.bin": b"\0" + os.urandom(100)})
