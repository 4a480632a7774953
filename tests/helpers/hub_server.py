"""A server that speaks the Hub's HTTP protocol as `huggingface_hub` uses it, for tests of publishing.

Two servers: the Hub (API, resolve) at one address, the object storage (large files, up and down) at another, so that a
test sees whether the token leaves the Hub. Faults are injected by request; every request is logged with its headers.
The uploads use git-lfs's batch protocol, basic and multipart; tests switch the client's Xet transfer off.

Source: the requests of huggingface_hub 2.4 (`_commit_api.py`, `lfs.py`, `hf_api.py`, `file_download.py`) and
https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md.
"""

import base64
import json
import re
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml
from helpers.hub_repository import Conflict, Entry, ObjectStore, Repository, git_blob_id
from helpers.hub_transport import BaseHandler, Fault, Logged, StorageHandler
from helpers.serving import POLL_S

LARGE_BYTES = 4096  # larger files, and binary ones, go to the object storage
PART_BYTES = 1 << 20
PAGE = 25  # entries of a tree page: small, so that clients must turn pages


class TestHub:
    """Both servers and their state, as a context manager."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.objects = ObjectStore(folder / "objects")
        self.repositories: dict[tuple[str, str], Repository] = {}
        # token: (user, organisations, may write)
        self.tokens: dict[str, tuple[str, tuple[str, ...], bool]] = {"hf_writer": ("ann", ("acme",), True)}
        self.tokens["hf_reader"] = ("bob", ("acme",), False)
        self.faults: list[Fault] = []
        self.log: list[Logged] = []
        self.quota_bytes: int | None = None
        self.lie_about: set[str] = set()  # object ids whose downloads are corrupted
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, HubHandler))
        self._storage = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, StorageHandler))

    def __enter__(self) -> "TestHub":
        for server in (self._hub, self._storage):
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": POLL_S}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()

    @property
    def url(self) -> str:
        """The Hub's address."""
        return f"http://127.0.0.1:{self._hub.server_address[1]}"

    @property
    def storage_url(self) -> str:
        """The object storage's address, which names another host."""
        return f"http://localhost:{self._storage.server_address[1]}"

    def repository(self, repo_id: str, kind: str = "model", *, create: bool = False) -> Repository:
        """Return a repository by id."""
        if create:
            self.repositories.setdefault((kind, repo_id), Repository(repo_id, kind))
        return self.repositories[(kind, repo_id)]

    def content(self, entry: Entry) -> bytes:
        """Return the bytes of a file."""
        return self.objects.path(entry.oid).read_bytes()

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Return all files of a revision."""
        commit = self.repository(repo_id, kind).resolve(revision)
        assert commit is not None
        return {path: self.content(entry) for path, entry in commit.tree.items()}

    def push(self, repo_id: str, files: dict[str, bytes | None], title: str = "by hand", kind: str = "model") -> str:
        """Commit without the client, as a colleague would."""
        changes: dict[str, Entry | None] = {}
        for path, content in files.items():
            if content is None:
                changes[path] = None
                continue
            oid = git_blob_id(content)
            self.objects.put(oid, content)
            changes[path] = Entry(oid, len(content), False)
        return self.repository(repo_id, kind).commit("main", title, "", changes)[0].oid

    def uploads(self) -> int:
        """The number of bytes that the storage has received."""
        return sum(item.body_bytes for item in self.log if item.server == "storage" and item.method == "PUT")


def _handler(hub: TestHub, base: type[BaseHandler]) -> type[BaseHandler]:
    return type(base.__name__, (base,), {"hub": hub})


class HubHandler(BaseHandler):
    """The Hub's API."""

    server_name = "hub"

    def route(self) -> None:
        """Find the call by method and path."""
        for method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, self.parts)
            if found and self.command in method.split("|"):
                getattr(self, name)(**{key: unquote(value or "") for key, value in found.groupdict().items()})
                return
        self.fail(404, message=f"the test Hub does not know {self.command} {self.parts}")

    def _user(self) -> tuple[str, tuple[str, ...], bool] | None:
        return self.hub.tokens.get(self.headers.get("Authorization", "").removeprefix("Bearer "))

    def _open(self, kind: str, repo: str, *, write: bool = False) -> Repository | None:
        """Return the repository if the caller may read (or write) it, and answer with the error otherwise."""
        repository = self.hub.repositories.get((kind.removesuffix("s"), repo))
        user = self._user()
        if "Authorization" in self.headers and user is None:
            self.fail(401, message="Invalid credentials in Authorization header")
        elif repository is None or (repository.private and user is None):
            self.fail(404 if user else 401, "RepoNotFound", "Repository not found")
        elif write and (user is None or not user[2] or repo.split("/")[0] not in (user[0], *user[1])):
            self.fail(403 if user else 401, message="Authorization error: this token has no write access")
        else:
            return repository
        return None

    def whoami(self) -> None:
        """GET /api/whoami-v2."""
        user = self._user()
        if user is None:
            self.fail(401, message="Invalid credentials in Authorization header")
            return
        role = "write" if user[2] else "read"
        self.answer({"type": "user", "name": user[0], "orgs": [{"name": name} for name in user[1]],
                     "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}})  # fmt: skip

    def create(self) -> None:
        """POST /api/repos/create."""
        wanted, user = self.json(), self._user()
        if user is None:
            self.fail(401, message="Invalid credentials in Authorization header")
            return
        owner, kind = wanted.get("organization") or user[0], wanted.get("type") or "model"
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{'datasets/' if kind == 'dataset' else ''}{repo_id}"
        if not user[2] or owner not in (user[0], *user[1]):
            self.fail(403, message=f"You don't have the rights to create a {kind} under the namespace {owner}")
        elif (kind, repo_id) in self.hub.repositories:
            self.answer({"error": "You already created this repo", "url": url}, 409)
        else:
            private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
            self.hub.repositories[(kind, repo_id)] = Repository(repo_id, kind, private)
            self.answer({"url": url, "name": repo_id, "id": "1"})

    def info(self, kind: str, repo: str, rev: str = "") -> None:
        """GET of a repository, at a revision or not."""
        found = self._at(kind, repo, rev or "main")
        if found:
            repository, commit = found
            self.answer({"_id": "1", "id": repo, "modelId": repo, "sha": commit.oid, "private": repository.private,
                         "tags": [], "downloads": 0, "likes": 0, "lastModified": commit.date, "gated": False,
                         "siblings": [{"rfilename": path} for path in sorted(commit.tree)]})  # fmt: skip

    def _at(self, kind: str, repo: str, rev: str) -> tuple[Repository, Any] | None:
        repository = self._open(kind, repo)
        commit = repository.resolve(rev) if repository else None
        if repository and commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        return (repository, commit) if repository and commit else None

    def tree(self, kind: str, repo: str, rev: str, path: str = "") -> None:
        """GET of a page of a tree, always recursive."""
        found = self._at(kind, repo, rev)
        if not found:
            return
        entries = [item for item in sorted(found[1].tree.items()) if not path or item[0].startswith(f"{path}/")]
        first = int(self.query.get("cursor", ["0"])[0])
        headers = {}
        if first + PAGE < len(entries):
            headers["Link"] = f'<{self.hub.url}{self.parts}?recursive=true&cursor={first + PAGE}>; rel="next"'
        self.answer([self._entry(*item) for item in entries[first : first + PAGE]], headers=headers)

    def _entry(self, path: str, entry: Entry) -> dict[str, Any]:
        described: dict[str, Any] = {"type": "file", "path": path, "size": entry.size, "oid": entry.oid[:40]}
        if entry.lfs:
            described["lfs"] = {"oid": entry.oid, "size": entry.size, "pointerSize": 134}
        return described

    def paths_info(self, kind: str, repo: str, rev: str) -> None:
        """POST of paths to describe."""
        found = self._at(kind, repo, rev)
        if found:
            paths = parse_qs(self.body.decode()).get("paths", [])
            self.answer([self._entry(path, found[1].tree[path]) for path in paths if path in found[1].tree])

    def refs(self, kind: str, repo: str) -> None:
        """GET of branches, tags and pull requests."""
        repository = self._open(kind, repo)
        if repository:
            named = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
            self.answer({"converts": []} | {
                key: [{"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
                      for ref, oid in repository.refs.items() if ref.startswith(prefix)]
                for key, prefix in named.items()})  # fmt: skip

    def tag(self, kind: str, repo: str, rev: str) -> None:
        """POST of a new tag, DELETE of an existing one."""
        repository = self._open(kind, repo, write=True)
        if not repository:
            return
        if self.command == "DELETE":
            repository.refs.pop(f"refs/tags/{rev}", None)
            self.answer({})
            return
        name, commit = f"refs/tags/{self.json()['tag']}", repository.resolve(rev)
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        elif name in repository.refs:
            self.fail(409, message="Tag reference exists already")
        else:
            repository.refs[name] = commit.oid
            self.answer({})

    def branch(self, kind: str, repo: str, rev: str) -> None:
        """POST of a new branch."""
        repository = self._open(kind, repo, write=True)
        if not repository:
            return
        commit = repository.resolve(self.json().get("startingPoint") or "main")
        if f"refs/heads/{rev}" in repository.refs:
            self.fail(409, message="Reference already exists")
        elif commit is None:
            self.fail(404, "RevisionNotFound", "Invalid starting point")
        else:
            repository.refs[f"refs/heads/{rev}"] = commit.oid
            self.answer({})

    def commits(self, kind: str, repo: str, rev: str) -> None:
        """GET of the history."""
        found = self._at(kind, repo, rev)
        if found:
            self.answer([{"id": item.oid, "title": item.title, "message": item.message, "date": item.date,
                          "authors": [{"user": "ann"}]} for item in found[0].history(rev)])  # fmt: skip

    def auth_check(self, kind: str, repo: str, write: str = "") -> None:
        """GET of whether the caller may read or write."""
        if self._open(kind, repo, write=bool(write)):
            self.answer({})

    def validate_yaml(self) -> None:
        """POST of a card, whose metadata must be a YAML mapping."""
        found = re.match(r"---\n(.*?)\n---\n", self.json()["content"], re.DOTALL)
        try:
            metadata = yaml.safe_load(found[1]) if found else {}
        except yaml.YAMLError as error:
            self.answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return
        if not isinstance(metadata, dict):
            self.answer({"errors": [{"message": "metadata must be a mapping"}], "warnings": []}, 400)
        else:
            self.answer({"errors": [], "warnings": []})

    def preupload(self, kind: str, repo: str, rev: str) -> None:
        """POST of files, to learn which of them go to the storage and which exist."""
        repository = self._open(kind, repo, write="create_pr" not in self.query)
        commit = repository.resolve(rev) if repository else None
        if repository and commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {rev}")
        elif repository and commit:
            answer = []
            for item in self.json()["files"]:
                binary = b"\0" in base64.b64decode(item["sample"])
                here = commit.tree.get(item["path"])
                answer.append({"path": item["path"], "shouldIgnore": False, "oid": here.oid if here else None,
                               "uploadMode": "lfs" if item["size"] > LARGE_BYTES or binary else "regular"})  # fmt: skip
            self.answer({"files": answer})

    def lfs_batch(self, repo: str, prefix: str = "") -> None:
        """POST of objects, to learn where to upload those that do not exist."""
        if not self._open("datasets" if prefix else "models", repo, write=True):
            return
        stored = sum(path.stat().st_size for path in self.hub.objects.folder.iterdir())
        objects = []
        for item in self.json()["objects"]:
            described: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if self.hub.quota_bytes is not None and stored + item["size"] > self.hub.quota_bytes:
                described["error"] = {"code": 403, "message": "Storage quota exceeded"}
            elif not self.hub.objects.has(item["oid"]):
                described["actions"] = self.upload_actions(item["oid"], item["size"])
            objects.append(described)
        self.answer({"transfer": "multipart", "objects": objects})

    def upload_actions(self, oid: str, size: int) -> dict[str, Any]:
        verify = {"href": f"{self.hub.url}/lfs/verify", "header": {}}
        if size <= PART_BYTES:
            return {"upload": {"href": f"{self.hub.storage_url}/objects/{oid}", "header": {}}, "verify": verify}
        count = -(-size // PART_BYTES)
        parts = {f"{number:05}": f"{self.hub.storage_url}/parts/{oid}/{number}" for number in range(1, count + 1)}
        header = {"chunk_size": str(PART_BYTES), **parts}
        return {"upload": {"href": f"{self.hub.url}/lfs/complete/{oid}", "header": header}, "verify": verify}

    def lfs_complete(self, oid: str) -> None:
        """POST after all parts have arrived."""
        numbers = [part["partNumber"] for part in self.json()["parts"]]
        if self.hub.objects.join(oid, numbers):
            self.answer({})
        else:
            self.fail(422, message="the parts do not have the announced hash")

    def lfs_verify(self) -> None:
        """POST of the question whether an object is complete."""
        path = self.hub.objects.path(self.json()["oid"])
        if path.is_file() and path.stat().st_size == self.json()["size"]:
            self.answer({})
        else:
            self.fail(404, message="object not found")

    def commit(self, kind: str, repo: str, rev: str) -> None:
        """POST of a commit as NDJSON."""
        pull_request = "create_pr" in self.query
        repository = self._open(kind, repo, write=not pull_request)
        if not repository:
            return
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        header = lines[0]["value"]
        try:
            changes = self._changes(repository, rev, lines[1:])
            made, number = repository.commit(rev, header["summary"], header.get("description", ""), changes,
                                             header.get("parentCommit"), pull_request)  # fmt: skip
        except Conflict:
            self.fail(412, message="A commit has happened since. Please refresh and try again.")
        except KeyError as error:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {error}")
        except ValueError as error:
            self.fail(400, message=str(error))
        else:
            answer = {"success": True, "commitOid": made.oid, "commitUrl": f"{self.hub.url}/{repo}/commit/{made.oid}"}
            if number is not None:
                answer["pullRequestUrl"] = f"{self.hub.url}/{repo}/discussions/{number}"
            self.answer(answer)

    def _changes(self, repository: Repository, rev: str, lines: list[dict[str, Any]]) -> dict[str, Entry | None]:
        changes: dict[str, Entry | None] = {}
        for line in lines:
            value, path = line["value"], line["value"]["path"]
            if line["key"] == "file":
                content = base64.b64decode(value["content"])
                oid = git_blob_id(content)
                self.hub.objects.put(oid, content)
                changes[path] = Entry(oid, len(content), False)
            elif line["key"] == "lfsFile":
                if not self.hub.objects.has(value["oid"]):
                    raise ValueError(f"the object of {path} was never uploaded")
                changes[path] = Entry(value["oid"], self.hub.objects.path(value["oid"]).stat().st_size, True)
            elif line["key"] == "deletedFile":
                changes[path] = None
            else:  # deletedFolder
                head = repository.resolve(rev)
                inside = path.rstrip("/") + "/"
                changes |= {name: None for name in (head.tree if head else {}) if name.startswith(inside)}
        return changes

    def download(self, repo: str, rev: str, path: str, prefix: str = "") -> None:
        """GET or HEAD of a file. Large files are redirected to the storage."""
        found = self._at("datasets" if prefix else "models", repo, rev)
        if not found:
            return
        entry = found[1].tree.get(path)
        if entry is None:
            self.fail(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": found[1].oid, "ETag": f'"{entry.oid}"', "Accept-Ranges": "bytes"}
        if entry.lfs:
            headers |= {"X-Linked-Etag": f'"{entry.oid}"', "X-Linked-Size": str(entry.size),
                        "Location": f"{self.hub.storage_url}/objects/{entry.oid}"}  # fmt: skip
            self.send(b"", 302, headers)
            return
        content = self.hub.content(entry)
        if entry.oid in self.hub.lie_about:
            content = bytes([content[0] ^ 1]) + content[1:]
        self.send(content, 200, headers)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
_API = rf"/api/(?P<kind>models|datasets)/{_REPO}"
_FILES = rf"/(?P<prefix>datasets/)?{_REPO}"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("GET", rf"{_API}", "info"),
    ("GET", rf"{_API}/revision/(?P<rev>[^/]+)", "info"),
    ("GET", rf"{_API}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", rf"{_API}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    ("GET", rf"{_API}/refs", "refs"),
    ("POST|DELETE", rf"{_API}/tag/(?P<rev>[^/]+)", "tag"),
    ("POST", rf"{_API}/branch/(?P<rev>[^/]+)", "branch"),
    ("GET", rf"{_API}/commits/(?P<rev>[^/]+)", "commits"),
    ("GET", rf"{_API}/auth-check(?P<write>/write)?", "auth_check"),
    ("POST", rf"{_API}/preupload/(?P<rev>[^/]+)", "preupload"),
    ("POST", rf"{_API}/commit/(?P<rev>[^/]+)", "commit"),
    ("POST", rf"{_FILES}\.git/info/lfs/objects/batch", "lfs_batch"),
    ("POST", r"/lfs/complete/(?P<oid>[0-9a-f]{64})", "lfs_complete"),
    ("POST", r"/lfs/verify", "lfs_verify"),
    ("GET|HEAD", rf"{_FILES}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "download"),
]
