"""The server of the page: answers this machine alone, reads only, and knows no path but those of the runs it found.

A request names a run, and a picture of it, by what the server listed before; anything else does not exist. So no
request can reach a file elsewhere.
"""

from __future__ import annotations

import json
import re
import sys
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
from locdistill.monitor.curves import read_rows
from locdistill.monitor.reading import open_plain, stamp

HOST = "127.0.0.1"
_NAMES = re.compile(r"(localhost|127\.0\.0\.1)(:\d{1,5})?", re.IGNORECASE)
_PAGE = Path(__file__).parent / "page"
_LOOK = Path(__file__).parents[1] / "viz" / "page.css"
_STATIC = {
    "/": (_PAGE / "index.html", "text/html; charset=utf-8"),
    "/monitor.js": (_PAGE / "monitor.js", "text/javascript; charset=utf-8"),
    "/monitor.css": (_PAGE / "monitor.css", "text/css; charset=utf-8"),
    "/icon.svg": (_PAGE / "icon.svg", "image/svg+xml"),
    "/page.css": (_LOOK, "text/css; charset=utf-8"),
}
_KINDS = {".png": "image/png", ".jpg": "image/jpeg"}
_OWN_FILES = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
_NOTHING_ELSE = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_REPORT = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
_KEPT, _SHARE = 2.0, 20
"""Seconds for which the list of runs is kept, or this many times the time that it took: training goes first."""
_PATIENCE = 30.0
"""Seconds after which a connection that sends or takes nothing is closed."""
_LARGEST = 64_000_000
"""Bytes of a picture or a page above which it is not sent."""


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
        self._found: runs.Listing | None = None
        self._until = 0.0

    def found(self) -> runs.Listing:
        """Return what is below the root; it is looked for anew after some seconds."""
        with self._lock:
            begun = time.monotonic()
            if self._found is None or begun >= self._until:
                self._found = runs.find(self.root)
                ended = time.monotonic()
                self._until = ended + max(_KEPT, _SHARE * (ended - begun))
            return self._found

    def overview(self) -> dict[str, Any]:
        """Return all runs, and the finished pages and caches below the root, as plain data."""
        found = self.found()
        return {
            "root": str(self.given),
            "runs": [asdict(runs.summary(name, folder)) for name, folder in found.runs.items()],
            "reports": sorted(found.reports),
            "caches": sorted(found.caches),
            "complete": found.complete,
        }

    def answer(self, target: str) -> Reply | None:
        """Answer a request for a path with its query; None if there is nothing."""
        try:
            parts = urlsplit(target)
            query = {name: values[-1] for name, values in parse_qs(parts.query, max_num_fields=10).items()}
        except ValueError:
            return None
        if parts.path in _STATIC:
            file, kind = _STATIC[parts.path]
            return Reply(file.read_bytes(), kind)
        if parts.path == "/api/runs":
            return _as_json(self.overview())
        if parts.path == "/report":
            page = self.found().reports.get(query.get("name", ""))
            return None if page is None else _file(page, "text/html; charset=utf-8", _REPORT)
        return self._of_run(parts.path, query)

    def _of_run(self, path: str, query: dict[str, str]) -> Reply | None:
        """Answer a request about one of the runs; None if there is nothing."""
        name = query.get("run", "")
        folder = self.found().runs.get(name)
        if folder is None or folder.resolve() != folder:  # a link took its place
            return None
        if path == "/api/run":
            return _as_json(_details(name, folder, query))
        picture = runs.pictures(folder).get(query.get("name", "")) if path == "/picture" else None
        return None if picture is None else _file(picture, _KINDS[picture.suffix])


def _details(name: str, folder: Path, known: dict[str, str]) -> dict[str, Any]:
    """Return what the page shows of a run, without what it knows already by the marks in ``known``."""
    marks = {file: stamp(folder / file) for file in (runs.RECIPE, runs.LOG)}
    rows = read_rows(folder, known.get("rows", ""))
    text, recipe = ("", {}) if known.get("recipe") == marks[runs.RECIPE] else runs.read_recipe(folder)
    return {
        "summary": asdict(runs.summary(name, folder)),
        "marks": {"rows": rows.mark, "recipe": marks[runs.RECIPE], "log": marks[runs.LOG]},
        "fresh": rows.fresh,
        "curves": rows.columns,
        "recipe": text or None,
        "settings": runs.flat_settings(recipe) if recipe else None,
        "pictures": {picture: stamp(path) for picture, path in runs.pictures(folder).items()},
        "log": None if known.get("log") == marks[runs.LOG] else runs.log_tail(folder),
    }


def _as_json(content: Any) -> Reply:
    return Reply(json.dumps(content, allow_nan=False).encode(), "application/json")


def _file(path: Path, kind: str, policy: str = _OWN_FILES) -> Reply | None:
    """Reply with a file; None if it was removed, has grown too large, or a link took the place of its folder."""
    if path.resolve() != path:
        return None
    with open_plain(path) as file:
        content = file.read(_LARGEST + 1)
    return None if len(content) > _LARGEST else Reply(content, kind, policy)


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


def open_monitor(root: str | Path) -> Monitor:
    """Make a monitor of a folder.

    Raises:
        RunError: The folder does not exist.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise RunError(f"{folder} is no folder; pass the folder that holds your runs, such as runs")
    return Monitor(folder)


def build_server(root: str | Path, port: int = 0) -> ThreadingHTTPServer:
    """Make a server that listens on this machine; arguments and errors as for :func:`serve`."""
    monitor = open_monitor(root)

    class Handler(BaseHTTPRequestHandler):
        server_version, sys_version, timeout = "locdistill", "", _PATIENCE
        _policy = _OWN_FILES

        def do_GET(self) -> None:
            self._reply(with_body=True)

        def do_HEAD(self) -> None:
            self._reply(with_body=False)

        def _reply(self, *, with_body: bool) -> None:
            hosts = self.headers.get_all("Host", [])
            if len(hosts) != 1 or not _NAMES.fullmatch(hosts[0]):  # a page elsewhere whose name leads here
                self.send_error(HTTPStatus.FORBIDDEN)
                return
            try:
                answer = monitor.answer(self.path)
            except OSError:  # a run that is being removed
                answer = None
            if answer is None:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._policy = answer.policy
            self.send_response(HTTPStatus.OK)
            self.send_header("Content-Type", answer.kind)
            self.send_header("Content-Length", str(len(answer.body)))
            self.end_headers()
            if with_body:
                self.wfile.write(answer.body)

        def end_headers(self) -> None:
            """Add to every answer what a browser may do with it."""
            self.send_header("Content-Security-Policy", self._policy + _NOTHING_ELSE)
            for name, value in _HEADERS.items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    try:
        return _Server((HOST, port), Handler)
    except OSError as error:
        raise RunError(f"port {port}: {error.strerror or error}; pass another with --port, or 0 for any") from error


class _Server(ThreadingHTTPServer):
    """A server that does not mind browsers which hang up."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a failure, unless the connection was lost."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)
