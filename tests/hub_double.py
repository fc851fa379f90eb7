"""A double of the Hub on this machine: who a token belongs to, repositories, commits with their files."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

USER = "someone"
TOKEN = "a-token-that-may-write"
READ_TOKEN = "a-token-that-may-only-read"
LARGE = (".safetensors", ".png")  # what the real Hub keeps outside of git


class HubDouble:
    """What the double has been told, and the address it answers at.

    Attributes:
        endpoint: For `HF_ENDPOINT`.
        repositories: Id -> path -> content of the files that were committed.
        asked: "METHOD path" of every request, in order.
        fails: Paths (by their ends) that answer with an error.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.asked: list[str] = []
        self.fails: tuple[str, ...] = ()
        self.objects: dict[str, bytes] = {}
        self.endpoint = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, Any]:
        """Return status and JSON of a request."""
        self.asked.append(f"{method} {path}")
        if token not in (TOKEN, READ_TOKEN) and not path.startswith("/objects/"):
            return 401, {"error": "Invalid username or password."}
        if path.endswith(self.fails) and self.fails:
            return 400, {"error": "not today"}
        if path == "/api/whoami-v2":
            role = "write" if token == TOKEN else "read"
            return 200, {"type": "user", "name": USER, "auth": {"accessToken": {"role": role}}}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.startswith("/objects/"):
            sha256 = path.removeprefix("/objects/")
            assert hashlib.sha256(body).hexdigest() == sha256
            self.objects[sha256] = body
            return 200, {}
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if path.endswith(".git/info/lfs/objects/batch"):
            return 200, {"transfer": "basic", "objects": [self._object(one) for one in json.loads(body)["objects"]]}
        parts = path.split("/")  # /api/models/OWNER/NAME/WHAT/main
        if path.startswith("/api/models/") and len(parts) == 7:
            repository = "/".join(parts[3:5])
            if repository not in self.repositories:
                return 404, {"error": "Repository not found"}
            if parts[5] == "preupload":
                return 200, {"files": [self._described(one["path"]) for one in json.loads(body)["files"]]}
            if parts[5] == "commit":
                return self._commit(repository, body)
        return 404, {"error": f"the double has no {method} {path}"}

    def _create(self, wanted: dict[str, Any]) -> tuple[int, Any]:
        repository = f"{wanted.get('organization') or USER}/{wanted['name']}"
        if not repository.startswith(f"{USER}/"):
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        there = repository in self.repositories
        self.repositories.setdefault(repository, {})
        return 409 if there else 200, {"url": f"{self.endpoint}/{repository}", "name": repository}

    def _described(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}

    def _object(self, one: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.endpoint}/objects/{one['oid']}", "header": {}}
        return {"oid": one["oid"], "size": one["size"], "actions": {"upload": upload}}

    def _commit(self, repository: str, body: bytes) -> tuple[int, Any]:
        files = self.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
            else:
                assert line["key"] == "header", line
        oid = "0" * 40
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.endpoint}/{repository}/commit/{oid}"}


@contextmanager
def hub_double() -> Iterator[HubDouble]:
    """Run a double of the Hub."""
    double = HubDouble()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            given = self.headers.get("Authorization")
            path = self.path.partition("?")[0]
            status, content = double.answer(self.command, path, body, given.removeprefix("Bearer ") if given else None)
            text = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_HEAD = answer

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    double.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield double
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path) -> Iterator[HubDouble]:
    """A double that this process's Hub client talks to, with the right token kept as `hf auth login` would."""
    from huggingface_hub import constants

    with hub_double() as double:
        monkeypatch.setattr(constants, "ENDPOINT", double.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield double
