"""COCO json: images, annotations and categories in one file; optionally with rotated boxes, ``rbox``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from locdistill.data.files import stays_inside
from locdistill.data.problems import Problem
from locdistill.data.records import corners
from locdistill.data.settings import DataSettings
from locdistill.data.sources import LIMIT, Listed, Source, box_arrays, rotated_corners, rotated_fault
from locdistill.errors import AnnotationError

ROBOFLOW = "_annotations.coco.json"
# Other names of a split, as exporters write them.
ALIASES = {"train": ("train",), "val": ("val", "valid", "validation")}
SPLITS = ("train", "val", "test")
PROBES = 20


def annotation_names(split: str) -> list[str]:
    """List possible paths of a split's annotation file in a data folder, in order of preference."""
    names = []
    for alias in ALIASES.get(split, (split,)):
        names += [
            f"{alias}.json",
            f"annotations/instances_{alias}2017.json",
            f"annotations/instances_{alias}.json",
            f"annotations/{alias}.json",
            f"instances_{alias}2017.json",
            f"instances_{alias}.json",
            f"{alias}/{ROBOFLOW}",
        ]
    return names


LOOKED_FOR = f"a .json file, or in the folder {', '.join(annotation_names('train'))} (or of val, test)"


def fits(path: Path, names: Sequence[str]) -> bool:
    """Return whether a path is a COCO json, or a folder with one for any of the splits."""
    return path.suffix == ".json" or (path.is_dir() and any(find_annotations(path, name) for name in names))


def splits(path: Path) -> list[str]:
    """Return the splits that have an annotation file."""
    return [split for split in SPLITS if find_annotations(path, split)]


def read(settings: DataSettings, file: Path, split: str) -> list[Source]:
    """Read the annotation file of a split; see :func:`read_coco`."""
    path = Path(settings.path)
    above = path.parent.parent if path.parent.name == "annotations" else path.parent
    return [read_coco(file, root=path if path.is_dir() else above, split=split)]


def find_annotations(path: Path, split: str) -> Path | None:
    """Find the annotation file of a split, or return ``None``.

    ``split`` is a name, or a ``.json`` file relative to the folder. If ``path`` is itself a file, it belongs to the
    split in its name; a file without a split in its name serves any split.
    """
    if path.is_file():
        if split.endswith(".json"):
            file = path.parent / split
            return file if file.is_file() else None
        aliases = ALIASES.get(split, (split,))
        named = [known for known in ("train", "val", "test") if known in path.name]
        if not named or any(alias in path.name for alias in aliases):
            return path
        siblings = (path.with_name(path.name.replace(name, alias)) for name in named for alias in aliases)
        return next((sibling for sibling in siblings if sibling.is_file()), None)
    names = [split] if split.endswith(".json") else annotation_names(split)
    return next((path / name for name in names if (path / name).is_file()), None)


def read_coco(file: Path, *, root: Path, split: str) -> Source:
    """Read one annotation file.

    Boxes ``[x, y, w, h]`` become ``x, y, x + w, y + h``, not clipped. ``iscrowd`` and the rarer ``ignore`` mark objects
    as ignored (unlike pycocotools, which overwrites ``ignore``). Classes are in the order of the category ids.

    An annotation may have ``rbox = [cx, cy, w, h, theta]`` in addition to its box, with the angle in radians, clockwise
    on screen. If any annotation has one, those without get the corners of their box. Boxes and areas stay as annotated.

    Raises:
        AnnotationError: The file is no COCO json at all. Broken entries are listed in ``problems`` instead.
    """
    content = _load(file)
    source = Source(file=str(file), categories=[])
    images = _read_images(content["images"], source)
    names = _read_categories(content, source)
    source.categories = sorted(names.items())
    rows = _read_annotations(content["annotations"], images, names, source)
    images = {image_id: entry for image_id, entry in images.items() if entry}
    folder = _image_folder(file, root, split, [str(entry["file_name"]) for entry in images.values()])
    position = {identifier: index for index, (identifier, _) in enumerate(source.categories)}
    upright = [row[4] is None for own in rows.values() for row in own]
    oriented = not all(upright)
    if oriented:
        source.notes["objects without 'rbox', taken as upright"] += sum(upright)
    for image_id, entry in images.items():
        own = rows.get(image_id, [])
        declared = (entry["height"], entry["width"]) if "height" in entry and "width" in entry else None
        boxes = box_arrays([row[0] for row in own])
        source.images.append(
            Listed(
                path=folder / entry["file_name"],
                image_id=image_id,
                declared=declared,
                boxes=boxes,
                categories=np.array([position[row[1]] for row in own], dtype=np.int64),
                ignored=np.array([row[2] for row in own], dtype=bool),
                areas=np.array([row[3] for row in own], dtype=np.float64),
                where=f"image {image_id} ({entry['file_name']})",
                quads=_quads(boxes, [row[4] for row in own]) if oriented else None,
            )
        )
    return source


def _quads(boxes: np.ndarray, rotated: list[list[float] | None]) -> np.ndarray:
    """Return the corners of each rotated box, or of the box if there is none."""
    quads = corners(boxes)
    there = [index for index, box in enumerate(rotated) if box is not None]
    quads[there] = rotated_corners([box for box in rotated if box is not None])
    return quads


def _load(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise AnnotationError(f"{file}: not valid JSON ({error}); export the annotations again") from error
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise AnnotationError(
                f"{file}: expected a COCO object with the lists 'images', 'annotations' and 'categories', found no list"
                f" '{key}'; check that this is a detection file (result and caption files differ)"
            )
    return dict(content)


def _report(source: Source, where: str, what: str, remedy: str) -> None:
    source.problems.append(Problem(source.file, where, what, remedy))


def _is_int(value: object) -> bool:
    return type(value) is int  # a bool is none


def _is_number(value: object) -> bool:
    return (type(value) is float or type(value) is int) and -LIMIT < value < LIMIT  # false for NaN


def _read_images(entries: list[Any], source: Source) -> dict[int, dict[str, Any]]:
    """Read the images by id; broken ones stay as empty entries, so that their annotations are not reported too."""
    images: dict[int, dict[str, Any]] = {}
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict) or not _is_int(entry.get("id")):
            _report(source, f"images[{position}]", "has no integer 'id'", "number the images")
            continue
        where, name = f"image {entry['id']}", entry.get("file_name")
        sides = {key: entry[key] for key in ("width", "height") if entry.get(key) is not None}
        if entry["id"] in images:
            _report(source, where, "the id is used twice", "give each image its own id")
        elif not isinstance(name, str) or not name:
            _report(source, where, f"'file_name' is {name!r}, not a name", "name the image file")
        elif not stays_inside(name):
            remedy = "file names are relative to the image folder and stay inside it"
            _report(source, where, f"file name {name!r} leaves the image folder", remedy)
        elif any(not _is_int(side) or side < 1 for side in sides.values()):
            _report(source, where, f"declared size {sides} is not in whole pixels > 0", "write the size of the image")
        else:
            images[entry["id"]] = {"file_name": name, **sides}
            continue
        images.setdefault(entry["id"], {})
    return images


def _read_categories(content: dict[str, Any], source: Source) -> dict[int, str]:
    names: dict[int, str] = {}
    headings = _roboflow_headings(content, source)
    for position, entry in enumerate(content["categories"]):
        where = f"categories[{position}]"
        if not isinstance(entry, dict) or not _is_int(entry.get("id")) or not isinstance(entry.get("name"), str):
            _report(source, where, "has no integer 'id' and text 'name'", "write both")
        elif entry["id"] in headings:
            continue
        elif entry["id"] in names:
            _report(source, where, f"id {entry['id']} is used twice", "give each category its own id")
        elif entry["name"] in names.values():
            _report(source, where, f"name {entry['name']!r} is used twice", "merge the categories")
        else:
            names[entry["id"]] = entry["name"]
    return names


def _roboflow_headings(content: dict[str, Any], source: Source) -> set[int]:
    """Return the id of Roboflow's project heading, category 0: a parent of others, without objects, and no class."""
    entries = [entry for entry in content["categories"] if isinstance(entry, dict)]
    if Path(source.file).name != ROBOFLOW or len(entries) < 2:
        return set()
    used = {entry.get("category_id") for entry in content["annotations"] if isinstance(entry, dict)}
    parents = {entry.get("supercategory") for entry in entries if entry.get("id") != 0}
    return {0} if any(e.get("id") == 0 and e.get("name") in parents for e in entries) and 0 not in used else set()


AnnotationRow = tuple[tuple[float, float, float, float], int, bool, float, list[float] | None]


def _read_annotations(
    entries: list[Any], images: dict[int, dict[str, Any]], names: dict[int, str], source: Source
) -> dict[int, list[AnnotationRow]]:
    rows: dict[int, list[AnnotationRow]] = {}
    seen: set[object] = set()
    for position, entry in enumerate(entries):
        if not isinstance(entry, dict):
            _report(source, f"annotations[{position}]", "is not an object", "export the annotations again")
            continue
        identifier, image_id = entry.get("id", f"[{position}]"), entry.get("image_id")
        fault = _fault(entry, images, names)
        if fault:
            _report(source, f"annotation {identifier} (image {image_id})", *fault)
            continue
        if isinstance(identifier, int):
            source.notes["annotation ids used twice"] += identifier in seen
            seen.add(identifier)
        x, y, w, h = (float(value) for value in entry["bbox"])
        ignored = bool(entry.get("iscrowd", 0)) or bool(entry.get("ignore", 0))
        area = entry.get("area")
        area = w * h if area is None else float(area)
        row = ((x, y, x + w, y + h), entry["category_id"], ignored, area, entry.get("rbox"))
        rows.setdefault(image_id, []).append(row)  # type: ignore[arg-type]  # an int, as _fault made sure
    return rows


def _fault(entry: dict[str, Any], images: dict[int, Any], names: dict[int, str]) -> tuple[str, str] | None:
    """Return the fault of an annotation, and the remedy."""
    image_id, category = entry.get("image_id"), entry.get("category_id")
    if not _is_int(image_id) or image_id not in images:
        return f"no image has the id {image_id!r}", "list the image or remove the annotation"
    if not _is_int(category) or category not in names:
        values = sorted(names)
        some = ", ".join(map(str, values[:10])) + (", ..." if len(values) > 10 else "")
        return f"no category has the id {category!r}", f"known ids: {some}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"'iscrowd' is {entry['iscrowd']!r}", "write 0 or 1"
    if entry.get("area") is not None and not _is_number(entry["area"]):
        return f"'area' is {entry['area']!r}, not a number", "write the area in pixels, or leave it out"
    return _box_fault(entry.get("bbox")) or (None if entry.get("rbox") is None else rotated_fault(entry["rbox"]))


def _box_fault(box: object) -> tuple[str, str] | None:
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
        return f"box {box!r} is not four finite numbers", "boxes are [x, y, w, h] in pixels"
    if box[2] < 0 or box[3] < 0:
        side, value = ("width", box[2]) if box[2] < 0 else ("height", box[3])
        return f"the box has {side} {float(value)}", "boxes are [x, y, w, h] with w, h > 0"
    return None


def _image_folder(file: Path, root: Path, split: str, names: list[str]) -> Path:
    """Return the folder that contains most of the first images."""
    names_of_split = [split, *ALIASES.get(split, ())] if not split.endswith(".json") else []
    stem = file.stem.removeprefix("instances_")
    parts = list(dict.fromkeys([stem, *names_of_split, *(f"{name}2017" for name in names_of_split)]))
    candidates = [file.parent] if file.name == ROBOFLOW else []
    candidates += [root / "images", *(root / "images" / part for part in parts), *(root / part for part in parts)]
    candidates += [root, file.parent, file.parent / "images"]
    candidates = list(dict.fromkeys(candidates))
    found = [sum((folder / name).is_file() for name in names[:PROBES]) for folder in candidates]
    if names and not max(found):
        looked = "".join(f"\n  {folder}" for folder in candidates)
        raise AnnotationError(
            f"{file}: none of its first images ({names[0]}, ...) is in any of these folders:{looked}\n"
            "put the images into one of them"
        )
    return candidates[found.index(max(found))] if names else root
