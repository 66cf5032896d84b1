"""Records of a teacher's predictions of one image, and their reassembly into a batch.

A record has the selected locations with one row of predictions each, and whole maps where terms use them. Locations are
counted on the image's own grid, padded to its own extents, so that a record does not depend on which images once shared
a batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from locdistill.distillation.cache.store import CacheRecord
from locdistill.distillation.settings import NumberFormat
from locdistill.types import Dense

INDEX, ROWS, MAPS, MOMENTS = "index", ("cls", "edge", "quality"), ("features", "towers"), "moments"
LOW, STEP = ".low", ".step"
LARGEST = torch.finfo(torch.float16).max


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Order of the locations of a padded image; see `Grid`.

    Attributes:
        strides: Strides of the levels, in pixels.
        per_cell: Locations per cell.
        pad_to: Sides of images are padded to multiples of this.
    """

    strides: tuple[int, ...]
    per_cell: int
    pad_to: int

    def extents(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of an image with its own padding."""
        height, width = (-(-side // self.pad_to) * self.pad_to for side in size)
        return height, width

    def shapes(self, padded: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the height and width of each level's map for a padded image."""
        return [(-(-padded[0] // stride), -(-padded[1] // stride)) for stride in self.strides]

    def locations(self, padded: tuple[int, int]) -> int:
        """Return the number of locations of a padded image."""
        return sum(h * w for h, w in self.shapes(padded)) * self.per_cell

    def moved(self, index: Int[Tensor, " k"], source: tuple[int, int], target: tuple[int, int]) -> Int[Tensor, " k"]:
        """Return the indices of a padded image's locations after padding it to other sides, not smaller ones."""
        if source == target:
            return index
        ours, theirs = (torch.tensor(self.shapes(sides)) for sides in (source, target))
        ends = (ours.prod(-1) * self.per_cell).cumsum(0)
        level = torch.searchsorted(ends, index, right=True)
        place = index - (ends - ours.prod(-1) * self.per_cell)[level]
        cell, anchor = place // self.per_cell, place % self.per_cell
        row, column = cell // ours[level, 1], cell % ours[level, 1]
        starts = (theirs.prod(-1) * self.per_cell).cumsum(0) - theirs.prod(-1) * self.per_cell
        return starts[level] + (row * theirs[level, 1] + column) * self.per_cell + anchor


def record_of(
    dense: Dense, image: int, where: Int[Tensor, " k"] | None, *, maps: Sequence[str], numbers: NumberFormat
) -> CacheRecord:
    """Create the record of one image of a batch.

    Args:
        dense: The teacher's predictions of the batch.
        image: The image's position in the batch.
        where: Locations to keep; None keeps no predictions.
        maps: Maps to keep: ``features`` and ``towers`` whole, or ``moments`` of the towers.
        numbers: ``half``, or ``8bit``: the edges of a location, its classes, or a channel of a map are quantised
            between their own minimum and maximum.
    """
    record: CacheRecord = {}
    if where is not None:
        if len(where) < dense.cls_logits.shape[1]:
            record[INDEX] = where.to(torch.int32)
        values_of = (dense.cls_logits, dense.edge_logits, dense.quality_logits)
        for name, values in zip(ROWS, values_of, strict=True):
            if values is not None:
                record |= encoded(name, values[image, where], numbers)
    for name in (name for name in MAPS if name in maps):
        for level, values in enumerate(getattr(dense, name)):
            record |= encoded(f"{name}.{level}", values[image], numbers)
    if MOMENTS in maps:
        record |= {f"{MOMENTS}.{level}": moments(values[image]) for level, values in enumerate(dense.towers)}
    return record


def record_errors(record: CacheRecord, dense: Dense, image: int, where: Int[Tensor, " k"] | None) -> dict[str, float]:
    """Return the largest difference between predictions and their record, by name."""
    values_of = (dense.cls_logits, dense.edge_logits, dense.quality_logits)
    pairs = {
        name: values[image, where]
        for name, values in zip(ROWS, values_of, strict=True)
        if values is not None and name in record
    }
    pairs |= {
        f"{kind}.{level}": values[image]
        for kind in MAPS
        for level, values in enumerate(getattr(dense, kind))
        if f"{kind}.{level}" in record
    }
    errors: dict[str, float] = {}
    for name, values in pairs.items():
        if values.numel():
            kind = name.partition(".")[0]
            errors[kind] = max(errors.get(kind, 0.0), float((decoded(record, name) - values.float()).abs().max()))
    return errors


def moments(values: Float[Tensor, "d h w"]) -> Float[Tensor, "d 1 2"]:
    """Return maps of two positions with the same mean and spread per channel: all that alignment to them uses."""
    mean = values.float().mean((1, 2), keepdim=True)
    spread = values.float().var((1, 2), correction=0, keepdim=True).sqrt()
    return torch.cat((mean - spread, mean + spread), -1)


def encoded(name: str, values: Float[Tensor, "*shape"], numbers: NumberFormat) -> CacheRecord:
    """Encode numbers for storage; see :func:`decoded`. Half precision has 11 bits, and 8 bits have 255 equal steps."""
    values = values.float().clamp(-LARGEST, LARGEST)
    if numbers == "half" or name == "quality":
        return {name: values.half()}
    rows = values.flatten(1)
    low, high = rows.aminmax(dim=-1, keepdim=True)
    step = (high - low) / 255
    levels = ((rows - low) / step.clamp(min=torch.finfo(step.dtype).tiny)).round().to(torch.uint8)
    return {name: levels.view_as(values), name + LOW: low.squeeze(-1), name + STEP: step.squeeze(-1)}


def decoded(record: Mapping[str, Tensor], name: str) -> Float[Tensor, "*shape"]:
    """Decode stored numbers to float32; the error of 8-bit numbers is at most half a step."""
    values = record[name].float()
    if name + LOW not in record:
        return values
    low, step = record[name + LOW], record[name + STEP]
    shape = (*low.shape, *[1] * (values.ndim - low.ndim))
    return values * step.view(shape) + low.view(shape)


def joined(records: Sequence[CacheRecord], sizes: Sequence[tuple[int, int]], layout: Layout) -> CacheRecord:
    """Join the records of a batch's images for its padding; input of ``dense_of``.

    Args:
        records: One for each image.
        sizes: Height and width of each image, without padding.
        layout: Layout of the locations.
    """
    extents = [layout.extents(size) for size in sizes]
    padded = max(h for h, _ in extents), max(w for _, w in extents)
    together: CacheRecord = {}
    for name in (name for name in records[0] if name != INDEX):
        parts = [record[name] for record in records]
        kind, _, level = name.partition(".")
        if kind in MAPS and level.isdigit():
            # maps of unequal size in one tensor; values beyond their own size are padding without meaning
            height, width = (max(values.shape[axis] for values in parts) for axis in (-2, -1))
            whole = parts[0].new_zeros(len(parts), len(parts[0]), height, width)
            for place, values in zip(whole, parts, strict=True):
                place[:, : values.shape[-2], : values.shape[-1]] = values
            together[name] = whole
        elif kind in (*MAPS, MOMENTS):
            together[name] = torch.stack(parts)
        else:
            together[name] = torch.cat(parts)
    if ROWS[0] in records[0]:
        # the index of each row in the batch's locations, image after image
        places, locations = [], layout.locations(padded)
        for image, (record, own) in enumerate(zip(records, extents, strict=True)):
            index = record[INDEX].long() if INDEX in record else torch.arange(layout.locations(own))
            places.append(layout.moved(index, own, padded) + image * locations)
        together[INDEX] = torch.cat(places)
    return together


def dense_of(record: Mapping[str, Tensor], images: int, locations: int) -> Dense:
    """Return the predictions of a batch in float32; 0 where no record has a row.

    Args:
        record: Record joined by :func:`joined`, on the device.
        images: Number of images in the batch.
        locations: Number of locations per image.
    """
    spread: dict[str, Tensor] = {}
    for name in (name for name in ROWS if name in record):
        rows = decoded(record, name)
        whole = rows.new_zeros(images * locations, *rows.shape[1:]).index_copy_(0, record[INDEX], rows)
        spread[name] = whole.view(images, locations, *rows.shape[1:])
    if not spread:
        device = next(iter(record.values())).device
        spread["cls"] = torch.zeros(images, locations, 1, device=device)
        spread["edge"] = torch.zeros(images, locations, 4, 1, device=device)
    maps = {}
    for kind in (*MAPS, MOMENTS):
        levels = sum(name.startswith(f"{kind}.") and name.count(".") == 1 for name in record)
        maps[kind] = tuple(decoded(record, f"{kind}.{level}") for level in range(levels))
    return Dense(
        cls_logits=spread["cls"],
        edge_logits=spread["edge"],
        quality_logits=spread.get("quality"),
        features=maps["features"],
        towers=maps["towers"] or maps[MOMENTS],
    )
