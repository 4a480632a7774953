import json

import pytest

from whisperkit_tools.errors import PublishError
from whisperkit_tools.publishing.index import Index, PublishedVersion


def version(content="c1", variant="acme_w", **options):
    return PublishedVersion(variant, content, "2026-01-01", "0.1", "acme/w", None, 10, **options)


def test_an_index_survives_the_way_through_its_file():
    index = Index().published(version(metrics={"wer": {"demo": 2.1}})).published(version("c2", tag="v2"))
    assert Index.parse(index.to_bytes()) == index


def test_a_new_version_supersedes_the_one_before():
    index = Index().published(version()).published(version("c2"))
    assert [item.supersedes for item in index.versions] == [None, "c1"]
    assert index.current("acme_w").content == "c2"


def test_the_same_content_is_the_same_version():
    index = Index().published(version())
    assert index.published(version()) == index


def test_a_withdrawn_variant_keeps_its_history_and_can_come_back():
    index = Index().published(version()).without("acme_w", "2026-02-01")
    assert index.current("acme_w") is None
    assert len(index.versions) == 1
    assert Index.parse(index.to_bytes()) == index
    assert index.published(version("c2")).current("acme_w").content == "c2"
    with pytest.raises(PublishError, match="no variant 'acme_w'"):
        index.without("acme_w", "2026-02-02")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        b"\xff",
        b'{"format": 2, "versions": []}',
        b'{"format": 1, "versions": [1]}',
        b'{"format": 1, "versions": [{"variant": "a_b"}]}',
    ],
)
def test_damaged_indexes_are_one_line(content):
    with pytest.raises(PublishError):
        Index.parse(content)


@pytest.mark.parametrize("name", ["../../etc", "a_b/../../x", "/a_b", 7])
def test_hostile_names_in_an_index_are_refused(name):
    value = json.loads(Index().published(version()).to_bytes())
    value["versions"][0]["variant"] = name
    with pytest.raises(PublishError):
        Index.parse(json.dumps(value).encode())
