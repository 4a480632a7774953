import json

import pytest

from whisperkit_tools.errors import OptionsError, PublishError
from whisperkit_tools.publishing.device_table import FAMILIES, TableVariant, build_table, table_name

TINY = TableVariant("openai_whisper-tiny", 75_000_000, False, 7.5)
LARGE = TableVariant("openai_whisper-large-v3_947MB", 947_000_000, False, 2.5)
TURBO = TableVariant("openai_whisper-large-v3_turbo_954MB", 954_000_000, True, 2.4)


def table(variants, present=None, policy=None, repo="acme/whisper-coreml-acme", made=()):
    return json.loads(build_table(repo, variants, present, policy, made).content)


def entry(found, chips):
    return next(item for item in found["device_support"] if chips in item["chips"])


def test_small_devices_get_what_fits_and_large_ones_the_best():
    found = table([TINY, LARGE, TURBO])
    assert entry(found, "A12")["models"] == {"default": TINY.name, "supported": [TINY.name]}
    assert entry(found, "M2")["models"]["default"] == TURBO.name
    # M1-class Neural Engines do not run the large models' latency layout.
    assert TURBO.name not in entry(found, "M1")["models"]["supported"]
    assert entry(found, "M1")["models"]["default"] == LARGE.name


def test_without_figures_the_largest_that_fits_is_the_default():
    found = table([TableVariant("a_tiny", 70_000_000, False), TableVariant("a_base", 140_000_000, False)])
    assert entry(found, "A12")["models"]["default"] == "a_base"


def test_families_in_which_nothing_fits_are_left_out():
    assert [item["chips"] for item in table([LARGE])["device_support"]] == [
        family.chips for family in FAMILIES if family.max_bytes >= LARGE.model_bytes
    ]


def test_entries_made_by_hand_survive_and_stay_valid():
    mine = {"chips": "mine", "identifiers": ["iPhone14"], "note": "x",
            "models": {"default": "gone_model", "supported": ["gone_model", TINY.name]}}  # fmt: skip
    dead = {
        "chips": "dead",
        "identifiers": ["iPhone9"],
        "models": {"default": "gone_model", "supported": ["gone_model"]},
    }
    present = json.dumps({"name": "theirs", "version": "9", "extra": 1, "device_support": [mine, dead]}).encode()
    found = table([TINY], present)
    assert found["name"] == "theirs"
    assert found["version"] == "9"
    assert found["extra"] == 1
    assert found["device_support"][0] == {**mine, "models": {"default": TINY.name, "supported": [TINY.name]}}
    assert not any(item["chips"] == "dead" for item in found["device_support"])
    assert "iPhone14" not in entry(found, "A15")["identifiers"]


def test_writing_it_twice_changes_nothing():
    once = build_table("acme/w", [TINY, LARGE], None)
    assert build_table("acme/w", [TINY, LARGE], once.content, made=once.made) == once


def test_our_entries_follow_the_variants_until_somebody_edits_them():
    once = build_table("acme/w", [TINY, LARGE], None)
    edited = json.loads(once.content)
    changed = next(item for item in edited["device_support"] if "M2" in item["chips"])
    changed["models"]["default"] = TINY.name
    found = table([TINY, TURBO], json.dumps(edited).encode(), made=once.made)
    # Edited by hand: kept, without what is gone. The others are ours: they follow.
    assert entry(found, "M2")["models"] == {"default": TINY.name, "supported": [TINY.name]}
    assert entry(found, "A15")["models"]["default"] == TURBO.name
    assert sum("M2" in item["chips"] for item in found["device_support"]) == 1


def test_variants_that_the_runtime_does_not_load_are_not_recommended():
    stateful = TableVariant("openai_whisper-tiny_stateful", 75_000_000, False, 1.0, stateful=True)
    assert "stateful" not in json.dumps(table([TINY, stateful])["device_support"])


def test_a_policy_survives_the_next_publication():
    policy = {"device_support": [{"chips": "M1", "identifiers": ["Mac13"],
                                  "models": {"default": TINY.name, "supported": [TINY.name]}}]}  # fmt: skip
    first = build_table("acme/w", [TINY, LARGE], None, policy)
    assert policy["device_support"][0] in table([TINY, LARGE], first.content, made=first.made)["device_support"]


def test_a_table_never_inherits_another_projects():
    for name in ("whisperkit-coreml", "coreml", "fallback"):
        assert table_name(f"acme/{name}") not in "whisperkit-coreml-fallback"
    assert table([TINY], policy={"name": "whisperkit-coreml", "device_support": []})["name"] == "whisperkit-coreml-wkt"


@pytest.mark.parametrize("content", [b"x", b"[]", b'{"device_support": 1}', b'{"device_support": [{"models": {}}]}'])
def test_a_damaged_table_is_refused(content):
    with pytest.raises(PublishError, match=r"config\.json"):
        table([TINY], content)


def test_a_policy_must_name_what_is_there():
    policy = {"device_support": [{"identifiers": ["Mac"], "models": {"default": "nope_x", "supported": [TINY.name]}}]}
    with pytest.raises(OptionsError, match="nope_x"):
        table([TINY], policy=policy)
