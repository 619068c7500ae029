"""A web server of this machine that answers ranges of bytes, and can break off in the middle of an answer."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Server(ThreadingHTTPServer):
    """break_every: so many answers, one breaks off half-way; page_every: one is somebody's page of words instead;
    tagged: entity tags are sent; asked: (first byte, last byte) of every range.
    """

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root, self.break_every, self.ranges = root, 0, True
        self.page_every, self.tagged = 0, True
        self.asked: list[tuple[str, int, int]] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *words: object) -> None:
        pass

    def _answer(self, *, with_body: bool) -> None:
        path = self.server.root / self.path.lstrip("/").partition("?")[0]
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        with self.server.lock:
            turn = len(self.server.asked) + 1
        if with_body and self.server.page_every and turn % self.server.page_every == 0:
            content = b"<html>Please wait</html>" * 200
        first, last, whole = 0, len(content) - 1, len(content)
        asked = self.headers.get("Range")
        paged = content.startswith(b"<html>")
        if asked and self.server.ranges and not paged:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{whole}")
        else:
            self.send_response(200)
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        body = content[first : last + 1]
        if self.server.tagged:
            self.send_header("ETag", f'"{hash(content)}"')
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if not with_body:
            return
        with self.server.lock:
            self.server.asked.append((path.name, first, last))
            broken = self.server.break_every and len(self.server.asked) % self.server.break_every == 0
        if broken:
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(2)
            return
        self.wfile.write(body)


@contextmanager
def serving(root: Path) -> Iterator[Server]:
    """A server of the files below `root`."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
