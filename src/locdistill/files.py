"""Atomic writing of files, by any number of processes."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from locdistill.errors import RunError


@contextmanager
def replacing(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """Replace a file atomically: the file written to the yielded path takes its place at the end.

    Several processes may write the same file; the last one wins. If the block raises, the old file stays. The file has
    the mode given by the umask, whatever mode the writer sets.

    Args:
        path: The file, in an existing folder.
        flush: Whether to wait until the data are on disk, so that the file is whole even after a power failure.

    Raises:
        OSError: It cannot be written; the error names ``path``.
    """
    path = Path(path)
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        part.touch(exist_ok=False)
        mode = part.stat().st_mode & 0o777  # as the umask allows; some writers leave files to their owner alone
        yield part
        part.chmod(mode)
        if flush:
            _flush(part)
        os.replace(part, path)
    except OSError as error:
        if error.filename in (part, str(part)):
            error.filename = str(path)
        raise
    finally:
        with suppress(OSError):  # of an invalid path, which is reported above
            part.unlink(missing_ok=True)
    if flush and os.name == "posix":
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(path: Path) -> None:
    """Create a folder and its parents, unless it exists.

    Raises:
        RunError: It cannot be created.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn errors of the file system into an error for the user.

    Raises:
        RunError: Nothing can be created or written there.
    """
    try:
        yield
    except OSError as error:
        where = error.filename or path
        raise RunError(
            f"{path} cannot be made or written to ({where}: {error.strerror or error}); give another folder"
        ) from error


def cache_folder() -> Path:
    """Return the user's folder for files that can be made or downloaded again: ``LOCDISTILL_HOME``, if it is set.

    Otherwise it is ``locdistill`` in the folder that the system has for such files.
    """
    own = os.environ.get("LOCDISTILL_HOME")
    if own:
        return Path(own).expanduser()
    if sys.platform == "win32" and "LOCALAPPDATA" in os.environ:
        return Path(os.environ["LOCALAPPDATA"]) / "locdistill"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "locdistill"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "locdistill"


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8")


def file_digest(path: Path) -> str:
    """Compute the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
