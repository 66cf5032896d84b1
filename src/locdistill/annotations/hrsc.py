"""HRSC2016: ships in aerial images, one XML file of rotated boxes per image."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from locdistill.annotations.files import by_name, files_of, images_below, in_threads
from locdistill.annotations.folders import note_unreadable
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import (
    LIMIT,
    Listed,
    Source,
    SourceSettings,
    circumscribed,
    listed_names,
    rotated_corners,
    rotated_fault,
)
from locdistill.annotations.voc import load_xml

NUMBERS = ("mbox_cx", "mbox_cy", "mbox_w", "mbox_h", "mbox_ang")
CLASS = "ship"
LOOKED_FOR = "Annotations and AllImages in the folder or in FullDataSet, with ImageSets/*.txt"


def data_folder(path: Path) -> Path | None:
    """Return the folder with ``Annotations`` and ``AllImages``: the path itself or ``FullDataSet`` in it."""
    places = (path, path / "FullDataSet")
    return next((p for p in places if (p / "Annotations").is_dir() and (p / "AllImages").is_dir()), None)


def image_sets(path: Path) -> dict[str, Path]:
    """Return the list files of ``ImageSets`` by name; the folder is in the path, in the data folder, or beside it."""
    folder = data_folder(path)
    places = [] if folder is None else [path, folder, folder.parent]
    return {file.stem: file for place in reversed(places) for file in files_of(place / "ImageSets", ".txt")}


def usual(path: Path, split: str) -> str:
    """Return the usual image set of a split: ``trainval`` and ``test``, if both exist."""
    both = {"trainval", "test"} <= set(image_sets(path))
    return {"train": "trainval", "val": "test"}[split] if both else split


def read(_settings: SourceSettings, path: Path, file: Path, _split: str) -> list[Source]:
    """Read an image set.

    The only class is ``ship``; ``Class_ID`` is not read. Rotated boxes are ``mbox_*``, with the angle in radians,
    clockwise on screen; boxes circumscribe them (``box_*`` are not read). Difficult objects are marked as ignored.
    Images are numbered from 1 in the order of the list.
    """
    folder = data_folder(path)
    assert folder is not None
    source = Source(file=str(file), categories=[(1, CLASS)])
    names = listed_names(file, source)
    pictures = by_name(folder / "AllImages", images_below(folder / "AllImages"))
    note_unreadable(folder / "AllImages", source.notes)
    parsed = in_threads(_parse, [folder / "Annotations" / f"{name}.xml" for name in names], label="reading annotations")
    for position, (name, content) in enumerate(zip(names, parsed, strict=True), start=1):
        source.problems += content.problems
        quads = rotated_corners(content.boxes)
        source.images.append(
            Listed(
                path=pictures.get(name, folder / "AllImages" / f"{name}.bmp"),
                image_id=position,
                declared=content.size,
                boxes=circumscribed(quads),
                categories=np.zeros(len(quads), dtype=np.int64),
                ignored=np.array(content.difficult, dtype=bool),
                areas=np.array([w * h for _, _, w, h, _ in content.boxes], dtype=np.float64),
                where=f"image {name}",
                quads=quads,
            )
        )
    return [source]


class _Content(NamedTuple):
    size: tuple[int, int] | None
    boxes: list[list[float]]
    difficult: list[bool]
    problems: list[Problem]


def _parse(file: Path) -> _Content:
    """Parse one annotation file; return its content and its faults."""
    root = load_xml(file)
    if isinstance(root, Problem):
        return _Content(None, [], [], [root])
    # height and width; None if not in the file
    sides = [_number(root, name) for name in ("Img_SizeHeight", "Img_SizeWidth")]
    height, width = (int(side) if isinstance(side, float) and 1 <= side < LIMIT else 0 for side in sides)
    size = (height, width) if height and width else None
    content = _Content(size, [], [], [])
    for position, entry in enumerate(root.findall("HRSC_Objects/HRSC_Object"), start=1):
        box = [_number(entry, name) for name in NUMBERS]
        difficult = (entry.findtext("difficult") or "0").strip()
        fault = rotated_fault(box)
        if fault is None and difficult not in ("0", "1"):
            fault = f"'difficult' is {difficult!r}", "write 0 or 1"
        if fault:
            content.problems.append(Problem(str(file), f"object {position}", *fault))
            continue
        content.boxes.append(box)  # type: ignore[arg-type]  # numbers, as rotated_fault made sure
        content.difficult.append(difficult == "1")
    return content


def _number(entry: Element, name: str) -> float | str | None:
    """Return a number, or the text in its place if it is none."""
    text = entry.findtext(name)
    try:
        return float(text or "")
    except ValueError:
        return text
