"""The formats of annotations: how each is recognised, which splits it has, and how one is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from locdistill.annotations import coco, coco_files, dota, hrsc, labelme, voc, yolo
from locdistill.annotations.sources import DataFormat, Source, SourceSettings
from locdistill.errors import AnnotationError

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotationFormat:
    """A format of annotations.

    Attributes:
        looked_for: Files that make a folder one of this format, for the message that nothing was recognised.
        fits: Function from path and names of splits to whether the path is a data set of this format.
        splits: Function from path to the names of the splits that exist, usual names first.
        place: Function from path and a split's name to where the split is: something false if it does not exist, and
            equal for splits that are the same.
        read: Function from the data settings, place and name of a split to its sources.
        usual: Function from path, ``train`` or ``val`` to the name of the split that is used where none is chosen.
        bare: Function from path to whether the format is recognised by annotation files of single pictures alone, which
            are often left beside pictures when they are converted: other formats that fit take precedence.
        fits_by_content: Function like ``fits`` that opens files of any name; asked if none but ``bare`` formats fit.
        hint: Function from a path that is not recognised to what the user can do, if it is nearly of this format.
    """

    looked_for: str
    fits: Callable[[Path, Sequence[str]], bool]
    splits: Callable[[Path], list[str]]
    place: Callable[[Path, str], Any]
    read: Callable[[SourceSettings, Any, str], list[Source]]
    usual: Callable[[Path, str], str] = lambda _, split: split
    bare: Callable[[Path], bool] = lambda _: False
    fits_by_content: Callable[[Path, Sequence[str]], bool] = lambda *_: False
    hint: Callable[[Path], str] = lambda _: ""


FORMATS: dict[DataFormat, AnnotationFormat] = {
    "coco": AnnotationFormat(
        coco_files.LOOKED_FOR,
        coco_files.fits,
        coco_files.splits,
        coco_files.find_annotations,
        coco.read,
        fits_by_content=coco_files.fits_by_content,
        hint=coco_files.hint,
    ),
    "voc": AnnotationFormat(voc.LOOKED_FOR, voc.fits, voc.splits, voc.find_parts, voc.read, voc.usual, voc.is_bare),
    "yolo": AnnotationFormat(yolo.LOOKED_FOR, yolo.fits, yolo.splits, yolo.place_of, yolo.read),
    "dota": AnnotationFormat(dota.LOOKED_FOR, dota.fits, dota.splits, dota.find_place, dota.read),
    "hrsc": AnnotationFormat(hrsc.LOOKED_FOR, hrsc.fits, hrsc.splits, hrsc.image_set, hrsc.read, hrsc.usual),
    "labelme": AnnotationFormat(
        labelme.LOOKED_FOR, labelme.fits, labelme.splits, labelme.find_part, labelme.read, bare=lambda _: True
    ),
}


def recognise(settings: SourceSettings) -> DataFormat:
    """Recognise the format of the data set at the path.

    Raises:
        AnnotationError: The path is empty or absent, or it matches no format or several.
    """
    if not settings.path:
        raise AnnotationError(
            "no data set given; pass --data PATH, or set data.path: a folder, a COCO json or a data.yaml"
        )
    path = Path(settings.path)
    if not path.exists():
        raise AnnotationError(f"{path}: there is no such file or folder; check data.path, or name it with --data")
    if settings.format != "auto":
        return settings.format
    names = (*split_names(settings, "train"), *split_names(settings, "val"), *SPLITS)
    fitting: list[DataFormat] = [name for name, kind in FORMATS.items() if kind.fits(path, names)]
    if all(FORMATS[name].bare(path) for name in fitting):
        fitting += [name for name, kind in FORMATS.items() if kind.fits_by_content(path, names)]
    fitting = [name for name in fitting if not FORMATS[name].bare(path)] or fitting
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise AnnotationError(f"{path}: could be {' or '.join(fitting)}; set data.format")
    looked = "".join(f"  {name}: {kind.looked_for}\n" for name, kind in FORMATS.items())
    hints = "".join(f"\n{hint}" for kind in FORMATS.values() if (hint := kind.hint(path)))
    raise AnnotationError(f"{path}: not recognised as a data set. Looked for\n{looked}{_contents(path)}{hints}")


def split_names(settings: SourceSettings, split: str) -> tuple[str, ...]:
    """Return the chosen names of the splits ``train`` and ``val``; any other split keeps its name."""
    choice = {"train": settings.train, "val": settings.val}.get(split)
    if choice is None:
        return (split,)
    return (choice,) if isinstance(choice, str) else choice


def names_behind(settings: SourceSettings, kind: DataFormat, split: str) -> tuple[str, ...]:
    """Return the format's names of a split: the chosen ones, else the usual one."""
    given = {"train": settings.train, "val": settings.val}.get(split)
    if given is None and split in ("train", "val"):
        return (FORMATS[kind].usual(Path(settings.path), split),)
    return split_names(settings, split)


def available_splits(settings: SourceSettings) -> list[str]:
    """Return those of train, val and test that exist; of a COCO file that serves any split, the first alone.

    ``test`` is left out where it is what is evaluated on.
    """
    kind = recognise(settings)
    places = {split: places_of(settings, kind, split) for split in SPLITS}
    found = [split for split in SPLITS if all(places[split])]
    repeated = SPLITS if kind == "coco" else ("test",)
    return [
        split
        for number, split in enumerate(found)
        if split not in repeated or places[split] not in [places[before] for before in found[:number]]
    ]


def places_of(settings: SourceSettings, kind: DataFormat, split: str) -> list[Any]:
    """Return where each part of a split is; something false for a part that does not exist."""
    return [FORMATS[kind].place(Path(settings.path), name) for name in names_behind(settings, kind, split)]


def read(settings: SourceSettings, split: str) -> tuple[DataFormat, list[Source]]:
    """Read the annotations of a split; return the format too.

    Raises:
        AnnotationError: There is no such split, or its files are not of the format.
    """
    kind = recognise(settings)
    path, sources = Path(settings.path), []
    for name in names_behind(settings, kind, split):
        place = FORMATS[kind].place(path, name)
        if not place:
            known = FORMATS[kind].splits(path)
            there = f"it has {', '.join(known)}" if known else _contents(path)
            raise AnnotationError(
                f"{path}: no split {name!r}; {there}. Name the split to use, for example data.val=test"
            )
        sources += FORMATS[kind].read(settings, place, name)
    return kind, sources


def _contents(path: Path) -> str:
    if not path.is_dir():
        return "it is a file"
    names = sorted(item.name + ("/" if item.is_dir() else "") for item in path.iterdir())
    return f"it holds {', '.join(names[:20]) or 'nothing'}{', ...' if len(names) > 20 else ''}"
