"""A model hub on this machine: the HTTP endpoints that ``huggingface_hub`` uses to make a repository, commit and fetch.

Repositories have one branch per name, a commit is a mapping of paths to bytes, large files go through the LFS protocol.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_fake"


class Repository:
    """Commits by name, and the branches that point to them."""

    def __init__(self, private: bool = False) -> None:
        self.private = private
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.messages: list[str] = []
        self.commit("main", {}, "initial commit")

    def commit(self, branch: str, files: dict[str, bytes], message: str) -> str:
        """Add files on top of a branch."""
        content = {**self.commits.get(self.branches.get(branch, ""), {}), **files}
        name = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[name] = content
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """Name and content of the commit that a branch or a commit's name means."""
        name = self.branches.get(revision, revision)
        return (name, self.commits[name]) if name in self.commits else None


class FakeHub:
    """The server; ``with FakeHub() as hub`` runs it at ``hub.address``."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[str] = []
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the door."""
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._route("HEAD")

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, method: str) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self._read_body()
        self.hub.requests.append(f"{method} {path}")
        parts = path.strip("/").split("/")
        if method == "PUT" and parts[0] == "lfs":
            self._store(parts[1])
        elif method not in {"GET", "HEAD"} and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            self._create(json.loads(self.body))
        elif path == "/api/validate-yaml":
            self._answer(200, {"warnings": [], "errors": []})
        elif path.endswith(".git/info/lfs/objects/batch"):
            self._batch(json.loads(self.body))
        elif parts[:2] == ["api", "models"]:
            self._of_repository("/".join(parts[2:4]), parts[4:])
        elif "resolve" in parts:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))
        else:
            self._answer(404, {"error": f"the fake hub does not know {method} {path}"})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b""
            while size := int(self.rfile.readline().strip() or b"0", 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, content: Any, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _repository(self, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        hidden = repository and repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"
        if repository is None or hidden:
            self._answer(401, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            return None
        return repository

    def _commit_at(self, repository: Repository, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = repository.at(revision)
        if found is None:
            self._answer(404, {"error": f"Invalid rev id: {revision}"}, X_Error_Code="RevisionNotFound")
        return found

    def _create(self, wish: dict[str, Any]) -> None:
        repo_id = f"{wish['organization']}/{wish['name']}"
        url = f"{self.hub.address}/{repo_id}"
        if wish["organization"] == "others":
            self._answer(403, {"error": 'You do not have the rights to create a model under "others"'})
        elif repo_id in self.hub.repositories:
            self._answer(409, {"error": "You already created this model repo", "url": url})
        else:
            private = bool(wish.get("private")) or wish.get("visibility") == "private"
            self.hub.repositories[repo_id] = Repository(private)
            self._answer(200, {"url": url, "name": repo_id})

    def _of_repository(self, repo_id: str, rest: list[str]) -> None:
        repository = self._repository(repo_id)
        if repository is None:
            return
        what, revision = (rest[0], rest[1]) if rest else ("revision", "main")
        found = self._commit_at(repository, revision)
        if found is None:
            return
        name, files = found
        if what == "tree":
            self._answer(200, [self._entry(path, content) for path, content in files.items()])
        elif what == "preupload":
            self._answer(200, {"files": [self._upload_mode(f["path"]) for f in json.loads(self.body)["files"]]})
        elif what == "commit":
            self._commit(repository, revision, repo_id)
        elif what == "revision":
            siblings = [{"rfilename": path} for path in files]
            self._answer(200, {"id": repo_id, "sha": name, "private": repository.private, "siblings": siblings})
        else:
            self._answer(404, {"error": f"the fake hub does not know {what}"})

    @staticmethod
    def _entry(path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": "0" * 40}
        if path.endswith(".safetensors"):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    @staticmethod
    def _upload_mode(path: str) -> dict[str, Any]:
        mode = "lfs" if path.endswith(".safetensors") else "regular"
        return {"path": path, "uploadMode": mode, "shouldIgnore": False}

    def _batch(self, wish: dict[str, Any]) -> None:
        objects = [
            {**item, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{item['oid']}", "header": {}}}}
            for item in wish["objects"]
        ]
        self._answer(200, {"transfer": "basic", "objects": objects})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            self._answer(400, {"error": "the content is not that of its name"})
            return
        self.hub.lfs[oid] = self.body
        self._answer(200, {}, ETag=oid)

    def _commit(self, repository: Repository, branch: str, repo_id: str) -> None:
        files, message = {}, ""
        for line in self.body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
        name = repository.commit(branch, files, message)
        url = f"{self.hub.address}/{repo_id}/commit/{name}"
        self._answer(200, {"success": True, "commitOid": name, "commitUrl": url, "hookOutput": ""})

    def _file(self, repo_id: str, revision: str, path: str) -> None:
        repository = self._repository(repo_id)
        found = repository and self._commit_at(repository, revision)
        if not found:
            return
        name, files = found
        if path not in files:
            self._answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound", X_Repo_Commit=name)
            return
        etag = f'"{hashlib.sha256(files[path]).hexdigest()}"'
        self._answer(200, files[path], ETag=etag, X_Repo_Commit=name, Accept_Ranges="none")
