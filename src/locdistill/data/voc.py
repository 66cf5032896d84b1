"""Pascal VOC: one XML file per image, image sets as lists of names, years side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from defusedxml import ElementTree
from defusedxml.common import DefusedXmlException

from locdistill.data.files import in_threads, pictures_by_name
from locdistill.data.problems import Problem
from locdistill.data.settings import DataSettings
from locdistill.data.sources import Listed, Source, box_arrays, listed_names
from locdistill.interop.classes import VOC as CLASSES

LOOKED_FOR = "Annotations and ImageSets/Main in the folder, in VOC*, or in VOCdevkit/VOC*"
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def year_folders(path: Path) -> list[Path]:
    """Find the folders with ``Annotations`` and ``ImageSets/Main`` at or below a path: ``VOC2007``, ``VOC2012``, ..."""
    candidates = [path, *sorted(path.glob("VOC*")), *sorted(path.glob("VOCdevkit/VOC*"))]
    return [
        folder
        for folder in candidates
        if (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()
    ]


def image_sets(path: Path, split: str) -> list[tuple[Path, Path]]:
    """Find year folder and list file of an image set, for all years with annotations for it.

    ``split`` may select one year: ``VOC2007/trainval``. The ``test`` set of later years is public as images only.
    """
    year, _, name = split.rpartition("/")
    found = []
    for folder in year_folders(path):
        file = folder / "ImageSets" / "Main" / f"{name}.txt"
        if year in ("", folder.name) and file.is_file():
            # Lists per class have a second column, 1, 0 or -1, which only matters for classification.
            names = listed_names(file, Source(file=str(file), categories=[]))
            if not names or (folder / "Annotations" / f"{names[0]}.xml").is_file():
                found.append((folder, file))
    return found


def fits(path: Path, _names: Sequence[str]) -> bool:
    """Return whether a path has folders of years."""
    return bool(year_folders(path))


def splits(path: Path) -> list[str]:
    """Return the names of the image sets, without the lists of single classes."""
    lists = {file.stem for year in year_folders(path) for file in (year / "ImageSets" / "Main").glob("*.txt")}
    return sorted(name for name in lists if "_" not in name)


def usual(path: Path, split: str) -> str:
    """Return the usual image set of a split: ``trainval`` and ``test``, if both exist."""
    both = image_sets(path, "trainval") and image_sets(path, "test")
    return {"train": "trainval", "val": "test"}[split] if both else split


def read(_settings: DataSettings, sets: list[tuple[Path, Path]], _split: str) -> list[Source]:
    """Read an image set of all years; see :func:`read_voc`."""
    return [read_voc(folder, file) for folder, file in sets]


def read_voc(folder: Path, file: Path) -> Source:
    """Read one image set of one year.

    All four coordinates are ``int(float(value)) - 1``, as in the reference implementation: pixels counted from 1 become
    coordinates from 0, and a box that includes its last pixel becomes one pixel narrower than its true extent.
    Difficult objects are marked as ignored. Images are numbered from 1 in the order of the list. The classes are VOC's
    twenty if all names are among them, otherwise all names found in the folder, sorted.
    """
    source = Source(file=str(file), categories=[])
    names = listed_names(file, source)
    pictures = pictures_by_name(folder / "JPEGImages")
    files = [folder / "Annotations" / f"{name}.xml" for name in names]
    parsed = in_threads(_parse, files, label="reading annotations")
    source.problems += [problem for _, problems in parsed for problem in problems]
    classes, found = CLASSES, {name for content, _ in parsed for name in content["names"]}
    if not found <= set(CLASSES):
        everything = in_threads(_parse, sorted((folder / "Annotations").glob("*.xml")), label="collecting classes")
        classes = tuple(sorted(found | {name for content, _ in everything for name in content["names"]}))
    source.categories = list(enumerate(classes))
    labels = {name: index for index, name in source.categories}
    for position, (name, (content, _)) in enumerate(zip(names, parsed, strict=True), start=1):
        source.images.append(
            Listed(
                path=pictures.get(name, folder / "JPEGImages" / f"{name}.jpg"),
                image_id=position,
                declared=content["size"],
                boxes=box_arrays(content["boxes"]),
                categories=np.array([labels[label] for label in content["names"]], dtype=np.int64),
                ignored=np.array(content["difficult"], dtype=bool),
                where=f"image {name}",
            )
        )
    return source


Parsed = tuple[dict[str, Any], list[Problem]]


def load_xml(file: Path) -> Element | Problem:
    """Read an XML file; return its root, or the fault."""
    try:
        root: Element = ElementTree.parse(file).getroot()
        return root
    except FileNotFoundError:
        return Problem(
            str(file), "", "there is no such annotation file", "add it, or remove the image from the image set"
        )
    except DefusedXmlException:
        what = "the XML defines entities, which can exhaust memory or read other files"
        return Problem(str(file), "", what, "export plain annotations")
    except (ElementTree.ParseError, OSError, ValueError) as error:
        return Problem(str(file), "", f"not valid XML ({error})", "export the annotation again")


def _parse(file: Path) -> Parsed:
    """Parse one annotation file; return its content and its faults."""
    content: dict[str, Any] = {"size": None, "boxes": [], "names": [], "difficult": []}
    root = load_xml(file)
    if isinstance(root, Problem):
        return content, [root]
    problems = []
    try:
        size = tuple(int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
        content["size"] = size if min(size) > 0 else None  # some tools write zeros for "not known"
    except (ValueError, OverflowError):
        problems.append(Problem(str(file), "size", "is not in whole pixels", "write the size of the image"))
    for position, entry in enumerate(root.findall("object"), start=1):
        try:
            box = tuple(float(int(float(entry.findtext(f"bndbox/{corner}") or "")) - 1) for corner in CORNERS)
        except (ValueError, OverflowError):
            corners = {corner: entry.findtext(f"bndbox/{corner}") for corner in CORNERS}
            what = f"the corners {corners} are not four finite numbers"
            problems.append(Problem(str(file), f"object {position}", what, "write xmin, ymin, xmax, ymax in pixels"))
            continue
        name, difficult = (entry.findtext("name") or "").strip(), (entry.findtext("difficult") or "0").strip()
        fault = None
        if not name:
            fault = "has no name", "write the class of the object"
        elif difficult not in ("0", "1"):
            fault = f"'difficult' is {difficult!r}", "write 0 or 1"
        elif box[2] < box[0] or box[3] < box[1]:
            what = f"the box has width {box[2] - box[0]} and height {box[3] - box[1]}"
            fault = what, "xmin <= xmax and ymin <= ymax"
        if fault:
            problems.append(Problem(str(file), f"object {position}", *fault))
            continue
        content["boxes"].append(box)
        content["names"].append(name)
        content["difficult"].append(difficult == "1")
    return content, problems
