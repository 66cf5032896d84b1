"""COCO json: images, annotations and categories in one file; optionally with rotated boxes, ``rbox``."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from locdistill.annotations.coco_entries import misread, read_annotations, read_categories, read_images, report
from locdistill.annotations.coco_files import (
    ALIASES,
    ANNOTATION_FOLDERS,
    PART,
    PROBES,
    ROBOFLOW,
    SPLIT_OF,
    SPLITS,
    annotation_files,
    find_annotations,
    looks_like_coco,
    name_of,
    split_of,
)
from locdistill.annotations.files import read_text, subfolders
from locdistill.annotations.index import kept_sources
from locdistill.annotations.lookup import PictureLookup
from locdistill.annotations.sources import Listed, Source, SourceSettings, corners, parts_between, rotated_corners
from locdistill.errors import AnnotationError

UNNAMED = "files without a split in their name, taken as the training images"
OTHER_KINDS = {"caption": "captions", "segments_info": "panoptic segments", "keypoints": "key points"}
"""Content of a file of COCO without boxes, by a key of its first annotation."""


def _data_folder(path: Path) -> Path:
    """Return the folder of a data set, from it or from its annotation file or folder."""
    folder = path if path.is_dir() else path.parent
    return folder.parent if folder.name.lower() in ANNOTATION_FOLDERS else folder


def read(_settings: SourceSettings, path: Path, file: Path, split: str) -> list[Source]:
    """Read the annotation file of a split; see :func:`read_coco`."""
    root = _data_folder(path if path.is_dir() else file)
    others = [found.path for found in annotation_files(root)]
    key = f"{os.path.abspath(root)} {split}"
    source = kept_sources([file, *others], key, lambda: [read_coco(file, root=root, split=split)])[0]
    if split == "train" and any(found.path == file and found.split is None for found in annotation_files(path)):
        source.notes[UNNAMED] += 1
    return [source]


def read_coco(file: Path, *, root: Path, split: str) -> Source:
    """Read one annotation file.

    Boxes ``[x, y, w, h]`` become ``x, y, x + w, y + h``, not clipped; without one, they are the box around the mask.
    ``iscrowd`` and the rarer ``ignore`` mark objects as ignored (unlike pycocotools, which overwrites ``ignore``).
    Classes are in the order of the category ids; categories that only group others are left out.

    An annotation may have ``rbox = [cx, cy, w, h, theta]`` beside its box or in its place, with the angle in radians,
    clockwise on screen. If any annotation has one, those without get the corners of their box. Boxes and areas stay as
    annotated.

    Raises:
        AnnotationError: The file is no COCO json at all. Broken entries are listed in ``problems`` instead.
    """
    content = _load(file)
    source = Source(file=str(file), categories=[], labelled="annotations" in content)
    images = read_images(content["images"], source)
    if not source.labelled and not content.get("categories"):
        content["categories"] = _categories_beside(file, root, source)
    names = read_categories(content, source, _others(file, root))
    source.categories = sorted(names.items())
    table = read_annotations(content.pop("annotations", []), images, names, source)
    paths = _find_pictures(
        file, root, split, {key: entry["file_name"] for key, entry in images.items() if entry}, source
    )
    quads = None
    if table.turned:
        quads = corners(table.boxes)
        there = [index for index, box in enumerate(table.turned) if box is not None]
        quads[there] = rotated_corners([box for box in table.turned if box is not None])
        source.notes["objects without 'rbox', taken as upright"] += len(quads) - len(there)
    # the objects of each image, in the order of the images; those of images with a fault come last
    place = {image_id: number for number, image_id in enumerate(paths)}
    owner = np.array([place.get(image_id, len(place)) for image_id in table.images.tolist()], dtype=np.int64)
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(len(place)), side="right").tolist()
    labels = np.searchsorted(np.array([number for number, _ in source.categories]), table.categories)
    columns = [
        [None] * len(ends) if column is None else parts_between(column[order], ends)
        for column in (table.boxes, labels, table.ignored, table.areas, quads)
    ]
    for (image_id, path), boxes, categories, ignored, areas, own in zip(paths.items(), *columns, strict=True):
        entry = images[image_id]
        declared = (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None
        where = f"image {image_id} ({entry['file_name']})"
        source.images.append(Listed(path, image_id, declared, boxes, categories, ignored, areas, where, own))
    if fault := misread(source.images):
        report(source, "", *fault)
    return source


def _load(file: Path) -> dict[str, Any]:
    """Read a file with a list of images; lists of annotations and categories may be absent together."""
    try:
        content = json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: not valid JSON ({error}); export the annotations again") from error
    entries = content.get("annotations") if isinstance(content, dict) else content
    first = entries[0] if isinstance(entries, list) and entries and isinstance(entries[0], dict) else {}
    kind = "results of a detector" if isinstance(content, list) and "score" in first else ""
    if isinstance(content, dict) and "bbox" not in first:
        kind = next((kind for key, kind in OTHER_KINDS.items() if key in first), "")
    if kind:
        raise AnnotationError(
            f"{file}: holds {kind}, not annotated boxes; name the file of the boxes, such as instances_train.json"
        )
    lists = ["images", "annotations", "categories"]
    if isinstance(content, dict) and "annotations" not in content and isinstance(content.get("images"), list):
        lists = ["images", "categories"] if content.get("categories") else ["images"]
    for key in lists:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(
                f"{file}: expected a COCO object with the lists 'images', 'annotations' and 'categories', found no list"
                f" '{key}'; check that this is a detection file"
            )
    return dict(content)


def _others(file: Path, root: Path) -> Iterator[dict[str, Any]]:
    """Yield the content of the other COCO files in a data folder, first those of the usual splits."""
    usual = [find_annotations(root, split) for split in SPLITS]
    files = [found.path for found in annotation_files(root)[:PROBES]]
    for other in dict.fromkeys((*usual, *files)):
        if other is not None and not other.samefile(file) and looks_like_coco(other):
            try:
                yield _load(other)
            except AnnotationError:
                continue  # a file of its own, which may be anything


def _categories_beside(file: Path, root: Path, source: Source) -> list[Any]:
    """Return the categories of another file of the data set, for one that has none."""
    for other in _others(file, root):
        if other.get("categories"):
            source.notes["files without categories, which are taken from another file of the folder"] += 1
            return list(other["categories"])
    raise AnnotationError(
        f"{file}: has no categories, so that the ids of the classes are not known; copy 'categories' from the file of "
        "the training images"
    )


def _find_pictures(file: Path, root: Path, split: str, names: dict[int, str], source: Source) -> dict[int, Path]:
    """Find the pictures of the images; a name that leaves the folder, or the same picture twice, is a problem."""
    own = split_of(file.stem) or SPLIT_OF.get(file.parent.name.lower())
    lookup = PictureLookup(root, source.notes, foreign=lambda folder: bool(own) and split_of(folder) not in (None, own))
    wanted = own or SPLIT_OF.get(split.lower())
    stem, aliases = name_of(file), ALIASES.get(wanted or "", ())
    words = [stem, re.sub(PART, "", stem), *aliases, *(f"{alias}2017" for alias in aliases)]
    folders = [file.parent] if file.name == ROBOFLOW else []  # in order of preference
    for base in (root, _data_folder(file), file.parent):
        above = [base / "images", base / "data", base]
        named = [folder / word for folder in above for word in words]
        existing = [sub for folder in above for sub in subfolders(folder) if wanted and split_of(sub.name) == wanted]
        folders += [*above[:2], *named, *existing, *(folder / "images" for folder in (*named, *existing)), base]
    lookup.choose_folder(list(dict.fromkeys(folders)), list(names.values()), file)
    paths: dict[int, Path] = {}
    first: dict[Path, int] = {}
    for image_id, name in names.items():
        found = lookup.find(name)
        if not isinstance(found, Path):
            report(source, f"image {image_id}", *found)
        elif (other := first.setdefault(found, image_id)) != image_id:
            what = f"is the same file as image {other}, {name}"
            report(source, f"image {image_id}", what, "list each file once, with all of its objects")
        else:
            paths[image_id] = found
    return paths
