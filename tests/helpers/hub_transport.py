"""Requests, answers, log and faults of the test Hub's two servers, and the object storage."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

if TYPE_CHECKING:
    from helpers.hub_server import TestHub


@dataclass
class Fault:
    """A fault that takes the place of the answer to matching requests, `times` times."""

    method: str
    path: str
    times: int = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None  # read this many bytes of the body, then drop the connection
    before: Callable[[], None] | None = None  # run, then answer as usual
    lose_answer: bool = False  # do what is asked, then drop the connection
    send_only: int | None = None  # of the answer's body, then drop the connection


@dataclass(frozen=True)
class Logged:
    """A request."""

    server: str
    method: str
    path: str
    headers: dict[str, str]
    body_bytes: int


class BaseHandler(BaseHTTPRequestHandler):
    """Reading, answering, logging, faults."""

    hub: "TestHub"
    protocol_version = "HTTP/1.1"
    server_name = ""
    timeout = 20

    def log_message(self, *arguments: object) -> None:
        """Write nothing to stderr."""

    def _serve(self) -> None:
        split = urlsplit(self.path)
        self.parts, self.query = split.path, parse_qs(split.query)
        fault = self._fault()
        length = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.cut_after is not None:
            self.rfile.read(min(length, fault.cut_after))
            self._log(min(length, fault.cut_after))
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.body = self.rfile.read(length) if length else self._chunked()
        self._log(len(self.body))
        self.mute = fault is not None and fault.lose_answer
        self.send_only = None if fault is None else fault.send_only
        if fault is not None and fault.before is not None:
            fault.before()
        if fault is not None and fault.status is not None:
            self.answer({"error": fault.headers.get("X-Error-Message", "injected")}, fault.status, fault.headers)
            return
        self.route()

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _chunked(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "") != "chunked":
            return b""
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _fault(self) -> Fault | None:
        for fault in self.hub.faults:
            if fault.times > 0 and fault.method == self.command and re.search(fault.path, self.parts):
                fault.times -= 1
                return fault
        return None

    def _log(self, size: int) -> None:
        self.hub.log.append(
            Logged(
                self.server_name,
                self.command,
                self.path,
                {name.title(): value for name, value in self.headers.items()},
                size,
            )
        )

    def route(self) -> None:
        """Answer the request. Subclasses say how."""
        raise NotImplementedError

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body or b"{}")

    def answer(self, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """Answer with JSON."""
        self.send(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})

    def fail(self, status: int, code: str = "", message: str = "") -> None:
        """Answer with an error as the Hub does."""
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer({"error": message or code}, status, headers)

    def send(self, content: bytes, status: int, headers: dict[str, str]) -> None:
        """Answer with bytes, or with the range of them that was asked for."""
        if self.mute:
            self.close_connection = True
            self.connection.shutdown(2)
            return
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted and status == 200:
            first, last = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
            content, status = content[first : last + 1], 206
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.send_only])
        if self.send_only is not None:
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)


class StorageHandler(BaseHandler):
    """The object storage: parts and whole objects come in and go out by their ids."""

    server_name = "storage"

    def route(self) -> None:
        """PUT of an object or a part, GET of an object."""
        whole = re.fullmatch(r"/objects/([0-9a-f]{64})", self.parts)
        part = re.fullmatch(r"/parts/([0-9a-f]{64})/(\d+)", self.parts)
        if self.command == "PUT" and whole:
            self.hub.objects.put(whole[1], self.body)
            self.answer({}, headers={"ETag": f'"{whole[1]}"'})
        elif self.command == "PUT" and part:
            tag = self.hub.objects.put_part(part[1], int(part[2]), self.body)
            self.answer({}, headers={"ETag": f'"{tag}"'})
        elif self.command in ("GET", "HEAD") and whole and self.hub.objects.has(whole[1]):
            content = self.hub.objects.path(whole[1]).read_bytes()
            if whole[1] in self.hub.lie_about:
                content = bytes([content[0] ^ 1]) + content[1:]
            self.send(content, 200, {"ETag": f'"{whole[1]}"', "Accept-Ranges": "bytes"})
        else:
            self.fail(404)
