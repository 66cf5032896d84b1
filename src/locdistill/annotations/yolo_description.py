"""Description of a YOLO data set: the file with names and splits, and the paths in it as other machines wrote them."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from locdistill.annotations.coco_files import ALIASES
from locdistill.annotations.files import IMAGE_SUFFIXES, files_of, in_any_case, is_hidden, read_text
from locdistill.errors import AnnotationError

YAML_SUFFIXES = (".yaml", ".yml")
YAML_NAMES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
DARKNET = "obj.data"
CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt", "predefined_classes.txt")
CLASS_FOLDERS = (".", "labels", "images", "train", "labels/train", "images/train")
"""Folders in which a file of class names may be."""
NAMES_KEY = re.compile(rb"""(?m)^\s*['"]?names['"]?\s*:""")
PROBES = 50
NOTHING = ("", "~", "null", "Null", "NULL")
"""Texts by which YAML says that a key has no value."""


class _Words(yaml.SafeLoader):
    """YAML in which each value is text as it is written, because ``no`` and ``007`` may be names of classes."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012  # as in the base

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build a mapping; refuse a key that is written twice, of which only the last would count."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = next((key for key in keys if keys.count(key) > 1), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} is written twice", node.start_mark)
        return super().construct_mapping(node, deep)


@dataclass(frozen=True)
class Description:
    """Content of the file that describes a data set.

    Attributes:
        file: A YAML file, ``obj.data``, or a file of class names.
        content: Keys and values, all as text; of a file of class names, the key ``names`` with the file.
        home: Folder to which its paths are relative.
    """

    file: Path
    content: dict[str, Any]
    home: Path

    @property
    def stated(self) -> str:
        """The key ``path``; empty without it."""
        path = cleaned(self.content.get("path"))
        return "" if path in NOTHING else path

    def roots(self, also: str = "") -> list[Path]:
        """Return the folders to which paths may be relative: ``path`` if it is one, that of the file, and ``also``."""
        found = [self.home / self.stated, self.home, *([Path(also)] if also else [])]
        return list(dict.fromkeys(folder for folder in found if folder.is_dir()))

    def entries(self, split: str) -> list[Any]:
        """Return folders, list files and patterns of a split as written; where none is named, those of usual names."""
        named = self._named(split)
        return named or ([] if any(self._named(other) for other in ALIASES) else self._usual(split))

    def _named(self, split: str) -> list[Any]:
        lowered = {key.lower(): value for key, value in self.content.items()}
        entry: Any = self.content.get(split)
        for alias in ALIASES.get(split, ()):
            entry = lowered.get(alias) if entry in (None, *NOTHING) else entry
        return entry if isinstance(entry, list) else [] if entry in (None, *NOTHING) else [entry]

    def _usual(self, split: str) -> list[Any]:
        root = self.roots()[0]
        for alias in ALIASES.get(split, (split,)):
            for item in (f"{alias}.txt", f"images/{alias}", f"{alias}/images", alias):
                if place := in_any_case(root, item.split("/")):
                    return [place.relative_to(root).as_posix()]
        if split != "train" or any(self._usual(other) for other in ("val", "test")):
            return []
        if files_of(root, *IMAGE_SUFFIXES):
            return ["."]
        found = (in_any_case(root, [item]) for item in ("images.txt", "images"))
        return next(([place.name] for place in found if place), [])

    def class_names(self) -> list[str]:
        """Return the names of the classes by number, from a list, a mapping, or a file with a name in each line.

        Raises:
            AnnotationError: There are none, a number has none, two are equal, or ``nc`` is another number of classes.
        """
        names, count = self.content.get("names"), self.content.get("nc")
        if isinstance(names, str):
            file, _ = find(names, self.roots())
            if file is None or not file.is_file():
                raise AnnotationError(
                    f"{self.file}: 'names' is {names!r}, which is no file here; expected a list of class names such as "
                    f"[{names}], a mapping 0: name, 1: name, ..., or a file with a name in each line"
                )
            names = [line.strip() for line in read_text(file).rstrip().splitlines()]
            if "" in names:
                what = f"line {names.index('') + 1} is empty, but each line names a class"
                raise AnnotationError(f"{file}: {what}; remove it, or name the class")
        if isinstance(names, dict) and names and all(str(key).isdecimal() for key in names):
            numbered = {int(key): name for key, name in names.items()}
            gap = [str(number) for number in range(max(numbered)) if number not in numbered]
            if gap:
                raise AnnotationError(
                    f"{self.file}: 'names' goes up to {max(numbered)}, but has no name for {', '.join(gap[:10])}; name "
                    "each class, from 0 on"
                )
            names = [numbered[number] for number in sorted(numbered)]
        if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
            alone = f"; 'nc' ({count}) does not name the classes" if names is None and count is not None else ""
            raise AnnotationError(
                f"{self.file}: 'names' is {names!r}{alone}; expected a list of class names, or a mapping 0: name, 1: "
                "name, ..."
            )
        if len(set(names)) < len(names):
            raise AnnotationError(f"{self.file}: 'names' holds a class twice: {names}; give each class its own name")
        if count not in (None, *NOTHING, str(len(names))):
            raise AnnotationError(
                f"{self.file}: 'nc' is {count}, but 'names' has {len(names)} classes ({', '.join(names)}); correct the "
                "wrong one"
            )
        return names

    def key_points(self) -> tuple[int, int] | None:
        """Return the number of key points of an object and of values for each, ``kpt_shape``; None without it.

        Raises:
            AnnotationError: It is anything else.
        """
        shape = self.content.get("kpt_shape")
        if shape in (None, *NOTHING):
            return None
        if not isinstance(shape, list) or len(shape) != 2 or not shape[0].isdecimal() or shape[1] not in ("2", "3"):
            raise AnnotationError(f"{self.file}: 'kpt_shape' is {shape!r}; expected [number of key points, 2 or 3]")
        return int(shape[0]), int(shape[1])


def find_description(path: Path) -> Path | None:
    """Find the description of a data set: the path itself, or in it a YAML file, ``obj.data``, or names beside labels.

    The YAML file has a usual name or is the only one. A file of class names counts where there are label files.
    """
    if path.is_file():
        return path if path.suffix in YAML_SUFFIXES or path.name in (DARKNET, *CLASS_FILES) else None
    usual = next((path / name for name in YAML_NAMES if (path / name).is_file()), None)
    others = files_of(path, *YAML_SUFFIXES)
    if len(others) > 1:  # settings of programs lie beside it
        others = [file for file in others[:PROBES] if NAMES_KEY.search(file.read_bytes())]
    if usual or len(others) == 1:
        return usual or others[0]
    if (path / DARKNET).is_file():
        return path / DARKNET
    named = (in_any_case(path, (*folder.split("/"), name)) for folder in CLASS_FOLDERS for name in CLASS_FILES)
    first = next((file for file in named if file and file.is_file()), None)
    return first if first and has_labels(load(first, path)) else None


def has_labels(description: Description) -> bool:
    """Return whether a split has label files in the usual places; of a list, whether one of the first images has."""
    for split in ALIASES:
        entries = [item for item in description.entries(split) if isinstance(item, str)]
        for place in itertools.chain(*(places_of_entry(item, description.roots(), split)[0] for item in entries)):
            if place.is_file():
                lines = filter(None, map(cleaned, read_text(place).splitlines()[:PROBES]))
                listed = (find(line, [place.parent, description.home])[0] for line in lines)
                texts = [above / f"{file.stem}.txt" for file in listed if file for above in label_folders(file.parent)]
                if any(text.is_file() for text in texts):
                    return True
            for folder in label_folders(place):
                here = os.walk(folder, followlinks=True)
                below = itertools.islice(here, 1) if place == description.home else here
                names = (name for _, _, found in below for name in found if name.lower().endswith(".txt"))
                if any(not is_other_text(Path(name)) and not is_hidden(name) for name in names):
                    return True
    return False


def load(file: Path, home: Path) -> Description:
    """Read the file that describes a data set in a folder.

    Raises:
        AnnotationError: It is in another encoding than UTF-8, or a YAML file without keys and values.
    """
    if file.name.lower() in CLASS_FILES:
        return Description(file, {"names": file.relative_to(home).as_posix()}, home)
    text = read_text(file)
    if file.name == DARKNET:
        pairs = [line.partition("=") for line in text.splitlines() if "=" in line]
        content: Any = {key.strip(): value.strip() for key, _, value in pairs}
        return Description(file, content | {"nc": content.get("classes")}, home)
    try:
        content = yaml.load(text, Loader=_Words)  # noqa: S506  # a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        hint = ", and paths with / instead of \\" if "\\" in text else ""
        what = " ".join(str(error).split())
        raise AnnotationError(f"{file}: not valid YAML ({what}); write 'names', 'train' and 'val'{hint}") from error
    if not isinstance(content, dict):
        raise AnnotationError(f"{file}: expected the keys 'names', 'train' and 'val', found a {type(content).__name__}")
    return Description(file, {str(key): value for key, value in content.items()}, home)


def cleaned(name: Any) -> str:
    """Return a path with ``/`` between its parts, without blanks and stray quotes around it."""
    return str(name).strip().strip("'\"").strip().replace("\\", "/") if isinstance(name, str) else ""


def find(name: str, roots: Sequence[Path], own: Sequence[str] = ()) -> tuple[Path | None, bool]:
    """Find a file or folder as it is written, else by the longest last part of its name that exists below a root.

    Last parts serve for paths of other machines and for exporters that write a folder more than there is. A single name
    is enough for a file, and for a folder if it is one of ``own``; ``../`` at the beginning may be left out. At last
    upper and lower case count alike.

    Returns:
        The place, and whether it is as written.
    """
    parts = PurePosixPath(cleaned(name)).parts
    for root in roots:
        place = Path(os.path.normpath(root.joinpath(*parts)))
        if place.exists():
            return place, True
    for start in range(1, len(parts)):
        rest = parts[start:]
        enough = len(rest) > 1 or rest[0] in own or set(parts[:start]) == {".."}
        for root in roots if ".." not in rest else ():
            place = Path(os.path.normpath(root.joinpath(*rest)))
            if place.exists() and (enough or place.is_file()):
                return place, False
    for start in range(len(parts)):
        rest = parts[start:]
        enough = not start or len(rest) > 1 or rest[0].lower() in own or set(parts[:start]) == {".."}
        for root in roots if ".." not in rest else ():
            found = in_any_case(root, rest)
            if found and (enough or found.is_file()):
                return found, False
    return None, False


def places_of_entry(item: Any, roots: Sequence[Path], split: str) -> tuple[list[Path], bool]:
    """Find what an entry of a split names: one place, or all that match its pattern; none if nothing exists.

    Returns:
        The places, and whether they are as written.
    """
    place, exact = find(item, roots, ALIASES.get(split, (split,)))
    if place is not None or not glob.has_magic(item):
        return ([place] if place else []), exact
    matches: Iterator[list[str]] = (sorted(glob.glob(str(root / cleaned(item)), recursive=True)) for root in roots)
    return [Path(os.path.normpath(match)) for match in next(filter(None, matches), [])], True


PICTURE_FOLDERS = ("images", "jpegimages", "image", "imgs", "img")
OTHER_TEXTS = frozenset(
    (
        *("classes", "labels", "predefined_classes", "obj", "notes", "requirements"),
        *("train", "val", "valid", "test", "images"),
    )
)


def label_folders(folder: Path) -> list[Path]:
    """List where the label files of a picture folder may be, most usual first.

    That is ``labels`` in place of ``images`` in its path, the last one first, and then the folder itself.
    """
    parts, found = folder.parts, []
    for position in reversed(range(len(parts))):
        if parts[position].lower() in PICTURE_FOLDERS:
            both = [Path(*parts[:position], word, *parts[position + 1 :]) for word in ("labels", "Labels")]
            found.append(next((place for place in both if place.is_dir()), both[0]))
    return [*found, folder]


def is_other_text(file: Path) -> bool:
    """Return whether a text file is named as one that lists classes or images, or explains, and so has no labels."""
    return file.stem.lower() in OTHER_TEXTS or file.stem.lower().startswith("readme")
