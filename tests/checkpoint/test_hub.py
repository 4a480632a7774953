"""Hub checkpoints through the real client against a local HTTP server that speaks the Hub's protocol."""

import hashlib
import json
import socket
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from helpers.serving import serving
from transformers import WhisperConfig, WhisperForConditionalGeneration

from whisperkit_tools.checkpoint import open_checkpoint
from whisperkit_tools.errors import CheckpointError

COMMIT = "0123456789abcdef0123456789abcdef01234567"
GATED = "someone/gated"
REFUSED = "someone/refused"
BROKEN = "someone/broken"
SPECIAL = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]


def make_model(folder: Path) -> dict[str, bytes]:
    """Return the files of a small repository, with a decoy that must not be downloaded."""
    torch.manual_seed(0)
    config = WhisperConfig(
        vocab_size=20,
        d_model=8,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        pad_token_id=10,
        bos_token_id=10,
        eos_token_id=10,
    )
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    added = [{"id": 10 + at, "content": content} for at, content in enumerate(SPECIAL)]
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"Ġ": 0}}, "added_tokens": added}))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    (folder / "model.fp32-00001-of-00002.safetensors").write_bytes(b"decoy")
    (folder / "pytorch_model.bin").write_bytes(b"decoy")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class Hub(ThreadingHTTPServer):
    """The part of the Hub's protocol that a download uses."""

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories = repositories
        self.downloaded: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        words = self.path.split("?")[0].strip("/").split("/")
        is_api = words[0] == "api"
        words = words[2:] if is_api else words
        hub_id, rest = "/".join(words[:2]), words[2:]
        if hub_id == GATED:
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        if hub_id == REFUSED:
            return self.answer(403, X_Error_Message="Forbidden")
        if hub_id == BROKEN:
            return self.answer(500)
        if hub_id not in self.server.repositories:
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if rest[1:2] and rest[1] not in ("main", "v1", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev")
        return self.repository(hub_id, rest, is_api)

    def repository(self, hub_id: str, rest: list[str], is_api: bool) -> None:
        files = self.server.repositories[hub_id]
        if is_api and rest[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                for name, data in files.items()
            ]
            return self.answer(200, json.dumps(entries).encode(), Content_Type="application/json")
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            info = {"_id": "1", "id": hub_id, "modelId": hub_id, "sha": COMMIT, "siblings": siblings, "tags": []}
            return self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
        data = files[rest[2]]
        if self.command == "GET":
            self.server.downloaded.append(rest[2])
        return self.answer(200, data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=COMMIT)


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    files = make_model(tmp_path_factory.mktemp("model"))
    only_pickled = {name: data for name, data in files.items() if not fnmatch(name, "model*.safetensors")}
    return {"someone/whisper": files, "openai/whisper-large-v3-turbo": files, "someone/pickled": only_pickled}


@pytest.fixture
def hub(repositories: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(Hub(repositories)) as server:
        use_endpoint(server.url, tmp_path / "cache", monkeypatch)
        yield server


def use_endpoint(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN do; the client reads them once, when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


def test_a_hub_id_is_downloaded_once_and_its_commit_recorded(hub: Hub) -> None:
    checkpoint = open_checkpoint("someone/whisper", revision="v1")
    assert (checkpoint.revision, checkpoint.org, checkpoint.model) == (COMMIT, "someone", "whisper")
    assert checkpoint.license == "mit"
    assert checkpoint.load_encoder().conv1.weight.shape == (8, 80, 1, 3)
    assert "model.safetensors" in hub.downloaded
    assert not {"model.fp32-00001-of-00002.safetensors", "pytorch_model.bin"} & set(hub.downloaded)
    count = len(hub.downloaded)
    open_checkpoint("someone/whisper", revision="v1")
    assert len(hub.downloaded) == count


def test_an_alias_has_its_published_name(hub: Hub) -> None:
    checkpoint = open_checkpoint("turbo")
    assert (checkpoint.source, checkpoint.org, checkpoint.model) == ("turbo", "openai", "whisper-large-v3-v20240930")


def test_what_was_downloaded_opens_without_a_connection(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_checkpoint("someone/whisper")
    use_endpoint(unused_endpoint(), tmp_path / "cache", monkeypatch)
    assert open_checkpoint("someone/whisper").revision == COMMIT


def test_pickles_stay_on_the_hub_unless_allowed(hub: Hub) -> None:
    with pytest.raises(CheckpointError, match=r"has no safetensors weights.*set allow_pickle=True"):
        open_checkpoint("someone/pickled")
    assert "pytorch_model.bin" not in hub.downloaded
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read as pickled weights"):
        open_checkpoint("someone/pickled", allow_pickle=True)


@pytest.mark.parametrize(
    ("source", "revision", "message"),
    [
        (GATED, None, r"someone/gated is gated: accept its terms at http.*/someone/gated, then log in with `hf auth"),
        (REFUSED, None, r"refuses access to someone/refused \(HTTP 403\): log in with `hf auth login`"),
        (BROKEN, None, "answers HTTP 500 for someone/broken"),
        (
            "openai/whisper-lage-v3",
            None,
            r"no model openai/whisper-lage-v3 on http.*: did you mean openai/whisper-large",
        ),
        ("someone/whisper", "v9", "someone/whisper has no revision 'v9'"),
        ("some--one/whi..sper", None, "is not a Hub id"),
    ],
)
def test_refusals(hub: Hub, source: str, revision: str | None, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(source, revision=revision)
    assert "\n" not in str(caught.value)


def unused_endpoint() -> str:
    """Return the address of a port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint = unused_endpoint()
    use_endpoint(endpoint, tmp_path, monkeypatch)
    with pytest.raises(
        CheckpointError, match=rf"cannot reach {endpoint} and openai/whisper-tiny is not in the Hub"
    ) as e:
        open_checkpoint("tiny")
    assert all(hint in str(e.value) for hint in ("local folder", "HF_HUB_OFFLINE=1", "HF_ENDPOINT"))


def test_offline_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_endpoint(unused_endpoint(), tmp_path, monkeypatch)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="is not in the Hub cache; to work offline"):
        open_checkpoint("tiny")
