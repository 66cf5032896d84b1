"""Weights at web addresses, from a server on this machine: fetched once, checked, and refused with a reason."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch

from locdistill.distillation.load import teacher_files
from locdistill.distillation.settings import TeacherSettings
from locdistill.errors import RunError, WeightsError
from locdistill.models import download
from locdistill.models.backbones import build_backbone
from locdistill.models.checksum import split_checksum
from locdistill.models.detector import Detector
from locdistill.models.hub import find, is_address, pull
from locdistill.models.mmdet import load_mmdet, save_mmdet
from locdistill.models.settings import DetectorSettings
from locdistill.publishing.publish import shareable
from locdistill.recipe.load import load_recipe
from tests.conftest import Answer

CONTENT = b"PK weights " * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"\n<!DOCTYPE html><html><body>Sign in</body></html>"


class Server:
    """Files by path; ``asked`` counts requests, ``short`` holds paths whose answers end too early."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.moved: dict[str, str] = {}
        self.status: dict[str, int] = {}
        self.short: set[str] = set()
        self.asked: list[str] = []
        own = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                own.asked.append(self.path)
                if self.path in own.moved:
                    self.send_response(302)
                    self.send_header("Location", own.moved[self.path])
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                content = own.files.get(self.path)
                self.send_response(own.status.get(self.path, 200 if content is not None else 404))
                self.send_header("Content-Length", str(len(content or b"")))
                for name, value in own.headers.get(self.path, {}).items():
                    self.send_header(name, value)
                self.end_headers()
                part = content or b""
                self.wfile.write(part[: len(part) // 2] if self.path in own.short else part)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()


@pytest.fixture
def server() -> Iterator[Server]:
    own = Server()
    yield own
    own.http.shutdown()
    own.http.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCDISTILL_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.name != ".lock")


def refused(url: str, *words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        download.fetch(url)
    assert "\n" not in str(caught.value)
    for word in (url.partition("#")[0], *words):
        assert word in str(caught.value), str(caught.value)


def test_a_file_is_downloaded_once(server: Server, cache: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server.files["/a/gfl.pth"] = CONTENT
    url = f"{server.address}/a/gfl.pth"
    path = download.fetch(url)
    assert path.read_bytes() == CONTENT
    assert path.name == "gfl.pth"
    assert SHA256 in caplog.text
    assert "0.0 MB" in caplog.text
    assert "not known before" in caplog.text
    server.files.clear()
    assert download.fetch(url) == path
    assert download.fetch(str(Path(url))) == path  # which has one slash
    assert server.asked == ["/a/gfl.pth"]
    assert left(cache) == ["gfl.pth"]
    assert find(url) == path
    assert is_address(url)


def test_two_addresses_with_one_name_are_two_files(server: Server) -> None:
    server.files |= {"/a/gfl.pth": b"PK 1", "/b/gfl.pth": b"PK 2"}
    found = [download.fetch(f"{server.address}/{folder}/gfl.pth").read_bytes() for folder in "ab"]
    assert found == [b"PK 1", b"PK 2"]


def test_processes_that_ask_at_once_download_once(server: Server) -> None:
    server.files["/gfl.pth"] = CONTENT
    found: list[Path] = []
    threads = [
        threading.Thread(target=lambda: found.append(download.fetch(f"{server.address}/gfl.pth"))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert server.asked == ["/gfl.pth"]


@pytest.mark.parametrize("digits", [8, 12, 64])
def test_the_digest_in_a_name_is_checked(server: Server, cache: Path, digits: int) -> None:
    good, bad = f"/gfl-{SHA256[:digits]}.pth", f"/gfl-{'0' * digits}.pth"
    server.files |= {good: CONTENT, bad: CONTENT}
    assert download.fetch(server.address + good).name == good[1:]
    refused(server.address + bad, "its name says 0000", SHA256, "Check the address")
    assert left(cache) == [good[1:]]


def test_the_digest_behind_an_address_is_checked(server: Server, cache: Path) -> None:
    server.files["/gfl.pth"] = CONTENT
    url = f"{server.address}/gfl.pth"
    refused(f"{url}#sha256={'0' * 64}", "its address says 0000")
    assert left(cache) == []
    path = download.fetch(f"{url}#sha256={SHA256.upper()}")
    assert download.fetch(url) == path
    path.write_bytes(b"PK changed")
    refused(f"{url}#sha256={SHA256}", "damaged or was changed", f"Remove {path}")


def test_a_date_at_the_end_of_a_name_is_no_digest(server: Server) -> None:
    assert split_checksum("gfl_r50-20200629") == ("gfl_r50-20200629", None)
    assert split_checksum("gfl_r50-dd12f847") == ("gfl_r50", "dd12f847")
    server.files["/gfl-20200629.pth"] = CONTENT
    assert download.fetch(f"{server.address}/gfl-20200629.pth").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://example.org/gfl.pth", "only https is accepted"),
        ("https:///gfl.pth", "expected https://HOST/PATH"),
        ("https://[broken/gfl.pth", "expected https://HOST/PATH"),
        ("https://example.org/gfl.pth#md5=12345678", "expected #sha256=DIGEST"),
        ("https://example.org/gfl.pth#sha256=xyz", "expected #sha256=DIGEST"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(WeightsError, match=words):
        download.fetch(url)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (PAGE, ("a web page", "give the address of the file itself")),
        (b"\xef\xbb\xbf<?xml version='1.0'?><Error/>", ("a web page",)),
        (b"", ("empty",)),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ("Git LFS",)),
    ],
)
def test_answers_that_are_no_weights(server: Server, cache: Path, content: bytes, words: tuple[str, ...]) -> None:
    server.files["/gfl.pth"] = content
    refused(f"{server.address}/gfl.pth", *words)
    assert left(cache) == []


@pytest.mark.parametrize(("status", "words"), [(404, "no such file"), (403, "access denied"), (500, "try again later")])
def test_servers_that_refuse(server: Server, cache: Path, status: int, words: str) -> None:
    server.files["/gfl.pth"], server.status["/gfl.pth"] = PAGE, status
    refused(f"{server.address}/gfl.pth", words, f"HTTP {status}")
    assert left(cache) == []


def test_a_download_that_ends_too_early_leaves_nothing(server: Server, cache: Path) -> None:
    server.files["/gfl.pth"] = CONTENT
    server.short.add("/gfl.pth")
    refused(f"{server.address}/gfl.pth", f"of {len(CONTENT)} bytes", "try again")
    assert left(cache) == []
    server.short.clear()
    path = download.fetch(f"{server.address}/gfl.pth")
    (path.parent / ".gfl.pth.0123.part").write_bytes(b"of a process that was killed")
    download.fetch(f"{server.address}/gfl.pth")
    assert left(cache) == ["gfl.pth"]


def test_without_a_network_the_remedy_is_a_file(server: Server) -> None:
    server.http.shutdown()
    server.http.server_close()
    refused(f"{server.address}/gfl.pth", "no answer", "copy the file here")


def test_redirections_stay_protected(server: Server) -> None:
    server.files["/here/gfl.pth"] = CONTENT
    server.moved |= {"/a": "/here/gfl.pth", "/b": "http://example.org/gfl.pth"}
    assert download.fetch(f"{server.address}/a").name == "gfl.pth"
    with pytest.raises(WeightsError, match=r"example\.org.*only https"):
        download.fetch(f"{server.address}/b")


def test_the_name_of_a_file_comes_from_the_answer(server: Server) -> None:
    server.files |= dict.fromkeys(("/download?id=1", "/raw"), CONTENT)
    server.headers["/download?id=1"] = {"Content-Disposition": 'attachment; filename="../gfl r50.pth"'}
    assert download.fetch(f"{server.address}/download?id=1").name == "gfl_r50.pth"
    assert download.fetch(f"{server.address}/raw").name == "weights.pth"


def test_a_cache_that_cannot_be_written_names_the_variable(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOCDISTILL_HOME", str(tmp_path / "file"))
    with pytest.raises(RunError, match="another folder, in the environment variable LOCDISTILL_HOME"):
        download.fetch(f"{server.address}/gfl.pth")


@pytest.fixture
def trained(server: Server, tmp_path: Path, zero_weights: None) -> tuple[Detector, str, str]:
    """A detector, and the addresses of its weights as a file of ours and of MMDetection's."""
    settings = {"backbone": "resnet18", "channels": 32, "depth": 1, "pretrained": False, "classes": ("disc", "box")}
    detector = Detector(DetectorSettings.model_validate(settings))
    torch.nn.init.ones_(detector.head.cls.bias)  # type: ignore[arg-type]
    ours, theirs = detector.save(tmp_path / "ours"), save_mmdet(detector, tmp_path / "theirs.pth")
    server.files |= {"/ours": ours.read_bytes(), "/theirs.pth": theirs.read_bytes()}
    return detector, f"{server.address}/ours", f"{server.address}/theirs.pth"


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[name]) for name, value in one.state_dict().items())


def test_weights_at_addresses_are_read_as_any_other(
    trained: tuple[Detector, str, str], tmp_path: Path, cli: Callable[..., Answer]
) -> None:
    detector, ours, theirs = trained
    assert same(detector, Detector.load(find(ours)))  # a safetensors file, whatever its address is called
    assert same(detector, load_mmdet(theirs))
    assert same(detector, Detector.load(pull(theirs, out=tmp_path / "weights")))
    assert (tmp_path / "weights" / "theirs.pth").is_file()
    assert teacher_files(TeacherSettings(weights=ours), "r") == (find(ours),)
    code, _, err = cli("convert", theirs, tmp_path / "out.safetensors")
    assert code == 0, err
    assert same(detector, Detector.load(tmp_path / "out.safetensors"))


def test_weights_of_a_backbone_may_have_an_address(server: Server, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = timm.create_model("test_resnet")
    torch.save(net.state_dict(), tmp_path / "net.pth")
    server.files["/net.pth"] = (tmp_path / "net.pth").read_bytes()
    settings = DetectorSettings(backbone="test_resnet", pretrained=f"{server.address}/net.pth", classes=("a",))
    built, _ = build_backbone(settings, weights=True)
    assert torch.equal(built.state_dict()["layer1.0.conv1.weight"], net.state_dict()["layer1.0.conv1.weight"])


def test_addresses_stay_in_a_recipe_that_is_published() -> None:
    """They are public, unlike paths."""
    words = ("teacher.weights=https://host/a.pth", "start=https://host/b.pth", "detector.pretrained=https://host/c.pth")
    recipe = shareable(load_recipe("ld_r50_from_r101", words))
    assert recipe.teacher is not None
    found = (recipe.teacher.weights, recipe.start, recipe.detector.pretrained)
    assert found == tuple(f"https://host/{name}.pth" for name in "abc")
