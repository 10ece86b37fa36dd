"""A proxy before a tracking server that lets requests fail when a test says so.

Besides a status, a fault can be one of a network: a connection that is closed, or that hangs; an
upload that breaks off in its middle, or of which half arrives as if it were all; a download that
breaks off.
"""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Fault = Literal["close", "hang", "cut upload", "halve upload", "cut download"]
Verdict = int | Fault | None
"""A status to respond with in place of the server, or a fault; None to let a request pass."""


@dataclass
class Proxy:
    """A proxy, and what it does with each request.

    Attributes:
        uri: Its address.
        decide: Called with method and path of each request.
        seen: Method and path of all requests so far.
        hang_s: Seconds for which a connection that hangs says nothing, before it is closed.
    """

    uri: str = ""
    decide: Callable[[str, str], Verdict] = lambda _method, _path: None
    seen: list[tuple[str, str]] = field(default_factory=list)
    hang_s: float = 60.0

    def fail_from(self, number: int, status: int, *, times: int | None = None) -> None:
        """Let requests fail from a number on, counted from now and from 1.

        Args:
            number: The first that fails.
            status: The response's status.
            times: How many fail; by default all from there on.
        """
        first = len(self.seen) + number
        last = float("inf") if times is None else first + times - 1
        self.decide = lambda *_: status if first <= len(self.seen) <= last else None

    def fail_for(self, seconds: float, verdict: Verdict, *, number: int = 1) -> None:
        """Let requests fail from a number on, as above, for seconds from that request on."""
        first, since = len(self.seen) + number, []

        def decide(_method: str, _path: str) -> Verdict:
            if len(self.seen) < first:
                return None
            since.append(time.monotonic())
            return verdict if since[-1] - since[0] < seconds else None

        self.decide = decide

    def fail_once(self, verdict: Verdict, method: str, part: str) -> None:
        """Let one request fail: the first of a method whose path has a part."""
        done: list[str] = []

        def decide(each: str, path: str) -> Verdict:
            if done or each != method or part not in path:
                return None
            done.append(path)
            return verdict

        self.decide = decide

    def fail_after(self, verdict: Verdict, method: str, part: str, *, number: int) -> None:
        """Let all requests fail from the nth of a method whose path has a part."""
        found: list[str] = []

        def decide(each: str, path: str) -> Verdict:
            if len(found) < number and each == method and part in path:
                found.append(path)
            return verdict if len(found) == number else None

        self.decide = decide

    def mend(self) -> None:
        """Let all requests pass again."""
        self.decide = lambda *_: None


@contextmanager
def proxy_of(uri: str) -> Iterator[Proxy]:
    """Run a proxy of a server for the block."""
    proxy, target = Proxy(), urlsplit(uri)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def pass_on(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            proxy.seen.append((self.command, self.path))
            verdict = proxy.decide(self.command, self.path)
            body = self.rfile.read(size // 2 if verdict == "cut upload" else size)
            time.sleep(proxy.hang_s if verdict == "hang" else 0)
            if verdict in ("close", "hang", "cut upload"):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif isinstance(verdict, int):
                self.respond(verdict, {"Content-Type": "text/html"}, b"<html>geheim</html>")
            else:
                kept = body[: len(body) // 2] if verdict == "halve upload" else body
                self.send_on(kept, is_cut=verdict == "cut download")

        def send_on(self, body: bytes, *, is_cut: bool) -> None:
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            own = ("host", "content-length")
            headers = {k: v for k, v in self.headers.items() if k.lower() not in own}
            connection.request(self.command, self.path, body, {**headers, "Host": target.netloc})
            response = connection.getresponse()
            content = response.read()
            connection.close()
            cut = len(content) // 2 if is_cut else None
            self.respond(response.status, dict(response.getheaders()), content, cut)

        def respond(
            self, status: int, headers: dict[str, str], content: bytes, cut: int | None = None
        ) -> None:
            self.send_response_only(status)
            for key, value in headers.items():
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[:cut])
            if cut is not None:
                self.close_connection = True

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.uri = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
