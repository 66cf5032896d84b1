"""Search for the pictures that annotation files name, on whatever machine they were written."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

from locdistill.annotations.files import UPLOADED, is_hidden, stays_inside
from locdistill.errors import AnnotationError

BACKSLASHES = "file names with backslashes, read as slashes"
BY_END = "file names that are not there as written, found by the end of the name"
UNPREFIXED = "file names with the eight digits of Label Studio before them, found without"
DEPTH = 4
PROBES = 20


class PictureLookup:
    """Search for pictures by name below a data folder; files outside it are never returned, except through links.

    Args:
        root: The data folder.
        notes: Counter of the guesses.
        foreign: Function from the name of a folder to whether its pictures belong to another split.

    Attributes:
        folder: The folder to which names are relative; the data folder unless another one is chosen.
    """

    def __init__(self, root: Path, notes: Counter[str], foreign: Callable[[str], bool]) -> None:
        self.root, self.notes, self.foreign = root, notes, foreign
        self.folder = root
        self._entries: dict[str, frozenset[str]] = {}
        self._by_last: dict[str, list[Path]] | None = None

    def choose_folder(self, candidates: Sequence[Path], names: Sequence[str], file: Path) -> None:
        """Choose the folder with most of the first pictures; by the last parts of their names if it has none else.

        Raises:
            AnnotationError: None of them is in any of the folders, or elsewhere in the data folder.
        """
        first = [spellings_of(name) for name in names[:PROBES]]
        for some in (first, [[spelling.rpartition("/")[2] for spelling in spellings] for spellings in first]):
            found = [
                sum(any(self._there(folder, name) for name in spellings) for spellings in some) for folder in candidates
            ]
            if max(found, default=0):
                self.folder = candidates[found.index(max(found))]
                return
        every = [spelling for spellings in first for spelling in spellings]
        every += [UPLOADED.sub("", spelling.rpartition("/")[2], count=1) for spelling in every]
        if names and not any(map(self.by_last_part, every)):
            looked = "".join(f"\n  {folder}" for folder in candidates)
            raise AnnotationError(
                f"{file}: none of its first images ({names[0]}, ...) is in any of these folders:{looked}\n"
                "put the images into one of them"
            )

    def find(self, name: str) -> Path | tuple[str, str]:
        """Find the picture of a name; return its path, or the fault of the name and the remedy.

        A name that is not there as written is looked for with slashes for backslashes, as a URL, and without its first
        folders; then by its last part alone, which only one file in the data folder may have. The path of a harmless
        name that is not found is returned as well: the check of the files reports it.
        """
        if self._there(self.folder, name):
            return self.folder / name
        spellings = spellings_of(name)
        for spelling in spellings:
            parts = [part for part in spelling.split("/") if part not in ("", ".")]
            for start in range(len(parts)):
                end = "/".join(parts[start:])
                for base in (self.folder, self.root):
                    if self._there(base, end):
                        whole = base == self.folder and start == 0 and spelling == spellings[0]
                        self.notes[BACKSLASHES if whole and "\\" in name else BY_END] += 1
                        return base / end
        for spelling in spellings:
            same, note = self.by_last_part(spelling), BY_END
            if not same and UPLOADED.match(last := spelling.rpartition("/")[2]):
                same, note = self.by_last_part(UPLOADED.sub("", last, count=1)), UNPREFIXED
            if len(same) > 1:
                some = " or ".join(path.relative_to(self.root).as_posix() for path in same[:3])
                return f"file name {name!r} could be {some}", "write the folder in the file name"
            if same:
                self.notes[note] += 1
                return same[0]
        if stays_inside(spellings[0]):
            return self.folder / spellings[0]
        return f"file name {name!r} leaves the image folder", f"write file names that are relative to {self.folder}"

    def by_last_part(self, name: str) -> list[Path]:
        """Return the files in the data folder, without folders of other splits, with the last part of a name.

        If no file has it as it is, those that have it in another case; of several, those with more parts of the name.
        """
        if self._by_last is None:
            self._by_last, seen = defaultdict(list), set()
            for folder, subfolders, files in os.walk(self.root, followlinks=True):
                here, real = Path(folder), os.path.realpath(folder)
                again = real in seen
                seen.add(real)
                deep = len(here.relative_to(self.root).parts) >= DEPTH
                below = [] if deep or again else [sub for sub in subfolders if not is_hidden(sub)]
                subfolders[:] = sorted(sub for sub in below if not self.foreign(sub))
                for file in files if not again else ():
                    self._by_last[_folded(file)].append(here / file)
        last = unicodedata.normalize("NFC", name.rpartition("/")[2])
        same = self._by_last.get(_folded(last), [])
        same = [path for path in same if unicodedata.normalize("NFC", path.name) == last] or same
        if len(same) > 1:
            same = [path for path in same if _folded(path.as_posix()).endswith(_folded(f"/{name}"))] or same
        return same

    def _there(self, base: Path, name: str) -> bool:
        """Return whether a folder lists a name that stays inside it, with one look at each folder."""
        head, _, last = name.rpartition("/")
        folder = os.path.join(base, head) if head else str(base)
        if folder not in self._entries:
            try:
                self._entries[folder] = frozenset(os.listdir(folder))
            except (OSError, ValueError):
                self._entries[folder] = frozenset()
        return last in self._entries[folder] and stays_inside(name)


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def spellings_of(name: str) -> list[str]:
    """Return the paths that a file name may stand for: with slashes, and as a URL without its server and query.

    Label Studio writes the path of a local file as the query ``d``.
    """
    slashed = name.replace("\\", "/")
    if not any(mark in name for mark in ("%", "?", "#", "://")):
        return [slashed]
    try:
        address = urlsplit(slashed)
        return [slashed, unquote(parse_qs(address.query).get("d", [address.path])[0])]
    except ValueError:
        return [slashed]
