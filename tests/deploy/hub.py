"""A Hub on the loopback interface: as much of its interface as creating, uploading and loading a model takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "0" * 40


class LoopbackHub(ThreadingHTTPServer):
    """Repositories in memory; whoever has ``token`` may write to them, and read those that are private."""

    def __init__(self, token: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.token, self.address = token, f"http://127.0.0.1:{self.server_address[1]}"
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []


def _private(asked: dict[str, Any]) -> bool:
    """In the words of this client, or of an older one."""
    return asked["visibility"] == "private" if "visibility" in asked else asked["private"]


@contextmanager
def running(token: str) -> Iterator[LoopbackHub]:
    """The server, answering from a thread."""
    with LoopbackHub(token) as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _answer(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refused(self, name: str = "") -> bool:
        self.server.asked.append(f"{self.command} {self.path.partition('?')[0]}")
        if self.headers["Authorization"] == f"Bearer {self.server.token}":
            return False
        if name and self.server.private.get(name) is False and self.command in ("GET", "HEAD"):
            return False
        self._answer({"error": "Invalid credentials"}, 401, {"X-Error-Message": "Invalid credentials"})
        return True

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def do_GET(self) -> None:
        """A repository, or one of its files."""
        if match := re.fullmatch(r"/api/models/([^/?]+/[^/?]+)(/revision/\w+)?(\?.*)?", self.path):
            if not self._refused(name := match[1]):
                siblings = [{"rfilename": each} for each in self.server.files[name]]
                known = {"id": name, "sha": COMMIT, "private": self.server.private[name], "siblings": siblings}
                self._answer(known)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/([^?]+)", self.path):
            if not self._refused(match[1]):
                found = self.server.files[match[1]].get(match[2])
                if found is None:
                    self._answer({}, 404, {"X-Error-Code": "EntryNotFound"})
                else:
                    self._answer(found, headers={"ETag": f'"{hashlib.sha256(found).hexdigest()}"'})
        elif not self._refused():
            self._answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Creating, what is to be uploaded how, and committing."""
        body = self._body()
        if self._refused():
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.server.private:
                self._answer({"url": f"{self.server.address}/{name}"}, 409)
                return
            self.server.private[name], self.server.files[name] = _private(asked), {}
            self._answer({"url": f"{self.server.address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            kinds = [(each["path"], "lfs" if each["path"].endswith(".safetensors") else "regular") for each in files]
            self._answer({"files": [{"path": p, "uploadMode": kind, "shouldIgnore": False} for p, kind in kinds]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = [
                {**each, "actions": {"upload": {"href": f"{self.server.address}/large/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self._answer({"transfer": "basic", "objects": objects})
        elif match := re.match(r"/api/models/(.+)/commit/main", self.path):
            for line in body.splitlines():
                entry = json.loads(line)
                value = entry["value"]
                if entry["key"] == "file":
                    self.server.files[match[1]][value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    self.server.files[match[1]][value["path"]] = self.server.large[value["oid"]]
            self._answer({"commitUrl": f"{self.server.address}/{match[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._answer({"error": self.path}, 404)

    def do_PUT(self) -> None:
        """A large file, by the hash of its content."""
        data, name = self._body(), self.path.rpartition("/")[2]
        self.server.asked.append("PUT /large")
        assert hashlib.sha256(data).hexdigest() == name
        self.server.large[name] = data
        self._answer(b"")
