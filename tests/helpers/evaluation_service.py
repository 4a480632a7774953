"""A local service with OpenAI's transcription endpoint."""

import json
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from helpers.serving import serving

ANSWER = {
    "text": " Hello there. ",
    "language": "english",
    "segments": [{"id": 0, "start": 0.0, "end": 1.5, "text": " Hello there."}],
    "words": [{"word": "Hello", "start": 0.1, "end": 0.5}, {"word": "there.", "start": 0.6, "end": 1.4}],
}


class Service(ThreadingHTTPServer):
    """An OpenAI-compatible service that gives prepared answers in turn and keeps the requests."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[tuple[int, dict, bytes]] = []
        self.requests: list[tuple[str, dict, dict]] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        form = message_from_bytes(f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode() + body)
        fields: dict[str, list[bytes]] = {}
        for part in form.get_payload():
            fields.setdefault(part.get_param("name", header="Content-Disposition"), []).append(
                part.get_payload(decode=True)
            )
        self.server.requests.append((self.path, dict(self.headers), fields))
        status, headers, content = (
            self.server.answers.pop(0) if self.server.answers else (200, {}, json.dumps(ANSWER).encode())
        )
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def running_service():
    """Serve an OpenAI-compatible service until the block ends."""
    return serving(Service())
