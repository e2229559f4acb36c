"""A stand-in for the Hugging Face hub: what the client needs to create a repository and commit."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any


class Hub:
    """What the hub holds and was asked."""

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, bytes]] = {}
        """Content by path, by repository."""
        self.created: list[dict[str, Any]] = []
        self.commits: list[dict[str, Any]] = []
        self.objects: dict[str, bytes] = {}
        self.may_write = True
        self.url = ""


@contextmanager
def serve_hub(token: str) -> Iterator[Hub]:
    """Serve a hub on loopback that accepts one token."""
    hub = Hub(token)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self, code: int, content: Any = None, **headers: str) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _is_known(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self._answer(401, {"error": "Invalid credentials in Authorization header"})
        return False

    def do_HEAD(self) -> None:
        repo, _, path = self.path.lstrip("/").partition("/resolve/main/")
        if path in self.hub.repos[repo]:
            size = str(len(self.hub.repos[repo][path]))
            self._answer(200, ETag='"1"', X_Repo_Commit="0" * 40, X_Linked_Size=size)
        else:
            self._answer(404, X_Error_Code="EntryNotFound")

    def do_PUT(self) -> None:
        body = self._body()  # of a signed address: the token is not sent to it
        self.hub.objects[self.path.rpartition("/")[2]] = body
        self._answer(200, ETag='"1"')

    def do_POST(self) -> None:
        body = self._body()
        if not self._is_known():
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            self._answer(200, {"files": [*map(_upload_mode, json.loads(body)["files"])]})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer(
                200, {"objects": [*(self._action(o) for o in json.loads(body)["objects"])]}
            )
        elif "/commit/" in self.path:
            repo = self.path.removeprefix("/api/models/").partition("/commit/")[0]
            self._commit(repo, [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": f"the stand-in has no {self.path}"})

    def _create(self, asked: dict[str, Any]) -> None:
        if not self.hub.may_write:
            self._answer(403, {"error": "You don't have the rights to create a model"})
            return
        self.hub.created.append(asked)
        repo = f"{asked['organization'] or 'me'}/{asked['name']}"
        code = 409 if repo in self.hub.repos else 200
        self.hub.repos.setdefault(repo, {".gitattributes": b""})
        self._answer(code, {"url": f"{self.hub.url}/{repo}", "name": repo})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        header, *files = lines
        self.hub.commits.append(header["value"])
        for line in files:
            value = line["value"]
            if line["key"] == "lfsFile":
                content = self.hub.objects[value["oid"]]
                assert hashlib.sha256(content).hexdigest() == value["oid"]
            else:
                content = base64.b64decode(value["content"])
            self.hub.repos[repo][value["path"]] = content
        url = f"{self.hub.url}/{repo}/commit/{'1' * 40}"
        self._answer(200, {"commitUrl": url, "commitOid": "1" * 40, "success": True})

    def _action(self, asked: dict[str, Any]) -> dict[str, Any]:
        upload = {"href": f"{self.hub.url}/objects/{asked['oid']}", "header": {}}
        return {**asked, "actions": {"upload": upload}}


def _upload_mode(file: dict[str, Any]) -> dict[str, Any]:
    large = file["path"].endswith((".safetensors", ".bin"))
    mode = "lfs" if large else "regular"
    return {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
