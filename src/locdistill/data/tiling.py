"""Large images cut into overlapping square tiles, and the merging of detections on the tiles.

The tiles of a split are a folder in DOTA's layout, ``images/*.png`` and ``labelTxt/*.txt``, with ``windows.json``
beside them. A tile is called ``{image}__{side}__{x}___{y}`` after its window in pixels of the image, as in MMRotate.
Merging reads ``windows.json``, not these names: the file records the image and data set of each tile, and the settings
of the cut.

Unlike in MMRotate all tiles are stored in one size (a window of 2048 pixels as 1024 at the scale 0.5), so that the
network's input does not depend on how a detector resizes images, and files stay small.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from filelock import FileLock
from jaxtyping import Float
from numpy.typing import NDArray
from pydantic import Field, model_validator

from locdistill.annotations.tiles import WINDOWS, written_class
from locdistill.data.digest import data_digest
from locdistill.data.records import Dataset, Record
from locdistill.errors import DataError
from locdistill.files import replacing
from locdistill.geometry.kinds import Rotated, kind_of
from locdistill.geometry.rotated import part_inside, polygon_hull
from locdistill.geometry.sweep import in_parts, overlapping_pairs
from locdistill.images import read_image, resize_to
from locdistill.settings import Count, Positive, Settings
from locdistill.types import Detections, Progress

CUT = 2  # the difficulty of an object that lies partly outside its tile, as in MMRotate
_WHOLE = 1 - 1e-6  # minimum visible fraction of an object that counts as complete
_COMPRESSION = 3


class TilingSettings(Settings):
    """Settings of the cut.

    Attributes:
        size: Height and width of a tile, in pixels.
        overlap: Minimum overlap of neighbouring tiles, in pixels of the tile.
        scales: Scale factors; images are cut once at each. At 0.5 a tile shows four times the area.
        part: Minimum fraction of an object's area inside a tile for the object to belong to it.
        mark_cut: Whether an object that lies partly outside its tile is marked as difficult. Otherwise it keeps its own
            mark, as in JDet.
        pad: Padding colour, right and bottom: by default ImageNet's mean, which is 0 after normalisation.
        bits: Number of bits that the values of 16-bit grayscale images use; None: 16. Tiles have 8 bits.
    """

    size: Count = 1024
    overlap: int = Field(default=200, ge=0)
    scales: tuple[Positive, ...] = Field(default=(1.0,), min_length=1)
    part: float = Field(default=0.7, gt=0, le=1)
    mark_cut: bool = True
    pad: tuple[int, int, int] = (124, 116, 104)
    bits: int | None = Field(default=None, ge=8, le=16)

    @model_validator(mode="after")
    def _tiles_advance(self) -> TilingSettings:
        if any(_side(self.overlap, scale) >= _side(self.size, scale) for scale in self.scales):
            raise ValueError(f"expected overlap < size at every scale, got {self.overlap} and {self.size}")
        return self


class Window(NamedTuple):
    """The square of a tile, in pixels of the image; the area outside the image is padding."""

    x: int
    y: int
    side: int


def windows(width: int, height: int, settings: TilingSettings) -> list[Window]:
    """Return the windows that cover an image, scale by scale, row by row.

    Neighbours are ``size - overlap`` apart; the last of a row or column is moved back so that it ends with the image.
    An image smaller than a window has one window, with padding. (MMRotate drops windows with more than 40 % padding
    unless all exceed it. Here all windows of a scale have equal padding, so none would be dropped.)
    """
    found = []
    for scale in settings.scales:
        side, overlap = _side(settings.size, scale), _side(settings.overlap, scale)
        step, lasts = side - overlap, [max(length - side, 0) for length in (width, height)]
        xs, ys = ([min(i * step, last) for i in range(math.ceil(last / step) + 1)] for last in lasts)
        found += [Window(x, y, side) for y in ys for x in xs]
    return list(dict.fromkeys(found))


def _side(pixels: int, scale: float) -> int:
    """Convert a length in pixels of the tile to pixels of the image."""
    return int(pixels / scale)


def parts_inside(
    quads: Float[NDArray[np.floating], "n 4 2"], places: list[Window]
) -> Float[NDArray[np.float64], "w n"]:
    """Compute the fraction of each object's area in each window; 0 for objects without area."""
    corners = torch.from_numpy(quads).double()
    squares = torch.tensor([(x, y, x + side, y + side) for x, y, side in places], dtype=torch.float64).reshape(-1, 4)
    window, place = overlapping_pairs(squares, polygon_hull(corners))
    rectangles = Rotated().upright(squares)
    inside = torch.zeros(len(places), len(quads), dtype=torch.float64)
    inside[window, place] = in_parts(lambda i, j: part_inside(rectangles[i], corners[j]), window, place)
    return inside.numpy()


@dataclass(frozen=True, eq=False)
class Tiles:
    """The tiles of a split, and their origin.

    Attributes:
        folder: Folder of the split.
        settings: Settings of the cut.
        original: The original images, without their objects.
        windows: Image identifier and window of each tile, by the tile's name.
        oriented: Whether the original objects were rotated.
        left_out: Number of objects in no tile, because every tile holds less than `TilingSettings.part` of them.
    """

    folder: Path
    settings: TilingSettings
    original: Dataset
    windows: dict[str, tuple[int, Window]]
    oriented: bool
    left_out: int

    @classmethod
    def read(cls, folder: str | Path) -> Tiles:
        """Read the tiles in a folder.

        Raises:
            DataError: The folder was not written by `cut`.
        """
        file = Path(folder) / WINDOWS
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, bool)
            records = tuple(
                Record(Path(image["file"]), image["image_id"], image["width"], image["height"], *nothing)
                for image in content["images"]
            )
            original = Dataset(
                content["name"],
                tuple(content["classes"]),
                records,
                content["kind"],
                tuple(content["category_ids"]),
            )
            places = {
                name: (records[index].image_id, Window(*window))
                for name, (index, *window) in content["windows"].items()
            }
            settings = TilingSettings(**content["settings"])
            return cls(file.parent, settings, original, places, content["oriented"], content["left_out"])
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise DataError(
                f"{file}: no readable list of windows ({error}); cut the tiles with 'locdistill data tile'"
            ) from error

    def joined(self, found: Mapping[str, Detections], *, iou: float) -> dict[int, Detections]:
        """Merge the detections of tiles to detections of whole images, best score first.

        They are shifted and scaled to pixels of the image. Then non-maximum suppression removes duplicates where tiles
        overlap: each detection that overlaps a better one of its class by more than ``iou``.

        Args:
            found: Detections by the name of the tile, in pixels of the tile.
            iou: Largest overlap of two detections of one class.

        Returns:
            Detections of every image, by its identifier, in its pixels.
        """
        by_image: dict[int, list[Detections]] = {record.image_id: [] for record in self.original.records}
        for name, here in found.items():
            image_id, window = self.windows[name]
            if len(here.boxes):
                by_image[image_id].append(placed(here, window, window.side / self.settings.size))
        return {image_id: merged(parts, iou=iou) for image_id, parts in by_image.items()}


def placed(found: Detections, window: Window, scale: float = 1.0) -> Detections:
    """Move the detections of a tile to its place in the image, in pixels of the image.

    Args:
        found: Detections in pixels of the tile.
        window: The tile's window.
        scale: Pixels of the image per pixel of the tile.
    """
    boxes = found.boxes.double()
    kind = kind_of(boxes)
    in_image = kind.scaled(boxes, boxes.new_tensor(scale))
    return found._replace(boxes=kind.moved(in_image, boxes.new_tensor((window.x, window.y))))


def merged(parts: Sequence[Detections], *, iou: float) -> Detections:
    """Merge detections, best first, without those that overlap a better one of their class by more than ``iou``."""
    if not parts:
        return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    boxes, scores, labels = (torch.cat(values) for values in zip(*parts, strict=True))
    kept = kind_of(boxes).nms(boxes, scores.to(boxes), labels, iou)
    return Detections(boxes[kept].float(), scores[kept], labels[kept])


def cut(
    dataset: Dataset,
    folder: str | Path,
    settings: TilingSettings,
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Tiles:
    """Cut the images of a data set into tiles, with the objects that belong to them.

    Corners of objects are shifted and scaled to the tile, not clipped. An object partly outside its tile has difficulty
    2, an ignored one 1. Images and tiles without objects are kept. Spaces in class names become dashes.

    Tiles are written to a temporary folder beside, which is renamed to ``folder`` when complete: an existing folder is
    therefore complete. An interrupted cut is continued; a complete one is left as it is. If several processes make the
    same cut, one does it and the others wait.

    Args:
        dataset: The images; objects without corners get the corners of their boxes.
        folder: Folder of the split, for ``images``, ``labelTxt`` and ``windows.json``.
        settings: Settings of the cut.
        threads: Number of images to cut at once.
        progress: Progress display, advanced image by image.

    Raises:
        DataError: The folder has other content, such as tiles of other images or settings.
    """
    folder, oriented = Path(folder), dataset.oriented
    dataset = dataset.as_oriented(True)
    content = json.dumps(_content(dataset, settings) | {"oriented": oriented}, indent=1) + "\n"
    if not _is_cut(folder, content, dataset.name):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = folder.with_name(f".{folder.name}.lock")
        with FileLock(lock):
            if not _is_cut(folder, content, dataset.name):  # by another process, which held the lock
                unfinished = folder.with_name(f".{folder.name}.unfinished")
                _cut_all(unfinished, content, dataset, threads, progress)
                unfinished.rename(folder)
        with suppress(OSError):
            lock.unlink()
    return Tiles.read(folder)


def _is_cut(folder: Path, content: str, name: str) -> bool:
    """Return whether the tiles exist already.

    Raises:
        DataError: The folder has other content.
    """
    if not folder.exists():
        return False
    if not (folder / WINDOWS).is_file() or (folder / WINDOWS).read_text(encoding="utf-8") != content:
        raise DataError(
            f"{folder}: exists, and holds other content than the tiles of '{name}' with these settings; choose another "
            "folder, or remove this one"
        )
    return True


def _cut_all(folder: Path, content: str, dataset: Dataset, threads: int | None, progress: Progress | None) -> None:
    """Write the missing tiles of all images to a new folder, or to one in which the same cut was started."""
    file = folder / WINDOWS
    if folder.exists() and not (file.is_file() and file.read_text(encoding="utf-8") == content):
        raise DataError(f"{folder}: an interrupted cut of other images or with other settings; remove it")
    for name in ("images", "labelTxt"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write(file, content.encode())
    tiles = Tiles.read(folder)
    by_image: dict[int, list[tuple[str, Window]]] = {record.image_id: [] for record in dataset.records}
    for name, (image_id, window) in tiles.windows.items():
        by_image[image_id].append((name, window))
    jobs = [(record, by_image[record.image_id]) for record in dataset.records]
    with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
        try:
            done: Iterable[None] = pool.map(lambda job: _cut_one(tiles, dataset.classes, *job), jobs)
            for _ in progress(done, len(jobs)) if progress is not None else done:
                pass
        except BaseException:  # such as a broken image or Ctrl-C: cancel the images not yet begun
            pool.shutdown(cancel_futures=True)
            raise


def _content(dataset: Dataset, settings: TilingSettings) -> dict[str, Any]:
    """Build the content of ``windows.json``, which determines all tiles."""
    # the name of each image: its file's name, with the identifier if several share it
    stems = [record.path.stem for record in dataset.records]
    twice = {stem for stem in stems if stems.count(stem) > 1} if len(set(stems)) < len(stems) else set()
    names = [
        f"{stem}-{record.image_id}" if stem in twice else stem
        for stem, record in zip(stems, dataset.records, strict=True)
    ]
    places, left_out = {}, 0
    for index, (record, name) in enumerate(zip(dataset.records, names, strict=True)):
        own = windows(record.width, record.height, settings)
        assert record.quads is not None
        sought = record.quads[~record.ignored]  # ignored objects may be in no tile
        left_out += int((parts_inside(sought, own) < settings.part).all(axis=0).sum())
        for window in own:
            places[f"{name}__{window.side}__{window.x}___{window.y}"] = [index, *window]
    written = [written_class(name) for name in dataset.classes]
    if len(set(written)) < len(written):
        raise DataError(f"{dataset.name}: without spaces two classes have the same name: {written}; rename one")
    return {
        "settings": settings.model_dump(mode="json", exclude_none=True),
        "name": dataset.name,
        "kind": dataset.kind,
        "classes": dataset.classes,
        "category_ids": dataset.category_ids,
        "objects": data_digest(dataset),
        "left_out": left_out,
        "images": [
            {"file": record.path.name, "image_id": record.image_id, "width": record.width, "height": record.height}
            for record in dataset.records
        ],
        "windows": places,
    }


def _write(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path, flush=False) as part:  # there are many files, and a cut can be repeated
        part.write_bytes(content)


def _cut_one(tiles: Tiles, classes: tuple[str, ...], record: Record, own: list[tuple[str, Window]]) -> None:
    """Write the missing tiles of an image; a picture is written before its labels."""
    images, labels, settings = tiles.folder / "images", tiles.folder / "labelTxt", tiles.settings
    missing = [(name, window) for name, window in own if not (labels / f"{name}.txt").is_file()]
    if not missing:
        return
    from torchvision.io import encode_png  # noqa: PLC0415 - slow to import, and tiles are seldom cut

    assert record.quads is not None
    image = read_image(record.path, bits=settings.bits)
    parts = parts_inside(record.quads, [window for _, window in missing])
    for (name, window), inside in zip(missing, parts, strict=True):
        shown = image[:, window.y : window.y + window.side, window.x : window.x + window.side]
        height, width = shown.shape[1:]
        canvas = torch.tensor(settings.pad, dtype=torch.uint8)[:, None, None].repeat(1, window.side, window.side)
        canvas[:, :height, :width] = shown
        picture = resize_to(canvas, (settings.size, settings.size)).contiguous()
        _write(images / f"{name}.png", encode_png(picture, _COMPRESSION).numpy().tobytes())
        corners = (record.quads.astype(np.float64) - (window.x, window.y)) * (settings.size / window.side)
        lines = []
        for i in np.flatnonzero(inside >= settings.part).tolist():
            difficulty = CUT if settings.mark_cut and inside[i] < _WHOLE else int(record.ignored[i])
            numbers = " ".join(f"{value:.2f}" for value in corners[i].ravel())
            lines.append(f"{numbers} {written_class(classes[record.labels[i]])} {difficulty}\n")
        _write(labels / f"{name}.txt", "".join(lines).encode())
