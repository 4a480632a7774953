"""Datasets of the Hub through the real clients against a local server, and local copies of them."""

import hashlib
import io
import json
import os
import socket
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from helpers.serving import serving

from whisperkit_tools.errors import DatasetError, OptionsError
from whisperkit_tools.eval.datasets.open import open_dataset
from whisperkit_tools.eval.datasets.options import DatasetOptions

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def flac(index):
    out = io.BytesIO()
    at = np.arange(8000) / 16_000
    soundfile.write(out, 0.1 * np.sin(2 * np.pi * (200 + 50 * index) * at), 16_000, format="FLAC")
    return out.getvalue()


class Hub(ThreadingHTTPServer):
    """The part of the Hub's protocol that fetching a dataset uses."""

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories = repositories
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **headers):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self):
        self.do_GET()

    def do_POST(self):
        length = int(self.headers.get("Content-Length", 0))
        wanted = self.rfile.read(length).decode()
        words = self.path.split("?")[0].strip("/").split("/")
        files = self.server.repositories.get("/".join(words[2:4]), {})
        paths = [name for name in files if f"{name}" in wanted.replace("%2F", "/")]
        self.json([self.entry(name, files[name]) for name in paths])

    def json(self, value):
        self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

    def entry(self, name, data):
        return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}

    def do_GET(self):
        self.server.requests.append(self.path)
        words = self.path.split("?")[0].strip("/").split("/")
        is_api = words[0] == "api"
        words = words[2:] if is_api else words[1:]  # api/datasets/... or datasets/...
        hub_id, rest = "/".join(words[:2]), words[2:]
        if hub_id == "someone/gated":
            return self.answer(403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        files = self.server.repositories.get(hub_id)
        if files is None:
            return self.answer(404, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
        if rest[1:2] and rest[1] not in ("main", COMMIT):
            return self.answer(404, X_Error_Code="RevisionNotFound", X_Error_Message="Invalid rev")
        if is_api and rest[:1] == ["tree"]:
            folder = "/".join(rest[2:])
            inside = {n: d for n, d in files.items() if not folder or n.startswith(f"{folder}/")}
            return self.json([self.entry(name, data) for name, data in inside.items()])
        if is_api:
            siblings = [{"rfilename": name} for name in files]
            return self.json({"_id": "1", "id": hub_id, "sha": COMMIT, "siblings": siblings, "tags": []})
        data = files.get("/".join(rest[2:]))
        if data is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        span = self.headers.get("Range")
        if span and self.command == "GET":
            start, _, end = span.removeprefix("bytes=").partition("-")
            part = data[int(start) : int(end) + 1 if end else None]
            where = f"bytes {start}-{int(start) + len(part) - 1}/{len(data)}"
            return self.answer(206, part, Content_Range=where, **headers)
        return self.answer(200, data, **headers)


def plain_repository(count=3):
    """A repository of audio with metadata.json, as whisperkittools' sets are."""
    rows = [{"path": f"clips/{i}.flac", "text": f"words {i}", "file_length": 0.5} for i in range(count)]
    return {"metadata.json": json.dumps(rows).encode()} | {f"{i}.flac": flac(i) for i in range(count)}


def zipped_repository():
    plain = plain_repository()
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in plain.items():
            if name.endswith(".flac"):
                archive.writestr(f"clips/{name}", data)
    rows = [{"path": f"{i}.flac", "sentence": f"palabras {i}", "language": "es"} for i in range(3)]
    return {"metadata.json": json.dumps(rows).encode(), "audio.zip": out.getvalue()}


def parquet_file(tmp_path, count=4, split="test"):
    import datasets

    rows = {
        "id": [f"utt{i}" for i in range(count)],
        "text": [f"words {i}" for i in range(count)],
        "audio": [{"bytes": flac(i), "path": f"{i}.flac"} for i in range(count)],
        "speaker_id": list(range(count)),
    }
    made = datasets.Dataset.from_dict(rows)
    made = made.cast_column("audio", datasets.Audio())  # as published: decoded on reading, with a library we lack
    path = tmp_path / f"{split}-00000-of-00001.parquet"
    made.to_parquet(str(path))
    return path


@pytest.fixture
def hub(tmp_path, monkeypatch):
    server = Hub(
        {
            "argmaxinc/librispeech-200": plain_repository(),
            "argmaxinc/common_voice_17_0-argmax_subset-400": zipped_repository(),
            "someone/plain": plain_repository(),
        }
    )
    with serving(server):
        use_endpoint(server.url, tmp_path, monkeypatch)
        yield server


def use_endpoint(url, tmp_path, monkeypatch):
    """Do what HF_ENDPOINT and HF_HOME do; the client reads them once, when it is first imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)


# The Hub


def test_a_named_set_is_downloaded_once(hub):
    found = open_dataset("librispeech-200")
    assert (found.name, found.source, found.language) == ("librispeech-200", "argmaxinc/librispeech-200", "en")
    assert [(example.id, example.text) for example in found.examples] == [
        (f"clips/{i}", f"words {i}") for i in range(3)
    ]
    assert found.examples[2].path.read_bytes() == flac(2)
    assert len([path for path in hub.requests if path.endswith(".flac")]) >= 3
    hub.requests.clear()
    assert open_dataset("librispeech-200").fingerprint == found.fingerprint
    assert not [path for path in hub.requests if path.endswith(".flac")]


def test_zipped_audio_is_unpacked_once(hub, tmp_path):
    found = open_dataset("common_voice", DatasetOptions(language="es"))
    assert [example.text for example in found.examples] == ["palabras 0", "palabras 1", "palabras 2"]
    kept = tmp_path / "home" / "whisperkit-tools" / "datasets"
    assert found.examples[0].path.is_relative_to(kept)
    before = found.examples[0].path.stat().st_ino
    assert open_dataset("common_voice").examples[0].path.stat().st_ino == before
    assert [path.name for path in kept.iterdir()] == [f"argmaxinc-common_voice_17_0-argmax_subset-400-{COMMIT[:12]}"]


def test_a_hub_id_of_plain_audio(hub):
    assert len(open_dataset("someone/plain").examples) == 3


@pytest.mark.parametrize(
    ("hub_id", "options", "message"),
    [
        ("someone/gone", {}, "no dataset someone/gone on http://127"),
        (
            "someone/gated",
            {},
            "someone/gated is gated: accept its terms at http://.*/datasets/someone/gated, then log in",
        ),
        ("someone/plain", {"revision": "v9"}, "someone/plain has no revision 'v9'"),
    ],
)
def test_refusals_are_said_plainly(hub, hub_id, options, message):
    with pytest.raises(DatasetError, match=message):
        open_dataset(hub_id, DatasetOptions(**options))


@pytest.mark.parametrize("spec", ["librispeech", "someone/plain"])
def test_without_a_connection_a_local_copy_is_pointed_at(tmp_path, monkeypatch, spec):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    use_endpoint(url, tmp_path, monkeypatch)
    with pytest.raises(DatasetError, match=r"cannot reach http.*`hf download --repo-type dataset .* pass dataset=DIR"):
        open_dataset(spec)


@pytest.mark.slow
def test_rows_are_streamed_once_and_kept(tmp_path):
    """In a process of its own, since `datasets` reads the endpoint when it is imported."""
    server = Hub({"someone/set": {(path := parquet_file(tmp_path)).name: path.read_bytes()}})
    code = (
        "from whisperkit_tools.eval.datasets.open import open_dataset\n"
        "from whisperkit_tools.eval.datasets.options import DatasetOptions\n"
        "for limit in (2, None, 3):\n"
        "    found = open_dataset('someone/set', DatasetOptions(limit=limit))\n"
        "    print(found.name, [(e.id, e.text, e.speaker, e.path.read_bytes()[:4]) for e in found.examples])\n"
    )
    environment = os.environ | {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with serving(server):
        online = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
    assert online.returncode == 0, online.stderr[-2000:]
    rows = [(f"utt{i}", f"words {i}", str(i), b"fLaC") for i in range(4)]
    assert online.stdout.splitlines() == [f"someone-set {rows[:count]}" for count in (2, 4, 3)]
    offline = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert offline.stdout == online.stdout, offline.stderr[-2000:]


# Local copies


def test_parquet_files(tmp_path):
    (tmp_path / "copy").mkdir()
    parquet_file(tmp_path / "copy")
    options = DatasetOptions(cache_dir=tmp_path / "cache")
    found = open_dataset(str(tmp_path / "copy"), options)
    assert [(e.id, e.text, e.speaker) for e in found.examples] == [(f"utt{i}", f"words {i}", str(i)) for i in range(4)]
    assert found.examples[1].path.read_bytes() == flac(1)
    assert open_dataset(str(tmp_path / "copy"), options).fingerprint == found.fingerprint
    with pytest.raises(OptionsError, match=r"no column of transcripts: looked for gold, found id, text"):
        open_dataset(str(tmp_path / "copy"), DatasetOptions(cache_dir=tmp_path / "cache", text_column="gold"))
    with pytest.raises(OptionsError, match=r"no split 'dev' in .*: found test; choose one with split"):
        open_dataset(str(tmp_path / "copy"), DatasetOptions(cache_dir=tmp_path / "cache", split="dev"))
    assert len(list((tmp_path / "cache").iterdir())) == 1  # nothing half made


def test_a_set_that_was_saved_to_disk(tmp_path):
    import datasets

    made = datasets.Dataset.from_dict({"sentence": ["one"], "audio": [{"bytes": flac(1), "path": None}]})
    datasets.DatasetDict(validation=made).save_to_disk(str(tmp_path / "saved"))
    found = open_dataset(str(tmp_path / "saved"), DatasetOptions(cache_dir=tmp_path / "cache"))
    assert [(example.id, example.text) for example in found.examples] == [("0000001", "one")]


def test_broken_parquet(tmp_path):
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "test-00000-of-00001.parquet").write_bytes(b"PAR1 nonsense")
    with pytest.raises(DatasetError, match=r"cannot be read|broke off"):
        open_dataset(str(tmp_path / "copy"), DatasetOptions(cache_dir=tmp_path / "cache"))
