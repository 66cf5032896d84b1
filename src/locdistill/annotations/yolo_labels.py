"""Label files of YOLO: rows of boxes, of polygons, of the corners of rotated boxes, or of boxes with key points."""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import numpy as np

from locdistill.annotations.coco_files import SPLIT_OF, split_of
from locdistill.annotations.files import IMAGE_SUFFIXES, UPLOADED, files_below, is_hidden, read_text
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import Source, box_arrays
from locdistill.annotations.yolo_description import is_other_text, label_folders
from locdistill.errors import AnnotationError

ROUNDING = 1e-4
"""Share of the image's side by which edges may be outside unnoticed: exporters round to four or more digits."""
BORDER = 0.01
"""Share of the image's side by which an edge may be outside and is limited to it: a pixel of 100."""
LARGEST_SHARE = 2.0
"""Value from which on a row must be in pixels."""
FEW = 0.1
"""Share of the images with label files below which some are probably missing."""
EXPECTED = "expected 'class cx cy w h'"
DECIMAL_COMMA = re.compile(r"-?\d*,\d+")


class LabelRow(NamedTuple):
    """A row of a label file.

    Attributes:
        line: Number of the line, from 1.
        label: Number of the class.
        values: The numbers after the class.
    """

    line: int
    label: int
    values: tuple[float, ...]


class LabelFile(NamedTuple):
    """A label file as read; empty if there is none.

    Attributes:
        rows: Rows with a known class and finite numbers.
        problems: Faults of other rows, or of the file.
        with_commas: Number of rows with commas between the numbers or in them.
    """

    rows: list[LabelRow]
    problems: list[Problem]
    with_commas: int = 0


RowKind: TypeAlias = Literal["boxes", "corners", "key points"]
"""Meaning of rows that are no box: polygons among ``boxes``, ``corners`` of rotated boxes, or ``key points``."""


def find_labels(
    pictures: Sequence[Path], folders: Sequence[Path], source: Source, *, split: str, root: Path
) -> list[Path | None]:
    """Find the label file of each image, None for one without; see :func:`label_folders`.

    Where none has one in the usual places, they are looked for by name in all folders of labels.

    Images without a label file, label files without an image, and images that share one are counted in the notes.

    Args:
        pictures: Images of the split.
        folders: Folders of the split, of which all images are used.
        source: Source for notes, and for the problem that no image has a label file.
        split: Name of the split; in ``test`` that is no problem.
        root: The data folder.
    """
    own: defaultdict[Path, list[tuple[Path, str]]] = defaultdict(list)
    folder_of: dict[str, Path] = {}
    for picture in pictures:
        above, _, name = str(picture).rpartition(os.sep)
        own[folder_of.get(above) or folder_of.setdefault(above, picture.parent)].append((picture, _stem(name)))
    files: dict[Path, Path | None] = {}
    strays: set[Path] = set()
    for folder, there in own.items():
        present = _by_stem(folder, IMAGE_SUFFIXES)
        for place in reversed(label_folders(folder)):
            texts = _by_stem(place, (".txt",))
            labels = {picture: place / texts[stem] for picture, stem in there if stem in texts}
            files |= labels
            if labels or place != folder:
                lost = (place / texts[stem] for stem in texts.keys() - present.keys())
                strays |= {file for file in lost if not is_other_text(file)}
    for folder in folders:
        for place in label_folders(folder)[:-1]:
            for below, _, names in os.walk(place):
                if folder / Path(below).relative_to(place) not in own:
                    strays |= {Path(below, name) for name in names if name.lower().endswith(".txt")}
    strays = {file for file in strays if not is_hidden(file.name)}
    if not files:
        files = {**_labels_elsewhere(pictures, root, split, source.notes)}
        strays -= set(filter(None, files.values()))
    missing = [picture for picture in pictures if picture not in files]
    shared = len(pictures) - sum(len({stem for _, stem in there}) for there in own.values())
    source.notes["label files without an image, left out"] += len(strays)
    source.notes["images that share their name, and so their label file, with another"] += shared
    few = len(pictures) - len(missing) < FEW * len(pictures)
    doubt = " (nearly all of the split: are label files missing?)" if few else ""
    source.notes[f"images without a label file, taken as without objects{doubt}"] += len(missing)
    if split != "test" and pictures and not files:
        usual = [place / f"{missing[0].stem}.txt" for place in label_folders(missing[0].parent)]
        what = f"none of the {len(missing)} images has a label file; looked for {' and '.join(map(str, usual))}"
        remedy = "put the label files there; an image without objects may have an empty one"
        source.problems.append(Problem(source.file, "", what, remedy))
    return [files.get(picture) for picture in pictures]


def _labels_elsewhere(pictures: Sequence[Path], root: Path, split: str, notes: Counter[str]) -> dict[Path, Path]:
    """Find label files by name in folders with ``label`` in their own, outside those of other splits.

    Labels may be in one folder while images are divided into splits, or the other way round, and Label Studio puts
    eight digits before the names. A name that occurs more than once is left out.
    """
    texts: defaultdict[str, list[Path]] = defaultdict(list)
    for file in files_below(root, (".txt",)):
        above = file.relative_to(root).parts[:-1]
        splits = {split_of(part) for part in above} - {None, SPLIT_OF.get(split.lower(), split)}
        if any("label" in part.lower() for part in above) and not splits and not is_other_text(file):
            for stem in {_stem(file.name), UPLOADED.sub("", _stem(file.name), count=1)}:
                texts[stem].append(file)
    stems = Counter(_stem(picture.name) for picture in pictures)
    found = {
        picture: texts[stem][0]
        for picture in pictures
        if stems[stem := _stem(picture.name)] == 1 and len(texts.get(stem, [])) == 1
    }
    places = sorted({file.parent.relative_to(root).as_posix() for file in found.values()})
    notes[f"label files that are not in the usual place, found by name in {', '.join(places[:3])}"] += len(found)
    return found


def _by_stem(folder: Path, suffixes: Container[str]) -> dict[str, str]:
    """Map the names of a folder's files without their endings to those with; only some endings, empty for no folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not is_hidden(entry.name) and entry.is_file()]
    ends = {f".{name.rpartition('.')[2]}" for name in names}
    wanted = {end for end in ends if end.lower() in suffixes}
    return {_stem(name): name for name in names if f".{name.rpartition('.')[2]}" in wanted}


def _stem(name: str) -> str:
    """Return a file name without its ending; accented letters are one character, however the disk has them."""
    stem = name.rpartition(".")[0] or name
    return stem if stem.isascii() else unicodedata.normalize("NFC", stem)


def parse(file: Path | None, names: Sequence[str]) -> LabelFile:
    """Read the rows of a label file: numbers between blanks or commas, of which the first is the class."""
    if file is None:
        return LabelFile([], [])
    try:
        text = read_text(file)
    except AnnotationError as error:
        what, _, remedy = str(error).removeprefix(f"{file}: ").rpartition("; ")
        return LabelFile([], [Problem(str(file), "", what, remedy)])
    except FileNotFoundError:
        return LabelFile([], [Problem(str(file), "", "was removed while it was read", "start again")])
    rows: list[LabelRow] = []
    problems: list[Problem] = []
    with_commas = 0
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if "," in line or ";" in line:
            fields, with_commas = _between_commas(line), with_commas + 1
        fault = None
        try:
            values = tuple(map(float, fields[1:]))
            label = float(fields[0])
        except ValueError:
            fault = _no_number(fields, names)
        else:
            if not label.is_integer() or not 0 <= label < len(names):
                fault = f"the class is {fields[0]}", f"the data set has the classes 0 to {len(names) - 1}"
            elif not all(map(math.isfinite, values)):
                fault = f"{' '.join(fields[1:])} are not finite numbers", EXPECTED
        if fault:
            problems.append(Problem(str(file), f"line {number}", *fault))
        else:
            rows.append(LabelRow(number, int(label), values))
    return LabelFile(rows, problems, with_commas)


def _between_commas(line: str) -> list[str]:
    """Split a line with commas, which separate numbers, or are decimal signs if blanks or semicolons separate them."""
    fields = [field for field in re.split(r"[\s;]+", line) if field]
    inner = [field for field in fields if "," in field]
    if len(fields) > 1 and "." not in line and all(DECIMAL_COMMA.fullmatch(field) for field in inner):
        return [field.replace(",", ".") for field in fields]
    return [field for field in re.split(r"[\s,;]+", line) if field] or [line.strip()]


def _no_number(fields: list[str], names: Sequence[str]) -> tuple[str, str]:
    """Return the fault and the remedy of a row in which not all fields are numbers."""
    if fields[0] in names:
        return f"the class is {fields[0]!r}, a name", f"write its number in 'names', {names.index(fields[0])}"
    try:
        float(fields[0])
    except ValueError:
        return f"the class is {fields[0]!r}, which is no number", f"{EXPECTED}, with classes 0 to {len(names) - 1}"
    return f"{' '.join(fields)!r} are not all numbers", EXPECTED


def kind_of_rows(files: Sequence[LabelFile], points: tuple[int, int] | None) -> RowKind:
    """Decide what the rows of a split mean that are longer than a box.

    Rows are ``corners`` if each has four, with or without a confidence. They are boxes with ``key points`` if the
    description says so, or if all that are longer than a box have the same length, and 0, 1 or 2, a visibility, after
    each point. Otherwise an even number of values is a polygon.

    Args:
        files: All label files.
        points: ``kpt_shape`` of the description: number of key points, and of values for each.
    """
    if points is not None:
        return "key points"
    rows = [row for file in files for row in file.rows]
    lengths = {len(row.values) for row in rows}
    if lengths and lengths <= {8, 9}:
        return "corners"
    longer = lengths - set(range(6))
    if len(longer) == 1 and (min(longer) - 4) % 3 == 0:
        visible = {value for row in rows if len(row.values) > 5 for value in row.values[6::3]}
        return "key points" if visible <= {0, 1, 2} else "boxes"
    return "boxes"


class Objects(NamedTuple):
    """The objects of an image, as fractions of its sides.

    Attributes:
        boxes: ``(n, 4)``, ``x1, y1, x2, y2``.
        labels: ``(n,)`` numbers of the classes.
        quads: ``(n, 4, 2)`` corners as written.
    """

    boxes: np.ndarray
    labels: np.ndarray
    quads: np.ndarray


def objects_of(
    file: str, rows: Sequence[LabelRow], kind: RowKind, points: tuple[int, int] | None, source: Source
) -> Objects:
    """Convert rows to boxes, or to corners; what is dropped, limited or odd is counted in the source's notes."""
    boxes, labels, corners = [], [], []
    for row in rows:
        try:
            shape = _shape(row.values, kind, points, source.notes)
            if kind == "corners":
                corners.append(shape)
            else:
                boxes.append(_edges(shape, source.notes))
        except ValueError as fault:
            source.problems.append(Problem(file, f"line {row.line}", *fault.args))
        else:
            labels.append(row.label)
    source.notes["label lines written twice"] += len(rows) - len({(row.label, row.values) for row in rows})
    quads = np.asarray(corners, dtype=np.float64).reshape(-1, 4, 2)
    return Objects(box_arrays(boxes), np.array(labels, dtype=np.int64), quads)


def _shape(
    values: tuple[float, ...], kind: RowKind, points: tuple[int, int] | None, notes: Counter[str]
) -> tuple[float, ...]:
    """Return the box or the corners of a row; count in the notes what else it has.

    Raises:
        ValueError: With the fault and the remedy.
    """
    count = len(values)
    if count == 5 and points is None:
        if not 0 <= values[4] <= 1:
            what = f"the sixth column is {values[4]:g}, and so no confidence (0 to 1)"
            raise ValueError(what, "write the four corners of a rotated box, or remove the column")
        notes["label lines with a confidence in the sixth column, dropped"] += 1
        values = values[:4]
    elif count > 4 and kind == "key points":
        if points is not None and count - 4 - points[0] * points[1] not in (0, 1):  # 1 for a confidence
            expected = 5 + points[0] * points[1]
            raise ValueError(f"has {count + 1} fields", f"expected 5, or {expected} for 'kpt_shape' {list(points)}")
        notes["boxes with key points, which are left out"] += 1
        values = values[:4]
    elif count >= 9 and count % 2 and 0 <= values[-1] <= 1:
        notes["label lines with a confidence behind the corners, dropped"] += 1
        return _shape(values[:-1], kind, points, notes)
    elif count < 4 or count % 2:
        raise ValueError(f"has {count + 1} fields", f"{EXPECTED}, or a polygon; for key points set 'kpt_shape'")
    elif kind == "corners":
        notes["label lines with four corners, read as rotated boxes"] += 1
    elif count > 4:
        notes["polygons, replaced by the boxes around them"] += 1
    if max(map(abs, values)) > LARGEST_SHARE:
        what = f"values up to {max(values, key=abs):g}: these are pixels"
        raise ValueError(what, "YOLO rows are shares of the image's sides, from 0 to 1")
    return values


def _edges(shape: tuple[float, ...], notes: Counter[str]) -> tuple[float, float, float, float]:
    """Return the box of ``cx, cy, w, h``, or the one around a polygon, with edges just outside the image limited to it.

    Raises:
        ValueError: With the fault and the remedy.
    """
    if len(shape) > 4:
        edges = min(shape[::2]), min(shape[1::2]), max(shape[::2]), max(shape[1::2])
    else:
        x, y, w, h = shape
        if w < -ROUNDING or h < -ROUNDING:
            raise ValueError(f"the box has width {w:g} and height {h:g}", "write sides of 0 or more")
        if not (-BORDER <= x <= 1 + BORDER and -BORDER <= y <= 1 + BORDER and max(w, h) <= 1 + 2 * BORDER):
            raise ValueError(
                f"the box {list(shape)} is not within 0..1", "write shares of the image's width and height"
            )
        w, h = max(w, 0.0), max(h, 0.0)
        edges = x - w / 2, y - h / 2, x + w / 2, y + h / 2
    notes["boxes with a width or height of 0"] += edges[0] == edges[2] or edges[1] == edges[3]
    if min(edges) < 0 or max(edges) > 1:
        a, b, c, d = (min(max(edge, 0.0), 1.0) if -BORDER <= edge <= 1 + BORDER else edge for edge in edges)
        if min(c - a, d - b) > ROUNDING:  # else it is beside the image
            shift = max(abs(edges[0] - a), abs(edges[1] - b), abs(edges[2] - c), abs(edges[3] - d))
            notes[f"boxes up to {BORDER:.0%} of a side outside the image, limited to it"] += shift > ROUNDING
            edges = a, b, c, d
    return edges
