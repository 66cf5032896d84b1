"""The formats of annotations: how each is recognised, which splits it has, and how one is read."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from locdistill.annotations import coco, coco_files, dota, hrsc, labelme, voc, yolo
from locdistill.annotations.files import HIDDEN, files_of, hidden_below, images_below, is_hidden, subfolders
from locdistill.annotations.folders import part_of, parts_of
from locdistill.annotations.index import remembered
from locdistill.annotations.sources import DataFormat, Source, SourceSettings
from locdistill.annotations.yolo_description import find_description
from locdistill.errors import AnnotationError

SPLITS = ("train", "val", "test")
ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar")
OTHER_FORMATS: dict[str, dict[bytes, str]] = {
    ".xml": {rb"<annotations[\s>]": "CVAT's own format"},
    ".json": {
        rb'^\s*\[.*"data"\s*:': "Label Studio's own format",
        rb'^\s*\[.*"coordinates"\s*:': "CreateML's format",
        rb'"_via_': "VIA's own format",
    },
    ".csv": {rb"(?i)xmin|x_min|bbox|\bx1\b": "a table of boxes"},
    ".ndjson": {rb"": "a list of lines of JSON"},
    ".tfrecord": {rb"": "TensorFlow's format"},
}
"""Formats of boxes that are not read, by ending and content."""
HEAD_BYTES = 4096
DEPTH = 2
"""Folders below a path in which a data set is looked for."""
PLACES = 20
"""Folders that are looked into, and named, at most."""


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotations.

    Attributes:
        looked_for: Files that make a folder one of this format, for the message that nothing was recognised.
        fits: Function from path and names of splits to whether the path is a data set of this format.
        place: Function from path and a split's name to where the split is: something false if it does not exist, and
            equal for splits that are the same.
        read: Function from the data settings, path, place and name of a split to its sources.
        splits: Function from path to the names of the splits that exist, usual names first; None: those of train, val
            and test that have a place.
        usual: Function from path, ``train`` or ``val`` to the name of the split that is used where none is chosen.
        doubt: Function from path to how weak the signs of the format are; of several that fit, those with the least
            count. 1: annotation files of single pictures alone, which are often left beside pictures when they are
            converted. 2: no annotation files at all.
        fits_by_content: Function like ``fits`` that opens files of any name; asked if no format fits without doubt.
        hint: Function from a path that is not recognised to what the user can do, if it is nearly of this format.
    """

    looked_for: str
    fits: Callable[[Path, Sequence[str]], bool]
    place: Callable[[Path, str], Any]
    read: Callable[[SourceSettings, Path, Any, str], list[Source]]
    splits: Callable[[Path], list[str]] | None = None
    usual: Callable[[Path, str], str] = lambda _, split: split
    doubt: Callable[[Path], int] = lambda _: 0
    fits_by_content: Callable[[Path, Sequence[str]], bool] = lambda *_: False
    hint: Callable[[Path], str] = lambda _: ""


FORMATS: dict[DataFormat, AnnotationFormat] = {
    "coco": AnnotationFormat(
        coco_files.LOOKED_FOR,
        fits=coco_files.fits,
        place=coco_files.find_annotations,
        read=coco.read,
        splits=coco_files.splits,
        fits_by_content=lambda path, _: path.is_dir() and any(coco_files.find_annotations(path, s) for s in SPLITS),
        hint=coco_files.hint,
    ),
    "voc": AnnotationFormat(
        voc.LOOKED_FOR,
        fits=voc.fits,
        place=voc.find_parts,
        read=voc.read,
        splits=voc.splits,
        usual=voc.usual,
        doubt=voc.is_bare,
    ),
    "yolo": AnnotationFormat(
        yolo.LOOKED_FOR,
        fits=lambda path, _: find_description(path) is not None,
        place=yolo.place_of,
        read=yolo.read,
        usual=yolo.usual,
        doubt=yolo.doubt,
        hint=yolo.hint,
    ),
    "dota": AnnotationFormat(
        dota.LOOKED_FOR, fits=lambda path, _: bool(dota.label_folders(path)), place=dota.find_place, read=dota.read
    ),
    "hrsc": AnnotationFormat(
        hrsc.LOOKED_FOR,
        fits=lambda path, _: bool(hrsc.image_sets(path)),
        place=lambda path, split: hrsc.image_sets(path).get(split),
        read=hrsc.read,
        splits=lambda path: sorted(hrsc.image_sets(path)),
        usual=hrsc.usual,
    ),
    "labelme": AnnotationFormat(
        labelme.LOOKED_FOR,
        fits=lambda path, names: bool(parts_of(path, labelme.HOLDS, names)),
        place=lambda path, split: part_of(parts_of(path, labelme.HOLDS, (split,)), split),
        read=labelme.read,
        splits=lambda path: sorted(parts_of(path, labelme.HOLDS)),
        doubt=lambda _: 1,
    ),
}


class Located(NamedTuple):
    """A data set that was recognised.

    Attributes:
        kind: Its format.
        path: Where it is: the path of the settings, or the only folder below it that holds a data set.
    """

    kind: DataFormat
    path: Path


def locate(settings: SourceSettings) -> Located:
    """Recognise the data set at the path, or in the only folder below it that holds one, as archives have it.

    Raises:
        AnnotationError: The path is empty or absent, or it matches no format or several.
    """
    return remembered(("located", *_key(settings)), lambda: _located(settings))


def _key(settings: SourceSettings) -> tuple[object, ...]:
    """Return the settings that the result of reading depends on."""
    return (settings.path, settings.format, settings.root, settings.train, settings.val, settings.one_based)


def _located(settings: SourceSettings) -> Located:
    if not settings.path:
        raise AnnotationError(
            "no data set given; pass --data PATH, or set data.path: a folder, a COCO json or a data.yaml"
        )
    path = Path(settings.path)
    if not path.exists():
        raise AnnotationError(f"{path}: there is no such file or folder; check data.path, or name it with --data")
    if settings.format != "auto":
        return Located(settings.format, path)
    names = (*split_names(settings, "train"), *split_names(settings, "val"), *SPLITS)
    inner = [path]
    for depth in range(1 + DEPTH):
        inner = [place for place in inner if images_below(place)] if depth else inner
        found: dict[Path, list[DataFormat]] = {}
        for place in inner:
            fitting: list[DataFormat] = [name for name, kind in FORMATS.items() if kind.fits(place, names)]
            doubts = {name: int(FORMATS[name].doubt(place)) for name in fitting}
            if all(doubts.values()):
                doubts |= {name: 0 for name, kind in FORMATS.items() if kind.fits_by_content(place, names)}
            if doubts:
                found[place] = [name for name, doubt in doubts.items() if doubt == min(doubts.values())]
        if len(found) == 1:
            place, kinds = found.popitem()
            if len(kinds) > 1:
                raise AnnotationError(f"{place}: could be {' or '.join(kinds)}; set data.format")
            return Located(kinds[0], place)
        if found:
            places = [place.relative_to(path).as_posix() for place in found]
            raise AnnotationError(
                f"{path}: no data set, but several are in it ({', '.join(places)}); pass --data "
                f"{shlex.quote(str(path / places[0]))}"
            )
        inner = [sub for place in inner for sub in subfolders(place)][:PLACES]
    looked = "".join(f"  {name}: {kind.looked_for}\n" for name, kind in FORMATS.items())
    hints = "".join(f"\n{hint}" for kind in FORMATS.values() if (hint := kind.hint(path)))
    hints += "".join(f"\n{name}: export as COCO, YOLO or VOC instead" for name in _of_other_formats(path))
    raise AnnotationError(f"{path}: not recognised as a data set. Looked for\n{looked}{_contents(path)}{hints}")


def split_names(settings: SourceSettings, split: str) -> tuple[str, ...]:
    """Return the chosen names of the splits ``train`` and ``val``; any other split keeps its name."""
    choice = {"train": settings.train, "val": settings.val}.get(split)
    if choice is None:
        return (split,)
    return (choice,) if isinstance(choice, str) else choice


def names_behind(settings: SourceSettings, found: Located, split: str) -> tuple[str, ...]:
    """Return the format's names of a split: the chosen ones, else the usual one."""
    given = {"train": settings.train, "val": settings.val}.get(split)
    if given is None and split in ("train", "val"):
        return (FORMATS[found.kind].usual(found.path, split),)
    return split_names(settings, split)


def available_splits(settings: SourceSettings) -> list[str]:
    """Return those of train, val and test that exist; of a COCO file that serves any split, the first alone.

    ``test`` is left out where it is what is evaluated on.
    """
    located = locate(settings)
    places = {split: places_of(settings, located, split) for split in SPLITS}
    found = [split for split in SPLITS if all(places[split])]
    if "train" in found and trains_on_val(settings, located):
        found.remove("val")
    repeated = SPLITS if located.kind == "coco" else ("test",)
    return [
        split
        for number, split in enumerate(found)
        if split not in repeated or places[split] not in [places[before] for before in found[:number]]
    ]


def trains_on_val(settings: SourceSettings, found: Located) -> bool:
    """Return whether the split to evaluate on is trained on, for want of another."""
    return settings.train is None and names_behind(settings, found, "train") == ("val",)


def places_of(settings: SourceSettings, found: Located, split: str) -> list[Any]:
    """Return where each part of a split is; something false for a part that does not exist."""
    return [FORMATS[found.kind].place(found.path, name) for name in names_behind(settings, found, split)]


def read(settings: SourceSettings, split: str) -> tuple[DataFormat, list[Source]]:
    """Read the annotations of a split; return the format too.

    Raises:
        AnnotationError: There is no such split, or its files are not of the format.
    """
    kind, sources = remembered(("read", split, *_key(settings)), lambda: _read(settings, split))
    copies = [
        replace(source, images=[*source.images], problems=[*source.problems], notes=Counter(source.notes))
        for source in sources
    ]
    return kind, copies


def _read(settings: SourceSettings, split: str) -> tuple[DataFormat, list[Source]]:
    found = locate(settings)
    kind, path = found
    sources: list[Source] = []
    for name in names_behind(settings, found, split):
        place = FORMATS[kind].place(path, name)
        if not place:
            splits = FORMATS[kind].splits
            known = splits(path) if splits else [usual for usual in SPLITS if FORMATS[kind].place(path, usual)]
            there = f"it has {', '.join(known)}" if known else _contents(path)
            others = [other for other in known if other not in names_behind(settings, found, "train")]
            remedy = "name a file or folder of annotations"
            if split == "val" and not others and known:
                remedy = "hold some of the training images out with data.holdout=0.1"
            elif known:
                remedy = f"name the split to use, for example data.{split}={(others or known)[0]}"
            raise AnnotationError(f"{path}: no split {name!r}; {there}; {remedy}")
        sources += FORMATS[kind].read(settings, path, place, name)
    notes = sources[0].notes
    notes["split 'val', the only one, which is trained on"] += split == "train" and trains_on_val(settings, found)
    home = Path(settings.path)
    if path != home:
        notes[f"folder that is no data set itself; the one in it was read ({path.relative_to(home)})"] += 1
    notes[HIDDEN] += hidden_below(home) if home.is_dir() else 0
    return kind, sources


def _of_other_formats(path: Path) -> list[str]:
    """Describe the files of a folder and of those in it that hold boxes in formats that are not read."""
    places = [path, *subfolders(path)][:PLACES]
    found = []
    for file in [file for place in places for file in files_of(place, *OTHER_FORMATS)][:PLACES]:
        with file.open("rb") as opened:
            start = opened.read(HEAD_BYTES)
        kinds = OTHER_FORMATS[file.suffix.lower()].items()
        what = next((what for pattern, what in kinds if re.search(pattern, start, re.DOTALL)), None)
        found += [f"{file.relative_to(path)} is {what}"] if what else []
    return found


def _contents(path: Path) -> str:
    if not path.is_dir():
        return "it is an archive: unpack it" if path.suffix.lower() in ARCHIVES else "it is a file"
    names = sorted(item.name + ("/" if item.is_dir() else "") for item in path.iterdir() if not is_hidden(item.name))
    return f"it holds {', '.join(names[:20]) or 'nothing'}{', ...' if len(names) > 20 else ''}"
