"""The server: what it answers, and that nothing outside the runs is ever read."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locdistill.errors import RunError
from locdistill.monitor.server import Monitor, build_server
from tests.conftest import Answer
from tests.unit.monitor.test_runs import write_run

SECRET = b"the secret of this machine"
PIECES = (
    "..",
    ".",
    "%2e%2e",
    "..%2f",
    "%00",
    "a",
    "secret.png",
    "etc",
    "passwd",
    "",
    "\\",
    "//",
    "~",
    "picture",
    "api",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run, beside a secret."""
    place = tmp_path_factory.mktemp("place")
    for name in ("secret.png", "secret.txt", "report.html"):
        (place / name).write_bytes(SECRET)
    run = write_run(place / "root" / "some" / "run <b>")
    (run / "curves.png").write_bytes(b"\x89PNG")
    (run / "best.safetensors").write_bytes(SECRET)
    (run / "linked.png").symlink_to(place / "secret.png")
    (place / "root" / "compared").mkdir()
    (place / "root" / "compared" / "report.html").write_text("<h1>compared</h1>")
    (place / "root" / "away").symlink_to(place)
    return place / "root"


@pytest.fixture(scope="module")
def port(root: Path) -> Iterator[int]:
    server = build_server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()
    thread.join()


def ask(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, answer.headers, body


RUN = quote("some/run <b>", safe="")


def test_it_lists_runs_and_shows_one(port: int) -> None:
    status, headers, body = ask(port, "/api/runs")
    assert status == 200
    assert headers["Content-Type"] == "application/json"
    content = json.loads(body)
    assert [run["name"] for run in content["runs"]] == ["some/run <b>"]
    assert content["reports"] == ["compared/report.html"]
    details = json.loads(ask(port, f"/api/run?run={RUN}")[2])
    assert details["curves"]["train/total"] == [[10.0, 20.0], [3.0, 2.0]]
    assert details["settings"]["detector.backbone"] == "resnet18"
    assert list(details["pictures"]) == ["curves.png"]
    assert "step 20/40" in details["log"]
    assert ask(port, f"/picture?run={RUN}&name=curves.png")[2] == b"\x89PNG"
    assert ask(port, "/report?name=compared/report.html")[2] == b"<h1>compared</h1>"


def test_the_page_loads_nothing_from_elsewhere(port: int) -> None:
    for path in ("/", "/monitor.js", "/monitor.css", "/page.css"):
        status, headers, body = ask(port, path)
        assert status == 200, path
        assert headers["Content-Security-Policy"].startswith("default-src 'none'"), path
        assert b"https://" not in body, path
        assert body.replace(b"http://www.w3.org/2000/svg", b"").count(b"http://") == 0, path  # a name, no address
    assert b"unsafe" not in ask(port, "/")[1]["Content-Security-Policy"].encode()
    assert b"innerHTML" not in ask(port, "/monitor.js")[2]


@pytest.mark.parametrize(
    "path",
    [
        *("/../secret.txt", "/%2e%2e/secret.txt", "/picture?run=..&name=secret.png", "/picture?run=.&name=curves.png"),
        *(f"/picture?run={RUN}&name={name}" for name in ("../../../secret.png", "linked.png", "best.safetensors")),
        *("/report?name=../report.html", "/report?name=away/report.html", "/api/run?run=away", "/api/run?run=%00"),
        *("/picture", "/api", "/index.html", "//etc/passwd", "/page/index.html", "/monitor.js/..", "/?x", "/x?"),
    ],
)
def test_what_was_not_listed_does_not_exist(port: int, path: str) -> None:
    status, _, body = ask(port, path)
    assert status == (200 if path == "/?x" else 404), path
    assert SECRET not in body


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET http://[bad/ HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"GET /?" + b"a=1&" * 2000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),  # more than a query may have
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n", 403),
        (b"GET / HTTP/1.1\r\n\r\n", 403),
        (b"GET /api/run?run=\xff\xfe%ed%b3%bf HTTP/1.1\r\nHost: localhost\r\n\r\n", 404),
        (b"<b> / HTTP/1.1\r\nHost: localhost\r\n\r\n", 501),
    ],
)
def test_odd_requests_are_refused(port: int, request_: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.sendall(request_)
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        body = answer.read()
    assert answer.status == status
    assert (answer.headers["Content-Security-Policy"] or "").startswith("default-src 'none'")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert b"<b>" not in body


def test_it_only_reads_and_answers_this_machine_alone(port: int) -> None:
    assert {ask(port, "/api/runs", method)[0] for method in ("POST", "PUT", "DELETE", "OPTIONS")} == {501}
    status, headers, body = ask(port, "/", "HEAD")
    assert (status, body) == (200, b"")
    assert int(headers["Content-Length"]) > 0
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost:80:80", "[::1]", ""):
        assert ask(port, "/api/runs", Host=host)[0] == 403, host
    for host in ("localhost", "localhost:1", "127.0.0.1", "LOCALHOST:80"):
        assert ask(port, "/api/runs", Host=host)[0] == 200, host


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=6), st.sampled_from(["/", "&name=", "?run=", "?name="]))
def test_no_request_reaches_a_file_elsewhere(root: Path, pieces: list[str], between: str) -> None:
    for start in ("/", "/picture?run=some%2Frun&name=", "/report?name=", "/api/run?run="):
        answer = Monitor(root).answer(start + between.join(pieces))
        assert answer is None or SECRET not in answer.body


def test_only_what_is_new_of_a_run_is_sent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    monitor = Monitor(tmp_path)

    def news(**marks: str) -> dict[str, Any]:
        answer = monitor.answer(f"/api/run?{urlencode({'run': 'a', **marks})}")
        assert answer is not None
        content: dict[str, Any] = json.loads(answer.body)
        return content

    first = news()
    assert (first["fresh"], first["curves"]["train/total"]) == (True, [[10.0, 20.0], [3.0, 2.0]])
    assert first["recipe"] == (run / "recipe.yaml").read_text()
    second = news(**first["marks"])
    assert (second["fresh"], second["curves"]) == (False, {})
    assert [second[part] for part in ("recipe", "settings", "log")] == [None] * 3
    assert second["marks"] == first["marks"]
    with (run / "metrics.csv").open("a") as file:
        file.write("30,1,15,0.01,1.5,\n40,2")
    with (run / "log.txt").open("a") as file:
        file.write("more\n")
    third = news(**second["marks"])
    assert (third["fresh"], third["curves"]["train/total"]) == (False, [[30.0], [1.5]])
    assert third["log"].endswith("more\n")
    assert third["summary"]["step"] == 30


def test_a_link_that_takes_the_place_of_a_run_leads_nowhere(tmp_path: Path) -> None:
    away, root = tmp_path / "away", tmp_path / "root"
    for run in (write_run(away), write_run(root / "a")):
        (run / "curves.png").write_bytes(b"png" if run != away else SECRET)
        (run / "report.html").write_bytes(b"page" if run != away else SECRET)
    requests = ("/picture?run=a&name=curves.png", "/report?name=a%2Freport.html", "/api/run?run=a")
    monitor = Monitor(root)
    assert all(monitor.answer(request) for request in requests)
    shutil.rmtree(root / "a")
    (root / "a").symlink_to(away)
    assert [monitor.answer(request) for request in requests] == [None] * 3  # it is still on the list


def test_a_browser_that_hangs_up_is_no_news(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    for _ in range(3):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
        connection.sendall(b"GET /monitor.js HTTP/1.0\r\nHost: localhost\r\n\r\n")
        connection.close()
    while any(
        thread.name.startswith("Thread-") and "process_request" in thread.name for thread in threading.enumerate()
    ):
        time.sleep(0.01)
    assert capfd.readouterr().err == ""


def test_a_run_may_vanish(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    monitor = Monitor(tmp_path)
    assert list(monitor.found().runs) == ["a"]
    shutil.rmtree(tmp_path / "a")
    answer = monitor.answer("/api/run?run=a")  # it is still on the list
    assert answer is None or json.loads(answer.body)["curves"] == {}
    assert json.loads(monitor.answer("/api/runs").body)["runs"][0]["state"] in ("silent", "starting")  # type: ignore[union-attr]


def test_a_wrong_folder_and_a_taken_port_are_named(tmp_path: Path, port: int, cli: Callable[..., Answer]) -> None:
    with pytest.raises(RunError, match="is no folder; pass the folder that holds your runs"):
        build_server(tmp_path / "none")
    with pytest.raises(RunError, match=f"port {port}: .*--port"):
        build_server(tmp_path, port)
    assert cli("monitor", tmp_path / "none", "--json")[0] == 2
    code, out, _ = cli("monitor", tmp_path, "--json")
    assert (code, json.loads(out)["runs"]) == (0, [])


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs the program chromium")
def test_a_browser_draws_curves_and_loads_nothing_else(port: int, tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{port}/#run={RUN}"
    words = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=5000")
    done = subprocess.run(["chromium", *words, "--dump-dom", address], capture_output=True, text=True, check=True)
    page = done.stdout
    assert page.count('class="curve"') >= 2  # the loss, and AP or the rate
    assert "run &lt;b&gt;" in page
    assert "resnet18" in page
    assert "Refused to" not in done.stderr  # by the page's own policy
