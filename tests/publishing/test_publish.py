"""Publishing, changing, withdrawing and pulling, on a folder and on the test Hub with the real client."""

import json
import shutil
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from helpers.hub_server import Fault
from helpers.publish_bundles import NOW, REPO, compressed, make_bundle, write_report

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.errors import OptionsError, PublishError
from whisperkit_tools.manifest import MANIFEST, write_manifest
from whisperkit_tools.publishing import publish as publishing
from whisperkit_tools.publishing.eligibility import check_bundle
from whisperkit_tools.publishing.index import INDEX, Index, compare_versions, list_variants
from whisperkit_tools.publishing.options import PublishOptions
from whisperkit_tools.publishing.publication_plan import (
    plan_publication,
    plan_reports,
    plan_withdrawal,
    without_reports,
)
from whisperkit_tools.publishing.publish import commit_with_retry
from whisperkit_tools.publishing.pull import pull
from whisperkit_tools.publishing.registry.base import RegistryChange
from whisperkit_tools.publishing.registry.folder import FolderRegistry
from whisperkit_tools.publishing.registry.hub import HubRegistry
from whisperkit_tools.publishing.reports import split_reports


@pytest.fixture
def on_hub(hub):
    return HubRegistry(REPO, token="hf_writer", endpoint=hub.url, sleep=lambda seconds: None)


@pytest.fixture(params=["folder", "hub"])
def registry(request, tmp_path):
    return FolderRegistry(tmp_path / "registry") if request.param == "folder" else request.getfixturevalue("on_hub")


CREATE = PublishOptions(create=True)


def publish(registry, *bundles, options=CREATE, reports=None, **proof):
    evidence = [check_bundle(bundle, reports, **proof) for bundle in bundles]
    return commit_with_retry(registry, lambda: plan_publication(registry, evidence, options, NOW), options)


def card(registry):
    return registry.read("README.md", registry.snapshot()).decode()


def table(registry):
    return json.loads(registry.read("config.json", registry.snapshot()))


def test_published_changed_withdrawn_and_pulled_back(registry, tmp_path):
    first = make_bundle(tmp_path / "a")
    small = make_bundle(tmp_path / "a", "acme_whisper-w_0MB", seed=2, manifest=compressed())
    assert len(publish(registry, first, small).plan.added) == 2 * len(check_bundle(first, None).files()) + 3
    assert publish(registry, first, small).commit is None  # the same again is no commit

    second = make_bundle(tmp_path / "b", seed=1)
    outcome = publish(registry, second)
    assert not outcome.plan.added
    assert {path for path in outcome.plan.changed if path.endswith("weight.bin")} == {
        f"{first.name}/{name}.mlpackage/Data/com.apple.CoreML/weight.bin"
        for name in ("MelSpectrogram", "AudioEncoder", "TextDecoder")
    }
    index = Index.parse(registry.read(INDEX, registry.snapshot()))
    assert [item.supersedes for item in index.versions if item.variant == first.name] == [
        None,
        check_bundle(first, None).content,
    ]

    assert f"`{small.name}`" in card(registry)
    outcome = commit_with_retry(registry, lambda: plan_withdrawal(registry, small.name, NOW), PublishOptions())
    assert set(outcome.plan.deleted) == {f"{small.name}/{path}" for path in check_bundle(small, None).files()}
    assert small.name not in card(registry)
    assert small.name not in json.dumps(table(registry))
    assert [row["state"] for row in list_variants(registry)] == ["published", "withdrawn"]

    pulled = pull(registry, first.name, tmp_path / "down")
    for path, source in check_bundle(second, None).files().items():
        assert (pulled.path / path).read_bytes() == source.read_bytes()
    assert Bundle.open(pulled.path).differing_files() == []
    with pytest.raises(PublishError, match="no variant"):
        pull(registry, small.name, tmp_path / "down")


def test_a_file_that_left_the_bundle_leaves_the_repository(registry, tmp_path):
    publish(registry, make_bundle(tmp_path / "a", manifest=None))
    leaner = make_bundle(tmp_path / "b")
    (leaner.path / "tokenizer_config.json").unlink()
    write_manifest(leaner.path, leaner.manifest)
    outcome = publish(registry, Bundle.open(leaner.path))
    assert list(outcome.plan.deleted) == [f"{leaner.name}/tokenizer_config.json"]


def test_what_people_wrote_survives(registry, tmp_path):
    publish(registry, make_bundle(tmp_path / "a"))
    text = card(registry)
    text = text.replace("---\n", "---\nfavourite: 7\n", 1) + "\n## Our own words\n\nBe kind.\n"
    mine = {"chips": "mine", "identifiers": ["iPhone99"],
            "models": {"default": "acme_whisper-w", "supported": ["acme_whisper-w"]}}  # fmt: skip
    devices = table(registry)
    devices["device_support"].insert(0, mine)
    edited = {"README.md": text.encode(), "config.json": json.dumps(devices).encode(), "photo.txt": b"us"}
    registry.commit(RegistryChange(edited, title="by hand"), registry.snapshot())
    publish(registry, make_bundle(tmp_path / "b", seed=1))
    assert "Be kind." in card(registry)
    assert "favourite: 7" in card(registry)
    assert mine in table(registry)["device_support"]
    assert "photo.txt" in registry.snapshot().files


def test_metadata_of_the_card_are_what_the_hub_understands(registry, tmp_path):
    from huggingface_hub import ModelCard

    publish(registry, make_bundle(tmp_path / "a", "acme_whisper-w_0MB", manifest=compressed()))
    data = ModelCard(card(registry)).data
    assert data.base_model == "acme/whisper-w"
    assert data.base_model_relation == "quantized"
    assert data.license == "mit"
    assert data.language == ["en", "es"]
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert "quantized" in data.tags


def test_the_card_says_that_the_gate_judged_on_calibration_speech(registry, tmp_path):
    gate = {**compressed()["compression"]["gate"], "examples": 50, "overlap": 2}
    publish(registry, make_bundle(tmp_path / "a", "acme_whisper-w_0MB", manifest=compressed(gate=gate)))
    assert (
        "- `acme_whisper-w_0MB`: 2 of the 50 examples of its quality gate are from recordings that it was also "
        "calibrated or tuned on"
    ) in card(registry)
    publish(registry, make_bundle(tmp_path / "b", "acme_whisper-w_0MB", manifest=compressed()))
    assert "calibrated" not in card(registry)


def test_text_from_outside_cannot_break_the_card(registry, tmp_path):
    source = {"name": "x", "org": "acme", "model": "whisper-w", "license": "mit\n---\n<script>", "revision": "`| <b>"}
    bundle = make_bundle(tmp_path / "a", manifest={"source": source, "conversion": {"verified": False}})
    publish(registry, bundle, allow_unproven="a | b <script>alert(1)</script> <!-- wkt:end variants -->")
    text = card(registry)
    assert "<script>" not in text.split("---\n", 2)[2]
    assert text.count("<!-- wkt:end variants -->") == 1
    assert (
        publish(registry, bundle, allow_unproven="a | b <script>alert(1)</script> <!-- wkt:end variants -->").commit
        is None
    )


# Proofs.


def test_nothing_unproved_is_published(tmp_path):
    unverified = make_bundle(tmp_path / "a", manifest={"conversion": {"verified": False}})
    with pytest.raises(PublishError, match="without verification"):
        check_bundle(unverified, None)
    assert check_bundle(unverified, None, allow_unproven="a demo").unproven == "a demo"
    with pytest.raises(PublishError, match="no parity figures of MelSpectrogram, AudioEncoder"):
        check_bundle(make_bundle(tmp_path / "b", manifest={"parity": {}}), None)
    with pytest.raises(PublishError, match="at least 95 %"):
        check_bundle(make_bundle(tmp_path / "c", "acme_w_0MB", manifest=compressed(passed=False)), None)
    no_gate = make_bundle(tmp_path / "d", "acme_w_0MB", manifest={"compression": {"nbytes": 1}})
    with pytest.raises(PublishError, match="no quality gate"):
        check_bundle(no_gate, None)


def test_the_size_in_a_name_is_that_of_the_models(tmp_path):
    assert check_bundle(make_bundle(tmp_path, "acme_w_0MB", manifest=compressed()), None).model_bytes < 1_000_000
    with pytest.raises(PublishError, match="says 2 MB, but its encoder and decoder have 0 MB"):
        check_bundle(make_bundle(tmp_path, "acme_w_2MB", manifest=compressed()), None)


def test_a_rejected_bundle_is_refused_whatever_the_reason(tmp_path):
    rejected = make_bundle(tmp_path / "a", "acme_w_0MB", manifest=compressed(rejected=True))
    with pytest.raises(PublishError, match="rejected by its quality gate"):
        check_bundle(rejected, None, allow_unproven="please")


def test_a_changed_bundle_is_refused_whatever_the_reason(tmp_path):
    bundle = make_bundle(tmp_path / "a")
    (bundle.path / "config.json").write_text("[]")
    with pytest.raises(PublishError, match="changed since it was verified"):
        check_bundle(bundle, None, allow_unproven="please")


@pytest.mark.parametrize("extra", [".env", "notes.txt", "AudioEncoder.mlpackage/.DS_Secret"])
def test_files_that_the_manifest_does_not_name_stop_everything(tmp_path, extra):
    bundle = make_bundle(tmp_path / "a")
    (bundle.path / extra).write_text("HF_TOKEN=hf_secret")
    with pytest.raises(PublishError, match="present, but not recorded"):
        check_bundle(bundle, None)


def test_links_are_not_followed(tmp_path):
    bundle = make_bundle(tmp_path / "a")
    (tmp_path / "outside.json").write_text("{}")
    (bundle.path / "config.json").unlink()
    (bundle.path / "config.json").symlink_to(tmp_path / "outside.json")
    with pytest.raises(PublishError, match="symbolic link"):
        check_bundle(bundle, None)


def test_a_manifest_cannot_name_files_outside(tmp_path):
    bundle = make_bundle(tmp_path / "a")
    manifest = json.loads((bundle.path / MANIFEST).read_text())
    manifest["files"]["../secret"] = {"sha256": "0", "size_bytes": 1}
    (bundle.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(PublishError, match="not a path"):
        check_bundle(Bundle.open(bundle.path), None)


def test_reports_must_be_of_this_very_bundle(tmp_path, registry):
    bundle, other = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    write_report(tmp_path / "runs" / "1", bundle, wer=0.0247)
    with pytest.raises(PublishError, match="on librispeech"):
        check_bundle(other, tmp_path / "runs", ["librispeech"])
    evidence = check_bundle(bundle, tmp_path / "runs", ["librispeech"])
    assert evidence.reports["librispeech"].metrics.wer == 0.0247
    publish(registry, bundle, reports=tmp_path / "runs")
    assert "2.47 (2.00-3.00)" in card(registry)
    base = f"reports/librispeech/2026-01-01-{bundle.name}-{evidence.content[:8]}"
    assert {f"{base}/report.json", f"{base}/report.md"} <= set(registry.snapshot().files)
    assert f"{base}/report.html" not in registry.snapshot().files  # it shows the dataset's texts
    rows = {row["figure"]: row["first"] for row in compare_versions(registry, bundle.name, bundle.name)}
    assert rows["WER librispeech (%)"] == 2.47


def test_the_digest_is_that_of_evaluations(demo_bundle):
    from whisperkit_tools.pipeline.bundle_backend import bundle_info

    bundle = Bundle.open(demo_bundle)
    assert bundle.manifest.content_sha256() == bundle.content_sha256() == bundle_info(bundle).sha256


def test_reports_can_have_a_repository_of_their_own(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    write_report(tmp_path / "runs" / "1", bundle, wer=0.02)
    apart = HubRegistry("acme/reports", repo_type="dataset", token="hf_writer", endpoint=hub.url)
    plan = plan_publication(on_hub, [check_bundle(bundle, tmp_path / "runs")], CREATE, NOW)
    kept, change = without_reports(plan), split_reports(plan.change)[1]
    assert commit_with_retry(apart, lambda: plan_reports(apart, change, CREATE), CREATE).commit is not None
    assert commit_with_retry(apart, lambda: plan_reports(apart, change, CREATE), CREATE).commit is None
    assert all(path.startswith("reports/") for path in hub.files("acme/reports", kind="dataset"))
    assert not any(path.startswith("reports/") for path in kept.change.additions)


# Names, owners, conflicts.


def test_a_name_that_ends_with_a_published_one_is_refused(registry, tmp_path):
    publish(registry, make_bundle(tmp_path / "a", "acme_whisper-w"))
    with pytest.raises(PublishError, match="ends with"):
        publish(registry, make_bundle(tmp_path / "b", "x_acme_whisper-w"))


def test_a_missing_repository_needs_create(on_hub, tmp_path):
    with pytest.raises(PublishError, match="create=True"):
        publish(on_hub, make_bundle(tmp_path / "a"), options=PublishOptions())


def test_a_repository_of_another_tool_is_read_and_never_rewritten_unasked(hub, on_hub, tmp_path):
    hub.repository(REPO, create=True)
    theirs = make_bundle(tmp_path / "theirs", "openai_whisper-tiny")
    (theirs.path / MANIFEST).unlink()
    files = {f"openai_whisper-tiny/{path.relative_to(theirs.path)}": path.read_bytes()
             for path in theirs.path.rglob("*") if path.is_file()}  # fmt: skip
    hub.push(REPO, {**files, "README.md": b"# Theirs\n", "config.json": b'{"name": "theirs", "device_support": []}'})
    assert [row["state"] for row in list_variants(on_hub)] == ["by another tool"]
    pulled = pull(on_hub, "openai_whisper-tiny", tmp_path / "down")
    assert not pulled.has_manifest
    before = hub.files(REPO)
    with pytest.raises(PublishError, match="adopt=True"):
        publish(on_hub, make_bundle(tmp_path / "a"))
    assert hub.files(REPO) == before
    publish(on_hub, make_bundle(tmp_path / "c"), options=PublishOptions(adopt=True))
    assert hub.files(REPO).items() >= files.items()
    assert card(on_hub).count("# Theirs") == 1


def test_a_colleague_pushes_another_variant_in_between(hub, on_hub, tmp_path):
    publish(on_hub, make_bundle(tmp_path / "a"))
    theirs = make_bundle(tmp_path / "b", "acme_whisper-x", seed=3)
    other = HubRegistry(REPO, token="hf_writer", endpoint=hub.url)
    hub.faults = [Fault("POST", "/commit/", before=lambda: publish(other, theirs))]
    mine = make_bundle(tmp_path / "c", "acme_whisper-y", seed=4)
    outcome = publish(on_hub, mine)
    assert outcome.rebased == 1
    assert [row["variant"] for row in list_variants(on_hub)] == ["acme_whisper-w", "acme_whisper-x", "acme_whisper-y"]
    assert theirs.name in card(on_hub)


def test_a_colleague_pushes_the_same_variant_in_between(hub, on_hub, tmp_path):
    publish(on_hub, make_bundle(tmp_path / "a"))
    other = HubRegistry(REPO, token="hf_writer", endpoint=hub.url)
    hub.faults = [Fault("POST", "/commit/", before=lambda: publish(other, make_bundle(tmp_path / "b", seed=3)))]
    with pytest.raises(PublishError, match="by somebody else") as stop:
        publish(on_hub, make_bundle(tmp_path / "c", seed=4))
    heads = [commit.oid[:12] for commit in hub.repository(REPO).history("main")[:2]]
    assert all(head in str(stop.value) for head in heads)
    assert b"\x03" in hub.files(REPO)["acme_whisper-w/TextDecoder.mlpackage/Data/com.apple.CoreML/weight.bin"][:9]


def test_a_pull_request_changes_nothing_on_the_branch(hub, on_hub, tmp_path):
    publish(on_hub, make_bundle(tmp_path / "a"))
    before = hub.files(REPO)
    outcome = publish(on_hub, make_bundle(tmp_path / "b", seed=1), options=PublishOptions(pull_request=True))
    assert outcome.commit.pull_request.endswith("/discussions/1")
    assert hub.files(REPO) == before
    assert hub.files(REPO, "refs/pr/1") != before


def test_a_release_has_a_tag_and_can_be_pulled(hub, on_hub, tmp_path):
    first = make_bundle(tmp_path / "a")
    publish(on_hub, first, options=replace(CREATE, tag="v1"))
    publish(on_hub, make_bundle(tmp_path / "b", seed=1), options=replace(CREATE, tag="v2"))
    pulled = pull(on_hub, first.name, tmp_path / "down", revision="v1")
    weights = "TextDecoder.mlpackage/Data/com.apple.CoreML/weight.bin"
    assert (pulled.path / weights).read_bytes() == (first.path / weights).read_bytes()


# What comes is not trusted.


def test_a_server_that_sends_other_bytes(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    entry = (
        hub.repository(REPO)
        .resolve("main")
        .tree[f"{bundle.name}/TextDecoder.mlpackage/Data/com.apple.CoreML/weight.bin"]
    )
    hub.lie_about.add(entry.oid)
    with pytest.raises(PublishError, match="is not what the repository says"):
        pull(on_hub, bundle.name, tmp_path / "down")
    assert not (tmp_path / "down" / bundle.name).exists()


def test_a_repository_whose_files_are_not_those_of_the_manifest(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    hub.push(REPO, {f"{bundle.name}/config.json": b'{"evil": 1}'})
    with pytest.raises(PublishError, match=r"not what was published: config\.json"):
        pull(on_hub, bundle.name, tmp_path / "down")
    assert not (tmp_path / "down" / bundle.name).exists()


@pytest.mark.parametrize("path", ["../../evil", "x/../../../evil", ".ssh/config"])
def test_a_repository_with_hostile_paths(hub, on_hub, tmp_path, path):
    bundle = make_bundle(tmp_path / "a")
    publish(on_hub, bundle)
    hub.push(REPO, {f"{bundle.name}/{path}": b"evil"})
    with pytest.raises(PublishError, match="not a path"):
        pull(on_hub, bundle.name, tmp_path / "down")
    assert sorted(item.name for item in tmp_path.iterdir() if "evil" in item.name) == []


@pytest.mark.parametrize("name", ["..", "../x_y", "a/b_c", ""])
def test_hostile_names_of_variants(registry, tmp_path, name):
    with pytest.raises(OptionsError, match=r"variant is .* not a variant's name"):
        pull(registry, name, tmp_path)


def test_a_full_disk_leaves_nothing(registry, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "a")
    publish(registry, bundle)

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space left"):
        pull(registry, bundle.name, tmp_path / "down")
    assert list((tmp_path / "down").iterdir()) == []


def test_the_token_is_nowhere_but_with_the_hub(hub, on_hub, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    outcome = publish(on_hub, bundle)
    pull(on_hub, bundle.name, tmp_path / "down")
    everything = b"".join(hub.files(REPO).values())
    assert b"hf_writer" not in everything + repr(outcome).encode()
    storage = [item for item in hub.log if item.server == "storage"]
    assert storage
    assert all("Authorization" not in item.headers for item in storage)
    assert str(tmp_path).encode() not in everything


# The functions that commands and the package's face call.


class Told:
    """Progress that is remembered."""

    def __init__(self):
        self.advanced = []

    def advance(self, what, done, total, detail=""):
        self.advanced.append((what, done, total, detail))


def clock():
    return datetime(2026, 1, 2, tzinfo=UTC)


def test_a_dry_run_changes_nothing_and_the_same_again_makes_no_commit(registry, tmp_path):
    bundles = [check_bundle(make_bundle(tmp_path / "a"), None)]
    with pytest.raises(PublishError, match="create=True"):
        publishing.publish(bundles, registry, dry_run=True)
    planned = publishing.publish(bundles, registry, CREATE, dry_run=True, clock=clock)
    assert planned.commit is None and len(planned.plan.added) == len(bundles[0].files()) + 3
    assert registry.snapshot().commit is None
    done = publishing.publish(bundles, registry, CREATE, clock=clock)
    assert done.plan.change == planned.plan.change and done.label == registry.label
    assert registry.snapshot().commit == done.commit.id
    again = publishing.publish(bundles, registry, clock=clock)
    assert again.commit is None and again.plan.is_empty


def test_reports_in_a_registry_of_their_own(tmp_path):
    registry, apart = FolderRegistry(tmp_path / "models"), FolderRegistry(tmp_path / "reports")
    bundle = make_bundle(tmp_path / "a")
    write_report(tmp_path / "runs" / "1", bundle, wer=0.02)
    bundles = [check_bundle(bundle, tmp_path / "runs")]
    done = publishing.publish(bundles, registry, PublishOptions(create=True, tag="v1"), reports_registry=apart)
    assert {path.split("/")[0] for path in done.reports.plan.added} == {"reports"}
    assert set(apart.snapshot().files) == set(done.reports.plan.added)
    assert not any(path.startswith("reports/") for path in registry.snapshot().files)
    assert (list(registry.tags()), list(apart.tags())) == (["v1"], [])


def test_a_variant_is_withdrawn_and_its_versions_stay(registry, tmp_path):
    bundles = [check_bundle(make_bundle(tmp_path / "a", name), None) for name in ("acme_whisper-v", "acme_whisper-w")]
    publishing.publish(bundles, registry, CREATE)
    planned = publishing.withdraw(registry, "acme_whisper-v", dry_run=True, clock=clock)
    assert set(planned.plan.deleted) == {f"acme_whisper-v/{path}" for path in bundles[0].files()}
    done = publishing.withdraw(registry, "acme_whisper-v", clock=clock)
    assert (done.plan, done.commit.id) == (planned.plan, registry.snapshot().commit)
    index = Index.parse(registry.read(INDEX, registry.snapshot()))
    assert index.withdrawn == {"acme_whisper-v": "2026-01-02T00:00:00+00:00"} and len(index.versions) == 2


def test_the_order_of_the_bundles_does_not_matter(tmp_path):
    bundles = [check_bundle(make_bundle(tmp_path / "a", name), None) for name in ("acme_whisper-w", "acme_whisper-b")]
    first, second = FolderRegistry(tmp_path / "x" / "models"), FolderRegistry(tmp_path / "y" / "models")
    publishing.publish(bundles, first, CREATE, clock=clock)
    publishing.publish(bundles[::-1], second, CREATE, clock=clock)
    assert card(first) == card(second)
    assert publishing.publish(bundles[::-1], first, clock=clock).commit is None


def test_pulling_reports_the_bytes_that_are_done(registry, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    publishing.publish([check_bundle(bundle, None)], registry, CREATE)
    told = Told()
    pulled = pull(registry, bundle.name, tmp_path / "down", progress=told)
    assert len(told.advanced) == pulled.files
    assert {(what, total) for what, _, total, _ in told.advanced} == {(bundle.name, pulled.size_bytes)}
    done = [done for _, done, _, _ in told.advanced]
    assert done == sorted(done) and done[-1] == pulled.size_bytes
    assert "tokenizer.json" in {detail for *_, detail in told.advanced}


@pytest.mark.parametrize("tag", ["", "a b", "-v1", "v..1", "v1.", "v1.lock", "v" * 65])
def test_tags_that_git_refuses_are_options_errors(tag):
    with pytest.raises(OptionsError, match="is not a valid tag"):
        PublishOptions(tag=tag)
    with pytest.raises(OptionsError, match="omit tag"):
        PublishOptions(tag="v1", pull_request=True)
