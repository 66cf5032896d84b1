"""What was read of a large data set before, kept in the user's cache folder so that the next run starts quickly.

An entry counts only while the files that it was read from have the same size and time of change. What is in doubt is
read again, and what cannot be kept is done without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from locdistill.annotations.files import Seen, in_threads, look
from locdistill.annotations.sources import Listed, Source
from locdistill.files import cache_folder, make_folder, replacing

log = logging.getLogger("locdistill")
VERSION = 1
MANY_PICTURES = 2000
"""Pictures from which what was seen of them is kept."""
LARGE_FILE = 20_000_000
"""Bytes from which what was read of an annotation file is kept."""
Arrays = dict[str, np.ndarray]


def look_at(paths: Sequence[Path]) -> list[Seen]:
    """Check image files as `look` does; of many, only those that changed since the last time."""
    if len(paths) < MANY_PICTURES:
        return in_threads(look, paths, label="looking at images")
    top = os.path.commonpath(paths)
    names = [os.path.relpath(path, top) for path in paths]
    file, now = _place("pictures", top), np.array([_state(path) for path in paths])
    known = _known_sizes(file)
    seen: list[Seen | None] = []
    for name, (size, time) in zip(names, now.tolist(), strict=True):
        found = known.get(name)
        seen.append(Seen(found[2:]) if found is not None and size >= 0 and found[:2] == (size, time) else None)
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


def _known_sizes(file: Path) -> dict[str, tuple[int, int, int, int]]:
    """Return size in bytes, time of change, height and width by name."""
    arrays = _kept(file)
    if arrays is None:
        return {}
    rows = np.concatenate((arrays["states"], arrays["sides"]), axis=1).tolist()
    return {name: tuple(row) for name, row in zip(_split(arrays["names"]), rows, strict=True)}


def source_of(file: Path, others: Sequence[Path], key: str, read: Callable[[], Source]) -> Source:
    """Return what was read of a large annotation file before, if nothing changed, or read it.

    Args:
        file: The annotation file.
        others: Files that it may be read together with.
        key: What else the result depends on, apart from the pictures.
        read: Function that reads the file. A source with problems is not kept.
    """
    if file.stat().st_size < LARGE_FILE:
        return read()
    place = _place("annotations", json.dumps([str(file.resolve()), key]))
    state = np.array([_state(one) for one in (file, *others)])
    arrays = _kept(place)
    if arrays is not None and np.array_equal(arrays["state"], state):
        source = _unpacked(arrays)
        if all(_state(image.path)[0] >= 0 for image in source.images):
            return source
    source = read()
    if source.images and not source.problems:
        _keep(place, {"state": state, **_packed(source)})
    return source


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


def _unpacked(arrays: Arrays) -> Source:
    """Convert arrays back to a source, whose images share them."""
    about = json.loads(arrays["about"].tobytes())
    ends = np.cumsum(arrays["counts"])
    parts = {
        name: np.split(arrays[name], ends[:-1]) if name in arrays else [None] * len(ends)
        for name in ("boxes", "of_category", "ignored", "areas", "quads")
    }
    rows = zip(
        _split(arrays["paths"]),
        arrays["ids"].tolist(),
        arrays["declared"].tolist(),
        _split(arrays["where"]),
        *parts.values(),
        strict=True,
    )
    images = [
        Listed(
            path=Path(path),
            image_id=number,
            declared=None if declared[0] < 0 else tuple(declared),
            boxes=boxes,
            categories=categories,
            ignored=ignored,
            areas=areas,
            where=where,
            quads=quads,
        )
        for path, number, declared, where, boxes, categories, ignored, areas, quads in rows
    ]
    return Source(
        file=about["file"],
        categories=[(number, name) for number, name in about["categories"]],
        images=images,
        relative=about["relative"],
        labelled=about["labelled"],
        notes=Counter(about["notes"]),
    )


def _state(path: Path) -> tuple[int, int]:
    """Return size in bytes and time of change of a file; -1 where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return -1, -1
    return found.st_size, found.st_mtime_ns


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
