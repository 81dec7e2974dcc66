"""
A Hub on loopback: enough of the Hub's HTTP interface to push and load models, with faults on request.

It does not have Xet, pull requests, data sets, Spaces and everything social, and answers 404 for them.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

from hub_routes import ROUTES, Answer
from hub_store import Commit, Repository, Store


@dataclass
class Fault:
    """Answers `status` to the requests that match. `status=None` closes the connection instead."""

    method: str
    path: str
    status: int | None
    times: int
    after: int

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path) or self.times == 0:
            return False
        if self.after:
            self.after -= 1
            return False
        self.times -= 1
        return True


@dataclass
class Stall:
    """Reads half of the first request that matches (`reached`), and closes the connection when `released` is set."""

    path: str
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)


@dataclass
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    status: int | None = None


class LoopbackHub:
    """
    A running Hub: `with LoopbackHub() as hub: ...`.

    Args:
        chunk: larger files than this many bytes are uploaded in parts of this size. `None`: always as one.

    Attributes:
        url: the value for `HF_ENDPOINT`.
        token: the token of the user `tester`, with write access. `read_token` is the user's token without it.
        requests: all requests that came in.
    """

    user = "tester"

    def __init__(self, chunk: int | None = None):
        self.token, self.read_token = ("hf_" + secrets.token_hex(17) for _ in range(2))
        self.store = Store({self.token: (self.user, True), self.read_token: (self.user, False)})
        self.chunk = chunk
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.held: list[tuple[str, threading.Event]] = []
        self.stalls: list[Stall] = []
        self.url = ""

    def __enter__(self) -> LoopbackHub:
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    def fail(self, method: str, path: str, status: int | None, times: int = -1, after: int = 0) -> None:
        """Let `times` matching requests fail (-1: all), after the first `after` of them have passed."""
        self.faults.append(Fault(method, path, status, times, after))

    def hold(self, path: str) -> threading.Event:
        """Let matching requests wait until the returned event is set."""
        event = threading.Event()
        self.held.append((path, event))
        return event

    def stall(self, path: str) -> Stall:
        """Stop reading in the middle of the first matching upload."""
        self.stalls.append(Stall(path))
        return self.stalls[-1]

    def heal(self) -> None:
        self.faults.clear()

    def repository(self, name: str) -> Repository:
        return self.store.repositories[f"{self.user}/{name}"]

    def commits(self, name: str, branch: str = "main") -> list[Commit]:
        return self.repository(name).branches[branch][1:]

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        commit = self.repository(name).branches[branch][-1]
        return {path: self.store.content(file) for path, file in commit.files.items()}

    def count(self, method: str, path: str) -> int:
        return sum(r.method == method and re.search(path, r.path) is not None for r in self.requests)

    def every_byte(self) -> bytes:
        """Return everything that clients sent, except the headers, and everything that is stored."""
        sent = [r.path.encode() + b"\n" + r.body for r in self.requests]
        return b"\n".join([*sent, *self.store.large.values()])


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"
    wbufsize = 1 << 16  # sends head and body in one packet
    disable_nagle_algorithm = True

    def _serve(self) -> None:
        url = urlsplit(self.path)
        stall = next((s for s in self.hub.stalls if re.search(s.path, url.path) and not s.reached.is_set()), None)
        body = self._body() if stall is None else self._half_of_body()
        request = Request(self.command, url.path, {k.lower(): v for k, v in self.headers.items()}, body)
        self.hub.requests.append(request)
        if stall is not None:
            stall.reached.set()
            stall.released.wait(60)
            self.close_connection = True
            return
        for path, event in self.hub.held:
            if re.search(path, request.path):
                event.wait(60)
        with self.hub.store.lock:
            fault = next((f for f in self.hub.faults if f.strikes(self.command, url.path)), None)
            if fault is not None and fault.status is None:
                self.close_connection = True
                return
            if fault is not None:
                answer = Answer(fault.status, {"error": "a fault of the test"})
            else:
                answer = self._answer(request, parse_qs(url.query))
        request.status = answer.status
        self._send(answer)

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _half_of_body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"]) // 2)

    def _answer(self, request: Request, query: dict[str, list[str]]) -> Answer:
        try:
            for method, pattern, serve in ROUTES:
                match = re.fullmatch(pattern, request.path)
                if match and request.method == method:
                    return serve(self.hub, request, query, *(unquote(group) for group in match.groups()))
        except Answer as refusal:
            return refusal
        return Answer(404, {"error": f"no route for {request.method} {request.path}"})

    def _send(self, answer: Answer) -> None:
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        self.send_response(answer.status)
        if not isinstance(answer.body, bytes):
            self.send_header("Content-Type", "application/json")
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_) -> None:
        """Write nothing to stderr."""
