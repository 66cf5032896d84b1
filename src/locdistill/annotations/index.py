"""What was read of a data set before: in this process, and of a large one in the user's cache folder for the next run.

An entry in the folder counts only while the files that it was read from have the same size and time of change. What is
in doubt is read again, and what cannot be kept is done without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np

from locdistill.annotations.files import Seen, in_threads, look
from locdistill.annotations.sources import Listed, Source, parts_between
from locdistill.files import cache_folder, make_folder, replacing

log = logging.getLogger("locdistill")
VERSION = 2
MANY_FILES = 2000
"""Pictures or annotation files from which what was seen of them is kept."""
LARGE_FILE = 20_000_000
"""Bytes from which what was read of an annotation file is kept."""
Arrays = dict[str, np.ndarray]
T = TypeVar("T")
_memory: ContextVar[dict[Hashable, Any] | None] = ContextVar("_memory", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Remember, until the end of the block, what is read of data sets, whose files must not change meanwhile.

    A run opens its data to choose settings by them, and then to train on them.
    """
    token = _memory.set({} if _memory.get() is None else _memory.get())
    try:
        yield
    finally:
        _memory.reset(token)


def forget() -> None:
    """Forget what was read in the block of `reading_once`, which takes memory."""
    memory = _memory.get()
    if memory is not None:
        memory.clear()


def remembered(key: Hashable, read: Callable[[], T]) -> T:
    """Return the result of a function, or what it was before under this key in a block of `reading_once`."""
    memory = _memory.get()
    if memory is None:
        return read()
    if key not in memory:
        memory[key] = read()
    found: T = memory[key]
    return found


def look_at(paths: Sequence[Path]) -> list[Seen]:
    """Check image files as `look` does; of many, only those that changed since the last time."""
    known: dict[Path, Seen] = remembered("seen", dict)
    new = [path for path in paths if path not in known] if known else paths
    known.update(zip(new, _look_at_new(new), strict=True))
    return [known[path] for path in paths]


def _look_at_new(paths: Sequence[Path]) -> list[Seen]:
    if len(paths) < MANY_FILES:
        return in_threads(look, paths, label="looking at images")
    texts = list(map(str, paths))
    top = os.path.commonpath({os.path.dirname(text) for text in texts})
    start = len(os.path.join(top, ""))
    names = [text[start:] for text in texts]
    file, now = _place("pictures", os.path.abspath(top)), _states(texts)
    seen: list[Seen | None] = [None] * len(paths)
    if (arrays := _kept(file)) is not None:
        rows = {name: row for row, name in enumerate(_split(arrays["names"]))}
        row = np.array([rows.get(name, -1) for name in names])
        same = (row >= 0) & (now[:, 0] >= 0) & (arrays["states"][row] == now).all(-1)
        sizes = arrays["sides"][row].tolist()
        seen = [Seen((size[0], size[1])) if fine else None for size, fine in zip(sizes, same.tolist(), strict=True)]
    new = [number for number, one in enumerate(seen) if one is None]
    if not new:
        return [one for one in seen if one is not None]
    for number, one in zip(new, in_threads(look, [paths[n] for n in new], label="looking at images"), strict=True):
        seen[number] = one
    whole = [one for one in seen if one is not None]
    sound = np.array([one.size is not None for one in whole])
    _keep(
        file,
        {
            "names": _joined([name for name, fine in zip(names, sound, strict=True) if fine]),
            "states": now[sound],
            "sides": np.array([one.size for one in whole if one.size is not None]).reshape(-1, 2),
        },
    )
    return whole


def kept_sources(
    files: Sequence[Path], key: str, read: Callable[[], list[Source]], also: Sequence[str] = ()
) -> list[Source]:
    """Return what was read of large or many annotation files before, if nothing changed, or read them.

    It is read again as well if a picture is not where it was.

    Args:
        files: The files that the result depends on, and folders whose lists of files it depends on.
        key: Name of the result among others of the first file.
        read: Function that reads the files. Sources with problems are not kept.
        also: What else the result depends on.
    """
    texts = list(map(str, files))
    state = _states(texts)
    if len(files) < MANY_FILES and state[:, 0].max(initial=0) < LARGE_FILE:
        return read()
    place = _place("annotations", json.dumps([os.path.abspath(texts[0]), key]))
    arrays = _kept(place)
    digest = hashlib.sha256("\0".join(also).encode(errors="surrogateescape")).digest()
    about = {"files": _joined(texts), "state": state, "also": np.frombuffer(digest, np.uint8)}
    if arrays is not None and all(np.array_equal(arrays[name], array) for name, array in about.items()):
        sources = [_unpacked(arrays, f"{number}/") for number in range(int(arrays["sources"]))]
        folders = _split(arrays["folders"])
        if np.array_equal(arrays["of_folders"], _states(folders)):
            return sources
        if all(os.path.exists(image.path) for source in sources for image in source.images):
            return sources
    sources = read()
    if all(source.images and not source.problems for source in sources):
        folders = sorted({os.path.dirname(image.path) for source in sources for image in source.images})
        parts = {f"{n}/{name}": array for n, source in enumerate(sources) for name, array in _packed(source).items()}
        about |= {"sources": np.array(len(sources)), "folders": _joined(folders), "of_folders": _states(folders)}
        _keep(place, about | parts)
    return sources


def _packed(source: Source) -> Arrays:
    """Convert a source to arrays."""
    images = source.images
    about = {
        "file": source.file,
        "categories": source.categories,
        "relative": source.relative,
        "labelled": source.labelled,
        "notes": dict(source.notes),
        "rotated": images[0].quads is not None,
        "areas": images[0].areas is not None,
    }
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "paths": _joined([str(image.path) for image in images]),
        "where": _joined([image.where for image in images]),
        "ids": np.array([image.image_id for image in images], np.int64),
        "declared": np.array([image.declared or (-1, -1) for image in images], np.int64),
        "counts": np.array([len(image.boxes) for image in images], np.int64),
        "boxes": np.concatenate([image.boxes for image in images]),
        "of_category": np.concatenate([image.categories for image in images]),
        "ignored": np.concatenate([image.ignored for image in images]),
    }
    if about["areas"]:
        arrays["areas"] = np.concatenate([image.areas for image in images])
    if about["rotated"]:
        arrays["quads"] = np.concatenate([image.quads for image in images])
    return arrays


def _unpacked(arrays: Arrays, prefix: str) -> Source:
    """Convert arrays back to a source, whose images share them."""
    about = json.loads(arrays[f"{prefix}about"].tobytes())
    ends = np.cumsum(arrays[f"{prefix}counts"]).tolist()
    parts = {
        name: parts_between(arrays[f"{prefix}{name}"], ends) if f"{prefix}{name}" in arrays else [None] * len(ends)
        for name in ("boxes", "of_category", "ignored", "areas", "quads")
    }
    folder, images = Path(), []
    rows = zip(
        _split(arrays[f"{prefix}paths"]),
        arrays[f"{prefix}ids"].tolist(),
        arrays[f"{prefix}declared"].tolist(),
        _split(arrays[f"{prefix}where"]),
        *parts.values(),
        strict=True,
    )
    above = None
    for path, number, declared, where, boxes, categories, ignored, areas, quads in rows:
        head, _, name = path.rpartition(os.sep)
        if head != above:
            above, folder = head, Path(head or os.sep)
        size = None if declared[0] < 0 else (declared[0], declared[1])
        images.append(Listed(folder / name, number, size, boxes, categories, ignored, areas, where, quads))
    return Source(
        file=about["file"],
        categories=[(number, name) for number, name in about["categories"]],
        images=images,
        relative=about["relative"],
        labelled=about["labelled"],
        notes=Counter(about["notes"]),
    )


def _states(paths: Sequence[str]) -> np.ndarray:
    """Return size in bytes and time of change ``(n, 2)`` of files; -1 where there is none."""
    found = []
    for path in paths:
        try:
            about = os.stat(path)
            found.append((about.st_size, about.st_mtime_ns))
        except OSError:
            found.append((-1, -1))
    return np.array(found, np.int64).reshape(-1, 2)


def _place(kind: str, key: str) -> Path:
    return cache_folder() / kind / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}-{VERSION}.npz"


def _kept(file: Path) -> Arrays | None:
    """Read arrays that were kept; None if there are none, or if they are damaged."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None


def _keep(file: Path, arrays: Arrays) -> None:
    """Write arrays for the next time; a folder that cannot be written to is done without."""
    try:
        make_folder(file.parent)
        with replacing(file) as part, part.open("wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
    except Exception as error:  # a run does not end for want of a cache
        log.info("%s: what was read is not kept for the next run (%s)", file, error)


def _joined(texts: Sequence[str]) -> np.ndarray:
    return np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8)


def _split(joined: np.ndarray) -> list[str]:
    text = joined.tobytes().decode(errors="surrogateescape")
    return text.split("\0") if text else []
