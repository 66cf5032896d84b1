"""Weights at web addresses, downloaded once into the user's cache folder.

A file is checked against the digest in its name (``NAME-<8 or more hexadecimal digits>.pth``, as MMDetection,
torchvision and timm name theirs) or behind its address (``#sha256=DIGEST``). As with any other file, nothing in it is
executed. Only ``https`` is accepted, and ``http`` from this machine itself.
"""

from __future__ import annotations

import hashlib
import http.client
import logging
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from locdistill.errors import RunError, WeightsError
from locdistill.files import cache_folder, file_digest, make_folder, replacing, writing
from locdistill.models.checksum import split_checksum

log = logging.getLogger(__name__)
_URL = re.compile(r"(?P<scheme>https?):/{1,2}(?P<rest>[^/].*)", re.IGNORECASE)  # a `Path` has one slash
_HERE = ("localhost", "127.0.0.1", "::1")
_SECONDS = 30
_CHUNK = 1 << 20
_SAFETENSORS = ".safetensors"


def is_url(text: str) -> bool:
    """Return whether a text is a web address, not a path."""
    return _URL.match(text) is not None


def fetch(url: str) -> Path:
    """Return the file of a web address, downloaded unless it was before; processes wait for each other.

    Args:
        url: ``https://HOST/PATH``, optionally followed by ``#sha256=DIGEST``.

    Raises:
        WeightsError: The address is not valid, the server does not answer or does not have the file, or the answer is a
            web page, incomplete, or another file than the digest says.
        RunError: The cache folder cannot be written to.
    """
    address = _WebAddress.of(url)
    folder = cache_folder() / "weights" / hashlib.sha256(address.url.encode()).hexdigest()[:16]
    try:
        make_folder(folder)
        with writing(folder), FileLock(folder / ".lock"):
            for left in folder.glob(".*.part"):  # by a process that was killed
                left.unlink()
            there = [path for path in folder.iterdir() if not path.name.startswith(".")]
            path = there[0] if there else _download(address, folder)
    except RunError as error:
        raise RunError(f"{error}, in the environment variable LOCDISTILL_HOME") from error
    if there and address.sha256 is not None:
        address.check(file_digest(path), path.name, f"Remove {path} to download it again")
    return path


@dataclass(frozen=True, slots=True)
class _WebAddress:
    """Address of a file, and its digest if it is given."""

    url: str
    sha256: str | None = None

    @classmethod
    def of(cls, text: str) -> _WebAddress:
        """Parse an address.

        Raises:
            WeightsError: It is not valid, or not protected against changes on the way.
        """
        found = _URL.match(text.strip())
        plain, _, fragment = (f"{found['scheme'].lower()}://{found['rest']}" if found else text).partition("#")
        try:
            host = urllib.parse.urlsplit(plain).hostname
        except ValueError:
            host = None
        if found is None or not host:
            raise WeightsError(f"{text}: not a valid address; expected https://HOST/PATH")
        _check_scheme(plain)
        name, _, digest = fragment.partition("=")
        if fragment and (name != "sha256" or re.fullmatch(r"[0-9a-fA-F]{8,64}", digest) is None):
            raise WeightsError(f"{text}: expected #sha256=DIGEST behind the address, came #{fragment}")
        return cls(urllib.parse.quote(plain, safe=":/?&=%@+,;~[]!$'()*-._"), digest.lower() or None)

    def check(self, digest: str, name: str, remedy: str) -> None:
        """Compare a file's digest with that of the address, or else of its name.

        Raises:
            WeightsError: They differ.
        """
        _, named = split_checksum(PurePosixPath(name).stem)
        expected = self.sha256 or named
        if expected is not None and not digest.startswith(expected):
            whose = "address" if self.sha256 else "name"
            raise WeightsError(
                f"{self.url}: the SHA-256 of the file is {digest}, but its {whose} says {expected}; the file is "
                f"damaged or was changed. {remedy}"
            )


def _check_scheme(url: str) -> None:
    """Refuse an address that is not protected.

    Raises:
        WeightsError: It is an ``http`` address of another machine.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "https" and parts.hostname not in _HERE:
        raise WeightsError(f"{url}: only https is accepted, because {parts.scheme} can be changed on the way")


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Redirection that stays protected."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        """Follow a redirection, if its address is accepted."""
        _check_scheme(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _download(address: _WebAddress, folder: Path) -> Path:
    """Download a file into a folder, atomically, and check it."""
    with _answering(address.url):
        request = urllib.request.Request(address.url, headers={"User-Agent": "locdistill"})  # noqa: S310 - checked above
        answer = urllib.request.build_opener(_Redirects).open(request, timeout=_SECONDS)
    with answer:
        with _answering(address.url):
            start = answer.read(_CHUNK)
        _check_start(start, address.url)
        # The name in the answer's header, else in its address; readers of files go by the suffix.
        names = [answer.headers.get_filename() or "", urllib.parse.unquote(urllib.parse.urlsplit(answer.url).path)]
        plain = [re.sub(r"[^\w.+-]", "_", PurePosixPath(name).name).lstrip(".") for name in names]
        name = next((name for name in plain if PurePosixPath(name).suffix), "weights.pth")
        if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 1 << 27 and not name.endswith(_SAFETENSORS):
            name += _SAFETENSORS
        path = folder / name
        size, digest = 0, hashlib.sha256()
        with replacing(path) as part:
            with part.open("wb") as file:
                for chunk in _chunks(answer, start, address.url):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            address.check(digest.hexdigest(), path.name, "Check the address, or download it again")
    known = address.sha256 or split_checksum(path.stem)[1]
    log.info(
        "downloaded %s to %s: %.1f MB, SHA-256 %s (%s)",
        *(address.url, path, size / 1e6, digest.hexdigest()),
        "as expected" if known else "not known before: append #sha256=... to the address to have it checked",
    )
    return path


def _chunks(answer: http.client.HTTPResponse, start: bytes, url: str) -> Iterator[bytes]:
    """Yield the content with its beginning, and draw the progress on the terminal.

    Raises:
        WeightsError: The connection fails, or ends too early.
    """
    length = answer.headers.get("Content-Length")
    total = int(length) if length is not None and length.isdecimal() else None
    console, done = Console(stderr=True), 0
    columns = TextColumn("downloading"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=total)
        chunk = start
        while chunk:
            yield chunk
            done += len(chunk)
            progress.update(task, completed=done)
            with _answering(url):
                chunk = answer.read(_CHUNK)
    if total is not None and done < total:
        raise WeightsError(f"{url}: the connection ended after {done} of {total} bytes; try again")


def _check_start(start: bytes, url: str) -> None:
    """Refuse an answer that is no weights file by its first bytes.

    Raises:
        WeightsError: It is empty, a web page, or a pointer of Git LFS.
    """
    text = start[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise WeightsError(f"{url}: the file is empty; check the address")
    if text.startswith(b"<"):
        raise WeightsError(
            f"{url}: a web page, not a weights file; give the address of the file itself. If only a browser can "
            "download it (Google Drive, Baidu), do that, and give the file"
        )
    if text.startswith(b"version https://git-lfs"):
        raise WeightsError(
            f"{url}: a pointer of Git LFS, not the weights; give the address for downloads (such as .../resolve/...)"
        )


@contextmanager
def _answering(url: str) -> Iterator[None]:
    """Turn errors of the connection into an error for the user.

    Raises:
        WeightsError: The block raised one.
    """
    try:
        yield
    except urllib.error.HTTPError as error:
        remedy = {
            404: "no such file; check the address",
            401: "access denied; download it in a browser, and give the file",
            403: "access denied; download it in a browser, and give the file",
        }.get(error.code, "the server refused; try again later")
        raise WeightsError(f"{url}: {remedy} (HTTP {error.code})") from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise WeightsError(
            f"{url}: no answer ({reason}). A network is needed for the first download only; without one, copy the file "
            "here and give its path"
        ) from error
