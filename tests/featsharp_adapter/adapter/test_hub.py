"""Adapters on the Hub, with the Hub's own client talking to a server on this machine that keeps what it is given."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from common.errors import UserError
from featsharp_adapter.adapter.adapter import Adapter, make_untrained
from teachers.contracts import state_digest

COMMIT = "c" * 40


class SmallHub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that creating, uploading to and downloading a model repository uses."""

    files: dict[str, dict[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            told = json.loads(body)
            name = f"{told['organization']}/{told['name']}"
            self.files.setdefault(name, {})
            return self.answer({"url": f"{constants.ENDPOINT}/{name}"})
        if self.path.endswith("/preupload/main"):
            paths = [entry["path"] for entry in json.loads(body)["files"]]
            return self.answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in paths]})
        if self.path.endswith("/commit/main"):
            name = self.path.removeprefix("/api/models/").removesuffix("/commit/main")
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer({"commitUrl": f"{constants.ENDPOINT}/{name}/commit/{COMMIT}", "commitOid": COMMIT})
        return self.answer({"errors": [], "warnings": []})  # what it thinks of a card's header

    def do_GET(self, body: bool = True) -> None:
        owner, name, *rest = self.path.removeprefix("/api/models").strip("/").split("?")[0].split("/")
        files = self.files.get(f"{owner}/{name}")
        if files is None:
            return self.answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["resolve"]:
            content = files["/".join(rest[2:])]
            return self.send(content if body else b"", len(content), etag=hashlib.sha256(content).hexdigest())
        if rest[:1] == ["tree"]:
            return self.answer([{"type": "file", "path": p, "size": len(c), "oid": p} for p, c in files.items()])
        siblings = [{"rfilename": path} for path in files]
        return self.answer({"id": f"{owner}/{name}", "modelId": f"{owner}/{name}", "sha": COMMIT, "siblings": siblings})

    def do_HEAD(self) -> None:
        self.do_GET(body=False)

    def answer(self, content: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(content).encode()
        self.send(text, len(text), status, headers=headers)

    def send(
        self, content: bytes, length: int, status: int = 200, etag: str = "", headers: dict[str, str] | None = None
    ) -> None:
        self.send_response(status)
        more = {"Content-Length": str(length), "X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'} | (headers or {})
        for key, value in more.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, dict[str, bytes]]]:
    """What the server holds, by repository and file."""
    handler = type("Hub", (SmallHub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield handler.files
    server.shutdown()


def test_pushed_and_loaded_again(teacher, hub) -> None:
    adapter = make_untrained("featup", teacher.spec, 2)
    torch.nn.init.normal_(adapter.bias.buffer)
    assert "somebody/sharp" in adapter.push_to_hub("somebody/sharp")
    assert {"adapter.safetensors", "adapter.json", "README.md"} <= set(hub["somebody/sharp"])
    again = Adapter.from_pretrained("somebody/sharp", teacher.spec)
    assert state_digest(again) == state_digest(adapter) and again.meta == adapter.meta


def test_what_is_not_there_is_said(teacher, hub) -> None:
    with pytest.raises(UserError, match="no adapter at somebody/nothing: no such folder, and not found on the Hub"):
        Adapter.from_pretrained("somebody/nothing")
    hub["somebody/else"] = {"README.md": b"no adapter"}
    with pytest.raises(UserError, match="is no adapter"):
        Adapter.from_pretrained("somebody/else")
