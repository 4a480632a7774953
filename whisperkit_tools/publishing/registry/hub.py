"""A registry in a model repository on the Hugging Face Hub, reached through `huggingface_hub`."""

import errno
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from whisperkit_tools.errors import OptionsError, PublishError
from whisperkit_tools.publishing.registry.base import (
    Commit,
    ConflictError,
    RegistryChange,
    RemoteFile,
    Snapshot,
    check_path,
)
from whisperkit_tools.terminal_text import printable

RETRIED = (429, 500, 502, 503, 504)
ATTEMPTS = 6
FIRST_WAIT_S = 1.0
MAX_WAIT_S = 60.0
_FULL = re.compile(r"quota|storage limit|storage space|exceeded|payment", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}
T = TypeVar("T")


class HubRegistry:
    """A repository on the Hub, or on what `HF_ENDPOINT` names."""

    def __init__(
        self,
        repo_id: str,
        *,
        revision: str | None = None,
        repo_type: str = "model",
        token: str | None = None,
        endpoint: str | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Name the repository.

        Args:
            repo_id: `ORG/NAME`.
            revision: The branch to read and to commit to; None for `main`.
            repo_type: `model` or `dataset`.
            token: A token instead of the stored one.
            endpoint: An address instead of that in `HF_ENDPOINT`.
            sleep: Waits a number of seconds between attempts.

        Raises:
            OptionsError: `repo_id` is not the id of a repository.
        """
        from huggingface_hub import HfApi, get_token
        from huggingface_hub.errors import HFValidationError
        from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

        if repo_id.count("/") != 1:
            raise OptionsError(f"{repo_id!r} is not a repository: expected ORG/NAME, for example acme/whisper-coreml")
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise OptionsError(f"{repo_id!r} is not a repository: {error}") from error
        self.repo_id = repo_id
        self._repo_type = repo_type
        self._revision = revision
        self._token = token or get_token()
        self._api = HfApi(endpoint=endpoint, token=self._token)
        self._sleep = sleep

    @property
    def label(self) -> str:
        """Return the repository's id."""
        return self.repo_id

    @property
    def name(self) -> str:
        """Return the repository's id."""
        return self.repo_id

    @property
    def absent(self) -> str:
        """Return the message for the case that it does not exist."""
        what = self.repo_id if self._revision is None else f"{self.repo_id}, or its branch {self._revision},"
        if self._token is None:
            return f"{what} does not exist, or may not be seen without a token; log in with `hf auth login`"
        return f"{what} does not exist, or this token may not see it"

    def create(self, *, private: bool) -> None:
        """Make the repository, and the branch."""
        self._call(
            "create the repository",
            lambda: self._api.create_repo(self.repo_id, repo_type=self._repo_type, private=private, exist_ok=True),
        )
        if self._revision is not None:
            branch = self._revision
            self._call(
                f"create the branch {branch}",
                lambda: self._api.create_branch(self.repo_id, branch=branch, repo_type=self._repo_type, exist_ok=True),
            )

    def snapshot(self, revision: str | None = None) -> Snapshot:
        """Return the content of the repository at a revision, or at the head of the branch."""
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        wanted = revision or self._revision

        def read() -> Snapshot:
            try:
                return self._at(wanted)
            except RepositoryNotFoundError:
                return Snapshot(None)
            except RevisionNotFoundError:
                if revision is not None:
                    raise
                return Snapshot(None, self._at(None).files)  # a new branch starts where the main one is

        return self._call(f"read the revision {wanted}" if wanted else "read the repository", read)

    def _at(self, revision: str | None) -> Snapshot:
        info = self._api.repo_info(self.repo_id, revision=revision, repo_type=self._repo_type)
        items = self._api.list_repo_tree(self.repo_id, recursive=True, revision=info.sha, repo_type=self._repo_type)
        return Snapshot(info.sha, {item.path: _describe(item) for item in items if hasattr(item, "size")})

    def read(self, path: str, snapshot: Snapshot) -> bytes | None:
        """Return the bytes of a small file."""
        if path not in snapshot.files:
            return None
        return self._download(path, snapshot).read_bytes()

    def fetch(self, path: str, snapshot: Snapshot, destination: Path, *, again: bool = False) -> None:
        """Download a file, continuing after a broken connection."""
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self._download(path, snapshot, again=again), destination)

    def _download(self, path: str, snapshot: Snapshot, *, again: bool = False) -> Path:
        check_path(path)

        def download() -> Path:
            found = self._api.hf_hub_download(
                self.repo_id, path, revision=snapshot.commit, repo_type=self._repo_type, force_download=again
            )
            return Path(found)

        return self._call(f"download {path}", download)

    def tags(self) -> dict[str, str]:
        """Return the commits that have names."""
        refs = self._call("read the tags", lambda: self._api.list_repo_refs(self.repo_id, repo_type=self._repo_type))
        return {ref.name: ref.target_commit for ref in refs.tags}

    def set_tag(self, tag: str, commit: str) -> None:
        """Name a commit.

        Raises:
            PublishError: The name is another commit's.
        """
        self._call(
            f"set the tag {tag}",
            lambda: self._api.create_tag(
                self.repo_id, tag=tag, revision=commit, repo_type=self._repo_type, exist_ok=True
            ),
        )
        if self.tags().get(tag) != commit:
            raise PublishError(f"{self.label} has a tag {tag!r} already, for another commit; choose another name")

    def commit(self, change: RegistryChange, parent: Snapshot, *, pull_request: bool = False) -> Commit:
        """Upload what is new and commit on top of `parent`. A lost answer is not committed twice.

        Raises:
            ConflictError: The branch has moved on.
            PublishError: The Hub refuses, or holds content other than what was sent.
        """
        made = self._call("commit", lambda: self._commit_once(change, parent, pull_request), conflict=True)
        self._check(change, made.id)
        if change.tag is not None and not pull_request:
            self.set_tag(change.tag, made.id)
        return made

    def _commit_once(self, change: RegistryChange, parent: Snapshot, pull_request: bool) -> Commit:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        # New for each attempt, because the client marks those that it has committed.
        operations: list[Any] = [
            CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
            for path, content in change.additions.items()
        ]
        operations += [CommitOperationDelete(path) for path in sorted(change.deletions)]
        info = self._api.create_commit(
            self.repo_id,
            operations,
            commit_message=change.title,
            commit_description=change.description,
            repo_type=self._repo_type,
            revision=self._revision,
            parent_commit=parent.commit,
            create_pr=pull_request,
        )
        return Commit(info.oid, info.commit_url, info.pr_url)

    def _check(self, change: RegistryChange, commit: str) -> None:
        """Compare what the repository holds with what was sent."""
        files = self.snapshot(commit).files
        wrong = [
            path for path, content in change.additions.items() if path not in files or not files[path].holds(content)
        ]
        if wrong:
            raise PublishError(
                f"{self.label} at {commit[:12]} does not hold what was sent: {', '.join(sorted(wrong))}; "
                "publish again, or go back to the earlier commit"
            )

    def _call(self, doing: str, call: Callable[[], T], *, conflict: bool = False) -> T:
        """Call. Wait and try again where that helps, and report what went wrong where it does not."""
        from huggingface_hub.errors import HfHubHTTPError

        for attempt in range(ATTEMPTS):
            try:
                with self._token_stays():
                    return call()
            except PublishError:
                raise
            except Exception as error:  # also the HTTP library's own, under names that change with the client's version
                full = _cause(error, OSError)
                if full is not None and full.errno == errno.ENOSPC:
                    raise full from None
                refusal = _cause(error, HfHubHTTPError)  # uploads wrap it
                status = refusal.response.status_code if refusal is not None else None
                if conflict and status in (409, 412):
                    raise ConflictError(f"{self.label} has changed since it was read") from None
                hopeless = status not in RETRIED if status is not None else not _is_network(error)
                if hopeless or attempt + 1 == ATTEMPTS:
                    raise PublishError(self._explain(doing, status, refusal or error)) from None
                self._sleep(_wait(refusal, attempt))
        raise AssertionError("the last attempt returns or raises")

    @contextmanager
    def _token_stays(self) -> Iterator[None]:
        """Remove the token from requests to hosts other than the endpoint, wherever the server redirects."""
        from huggingface_hub import get_session

        def take_off(request: Any) -> None:
            if _origin(str(request.url)) != home:
                request.headers.pop("authorization", None)

        home, session = _origin(self._api.endpoint), get_session()
        hooks = session.event_hooks
        session.event_hooks = {**hooks, "request": [*hooks.get("request", []), take_off]}
        try:
            yield
        finally:
            session.event_hooks = hooks

    def _explain(self, doing: str, status: int | None, error: Exception) -> str:
        where = f"{self._api.endpoint}/{self.repo_id}"
        if status is None and _is_network(error):
            return f"cannot {doing}: {self._api.endpoint} cannot be reached; for a mirror set HF_ENDPOINT"
        if status is None:
            return self._scrub(f"cannot {doing} ({where}): {_first_line(error)}")
        if status == 401 and self._token is None:
            return f"cannot {doing}: no token for {where}; log in with `hf auth login`, or set HF_TOKEN"
        if status == 401:
            return f"cannot {doing}: {where} does not know the token; log in again with `hf auth login`"
        if status in (402, 403, 413) and _FULL.search(_server_says(error)):
            return self._scrub(
                f"cannot {doing}: {where} has no room for it ({_server_says(error)}); remove what is not needed, or "
                "ask for more storage, then run the same command again"
            )
        if status == 403:
            return self._scrub(
                f"cannot {doing}: the token has no write access to {where} ({_server_says(error)}); make one with the "
                "permission to write at the Hub's settings, under Access Tokens"
            )
        if status == 404:
            return self._scrub(f"cannot {doing}: {where} has no such repository or revision ({_server_says(error)})")
        if status == 429:
            return f"cannot {doing}: {self._api.endpoint} still limits the rate after {ATTEMPTS} attempts; try later"
        return self._scrub(f"cannot {doing}: {where} answers HTTP {status} ({_server_says(error)})")

    def _scrub(self, text: str) -> str:
        """Return text without the token and without control characters, whoever put them there."""
        text = printable(text)
        text = text if not self._token else text.replace(self._token, "***")
        return re.sub(r"\bhf_[A-Za-z0-9]{8,}\b", "***", text)


def _describe(item: Any) -> RemoteFile:
    sha256 = item.lfs.sha256 if item.lfs is not None else None
    return RemoteFile(int(item.size), sha256=sha256, blob_id=None if sha256 else item.blob_id)


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Return scheme, host and port."""
    split = urlsplit(url)
    return split.scheme, split.hostname, split.port or _PORTS.get(split.scheme)


def _wait(error: Any, attempt: int) -> float:
    """Return the seconds to wait: what the server asks for, otherwise twice as long each time."""
    asked = _seconds(error.response.headers.get("Retry-After", "")) if error is not None else None
    return min(FIRST_WAIT_S * 2**attempt if asked is None else asked, MAX_WAIT_S)


def _seconds(retry_after: str) -> float | None:
    """Return the seconds that the header asks for, as a number or as a time. Source: RFC 9110, section 10.2.3."""
    if retry_after.isdigit():
        return float(retry_after)
    try:
        return max(0.0, (parsedate_to_datetime(retry_after) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _cause(error: BaseException | None, kind: type[T]) -> T | None:
    """Return the first of a kind among an error and its causes."""
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    return error


def _is_network(error: BaseException | None) -> bool:
    """Whether a broken connection is the cause. The client wraps those of uploads in its own errors."""
    while error is not None:
        if isinstance(error, (ConnectionError, TimeoutError)) or type(error).__name__ in (
            "ConnectError",
            "ReadError",
            "WriteError",
            "RemoteProtocolError",
            "ConnectTimeout",
            "ReadTimeout",
            "WriteTimeout",
            "PoolTimeout",
        ):
            return True
        error = error.__cause__
    return False


def _server_says(error: Any) -> str:
    said = getattr(error, "server_message", None) or error.response.headers.get("X-Error-Message") or "no reason given"
    return _first_line(said)


def _first_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]
