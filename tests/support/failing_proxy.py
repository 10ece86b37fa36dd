"""A proxy before a tracking server that lets requests fail when a test says so."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

Verdict = int | None
"""A status to respond with in place of the server; None to let a request pass."""


@dataclass
class Proxy:
    """A proxy, and what it does with each request.

    Attributes:
        uri: Its address.
        decide: Called with method and path of each request.
        seen: Method and path of all requests so far.
    """

    uri: str = ""
    decide: Callable[[str, str], Verdict] = lambda _method, _path: None
    seen: list[tuple[str, str]] = field(default_factory=list)

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
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            proxy.seen.append((self.command, self.path))
            status = proxy.decide(self.command, self.path)
            if status is not None:
                self.respond(status, {"Content-Type": "text/html"}, b"<html>geheim</html>")
                return
            connection = http.client.HTTPConnection(target.hostname or "", target.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "host"}
            connection.request(self.command, self.path, body, {**headers, "Host": target.netloc})
            response = connection.getresponse()
            content = response.read()
            connection.close()
            self.respond(response.status, dict(response.getheaders()), content)

        def respond(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response_only(status)
            for key, value in headers.items():
                if key.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

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
