"""Files that are whole or not there, however many processes write them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: str | Path, *, flush: bool = True) -> Iterator[Path]:
    """Replace a file in one stroke: what is written to the path that is yielded takes its place at the end.

    Several processes may write the same file; the last one wins. If the block raises, the old file stays. The file has
    the usual mode, whatever the writer gives its own.

    Args:
        path: The file, in a folder that is there.
        flush: Wait until the disk has it, so that it is whole even after a power failure.

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
        with suppress(OSError):  # of a path that cannot be one, which has been said
            part.unlink(missing_ok=True)
    if flush and os.name == "posix":
        _flush(path.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
