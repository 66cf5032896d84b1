"""labelme: one JSON file of shapes per picture, beside the pictures or in a folder of their own."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from locdistill.annotations.files import folders_below, in_threads, read_text
from locdistill.annotations.folders import Part, PictureFiles, holds, names_below, parts_of
from locdistill.annotations.index import kept_sources
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import LIMIT, Listed, Source, SourceSettings, box_arrays
from locdistill.errors import AnnotationError

LOOKED_FOR = (
    "a .json file with 'shapes' for each picture, beside the pictures or in annotations, in the folder or in train"
)
HOLDS = partial(holds, suffix=".json", start=re.compile(rb'"(shapes|imageData)"\s*:'), probes=4, head_bytes=4096)
"""Function from a folder to whether it has files of labelme; a file of COCO may be large, and is not read whole."""
AROUND = ("polygon", "mask", "rotation")
"""Types of shapes whose box is the one around their points; other types than these and those below have no extent."""


def read(_settings: SourceSettings, path: Path, part: Part, _split: str) -> list[Source]:
    """Read a split.

    Rectangles are boxes; of polygons, masks and circles the box around them is taken. Points and lines are left out.
    Shapes with one label and one ``group_id`` are one object. JSON files without ``shapes`` are passed over. Images are
    numbered from 1 in the order of the names of their files. The classes are the labels of the whole data set, sorted.
    """
    source = Source(file=str(part.annotations), categories=[])
    files = names_below(part.annotations, ".json")
    others = {
        file for other in parts_of(path, HOLDS).values() for file in names_below(other.annotations, ".json").values()
    }
    others.difference_update(files.values())
    depends = [*files.values(), *sorted(others), *folders_below(part.pictures)]
    filled = partial(_with_objects, source, part, files, others)
    return kept_sources(depends, "shapes", filled, [str(part.annotations)])


def _with_objects(source: Source, part: Part, files: Mapping[str, Path], others: Collection[Path]) -> list[Source]:
    """Add images, objects and classes to the source of a part.

    Args:
        source: The source.
        part: The part.
        files: Its annotation files by name.
        others: Annotation files of other splits.
    """
    parsed = dict(zip(files, in_threads(_parse, list(files.values()), label="reading annotations"), strict=True))
    rest = in_threads(_parse, sorted(others), label="collecting classes")
    classes = sorted({row.name for content in (*parsed.values(), *rest) for row in content.rows})
    source.categories = list(enumerate(classes))
    labels = {name: index for index, name in source.categories}
    pictures = PictureFiles(part.pictures, source.notes)
    alone = 0
    for name, content in parsed.items():
        source.problems += content.problems
        source.notes += content.notes
        picture = pictures.find(name, content.picture) if content.shaped else None
        if picture is not None:
            source.images.append(
                Listed(
                    path=picture,
                    image_id=len(source.images) + 1,
                    declared=content.size,
                    boxes=box_arrays([row.box for row in content.rows]),
                    categories=np.array([labels[row.name] for row in content.rows], dtype=np.int64),
                    ignored=np.array([row.difficult for row in content.rows], dtype=bool),
                    where=f"image {name}",
                )
            )
        elif content.shaped and PurePosixPath(name).name not in pictures.unreadable:
            alone += 1
    annotated = {file.stem for file in (*files.values(), *others)}
    pictures.note_missing(source, part, alone=alone, files=len(files), annotated=annotated)
    return [source]


class _Shape(NamedTuple):
    name: str
    difficult: bool
    box: tuple[float, float, float, float]


@dataclass
class _Drawing:
    """Content of a JSON file.

    Attributes:
        shaped: Whether it is a file of labelme, or cannot be read.
        size: Height and width of the picture; None if they are not known.
        picture: Name of the picture as written.
        rows: Objects.
        problems: Faults.
        notes: Number of oddities of each kind.
    """

    shaped: bool = True
    size: tuple[int, int] | None = None
    picture: str = ""
    rows: list[_Shape] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)


def _parse(file: Path) -> _Drawing:
    """Parse one annotation file."""
    found = _Drawing()
    try:
        content = json.loads(read_text(file))
    except AnnotationError as error:
        what, _, remedy = str(error).removeprefix(f"{file}: ").rpartition("; ")
        found.problems.append(Problem(str(file), "", what, remedy))
        return found
    except (OSError, ValueError) as error:
        found.problems.append(Problem(str(file), "", f"not valid JSON ({error})", "save the annotation again"))
        return found
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
        found.shaped = False
        found.notes["JSON files without 'shapes', passed over"] += 1
        return found
    found.picture = str(content.get("imagePath") or "")
    size = (content.get("imageHeight"), content.get("imageWidth"))
    found.size = size if all(type(side) is int and side > 0 for side in size) else None  # type: ignore[assignment]
    groups: dict[str, int] = {}
    for position, shape in enumerate(content["shapes"], start=1):
        row = _shape(shape, found.notes)
        if isinstance(row, _Shape):
            group = f"{shape['group_id']} {row.name}" if shape.get("group_id") is not None else ""
            if group in groups:
                first = found.rows[groups[group]]
                (x1, y1, x2, y2), (left, top, right, bottom) = first.box, row.box
                box = (min(x1, left), min(y1, top), max(x2, right), max(y2, bottom))
                found.rows[groups[group]] = first._replace(box=box)
                found.notes["shapes of one group, taken as one object"] += 1
                continue
            if group:
                groups[group] = len(found.rows)
            found.rows.append(row)
        elif row is not None:
            found.problems.append(Problem(str(file), f"shape {position}", *row))
    return found


def _shape(shape: Any, notes: Counter[str]) -> _Shape | tuple[str, str] | None:
    """Parse a shape; return it, or the fault and the remedy, or None for one without an extent."""
    points: Any = shape.get("points") if isinstance(shape, dict) else None
    pairs = isinstance(points, list) and all(isinstance(point, list) and len(point) == 2 for point in points)
    values = list(chain.from_iterable(points)) if pairs else []
    if not values or not all(type(value) in (int, float) and abs(value) < LIMIT for value in values):
        return f"its points {str(points)[:60]} are not pairs of numbers", "draw it again"
    name = shape.get("label")
    if not isinstance(name, str) or not name.strip():
        return f"its label is {name!r}", "write the class of the object"
    kind = shape.get("shape_type") or "polygon"  # old files have no types
    if kind == "circle" and len(points) == 2:
        (x, y), rim = points
        radius = math.dist((x, y), rim)
        box = (x - radius, y - radius, x + radius, y + radius)
    elif kind == "rectangle" or kind in AROUND:
        xs, ys = zip(*points, strict=True)
        box = (min(xs), min(ys), max(xs), max(ys))
    else:
        notes[f"shapes without an extent ({kind}), left out"] += 1
        return None
    if kind != "rectangle":
        notes[f"shapes that are no rectangles ({kind}), taken as the box around them"] += 1
    return _Shape(name.strip(), shape.get("difficult") is True, tuple(map(float, box)))  # type: ignore[arg-type]
