"""Folders with one annotation file per picture, as programs write them: their layouts, and the picture of each file."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath

from locdistill.annotations.coco_files import ALIASES, SPLIT_OF
from locdistill.annotations.files import IMAGE_SUFFIXES, by_name, files_below, images_below, is_hidden, subfolders
from locdistill.annotations.index import remembered
from locdistill.annotations.problems import Problem
from locdistill.annotations.sources import Source

# Names of folders, in any case.
ANNOTATIONS = ("annotations", "annotation", "xml", "xmls", "json", "jsons", "labels")
PICTURES = ("jpegimages", "images", "image", "imgs", "img", "data")
SPLITS = tuple(SPLIT_OF)
PROBES = 50
"""Folders of other names that are looked into at most."""
UNREADABLE_SUFFIXES = frozenset(
    (
        *(".heic", ".heif", ".hif", ".jxl", ".jxr", ".psd", ".svg", ".eps", ".tga", ".pcx", ".ico", ".exr", ".hdr"),
        *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".dcm", ".pfm", ".dib"),
    )
)
"""Endings of pictures in formats that are not read."""


@dataclass(frozen=True)
class Part:
    """Location of a split, or of a part of one.

    Attributes:
        annotations: Folder of its annotation files.
        pictures: Folder of its pictures.
        names: List file of its images; None for all annotation files.
        shared: Whether the annotation files are those of all splits, so that the pictures decide.
    """

    annotations: Path
    pictures: Path
    names: Path | None = None
    shared: bool = False


Holds = Callable[[Path, bool], bool]
"""Function from a folder to whether it has annotation files of a format; if the flag is set, also in its subfolders."""


def whole_of(folder: Path, holds: Holds) -> Part | None:
    """Return the folders of annotation files and of pictures in a folder; both may be the folder itself.

    Folders of other than the usual names are taken if only one of them is possible.
    """
    annotations = next((sub for sub in _subfolders(folder, ANNOTATIONS) if holds(sub, True)), None)
    if annotations is None and folder.is_dir() and holds(folder, False):
        annotations = folder
    others = [sub for sub in subfolders(folder) if sub.name.lower() not in SPLITS]
    if annotations is None and len(others) <= PROBES:
        found = [sub for sub in others if holds(sub, False)]
        annotations = found[0] if len(found) == 1 else None
    if annotations is None:
        return None
    pictures = _subfolders(folder, PICTURES) or [place for place in (folder, annotations) if _holds_pictures(place)]
    if not pictures and len(others) <= PROBES:
        found = [sub for sub in others if _holds_pictures(sub)]
        pictures = found if len(found) == 1 else []
    return Part(annotations, pictures[0] if pictures else folder / "images")


def parts_of(folder: Path, holds: Holds, names: Sequence[str] = ()) -> dict[str, Part]:
    """Map splits to their parts in a folder: folders of splits, or else everything as ``train``.

    Folders of splits are called as usual, or have one of the names.
    """
    wanted = (*SPLITS, *(name.lower() for name in names))
    divided = [sub for place in (folder, folder / "images") for sub in _subfolders(place, wanted)]
    parts = {sub.name: part for sub in divided if (part := whole_of(sub, holds))}
    whole = None if parts else whole_of(folder, holds)
    if whole is None:
        return parts
    for sub in _subfolders(whole.annotations, wanted):
        if holds(sub, False):
            pictures = whole.pictures / sub.name
            parts[sub.name] = Part(sub, pictures if pictures.is_dir() else whole.pictures)
    if not parts and not whole.pictures.is_dir():  # pictures are in train and val, annotation files in one folder
        parts = {sub.name: Part(whole.annotations, sub, shared=True) for sub in divided if _holds_pictures(sub)}
    elif not parts:
        there = _subfolders(whole.pictures, wanted)
        parts = {sub.name: Part(whole.annotations, sub, shared=True) for sub in there if _holds_pictures(sub)}
    return parts or {"train": whole}


def part_of(parts: Mapping[str, Part], split: str) -> Part | None:
    """Return the part of a split, by its name or by another spelling of it."""
    spelled = {own.lower(): part for own, part in parts.items()}
    others = (spelled[name] for name in ALIASES.get(split.lower(), (split.lower(),)) if name in spelled)
    return parts.get(split) or next(others, None)


def files_in(folder: Path, suffix: str, *, nested: bool) -> Iterator[Path]:
    """Find the files with an ending in a folder, and also in its subfolders if ``nested``; in any order."""
    below = []
    with os.scandir(folder) as entries:  # there may be many, and most callers want one
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if entry.name.lower().endswith(suffix):
                yield Path(entry)
            elif nested and entry.is_dir():
                below.append(Path(entry))
    for sub in below:
        yield from files_in(sub, suffix, nested=False)


def holds(folder: Path, nested: bool, *, suffix: str, start: re.Pattern[bytes], probes: int, head_bytes: int) -> bool:
    """Return whether one of the first files of an ending in a folder has a pattern in its first bytes.

    Args:
        folder: The folder.
        nested: Whether files in its subfolders count.
        suffix: The ending.
        start: The pattern.
        probes: Number of files to look into.
        head_bytes: Number of bytes to read of each.
    """
    for file in islice(files_in(folder, suffix, nested=nested), probes):
        with file.open("rb") as opened:
            if start.search(opened.read(head_bytes).replace(b"\0", b"")):  # also in UTF-16
                return True
    return False


def names_below(folder: Path, suffix: str) -> dict[str, Path]:
    """Map the files with an ending in a folder and its subfolders by their relative names without endings."""
    return remembered(("names", folder, suffix), lambda: by_name(folder, files_below(folder, (suffix,))))


def _subfolders(folder: Path, names: Sequence[str]) -> list[Path]:
    """Return the subfolders that have one of the names in any case, in the order of the names."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = {entry.name.lower(): Path(entry) for entry in entries if entry.name.lower() in names and entry.is_dir()}
    return [found[name] for name in dict.fromkeys(names) if name in found]


def _holds_pictures(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and not is_hidden(entry.name) for entry in entries)


class PictureFiles:
    """Pictures in a folder and its subfolders, for annotation files of one picture each.

    Attributes:
        folder: The folder.
        unreadable: Names, without endings, of the pictures that cannot be read.
    """

    def __init__(self, folder: Path, notes: Counter[str]) -> None:
        """List the files; count those that cannot be read in the notes."""
        self.folder = folder
        self._files = images_below(folder) if folder.is_dir() else []
        self._notes = notes
        self._used: set[Path] = set()
        self._relative: defaultdict[str, list[Path]] = defaultdict(list)
        self._stems: defaultdict[str, list[Path]] = defaultdict(list)
        for file in self._files:
            name = file.relative_to(folder).with_suffix("")
            self._relative[name.as_posix()].append(file)
            self._stems[name.name].append(file)
        self.unreadable = note_unreadable(folder, notes)

    def find(self, name: str, given: str) -> Path | None:
        """Find the picture of an annotation file.

        It is the one that is called like the annotation file, or else the one that the file names: copies of annotation
        files often keep the name of the original's picture. Of a name from another machine the last part counts. Of
        pictures that differ only in their endings, the one with the given ending is taken, or else the first.

        Args:
            name: Name of the annotation file relative to its folder, without its ending.
            given: Name of the picture according to the file; may be empty.
        """
        written = PurePosixPath(given.strip().replace("\\", "/"))
        named = written.with_suffix("") if written.suffix.lower() in IMAGE_SUFFIXES else written
        own = self._called(PurePosixPath(name))
        found = own or self._called(named)
        if own and named.name and named.name != PurePosixPath(name).name and self._called(named):
            self._notes["annotation files that name the picture of another one, read with the picture named alike"] += 1
        if len({file.parent for file in found}) > 1:
            found = [file for file in found if file.as_posix().endswith(f"/{written}")]
        elif len(found) > 1:
            self._notes["names with several pictures (as a.jpg and a.png), one of them read"] += 1
            found = [file for file in found if file.name == written.name] or found
        if not found:
            return None
        self._used.add(found[0])
        return found[0]

    def note_missing(self, source: Source, part: Part, *, alone: int, files: int, annotated: Collection[str]) -> None:
        """Count annotation files without a picture and pictures without one; most files without one are a problem.

        Args:
            source: Source of the annotation files.
            part: Their location.
            alone: Number of them that have no picture.
            files: Number of all of them.
            annotated: Names of all annotation files of the data set, without endings.
        """
        source.notes["annotation files without a picture, left out"] += 0 if part.shared else alone
        unused = [file for file in self._files if file not in self._used and file.stem not in annotated]
        source.notes["pictures without an annotation file, left out"] += len(unused)
        if 2 * alone > files and not (part.shared and self._used):
            what = f"{alone} of {files} annotation files have no picture in {self.folder}"
            remedy = "put the pictures there, under the same names"
            source.problems.append(Problem(str(part.annotations), "", what, remedy))

    def _called(self, name: PurePosixPath) -> list[Path]:
        return self._relative.get(name.as_posix()) or self._stems.get(name.name, [])


def note_unreadable(folder: Path, notes: Counter[str]) -> set[str]:
    """Count the pictures of a folder that are in formats that cannot be read; return their names without endings."""
    files = files_below(folder, UNREADABLE_SUFFIXES)
    kinds = sorted(Counter(file.suffix[1:].lower() for file in files).items())
    if files:
        counts = ", ".join(f"{kind}: {count}" for kind, count in kinds)
        notes[f"pictures in formats that cannot be read ({counts}), left out; convert them to JPEG"] += len(files)
    return {file.stem for file in files}
