"""The server of the page: answers this machine alone, reads only, and knows no path but those of the runs it found.

A request names a run, and a picture of it, by what the server listed before; anything else does not exist. So no
request can reach a file elsewhere.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from locdistill.errors import RunError
from locdistill.monitor import runs

HOST = "127.0.0.1"
_NAMES = (HOST, "localhost")
_PAGE = Path(__file__).parent / "page"
_LOOK = Path(__file__).parents[1] / "viz" / "page.css"
_STATIC = {
    "/": (_PAGE / "index.html", "text/html; charset=utf-8"),
    "/monitor.js": (_PAGE / "monitor.js", "text/javascript; charset=utf-8"),
    "/monitor.css": (_PAGE / "monitor.css", "text/css; charset=utf-8"),
    "/page.css": (_LOOK, "text/css; charset=utf-8"),
}
_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
_OWN_FILES = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_REPORT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
_KEPT = 2.0
"""Seconds for which the list of runs is kept."""


class Reply(NamedTuple):
    """An answer to a request."""

    body: bytes
    kind: str
    policy: str = _OWN_FILES


class Monitor:
    """Answers to requests about the runs below a folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.given, self.root = root, root.resolve()
        self._lock = threading.Lock()
        self._found: dict[str, Path] = {}
        self._until = 0.0

    def runs(self) -> dict[str, Path]:
        """Return the runs by name."""
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = runs.find_runs(self.root)
                self._until = time.monotonic() + _KEPT
            return self._found

    def overview(self) -> dict[str, Any]:
        """Return all runs, and the finished pages below the root, as plain data."""
        return {
            "root": str(self.given),
            "runs": [asdict(runs.summary(name, folder)) for name, folder in self.runs().items()],
            "reports": sorted(runs.find_reports(self.root)),
        }

    def answer(self, target: str) -> Reply | None:
        """Reply a request for a path with its query; None if there is nothing."""
        parts = urlsplit(target)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.path in _STATIC:
            file, kind = _STATIC[parts.path]
            return Reply(file.read_bytes(), kind)
        if parts.path == "/api/runs":
            return _as_json(self.overview())
        if parts.path == "/report":
            page = runs.find_reports(self.root).get(query.get("name", ""))
            return None if page is None else _file(page, "text/html; charset=utf-8", _REPORT)
        return self._of_run(parts.path, query)

    def _of_run(self, path: str, query: dict[str, str]) -> Reply | None:
        """Reply a request about one of the runs; None if there is nothing."""
        name = query.get("run", "")
        folder = self.runs().get(name)
        if folder is not None and path == "/api/run":
            return _as_json(_details(name, folder))
        if folder is None or path != "/picture":
            return None
        picture = runs.pictures(folder).get(query.get("name", ""))
        return None if picture is None else _file(picture, _KINDS[picture.suffix])


def _details(name: str, folder: Path) -> dict[str, Any]:
    """Return everything that the page shows of a run."""
    recipe = runs.read_recipe(folder)
    return {
        "summary": asdict(runs.summary(name, folder)),
        "curves": {column: runs.thinned(curve) for column, curve in runs.read_curves(folder).items()},
        "settings": runs.flat_settings(recipe) if recipe else {},
        "pictures": {picture: path.stat().st_mtime for picture, path in runs.pictures(folder).items()},
        "log": runs.log_tail(folder),
    }


def _as_json(content: Any) -> Reply:
    return Reply(json.dumps(content).encode(), "application/json")


def _file(path: Path, kind: str, policy: str = _OWN_FILES) -> Reply | None:
    try:
        return Reply(path.read_bytes(), kind, policy)
    except OSError:  # it was removed meanwhile
        return None


def serve(root: str | Path, port: int = 0, *, started: Callable[[str], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        root: Folder with runs, at any depth.
        port: Port on this machine; 0 for any free one.
        started: Function to call with the address.

    Raises:
        RunError: The folder does not exist, or the port is in use.
    """
    with build_server(root, port) as server:
        started(f"http://{HOST}:{server.server_address[1]}/")
        server.serve_forever()


def build_server(root: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server that listens on this machine; arguments and errors as for :func:`serve`."""
    folder = Path(root)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; pass the folder that holds your runs, such as runs")
    monitor = Monitor(folder)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version = "locdistill", ""

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            host = (self.headers.get("Host") or "").rpartition(":")[0] or self.headers.get("Host")
            if host not in _NAMES:  # a page elsewhere whose name leads here
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                answer = monitor.answer(self.path)
            except OSError:  # a run that is being removed
                answer = None
            if answer is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self.send_response(HTTPStatus.OK)
            headers = {
                "Content-Type": answer.kind,
                "Content-Length": str(len(answer.body)),
                "Content-Security-Policy": answer.policy + _NOTHING_ELSE,
                "X-Content-Type-Options": "nosniff",
                "Referrer-Policy": "no-referrer",
                "Cross-Origin-Resource-Policy": "same-origin",
                "Cache-Control": "no-store",
            }
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    try:
        server = ThreadingHTTPServer((HOST, port), Handler)
    except OSError as error:
        raise RunError(f"port {port}: {error.strerror or error}; pass another with --port, or 0 for any") from error
    server.daemon_threads = True
    return server
