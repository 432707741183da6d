"""A small stand-in for the hub, on this machine: enough of its API for huggingface_hub to upload and download a model.

Repositories live in memory. Everyone reads what is public; who comes with the token `owner` may read and write all, and
the token `guest` is known and may write nothing. Large files (`.safetensors`) go the way of Git LFS, as on the hub.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKENS = ("owner", "guest")


@dataclass
class Repository:
    """Branches and commits of one model."""

    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, files: Mapping[str, bytes], *, message: str = "", branch: str = "main") -> str:
        """Add files to a branch; returns the commit's hash."""
        sha = hashlib.sha1(f"{message} {len(self.commits)} {sorted(files)}".encode()).hexdigest()
        self.commits[sha] = {**self.files(branch), **files}
        self.branches[branch] = sha
        self.messages.append(message)
        return sha

    def files(self, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch."""
        return self.commits.get(self.branches.get(branch, ""), {})

    def sha(self, revision: str) -> str | None:
        """The commit that a branch or a hash names."""
        return self.branches.get(revision) or (revision if revision in self.commits else None)


class StandIn:
    """The hub: its repositories, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.endpoint = ""

    def add(self, name: str, files: Mapping[str, bytes], **settings: bool) -> Repository:
        """A repository with one commit."""
        self.repositories[name] = Repository(**settings)
        self.repositories[name].commit(files)
        return self.repositories[name]


@contextlib.contextmanager
def hub_stand_in() -> Iterator[StandIn]:
    """A running hub, at `endpoint`."""
    hub = StandIn()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: StandIn

    def log_message(self, *_: object) -> None:
        """Nothing is written to the terminal."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path).strip("/")
        self.hub.asked.append(f"{self.command} {path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            headers, content = self._served(path, body)
            status = 200
        except _Refused as refused:
            status, content = refused.status, json.dumps({"error": refused.message, "url": self.hub.endpoint}).encode()
            headers = {"X-Error-Code": refused.code, "X-Error-Message": refused.message}
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _served(self, path: str, body: bytes) -> tuple[dict[str, str], bytes]:
        words = path.split("/")
        if words[:1] == ["lfs"]:
            self.hub.large[words[1]] = body
            return {}, b""
        if words[:1] == ["api"]:
            return {"Content-Type": "application/json"}, json.dumps(self._api(words[1:], body)).encode()
        if path.endswith(".git/info/lfs/objects/batch"):
            self._may_write()
            return {"Content-Type": "application/json"}, json.dumps(self._large_files(json.loads(body))).encode()
        if words[2:3] == ["resolve"]:
            return self._file("/".join(words[:2]), words[3], "/".join(words[4:]))
        raise _Refused(404)

    # ---- who may ----

    def _token(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        if token not in (*TOKENS, None):
            raise _Refused(401, message="Invalid credentials in Authorization header")
        return token

    def _may_write(self) -> None:
        if self._token() is None:
            raise _Refused(401, message="Invalid username or password.")
        if self._token() != "owner":
            raise _Refused(403, message="You don't have the rights to write here.")

    def _readable(self, name: str) -> Repository:
        found, token = self.hub.repositories.get(name), self._token()
        if found is None or (found.private and token != "owner"):
            raise _Refused(404 if token else 401, "RepoNotFound", "Repository not found")
        return found

    def _found(self, name: str, revision: str) -> tuple[Repository, str]:
        repository = self._readable(name)
        sha = repository.sha(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository, sha

    # ---- what is asked ----

    def _api(self, words: list[str], body: bytes) -> Any:
        if words == ["validate-yaml"]:
            return {}
        if words == ["repos", "create"]:
            self._may_write()
            return self._create(json.loads(body))
        if words[:1] != ["models"]:
            raise _Refused(404)
        name, rest = "/".join(words[1:3]), words[3:]
        if rest[:1] in (["preupload"], ["commit"]):
            self._may_write()
            return self._preupload(name, rest[1], body) if rest[0] == "preupload" else self._commit(name, rest[1], body)
        revision = rest[1] if rest[:1] in (["revision"], ["tree"]) else "main"
        repository, sha = self._found(name, revision)
        if rest[:1] == ["tree"]:
            self._open(repository)
            return [_entry(path, content) for path, content in repository.commits[sha].items()]
        siblings = [{"rfilename": path} for path in repository.commits[sha]]
        return {"id": name, "sha": sha, "private": repository.private, "siblings": siblings}

    def _open(self, repository: Repository) -> None:
        if repository.gated and self._token() != "owner":
            raise _Refused(403, "GatedRepo", "Access to this repository is restricted")

    def _create(self, wanted: dict[str, Any]) -> Any:
        name = f"{wanted.get('organization') or 'owner'}/{wanted['name']}"
        if name not in self.hub.repositories:
            self.hub.repositories[name] = Repository(private=wanted.get("visibility") == "private")
            self.hub.repositories[name].branches["main"] = "0" * 40
            self.hub.repositories[name].commits["0" * 40] = {}
        return {"url": f"{self.hub.endpoint}/{name}"}

    def _preupload(self, name: str, revision: str, body: bytes) -> Any:
        self._found(name, revision)
        paths = [item["path"] for item in json.loads(body)["files"]]
        modes = ["lfs" if path.endswith(".safetensors") else "regular" for path in paths]
        pairs = zip(paths, modes, strict=True)
        return {"files": [{"path": path, "uploadMode": mode, "shouldIgnore": False} for path, mode in pairs]}

    def _large_files(self, wanted: dict[str, Any]) -> Any:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs/{item['oid']}", "header": {}}}}
            for item in wanted["objects"]
        ]
        return {"transfer": "basic", "objects": objects}

    def _commit(self, name: str, revision: str, body: bytes) -> Any:
        repository, _ = self._found(name, revision)
        files, message = {}, ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.large[value["oid"]]
        sha = repository.commit(files, message=message, branch=revision)
        return {"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha}

    def _file(self, name: str, revision: str, path: str) -> tuple[dict[str, str], bytes]:
        repository, sha = self._found(name, revision)
        self._open(repository)
        content = repository.commits[sha].get(path)
        if content is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        return {"X-Repo-Commit": sha, "ETag": f'"{_oid(path, content)}"'}, content


def _oid(path: str, content: bytes) -> str:
    if path.endswith(".safetensors"):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _oid(path, content)}
    if path.endswith(".safetensors"):
        entry["lfs"] = {"oid": _oid(path, content), "size": len(content), "pointerSize": 134}
    return entry
