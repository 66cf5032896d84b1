"""COCO json files in a data folder: recognised, and found by split under the names that exporters give them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from locdistill.annotations.files import files_of, subfolders

ROBOFLOW = "_annotations.coco.json"
# Other names of a split, as exporters write them.
ALIASES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
SPLITS = ("train", "val", "test")
SPLIT_OF = {alias: split for split, aliases in ALIASES.items() for alias in aliases}
# Parts of COCO's test images; their pictures are those of the whole.
PART = r"-(?:dev|std|challenge|reserve)"
SPLIT_WORD = re.compile(rf"(?<![a-z])({'|'.join(sorted(SPLIT_OF, key=len, reverse=True))})(?![a-z]|{PART})")
PREFIX = re.compile(r"(instances|image_info)_", re.IGNORECASE)
ANNOTATION_FOLDERS = ("annotations", "annotation")
OTHER_FOLDERS = ("images", "data", "labels", "json", "jsons", "jpegimages")
PROBES = 20


def annotation_names(split: str) -> list[str]:
    """List usual paths of a split's annotation file in a data folder, in order of preference."""
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


LOOKED_FOR = (
    "a COCO .json file, or in the folder train.json, val.json, annotations/instances_train.json, "
    f"train/{ROBOFLOW}, labels.json or another single COCO .json file"
)
USUAL = {name for split in SPLITS for name in annotation_names(split)}


class AnnotationFile(NamedTuple):
    """A json file in a data folder that may hold annotations.

    Attributes:
        path: The file.
        place: Its path in the data folder, in small letters.
        name: Its name in small letters, without ``.json`` and the prefixes of COCO.
        split: ``train``, ``val`` or ``test`` if its name or folder says so.
        unlabelled: Whether it lists images whose labels are kept from the public.
        certain: Whether the name alone shows that it is a COCO file.
    """

    path: Path
    place: str
    name: str
    split: str | None
    unlabelled: bool
    certain: bool


def annotation_files(folder: Path) -> list[AnnotationFile]:
    """List the json files in a data folder, in ``annotations``, and in folders with the name of a split.

    If there are none, those in folders of pictures or of labels, and in their subfolders.
    """
    below = subfolders(folder)
    usual: list[tuple[Path, str | None]] = [(folder, None)]  # folders, each with the split of its name
    for sub in below:
        if sub.name.lower() in ANNOTATION_FOLDERS:
            usual.append((sub, None))
        elif split := SPLIT_OF.get(sub.name.lower()):
            deeper = [deep for deep in subfolders(sub) if deep.name.lower() in ANNOTATION_FOLDERS]
            usual += [(place, split) for place in (sub, *deeper)]
    others = (
        (place, None if place is sub else SPLIT_OF.get(place.name.lower()))
        for sub in below
        if sub.name.lower() in OTHER_FOLDERS
        for place in (sub, *subfolders(sub))
    )
    found: list[AnnotationFile] = []
    for places in (usual, others):
        for file, above in ((file, above) for place, above in places for file in files_of(place, ".json")):
            named = split_of(file.stem)
            if above is None or named in (None, above):
                place, name = file.relative_to(folder).as_posix().lower(), file.name.lower()
                certain = PREFIX.match(name) is not None or name == ROBOFLOW or place in USUAL
                hidden = name.startswith("image_info_")
                found.append(AnnotationFile(file, place, name_of(file).lower(), named or above, hidden, certain))
        if found:
            break
    return found


def split_of(name: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` if a name has one of them, or an alias, as a word; None for several."""
    words = SPLIT_WORD.findall(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    splits = {SPLIT_OF[word] for word in words}
    return splits.pop() if len(splits) == 1 else None


def name_of(file: Path) -> str:
    """Return the name of an annotation file without ``.json`` and without the prefixes of COCO."""
    return PREFIX.sub("", file.stem, count=1) if PREFIX.match(file.stem) else file.stem


def looks_like_coco(file: Path) -> bool:
    """Return whether a json file has the lists of a COCO file, by a search for their names."""
    try:
        state = file.stat()
        return _has_lists(str(file), state.st_mtime_ns, state.st_size)
    except OSError:
        return False


@lru_cache(maxsize=256)
def _has_lists(file: str, _time: int, _size: int) -> bool:
    content = Path(file).read_bytes().replace(b"\0", b"")  # the names have no other bytes in UTF-16
    begins = content[:64].lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t").startswith(b"{")
    return begins and b'"images"' in content and (b'"annotations"' in content or b'"categories"' in content)


def fits(path: Path, names: Sequence[str]) -> bool:
    """Return whether a path is a json file, or a folder with a file of a usual name or of one of the named splits."""
    if not path.is_dir():
        return path.suffix.lower() == ".json"
    named = [name for name in names if name not in SPLITS]
    return any(file.certain for file in annotation_files(path)) or any(find_annotations(path, name) for name in named)


def hint(path: Path) -> str:
    """Return what to do with the COCO files in a folder or one below it, if none is clearly that of a split."""
    files = [file.path for folder in (path, *subfolders(path)) for file in annotation_files(folder)]
    names = [file.relative_to(path).as_posix() for file in dict.fromkeys(files[:PROBES]) if looks_like_coco(file)]
    if not names:
        return ""
    return f"There are COCO files, of which none is clearly train: {', '.join(names)}; pass data.train={names[0]}"


def splits(path: Path) -> list[str]:
    """Return the splits that have an annotation file: train, val, test, then others by their names in the files."""
    usual = {split: found for split in SPLITS if (found := find_annotations(path, split))}
    files = annotation_files(path) if path.is_dir() else []
    return [*usual, *(file.name for file in files if file.certain and file.path not in usual.values() and file.name)]


def find_annotations(path: Path, split: str) -> Path | None:
    """Find the annotation file of a split, or return ``None``.

    ``split`` is a name, or a ``.json`` file relative to the folder. If ``path`` is itself a file, it belongs to the
    split in its name; a file without a split in its name serves any split. In a folder, a file without one is the split
    ``train``. Files of other than the usual names are taken if only one of them is possible.
    """
    if split.lower().endswith(".json"):
        file = (path if path.is_dir() else path.parent) / split
        return file if file.is_file() else None
    wanted, usual = split.lower(), SPLIT_OF.get(split.lower())
    if path.is_file():
        return _file_beside(path, wanted, usual)
    files = annotation_files(path)
    by_place = {file.place: file.path for file in reversed(files)}
    names = (*annotation_names(wanted), *annotation_names(usual or wanted))
    if known := next((by_place[name] for name in names if name in by_place), None):
        return known
    same = [file for file in files if file.name == wanted]
    named = [file for file in files if file.split == usual and not file.unlabelled] if usual else []
    others = [file for file in files if file.split is None and not file.unlabelled] if usual == "train" else []
    for group in (same, named, others):
        fitting = [file for file in group if file.certain]
        if not fitting and len(group) <= PROBES:
            fitting = [file for file in group if looks_like_coco(file.path)]
        if fitting:
            return fitting[0].path if len(fitting) == 1 else None
    return None


def _file_beside(file: Path, wanted: str, usual: str | None) -> Path | None:
    """Return the file if it serves a split, or the one of the same name and folder but for the words of the split."""
    for folder in file.parents[:3]:
        files = annotation_files(folder)
        own = next((found for found in files if found.path == file and found.split), None)
        if own and (own.split == usual or own.name == wanted):
            return file
        pattern = SPLIT_WORD.sub("*", own.place) if own else ""
        same = [found for found in files if usual and found.split == usual]
        if beside := [found.path for found in same if SPLIT_WORD.sub("*", found.place) == pattern]:
            return beside[0]
    return None if split_of(file.stem) else file
