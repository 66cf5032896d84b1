"""The entries of a COCO file: images, categories, and annotations with boxes, checked and in plain types."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from locdistill.annotations.masks import box_around
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import LIMIT, Listed, Source, box_arrays, rotated_corners, rotated_fault
from locdistill.annotations.values import number, whole

FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1, "": 0}
MASKS = "objects without a box, given the box around their mask"
ROTATED = "objects with a rotated box alone, given the box around it"
HEADINGS = "categories that only group others and have no objects, left out"
SIDES = "sides of images written as text or with a fraction of zero, read as whole numbers"
NAMES = "category names that are numbers, read as text"
SLACK = 1.0  # pixels by which boxes may leave the image through rounding
CORNERS_FIT, SIDES_LEAVE = 0.95, 1 / 3


def report(source: Source, where: str, what: str, remedy: str) -> None:
    """Add a problem to a source."""
    source.problems.append(Problem(source.file, where, what, remedy))


def read_images(entries: list[Any], source: Source) -> dict[int, dict[str, Any]]:
    """Read the images by id; broken ones stay as empty entries, so that their annotations are not reported too.

    An image without ``file_name`` has the name in its ``coco_url``, as in LVIS.
    """
    images: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        identifier = whole(entry.get("id"), source.notes) if isinstance(entry, dict) else None
        if identifier is None:
            report(source, f"images[{position}]", "has no integer 'id'", "number the images")
            continue
        where, name = f"image {identifier}", entry.get("file_name", entry.get("coco_url"))
        sides = {key: entry[key] for key in ("width", "height") if entry.get(key) is not None}
        pixels = {key: whole(side, source.notes, SIDES) for key, side in sides.items()}
        if identifier in images:
            report(source, where, "the id is used twice", "give each image its own id")
        elif not isinstance(name, str) or not name:
            report(source, where, f"'file_name' is {name!r}, not a name", "name the image file")
        elif any(side is None or side < 1 for side in pixels.values()):
            report(source, where, f"declared size {sides} is not in whole pixels > 0", "write the size of the image")
        else:
            images[identifier] = {"file_name": name, **pixels}
            continue
        images.setdefault(identifier, {})
    return images


def read_categories(content: dict[str, Any], source: Source, others: Iterable[dict[str, Any]]) -> dict[int, str]:
    """Read the names of the categories by id, without those that only group others.

    Args:
        content: The file.
        source: The source for problems and notes.
        others: The other files of the data set, which are read only if it matters what they use.
    """
    names: dict[int, str] = {}
    headings = _headings(content, others) if "annotations" in content else set()
    for position, entry in enumerate(content["categories"]):
        where = f"categories[{position}]"
        identifier, name = _category(entry, source.notes)
        if identifier is None or name is None:
            report(source, where, "has no integer 'id' and text 'name'", "write both")
        elif identifier in headings:
            source.notes[HEADINGS] += 1
        elif identifier in names:
            report(source, where, f"id {identifier} is used twice", "give each category its own id")
        elif name in names.values():
            report(source, where, f"name {name!r} is used twice", "merge the categories")
        else:
            names[identifier] = name
    return names


def _category(entry: object, notes: Counter[str]) -> tuple[int | None, str | None]:
    """Return id and name of a category, each None if it has none."""
    if not isinstance(entry, dict):
        return None, None
    name = entry.get("name")
    if type(name) in (int, float):
        notes[NAMES] += 1
        name = str(name)
    return whole(entry.get("id"), notes), name if isinstance(name, str) else None


def _headings(content: dict[str, Any], others: Iterable[dict[str, Any]]) -> set[int]:
    """Return the ids of categories that are the supercategory of others, and without objects in any of the files.

    Exporters write the name of the project as such a category.
    """
    found = {identifier: name for identifier, name, used in _parents(content) if not used}
    for other in others if found else ():
        taken = {name for _, name, used in _parents(other) if used}
        found = {identifier: name for identifier, name in found.items() if name not in taken}
    return set(found)


def _parents(content: dict[str, Any]) -> list[tuple[int, str, bool]]:
    """Return id and name of each category that is the supercategory of another one, and whether it has objects."""
    entries = [entry for entry in content.get("categories") or [] if isinstance(entry, dict)]
    categories = [(*_category(entry, Counter()), entry.get("supercategory")) for entry in entries]
    children = {(parent, identifier) for identifier, _, parent in categories if isinstance(parent, str)}
    parents = {
        identifier: name
        for identifier, name, _ in categories
        if identifier is not None
        and name is not None
        and any(parent == name and child != identifier for parent, child in children)
    }
    objects = [entry for entry in content.get("annotations") or [] if isinstance(entry, dict)] if parents else []
    used = {whole(entry.get("category_id"), Counter()) for entry in objects}
    return [(identifier, name, identifier in used) for identifier, name in parents.items()]


class AnnotationTable(NamedTuple):
    """The objects of a file.

    Attributes:
        images: ``(n,)`` ids of their images.
        categories: ``(n,)`` ids of their categories.
        boxes: ``(n, 4)``, ``x1, y1, x2, y2`` in pixels.
        ignored: ``(n,)`` crowd regions.
        areas: ``(n,)`` in pixels.
        turned: Rotated box of each, None where there is none; empty if no object has one.
    """

    images: np.ndarray
    categories: np.ndarray
    boxes: np.ndarray
    ignored: np.ndarray
    areas: np.ndarray
    turned: list[list[float] | None]


def read_annotations(
    entries: list[Any], images: dict[int, dict[str, Any]], names: dict[int, str], source: Source
) -> AnnotationTable:
    """Read the annotations: at once if none needs a word, else one by one; those with a fault are problems."""
    with suppress(KeyError, TypeError, ValueError, OverflowError):
        if table := _regular(entries, images, names, source.notes):
            return table
    rows: list[tuple[int, int, tuple[float, ...], bool, float, list[float] | None]] = []
    seen: set[int] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            report(source, f"annotations[{position}]", "is not an object", "export the annotations again")
            continue
        fault = _fault(entry, images, names)
        if fault:  # perhaps only of the types
            entry = _converted(entry, images, source.notes)  # noqa: PLW2901
            fault = _fault(entry, images, names)
        identifier, image_id = entry.get("id", f"[{position}]"), entry.get("image_id")
        if fault:
            report(source, f"annotation {identifier} (image {image_id})", *fault)
            continue
        if (own := whole(identifier, source.notes)) is not None:
            source.notes["annotation ids used twice"] += own in seen
            seen.add(own)
        x, y, w, h = (float(value) for value in entry["bbox"])
        ignored = bool(entry.get("iscrowd", 0)) or bool(entry.get("ignore", 0))
        area = entry.get("area")
        area = w * h if area is None else float(area)
        rows.append((entry["image_id"], entry["category_id"], (x, y, x + w, y + h), ignored, area, entry.get("rbox")))
    owners, kinds, boxes, flags, areas, turned = zip(*rows, strict=True) if rows else ((),) * 6
    return AnnotationTable(
        images=np.array(owners, dtype=np.int64),
        categories=np.array(kinds, dtype=np.int64),
        boxes=box_arrays(list(boxes)),
        ignored=np.array(flags, dtype=bool),
        areas=np.array(areas, dtype=np.float64),
        turned=list(turned) if any(box is not None for box in turned) else [],
    )


def _regular(
    entries: list[Any], images: dict[int, Any], names: dict[int, str], notes: Counter[str]
) -> AnnotationTable | None:
    """Read annotations of which none needs a word, all at once; return None if one may do.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: One of them lacks a value, or has one of another type.
    """
    owners, kinds, own = ([entry[key] for entry in entries] for key in ("image_id", "category_id", "id"))
    listed = [entry["bbox"] for entry in entries]
    flags = [[entry.get(key, 0) for entry in entries] for key in ("iscrowd", "ignore")]
    areas = [entry.get("area") for entry in entries]
    usual = (
        set(map(type, chain(owners, kinds, own))) <= {int}
        and set(owners) <= images.keys()
        and set(kinds) <= names.keys()
        and set(map(type, listed)) <= {list}
        and set(map(len, listed)) <= {4}
        and set(map(type, chain.from_iterable(listed))) <= {int, float}
        and set(chain(*flags)) <= {0, 1}
        and set(map(type, areas)) <= {int, float, type(None)}
        and not any("rbox" in entry for entry in entries)
    )
    if not usual:
        return None
    boxes = np.fromiter(chain.from_iterable(listed), np.float64, 4 * len(listed)).reshape(-1, 4)
    sides = boxes[:, 2:]
    missing = np.array([area is None for area in areas], dtype=bool)
    written = np.array([0 if area is None else area for area in areas], dtype=np.float64)
    if not ((np.abs(boxes) < LIMIT).all() and (np.abs(written) < LIMIT).all() and (sides >= 0).all()):
        return None
    notes["annotation ids used twice"] += len(own) - len(set(own))
    return AnnotationTable(
        images=np.array(owners, dtype=np.int64),
        categories=np.array(kinds, dtype=np.int64),
        boxes=np.concatenate((boxes[:, :2], boxes[:, :2] + sides), axis=1),
        ignored=np.array(flags[0], dtype=bool) | np.array(flags[1], dtype=bool),
        areas=np.where(missing, sides.prod(-1), written),
        turned=[],
    )


def _converted(entry: dict[str, Any], images: dict[int, dict[str, Any]], notes: Counter[str]) -> dict[str, Any]:
    """Return an annotation with ids, numbers and flags in their proper types, and with the box around its mask."""
    entry = dict(entry)
    for key in ("image_id", "category_id"):
        identifier = whole(entry.get(key), notes)
        entry[key] = entry.get(key) if identifier is None else identifier
    for key in ("iscrowd", "ignore"):
        flag = entry.get(key)
        text = "" if flag is None else str(flag).strip().lower()
        entry[key] = FLAGS.get(text, flag)
    mask = entry.get("segmentation")
    if not entry.get("bbox") and mask:
        image = images.get(entry["image_id"], {}) if type(entry["image_id"]) is int else {}
        sides = [image.get("height"), image.get("width")]
        resized = isinstance(mask, dict) and None not in sides and mask.get("size") != sides
        box = None if resized else box_around(mask)
        notes[MASKS] += box is not None
        entry["bbox"] = box and list(box)
    for key in ("bbox", "rbox"):
        if isinstance(entry.get(key), list):
            entry[key] = [number(value, notes) for value in entry[key]]
    turned = entry.get("rbox")
    if not entry.get("bbox") and not mask and turned is not None and rotated_fault(turned) is None:
        (x1, y1), (x2, y2) = (rotated_corners([turned])[0].min(0), rotated_corners([turned])[0].max(0))
        entry["bbox"] = [float(side) for side in (x1, y1, x2 - x1, y2 - y1)]
        entry["area"] = turned[2] * turned[3] if entry.get("area") is None else entry["area"]
        notes[ROTATED] += 1
    entry["area"] = number(entry.get("area"), notes)
    return entry


def _is_number(value: object) -> bool:
    return (type(value) is float or type(value) is int) and -LIMIT < value < LIMIT  # false for NaN


def _fault(entry: dict[str, Any], images: dict[int, Any], names: dict[int, str]) -> tuple[str, str] | None:
    """Return the fault of an annotation, and the remedy."""
    image_id, category = entry.get("image_id"), entry.get("category_id")
    if type(image_id) is not int or image_id not in images:
        return f"no image has the id {image_id!r}", "list the image or remove the annotation"
    if type(category) is not int or category not in names:
        values = sorted(names)
        some = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        return f"no category has the id {category!r}", f"known ids: {some}"
    for flag in ("iscrowd", "ignore"):
        if entry.get(flag, 0) not in (0, 1):
            return f"{flag!r} is {entry[flag]!r}", "write 0 or 1"
    if entry.get("area") is not None and not _is_number(entry["area"]):
        return f"'area' is {entry['area']!r}, not a number", "write the area in pixels, or leave it out"
    if not entry.get("bbox") and entry.get("segmentation"):
        return (
            "has no 'bbox', and its 'segmentation' is no mask",
            "write a box, polygons, or run lengths with the image's size",
        )
    turned = None if entry.get("rbox") is None else rotated_fault(entry["rbox"])
    return turned or _box_fault(entry.get("bbox"))


def _box_fault(box: object) -> tuple[str, str] | None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"box {box!r} is not four finite numbers", "boxes are [x, y, w, h] in pixels"
    if box[2] < 0 or box[3] < 0:
        side, value = ("width", box[2]) if box[2] < 0 else ("height", box[3])
        return f"the box has {side} {float(value)}", "boxes are [x, y, w, h] with w, h > 0"
    return None


def misread(images: Sequence[Listed]) -> tuple[str, str] | None:
    """Return the fault of all boxes of a file that are not ``[x, y, w, h]`` in pixels, and the remedy.

    Boxes are corners ``[x1, y1, x2, y2]`` if many leave their images, and hardly any would as corners; only images with
    declared sides are considered. Boxes that all lie between 0 and 1 are fractions.
    """
    boxes = np.concatenate([np.zeros((0, 4)), *(listed.boxes for listed in images)])
    sizes = [listed.declared[::-1] if listed.declared else (np.nan, np.nan) for listed in images]
    counts = np.array([len(listed.boxes) for listed in images], dtype=np.int64)
    bounds = np.asarray(sizes, dtype=np.float64).reshape(-1, 2).repeat(counts, axis=0)
    start, end, sides = boxes[:, :2], boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]
    real = (sides > 0).all(-1)
    if real.any() and (start[real] >= 0).all() and (end[real] <= 1 + 1e-6).all():
        return "all boxes lie between 0 and 1, like fractions of the sides", "boxes are [x, y, w, h] in pixels"
    known = np.isfinite(bounds[:, 0])
    start, end, sides, bounds = (values[known] for values in (start, end, sides, bounds))
    leave = (end > bounds + SLACK).any(-1)
    fit = ((start >= 0) & (sides > start) & (sides <= bounds + SLACK)).all(-1)
    if known.any() and leave.mean() >= SIDES_LEAVE and fit.mean() >= CORNERS_FIT:
        what = f"{int(leave.sum())} of {int(known.sum())} boxes leave their images, and fit them as [x1, y1, x2, y2]"
        return what, "boxes are [x, y, w, h] in pixels: write width and height for the second corner"
    return None
