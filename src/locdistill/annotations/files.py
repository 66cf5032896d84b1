"""Files of a data set: safe relative names, text in its encoding, and a cheap check of each image before training."""

from __future__ import annotations

import codecs
import gc
import os
import re
import sys
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.nn.functional import interpolate

from locdistill.errors import AnnotationError, ImageError
from locdistill.files import file_digest
from locdistill.images import image_size, open_picture, plain_jpeg_size, read_image

IMAGE_SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".avif"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx"),
    )
)
"""Endings of pictures; which of them can be read is for `locdistill.images.FORMATS` to say, by their content."""
THREADS, GROUP = 8, 32
"""Threads that look at files, and the files that one of them takes at a time."""
BAR_FROM = 3000
HEAD_BYTES, TAIL_BYTES = 1024, 64
LOOK = 16
"""Sides of the raster on which pictures are compared."""
LEAST_CONTRAST = 4.0
"""Standard deviation of the raster's grey values below which a picture looks like any other."""
# Ending of a complete file. Some cameras and editors append bytes, so another ending only leads to a full check.
ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
# Byte order marks; those of UTF-32 begin with those of UTF-16.
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

DATA_SUFFIXES = IMAGE_SUFFIXES | {".txt", ".json", ".xml", ".yaml", ".yml"}
"""Endings of files that a data set is made of."""
SYSTEM_FOLDERS = ("__macosx", "@eadir")
"""Folders of copies that archives from a Mac and some file servers have, in small letters."""
UPLOADED = re.compile(r"[0-9a-f]{8}-")
"""Beginning that Label Studio gives to the names of uploaded pictures."""
DEPTH = 4
"""Folders below a data folder in which hidden files are counted."""
HIDDEN = "hidden files (such as ._a.jpg and those in __MACOSX or .ipynb_checkpoints), passed over"

T = TypeVar("T")
U = TypeVar("U")


class Seen(NamedTuple):
    """Result of the check of an image file.

    Attributes:
        size: Height and width of the upright image; ``None`` if it cannot be read.
        fault: Fault of the file, if any.
        digest: Hash of the content, if computed.
        look: Hash of the picture at low resolution, equal in most bits for pictures that look alike; empty if not
            computed, or for a picture without contrast.
    """

    size: tuple[int, int] | None
    fault: str = ""
    digest: str = ""
    look: bytes = b""


def stays_inside(name: str) -> bool:
    """Return whether a relative file name stays inside the folder that it is joined to, on any operating system.

    Only the name is checked. Symbolic links inside the folder are followed: data sets are often assembled from links,
    and the creator of the folder made them, whereas an annotation file cannot create any.
    """
    if name[:1].isalnum() and not any(sign in name for sign in ("..", ":", "\\", "\0")):
        return True
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    rooted = posix.is_absolute() or bool(windows.drive) or bool(windows.root)
    return bool(name.strip()) and "\0" not in name and not rooted and ".." not in posix.parts + windows.parts


def read_text(path: Path) -> str:
    """Read a text file in UTF-8, or in the encoding of its byte order mark: UTF-16 or UTF-32.

    Raises:
        FileNotFoundError: There is no such file.
        AnnotationError: The file cannot be read, or is in another encoding.
    """
    try:
        content = path.read_bytes()
        encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "utf-8")
        text = content.decode(encoding)
        place = text.find("\0")  # a valid character, but only found in UTF-16 without a mark
    except FileNotFoundError:
        raise
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read ({error.strerror}); check the file") from error
    except UnicodeDecodeError as error:
        place = error.start
    if place >= 0:
        raise AnnotationError(
            f"{path}: saved in another encoding than UTF-8 (byte 0x{content[place]:02x} at {place}); save it as UTF-8"
        )
    return text


def look(path: Path) -> Seen:
    """Read the size of an image from its header and check that the file is complete, with two small reads.

    JPEG and PNG files with the right ending are assumed complete; any other file is decoded.
    """
    head = tail = b""
    with suppress(OSError, ValueError), open(path, "rb", buffering=0) as file:
        head = file.read(HEAD_BYTES)
        file.seek(max(file.seek(0, 2) - TAIL_BYTES, 0))
        tail = file.read()
    try:
        size = plain_jpeg_size(head) or image_size(path)
        if not any(head.startswith(start) and end in tail for start, end in ENDINGS.items()):
            read_image(path)
    except ImageError as error:
        return Seen(None, str(error).removeprefix(f"{path}: "))
    return Seen(size)


def look_closely(path: Path) -> Seen:
    """Decode an image, verify the checksums of a PNG, and hash the file and the picture."""
    try:
        image = read_image(path)
        height, width = image.shape[-2:]
        digest = file_digest(path)
        with open_picture(path) as picture:
            picture.verify()
    except ImageError as error:
        return Seen(None, str(error).removeprefix(f"{path}: "))
    except Exception as error:  # verifying raises as many things as decoding
        return Seen(None, f"is damaged ({error})")
    grey = image.float().mean(0, keepdim=True)[None]
    raster = interpolate(grey, (LOOK, LOOK + 1), mode="area")[0, 0]
    # 32 bytes, a bit for each place of the raster: whether the picture gets brighter to the right
    rising = b"" if raster.std() < LEAST_CONTRAST else np.packbits((raster[:, 1:] > raster[:, :-1]).numpy()).tobytes()
    return Seen((height, width), digest=digest, look=rising)


def in_threads(function: Callable[[T], U], items: Sequence[T], *, label: str) -> list[U]:
    """Apply a function to all items in threads; return results in order. Many items get a progress bar."""
    Image.preinit()  # Pillow loads its formats on first use, which threads must not do at once
    with ThreadPoolExecutor(THREADS) as pool:
        groups = [items[first : first + GROUP] for first in range(0, len(items), GROUP)]
        results: Iterable[list[U]] = pool.map(lambda group: [function(item) for item in group], groups)
        console = Console(file=sys.stderr)
        if len(items) >= BAR_FROM and console.is_terminal:
            results = track(results, description=label, total=len(groups), console=console, transient=True)
        return [result for group in results for result in group]


@contextmanager
def collected_later() -> Iterator[None]:
    """Put off the search for unused objects in circles, which takes most of the time where millions are made."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden, or was made by a system beside the user's own."""
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def hidden_below(folder: Path, depth: int = DEPTH, *, inside: bool = False) -> int:
    """Count the hidden files below a folder that have the ending of pictures or annotations.

    Args:
        folder: The folder.
        depth: Number of folders below it to look into.
        inside: Whether the folder is hidden itself.
    """
    count = 0
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            hidden = inside or is_hidden(entry.name)
            if entry.is_dir():
                count += hidden_below(Path(entry), depth - 1, inside=hidden) if depth and not entry.is_symlink() else 0
            elif hidden:
                count += os.path.splitext(entry.name)[1].lower() in DATA_SUFFIXES
    return count


def files_of(folder: Path, *suffixes: str) -> list[Path]:
    """List the files of a folder that have one of some endings in any case, sorted by name; none if it is no folder."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_file()]
    except OSError:
        return []
    return [folder / name for name in sorted(names) if os.path.splitext(name)[1].lower() in suffixes]


def subfolders(folder: Path) -> list[Path]:
    """List the folders in a folder, sorted; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(folder / entry.name for entry in entries if not is_hidden(entry.name) and entry.is_dir())
    except OSError:
        return []


def folders_below(folder: Path) -> list[Path]:
    """List a folder and all folders below it; none if it is no folder."""
    return [Path(place) for place, _, _ in os.walk(folder, followlinks=False)]


def in_any_case(folder: Path, parts: Sequence[str]) -> Path | None:
    """Find a file or folder below a folder by names that may differ in their case, as on Windows; None if not there."""
    for part in parts:
        try:
            known = _names_by_case(str(folder), folder.stat().st_mtime_ns)
        except OSError:
            return None
        if part != "." and part.casefold() not in known:
            return None
        folder = folder if part == "." else folder / known[part.casefold()]
    return folder


@lru_cache(maxsize=64)
def _names_by_case(folder: str, _time: int) -> dict[str, str]:
    return {name.casefold(): name for name in sorted(os.listdir(folder), reverse=True)}


def images_below(folder: Path) -> list[Path]:
    """List all image files in a folder and its subfolders, as `files_below` does."""
    return files_below(folder, IMAGE_SUFFIXES)


def files_below(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """List all files in a folder and its subfolders that have one of some endings in any case, sorted by name.

    Hidden ones are passed over. Links to folders are followed, after the folders themselves. Each folder is listed
    once, so that links in a circle end, and a folder that is linked from another one below has its own name.
    """
    found: list[Path] = []
    seen: set[str] = set()
    waiting, links = [str(folder)], deque[str]()
    while waiting or links:
        place = waiting.pop() if waiting else links.popleft()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        home = Path(place)
        with suppress(OSError), os.scandir(place) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if is_hidden(entry.name):
                    continue
                if entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(entry.path)
                elif f".{entry.name.rpartition('.')[2].lower()}" in suffixes and entry.is_file():
                    found.append(home / entry.name)
    return sorted(found)


def by_name(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    """Map files below a folder by their relative names without endings, with slashes."""
    start = 0 if folder == Path() else len(os.path.join(folder, ""))
    return {os.path.splitext(str(file)[start:])[0].replace(os.sep, "/"): file for file in files}
