"""A Hugging Face hub in a thread: the few answers that the hub's own client needs to download files by name."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "a" * 40


class _Answers(BaseHTTPRequestHandler):
    root: Path
    gated: frozenset[str]

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, *_: object) -> None:
        """Silent."""

    def _answer(self, body: bool) -> None:
        parts = self.path.strip("/").split("/")
        repository, file = "/".join(parts[:2]), "/".join(parts[4:])
        if len(parts) < 5 or parts[2] != "resolve" or not (self.root / repository).is_dir():
            self._refuse(404, "RepoNotFound")
        elif repository in self.gated:
            self._refuse(403, "GatedRepo")
        elif not (self.root / repository / file).is_file():
            self._refuse(404, "EntryNotFound")
        else:
            data = (self.root / repository / file).read_bytes()
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def serve(root: Path, gated: frozenset[str] = frozenset()) -> Iterator[str]:
    """Serve the folders ORG/NAME below `root`; yields the hub's address."""
    answers = type("Answers", (_Answers,), {"root": root, "gated": gated})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
