"""A stand-in for the Hugging Face Hub on this machine: as much of it as its client asks for when it fetches files."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin")
PIECE = 4096


@dataclass(frozen=True)
class Asked:
    """One request for a file.

    Args:
        method: HEAD or GET.
        repository: its id.
        path: in the repository.
        start: of the range that was asked for.
        sent: bytes of the body that were sent.
        authorized: whether a token came with it.
        elsewhere: whether it went to where large files are kept, another host.
    """

    method: str
    repository: str
    path: str
    start: int
    sent: int
    authorized: bool
    elsewhere: bool


@dataclass
class StandIn:
    """What is served, and how.

    Args:
        folder: the files of every repository.
        asked: the requests so far, in their order.
        down: every request is refused.
        gone: repositories that are not there.
        ranges: whether a part of a file can be had.
        damaged: large files come with another first byte than their SHA-256 says.
        cut_after: a body ends after so many bytes, and then `cut` is called.
        cut: by default, refuses what comes after.
    """

    folder: Path
    endpoint: str = ""
    asked: list[Asked] = field(default_factory=list)
    down: bool = False
    gone: tuple[str, ...] = ()
    ranges: bool = True
    damaged: bool = False
    cut_after: int | None = None
    cut: Callable[[], None] | None = None

    def break_off(self) -> None:
        """What happens when a body is cut off."""
        if self.cut is None:
            self.down = True
        else:
            self.cut()

    def bodies(self, suffixes: tuple[str, ...] = LARGE) -> list[tuple[str, int, int]]:
        """Path, start and bytes sent of what was fetched."""
        return [(one.path, one.start, one.sent) for one in self.asked if one.sent and one.path.endswith(suffixes)]

    def repositories(self) -> set[str]:
        """Those that were asked."""
        return {one.repository for one in self.asked}

    def paths(self) -> list[str]:
        """What was asked for."""
        return [one.path for one in self.asked]


def _etag(data: bytes, is_large: bool) -> str:
    """As the Hub's: SHA-256 of what is kept beside the repository, git's own hash of the rest."""
    if is_large:
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _handler(hub: StandIn) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def answer(self) -> None:
            elsewhere = self.path.startswith("/elsewhere")
            match = re.fullmatch(r"(?:/elsewhere)?/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self.path)
            self.repository, path = match.groups() if match else ("", self.path)
            if self.repository in hub.gone:
                self.reply(path, 401, {"X-Error-Code": "RepoNotFound"})
                return
            file, start = hub.folder / path, 0
            if hub.ranges and (wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
                start = int(wanted[1])
            if hub.down or not file.is_file():
                self.reply(path, 403 if hub.down else 404, {} if hub.down else {"X-Error-Code": "EntryNotFound"})
                return
            is_large, data = file.name.endswith(LARGE), file.read_bytes()
            etag = _etag(data, is_large)
            if is_large and not elsewhere:  # the Hub sends to where it keeps them
                host = f"http://localhost:{self.server.server_address[1]}"
                linked = {"X-Linked-Etag": f'"{etag}"', "X-Linked-Size": str(len(data))}
                self.reply(path, 302, {"Location": f"{host}/elsewhere{self.path}", **linked})
                return
            if hub.damaged and is_large:
                data = bytes([data[0] ^ 1]) + data[1:]
            body = data[start:]
            headers = {"ETag": f'"{etag}"'}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            self.reply(path, 206 if start else 200, headers, body, start)

        def reply(self, path: str, status: int, headers: dict[str, str], body: bytes = b"", start: int = 0) -> None:
            sent = 0
            if self.command == "GET":
                sent = len(body) if hub.cut_after is None else min(hub.cut_after, len(body))
            elsewhere = self.path.startswith("/elsewhere")
            with_token = "Authorization" in self.headers
            hub.asked.append(Asked(self.command, self.repository, path, start, sent, with_token, elsewhere))
            self.send_response(status)
            for name, value in {"X-Repo-Commit": COMMIT, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:sent])
            self.wfile.flush()
            if self.command == "GET" and sent < len(body):
                hub.break_off()
                self.close_connection = True

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[StandIn]:
    """Serve the files of a folder as those of every repository, while the block runs."""
    hub = StandIn(folder)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
