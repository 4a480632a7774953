"""`wkt publish`, `versions`, `pull`, `unpublish` as a user meets them: the real client, a real server."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.hub_server import PART_BYTES, Fault, TestHub
from helpers.publish_bundles import REPO, compressed, make_bundle, write_report

from whisperkit_tools.bundle import Bundle
from whisperkit_tools.manifest import MANIFEST, write_manifest

WKT = [sys.executable, "-m", "whisperkit_tools"]
TOKEN = "hf_writer"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub that `wkt` in this process talks to, logged in, from an empty working folder."""
    from huggingface_hub import constants

    with TestHub(tmp_path / "hub") as running:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, running.url)  # made at import
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        (tmp_path / "work").mkdir()
        monkeypatch.chdir(tmp_path / "work")
        yield running


@pytest.fixture
def done(wkt):
    """Run `wkt`, which must end well; its stdout."""

    def run(*arguments):
        code, out, err = wkt(*arguments)
        assert code == 0, err
        assert TOKEN not in out + err
        return out

    return run


@pytest.fixture
def refused(wkt):
    """Run `wkt`, which must end with an exit code (1 unless given); its one line."""

    def run(*arguments, exit_code=1):
        code, out, err = wkt(*arguments)
        assert (code, out) == (exit_code, ""), err
        assert TOKEN not in err
        lines = [line for line in err.splitlines() if line.startswith("wkt: error: ")]
        assert len(lines) == 1
        return lines[0]

    return run


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def writes(hub):
    """Requests that would change something."""
    return [item for item in hub.log if item.method in ("PUT", "DELETE") or "/commit/" in item.path]


def changed_copy(bundle, folder):
    """The same variant, made again: another generation config, everything else as it was."""
    copy = Path(shutil.copytree(bundle, folder / bundle.name))
    config = json.loads((copy / "generation_config.json").read_text())
    (copy / "generation_config.json").write_text(json.dumps({**config, "max_length": 224}))
    write_manifest(copy, Bundle.open(copy).manifest)
    return copy


# The whole way.


def test_publish_change_publish_unpublish_pull(hub, wkt, demo_bundle, tmp_path):
    """The cycle with the embedded model, its printed transcript beside it; what comes back is the same and runs."""
    from whisperkit_tools.demo import demo_utterances

    transcript = []

    def run(*arguments):
        code, out, err = wkt(*arguments)
        transcript.append(f"$ wkt {' '.join(map(str, arguments))}\n{out}{err}")
        assert code == 0, err
        return out

    bundle, small = demo_bundle, make_bundle(tmp_path, "acme_whisper-w_0MB", manifest=compressed())
    run("publish", bundle, small.path, "--repo", REPO, "--create", "--tag", "v1", "--dry-run")
    assert hub.repositories == {}
    run("publish", bundle, small.path, "--repo", REPO, "--create", "--tag", "v1")
    changed = changed_copy(bundle, tmp_path / "again")
    sent = hub.uploads()
    run("publish", changed, "--repo", REPO, "--tag", "v2")
    assert hub.uploads() - sent < 20_000  # no weight has changed, so none was sent
    assert "no commit was made" in run("publish", changed, "--repo", REPO)
    assert "tag v2" in run("versions", REPO)
    run("compare-published", REPO, bundle.name, small.name)
    run("unpublish", REPO, small.name)
    assert "withdrawn" in run("versions", REPO)
    run("pull", REPO, bundle.name)
    run("pull", REPO, small.name, "--revision", "v1", "-o", "earlier")
    assert tree(Path("bundles") / bundle.name) == tree(changed)
    assert tree(Path("earlier") / small.name) == tree(small.path)
    audio = demo_utterances()[0]
    text = run("transcribe", "--bundle", f"bundles/{bundle.name}", audio.path)
    assert wkt("transcribe", "--bundle", bundle, audio.path)[1] == text
    assert len(hub.repository(REPO).history("main")) == 4  # the server's first, and three of ours
    (tmp_path / "cycle.txt").write_text("\n".join(transcript).replace(str(tmp_path), "..."))


def test_a_plain_folder_does_the_same(done, refused, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bundle, folder = make_bundle(tmp_path / "a"), tmp_path / "team-models"
    done("publish", bundle.path, "--to", folder, "--tag", "v1")
    assert "no commit was made" in done("publish", bundle.path, "--to", folder)
    assert "published" in done("versions", folder)
    assert "pull request" in refused(
        "publish", make_bundle(tmp_path / "b", seed=1).path, "--to", folder, "--pr", exit_code=2
    )
    done("pull", folder, bundle.name)
    assert tree(tmp_path / "bundles" / bundle.name) == tree(bundle.path)
    # The card's own words work where the folder lies.
    text = (folder / "README.md").read_text()
    words = next(line.split() for line in text.splitlines() if line.startswith("wkt pull"))
    done(*words[1:], "--force")
    assert f'modelFolder: "{folder.name}/{bundle.name}"' in text
    done("unpublish", folder, bundle.name)
    assert json.loads(done("versions", folder, "--json"))[0]["state"] == "withdrawn"
    assert not (folder / bundle.name).exists()


def test_a_dry_run_says_exactly_what_then_happens(hub, done, tmp_path):
    first, second = make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", seed=1)
    done("publish", first.path, "--repo", REPO, "--create")
    (second.path / "tokenizer_config.json").unlink()
    write_manifest(second.path, second.manifest)
    before, log = hub.files(REPO), len(hub.log)
    said = json.loads(done("publish", second.path, "--repo", REPO, "--tag", "v2", "--dry-run", "--json"))
    assert hub.files(REPO) == before
    assert [item for item in hub.log[log:] if item.method not in ("GET", "HEAD")] == []
    assert said["commit"] is None
    printed = done("publish", second.path, "--repo", REPO, "--tag", "v2", "--dry-run")
    made = json.loads(done("publish", second.path, "--repo", REPO, "--tag", "v2", "--json"))
    after = hub.files(REPO)
    for key in ("added", "changed", "deleted", "unchanged"):
        assert made[key] == said[key]
    assert said["added"] == {path: len(after[path]) for path in after.keys() - before.keys()}
    assert said["deleted"] == {path: len(before[path]) for path in before.keys() - after.keys()} != {}
    both = before.keys() & after.keys()
    assert said["changed"] == {path: len(after[path]) for path in both if before[path] != after[path]}
    assert said["unchanged"] == sum(before[path] == after[path] for path in both)
    assert all(path in printed for key in ("added", "changed", "deleted") for path in said[key])
    assert made["commit"]["id"] == hub.repository(REPO).history("main")[0].oid
    gone = json.loads(done("unpublish", REPO, second.name, "--dry-run", "--json"))
    assert hub.files(REPO) == after
    done("unpublish", REPO, second.name)
    assert gone["deleted"].keys() == after.keys() - hub.files(REPO).keys()


def test_branches_pull_requests_and_private_repositories(hub, done, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    done("publish", bundle.path, "--repo", REPO, "--create", "--private")
    assert hub.repository(REPO).private
    before, other = hub.files(REPO), make_bundle(tmp_path / "b", seed=1)
    said = json.loads(done("publish", other.path, "--repo", REPO, "--pr", "--json"))
    assert said["commit"]["pull_request"].endswith("/discussions/1")
    assert done("unpublish", REPO, bundle.name, "--pr").splitlines()[-1].endswith("/discussions/2")
    done("publish", other.path, "--repo", REPO, "--revision", "next", "--create")
    assert hub.files(REPO) == before
    assert hub.files(REPO, "next") != before
    done("pull", REPO, bundle.name, "--revision", "next")
    assert tree(Path("bundles") / bundle.name) == tree(other.path)


def test_reports_can_go_elsewhere_and_the_last_bundle_is_taken(hub, done, tmp_path):
    bundle = make_bundle(Path("bundles"))
    write_report(Path("evaluations") / "1", bundle, wer=0.0247)
    place = ("publish", "--repo", REPO, "--reports-repo", "acme/reports", "--create", "--with-transcripts")
    said = json.loads(done(*place, "--dry-run", "--json"))
    assert hub.repositories == {}
    made = json.loads(done(*place, "--json"))
    assert made["added"].keys() == said["added"].keys() == hub.files(REPO).keys()
    reports = hub.files("acme/reports", kind="dataset")
    assert made["reports"]["added"].keys() == said["reports"]["added"].keys() == reports.keys()
    assert {path.split("/")[-1] for path in reports} == {"report.json", "report.md", "report.html"}
    assert not any(path.startswith("reports/") for path in hub.files(REPO))
    assert "2.47 (2.00-3.00)" in hub.files(REPO)["README.md"].decode()
    assert done(*place).count("no commit was made") == 2


# Faults that only a whole command meets.


def test_killed_in_the_middle_of_an_upload_and_run_again(hub, tmp_path):
    """kill -9 before the second large file is whole; the same command again sends what is missing, and commits once."""
    bundle = make_bundle(tmp_path / "a")
    weights = os.urandom(3 * PART_BYTES)
    for name in ("AudioEncoder", "TextDecoder"):
        path = bundle.path / f"{name}.mlpackage" / "Data" / "com.apple.CoreML" / "weight.bin"
        path.write_bytes(weights + name.encode())
    write_manifest(bundle.path, bundle.manifest)
    keep = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_ENDPOINT")}
    environment = keep | {"HF_ENDPOINT": hub.url, "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
    environment["HF_HOME"] = str(tmp_path / "home")
    command = [*WKT, "publish", str(bundle.path), "--repo", REPO, "--create", "--tag", "v1"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        waiting = Fault("POST", "/lfs/complete/")  # one large file arrives as usual
        killing = Fault("POST", "/lfs/complete/", before=lambda: os.kill(process.pid, signal.SIGKILL), status=500)
        hub.faults = [waiting, killing]
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    assert waiting.times == 0
    assert hub.files(REPO) == {}
    first, hub.faults = hub.uploads(), []
    assert first > 3 * PART_BYTES
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert again.returncode == 0, again.stderr
    assert TOKEN not in again.stdout + again.stderr
    whole = sum(len(content) for content in hub.files(REPO).values())
    assert hub.uploads() - first < whole - 3 * PART_BYTES  # one of the two large files was there already
    assert {path.removeprefix(f"{bundle.name}/"): content for path, content in hub.files(REPO).items()
            if path.startswith(f"{bundle.name}/")} == tree(bundle.path)  # fmt: skip
    assert len(hub.repository(REPO).history("main")) == 2
    assert hub.repository(REPO).resolve("v1") == hub.repository(REPO).resolve("main")


def test_killed_between_the_commit_and_its_tag(hub, done, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    done("publish", bundle.path, "--repo", REPO, "--create", "--tag", "v1")
    del hub.repository(REPO).refs["refs/tags/v1"]
    assert "no commit was made" in done("publish", bundle.path, "--repo", REPO, "--tag", "v1")
    assert hub.repository(REPO).resolve("v1") == hub.repository(REPO).resolve("main")


# What is refused, in one line that says what to do.


def test_who_is_not_logged_in_is_told_how(hub, refused, tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "a")
    monkeypatch.delenv("HF_TOKEN")
    for arguments in (["--create"], []):
        assert "hf auth login" in refused("publish", bundle.path, "--repo", REPO, *arguments)
    assert writes(hub) == []
    hub.repository(REPO, create=True)
    assert "no token" in refused("publish", bundle.path, "--repo", REPO)
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert "no write access" in refused("publish", bundle.path, "--repo", REPO)
    assert "no write access" in refused("publish", bundle.path, "--repo", "acme/another", "--create")
    assert writes(hub) == []


def test_not_even_a_traceback_says_the_token(hub, capsys, tmp_path, monkeypatch):
    from whisperkit_tools import cli

    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    hub.repository(REPO, create=True)
    with pytest.raises(SystemExit) as stop:
        cli.main(["-v", "publish", str(make_bundle(tmp_path / "a").path), "--repo", REPO])
    captured = capsys.readouterr()
    assert stop.value.code == 1
    assert "Traceback" in captured.err
    assert "hf_reader" not in captured.out + captured.err


def test_a_repository_that_is_not_there(hub, refused, tmp_path):
    bundle = make_bundle(tmp_path / "a")
    assert "make it with --create" in refused("publish", bundle.path, "--repo", REPO)
    for command in (["pull", REPO, "a_b"], ["versions", REPO], ["unpublish", REPO, "a_b"]):
        assert "does not exist" in refused(*command)
    assert hub.repositories == {}


def test_what_proves_nothing_is_refused(hub, done, refused, tmp_path):
    good, place = make_bundle(tmp_path / "a"), ("--repo", REPO, "--create")
    changed = make_bundle(tmp_path / "b")
    (changed.path / "config.json").write_text("[]")
    assert "has changed since it was verified: config.json" in refused("publish", changed.path, *place)
    rejected = make_bundle(tmp_path / "c", "acme_w_0MB", manifest=compressed(rejected=True))
    line = refused("publish", rejected.path, *place, "--allow-unproven", "please")
    assert "rejected by its quality gate" in line
    write_report(tmp_path / "others" / "1", make_bundle(tmp_path / "d", seed=5), wer=0.1)
    for folder, message in (("others", "is of this very bundle"), ("nowhere", "no report of")):
        line = refused("publish", good.path, *place, "--reports", tmp_path / folder, exit_code=2)
        assert line.startswith("wkt: error: --reports: ") and message in line
    assert "on librispeech" in refused("publish", good.path, *place, "--require", "librispeech,demo")
    assert hub.repositories == {}
    done("publish", good.path, *place, "--require", "librispeech", "--allow-unproven", "a trial of ours")
    assert "without its proof: a trial of ours" in hub.files(REPO)["README.md"].decode()


def test_a_tag_that_is_taken_is_refused_before_anything_is_uploaded(hub, done, refused, tmp_path):
    done("publish", make_bundle(tmp_path / "a").path, "--repo", REPO, "--create", "--tag", "v1")
    sent, before = len(writes(hub)), hub.files(REPO)
    other = make_bundle(tmp_path / "b", "acme_whisper-z", seed=9)
    assert "has a tag 'v1' already" in refused("publish", other.path, "--repo", REPO, "--tag", "v1")
    assert "has a tag 'v1' already" in refused("publish", other.path, "--repo", REPO, "--tag", "v1", "--dry-run")
    assert len(writes(hub)) == sent
    assert hub.files(REPO) == before


def test_usage(wkt, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = tmp_path / "table.json"
    table.write_text("{")
    for arguments in (
        ["x"],
        ["x", "--repo", "a/b", "--to", "c"],
        ["x", "--to", "c", "--revision", "main"],
        ["x", "--repo", "a/b", "--reports-repo", "a/b"],
        ["x", "--repo", "a/b", "--allow-unproven", " "],
        ["x", "--to", "c", "--device-table", table],
        ["x", "--to", "c", "--device-table", tmp_path / "none.json"],
    ):
        assert wkt("publish", *arguments)[0] == 2, arguments
    for repo in ("whisper", "a/b/c", "a/.."):
        assert wkt("versions", repo)[0] == 2


def test_a_device_table_of_ones_own(hub, done, refused, tmp_path):
    bundle, path = make_bundle(tmp_path / "a"), tmp_path / "table.json"
    entry = {"chips": "ours", "identifiers": ["iPhone17"], "models": {"default": "x_y", "supported": ["x_y"]}}
    place = ("publish", bundle.path, "--repo", REPO, "--create", "--device-table", path)
    for table, message in (([1], "is not a device table"), ({"device_support": [entry]}, "not in the repository: x_y")):
        path.write_text(json.dumps(table))
        assert message in refused(*place, exit_code=2)
    entry["models"] = {"default": bundle.name, "supported": [bundle.name]}
    path.write_text(json.dumps({"name": "whisperkit-coreml", "device_support": [entry]}))
    done(*place)
    written = json.loads(hub.files(REPO)["config.json"])
    assert written["device_support"] == [entry]
    assert written["name"] == "whisperkit-coreml-wkt"  # the other name would inherit the runtime's own table


# A repository that another tool laid out.


@pytest.fixture
def theirs(hub):
    """Compiled models without a manifest, a card, a table: as Argmax publishes."""
    files = {"README.md": b"---\nlanguage: [en, de]\n---\n# Theirs\n", ".gitattributes": b"*.bin filter=lfs\n"}
    for name in ("openai_whisper-tiny", "openai_whisper-base_74MB"):
        for component in ("MelSpectrogram", "AudioEncoder", "TextDecoder"):
            for file in ("model.mil", "weights/weight.bin", "metadata.json", "coremldata.bin"):
                files[f"{name}/{component}.mlmodelc/{file}"] = f"{name} {component} {file}".encode() * 40
        files |= {f"{name}/config.json": b"{}", f"{name}/generation_config.json": b'{"lang_to_id": {"<|de|>": 1}}'}
    support = {"chips": "A12", "identifiers": ["iPhone11"],
               "models": {"default": "openai_whisper-tiny", "supported": ["openai_whisper-tiny"]}}  # fmt: skip
    files["config.json"] = json.dumps({"name": "theirs", "version": "0.3", "device_support": [support]}).encode()
    hub.repository(REPO, create=True)
    hub.push(REPO, files)
    return files


def test_what_another_tool_laid_out_is_read_and_not_rewritten(hub, wkt, done, refused, theirs, tmp_path):
    assert done("versions", REPO).count("by another tool") == 2
    code, out, err = wkt("pull", REPO, "openai_whisper-tiny")
    assert code == 0
    assert "no hashes of their own" in err
    assert "wkt cannot run them" in err
    pulled = tree(Path(out.strip()))
    assert pulled == {path.removeprefix("openai_whisper-tiny/"): content for path, content in theirs.items()
                      if path.startswith("openai_whisper-tiny/")}  # fmt: skip
    bundle = make_bundle(tmp_path / "a")
    assert "--adopt" in refused("publish", bundle.path, "--repo", REPO)
    assert "--adopt" in refused("publish", bundle.path, "--repo", REPO, "--dry-run")
    assert "--adopt" in refused("unpublish", REPO, "openai_whisper-tiny")
    assert hub.files(REPO) == theirs
    assert writes(hub) == []

    done("publish", bundle.path, "--repo", REPO, "--adopt")
    kept = hub.files(REPO)
    assert {path for path in theirs if kept[path] != theirs[path]} == {"README.md", "config.json"}
    text, table = kept["README.md"].decode(), json.loads(kept["config.json"])
    assert "# Theirs" in text
    assert text.count("was published by another tool, so it is not known how") == 2
    assert re.search(r"\| `openai_whisper-base_74MB` +\| 0\.0 \|", text)
    assert json.loads(theirs["config.json"])["device_support"][0] in table["device_support"]
    done("unpublish", REPO, "openai_whisper-tiny")
    kept = hub.files(REPO)
    assert not any(path.startswith("openai_whisper-tiny/") for path in kept)
    assert b"openai_whisper-tiny" not in kept["README.md"] + kept["config.json"]


# The card.


def card_commands(text):
    """The lines of its blocks that call `wkt`."""
    return [line.split() for line in text.splitlines() if line.startswith("wkt ")]


def check_exists(words):
    """A command of `wkt`, with options that it has."""
    from whisperkit_tools.cli import cli

    command = cli.get_command(None, words[1])
    assert command is not None, words
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in words if word.startswith("-")} <= options, words


def test_commands_in_the_card_exist(hub, done, tmp_path, demo_bundle):
    recipe = {"tensors": {"AudioEncoder": {"w": {"compression": {"nbits": 4}}, "v": {"compression": None}}}}
    made = [
        make_bundle(tmp_path / "a", "acme_whisper-m_0MB", manifest=compressed(
            gate={"shortfalls": [], "qoi": {"value": 97.5, "low": 92.0, "high": 100.0}, "qoi_min": 95,
                  "wer_delta_max": 1, "confident": True},
            tuning={"steps": 5})),
        make_bundle(tmp_path / "a", "acme_whisper-u_0MB", seed=1, manifest=compressed(recipe=recipe)),
        make_bundle(tmp_path / "a", "acme_whisper-s_stateful", seed=2, manifest={
            "conversion": {"verified": True, "deployment_target": "ios18", "stateful": True, "turbo": True,
                           "kv_length": 224, "word_timestamps": False, "compiled": True, "logits_chunk_size": 16384,
                           "attention_chunk_size": 256, "audio_encoder_attention": "einsum"},
            "prefill": {"included": True, "from": "noise"}}),
    ]  # fmt: skip
    done("publish", demo_bundle, *(bundle.path for bundle in made), "--repo", REPO, "--create")
    text = hub.files(REPO)["README.md"].decode()
    commands = card_commands(text)
    assert {words[1] for words in commands} == {"pull", "transcribe", "convert", "palettize"}
    for words in commands:
        check_exists(words)
    assert "--bits 4" in text
    assert "--prefill-from noise" in text
    assert "wkt convert demo --deployment-target ios16\n" in text
    with pytest.raises(AssertionError):
        check_exists(["wkt", "convert", "--no-such-option"])


def test_withdrawing_the_last_variant_keeps_what_the_card_says_of_languages(hub, done, tmp_path):
    from huggingface_hub import ModelCard

    bundle = make_bundle(tmp_path / "a")
    done("publish", bundle.path, "--repo", REPO, "--create")
    before = ModelCard(hub.files(REPO)["README.md"].decode()).data
    done("unpublish", REPO, bundle.name)
    after = ModelCard(hub.files(REPO)["README.md"].decode()).data
    assert before.language == after.language == ["en", "es"]
    assert (after.license, after.base_model) == (before.license, before.base_model)
    assert MANIFEST not in str(hub.files(REPO).keys())
