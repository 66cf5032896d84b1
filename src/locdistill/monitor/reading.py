"""Reading files that other processes write, replace or remove meanwhile: plain files alone, never through a link."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading; a pipe in its place would never end.

    Raises:
        OSError: It does not exist, cannot be read, or is a link, a folder or a pipe.
    """
    if path.is_symlink():  # where the system has no flag for it
        raise OSError(f"{path} is a link")
    descriptor = os.open(path, _FLAGS)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no plain file")
    return os.fdopen(descriptor, "rb")


def read_part(path: Path, most: int, *, end: bool = False) -> bytes:
    """Read the first bytes of a plain file, or the last ones; nothing if it cannot be read."""
    try:
        with open_plain(path) as file:
            if end:
                file.seek(max(os.fstat(file.fileno()).st_size - most, 0))
            return file.read(most)
    except OSError:
        return b""


def stamp(path: Path) -> str:
    """Return a text that changes whenever the file does; empty if there is no such plain file."""
    try:
        found = path.lstat()
    except OSError:
        return ""
    return f"{found.st_ino:x}.{found.st_size:x}.{found.st_mtime_ns:x}" if stat.S_ISREG(found.st_mode) else ""


def shown(path: Path, root: Path) -> str:
    """Return a path below a root with slashes, as text that every program can hold: odd bytes are written out."""
    return os.fsencode(path.relative_to(root).as_posix()).decode("utf-8", "backslashreplace")
