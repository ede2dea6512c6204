"""A local stand-in of the Hugging Face hub: the part of its HTTP API that runs need."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """Repositories by name: the files of their only branch, in memory."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}

    def revision(self, name: str) -> str:
        """Return a commit's name, which changes with the files."""
        content = sorted(self.repositories[name].items())
        return hashlib.sha1(repr(content).encode()).hexdigest()

    def commit(self, name: str, lines: list[dict]) -> None:
        """Apply the operations of a commit."""
        files = self.repositories[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "deletedFile":
                for path in [p for p in files if fnmatch(p, value["path"])]:
                    del files[path]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: object) -> None:
        pass

    def _send(self, content: object, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._send({"error": code}, 404, X_Error_Code=code)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            given = json.loads(body)
            owner = given.get("organization") or "user"
            name = f"{owner}/{given['name']}"
            status = 409 if name in self.hub.repositories else 200
            self.hub.repositories.setdefault(name, {})
            self._send({"url": f"http://{self.headers['Host']}/{name}"}, status)
        elif match := re.fullmatch(r"/api/models/(.+/.+)/preupload/main", self.path):
            given = json.loads(body)["files"]
            plan = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in given
            ]
            self._send({"files": plan})
        elif match := re.fullmatch(r"/api/models/(.+/.+)/commit/main(\?.*)?", self.path):
            name = match[1]
            self.hub.commit(name, [json.loads(line) for line in body.splitlines()])
            revision = self.hub.revision(name)
            url = f"http://{self.headers['Host']}/{name}/commit/{revision}"
            self._send({"commitUrl": url, "commitOid": revision})
        elif self.path == "/api/validate-yaml":
            self._send({"errors": [], "warnings": []})
        else:
            self._missing("NotFound")

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/[^/]+)?", path):
            name = match[1]
            if name not in self.hub.repositories:
                self._missing("RepoNotFound")
                return
            siblings = [{"rfilename": path} for path in self.hub.repositories[name]]
            info = {"id": name, "sha": self.hub.revision(name), "siblings": siblings}
            self._send({**info, "private": False, "tags": [], "downloads": 0, "likes": 0})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/[^/]+", path):
            files = self.hub.repositories[match[1]]
            tree = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            self._send(tree)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", path):
            content = self.hub.repositories.get(match[1], {}).get(match[2])
            if content is None:
                self._missing("EntryNotFound")
                return
            oid = hashlib.sha1(content).hexdigest()
            self._send(content, ETag=f'"{oid}"', X_Repo_Commit=self.hub.revision(match[1]))
        else:
            self._missing("NotFound")

    do_HEAD = do_GET


@contextmanager
def serve() -> Iterator[tuple[Hub, str]]:
    """Run the server; gives its repositories and its address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield hub, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
