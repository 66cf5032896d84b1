"""A teacher that processes each view of an image once and takes its predictions from a cache afterwards."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from locdistill.data.transforms import View
from locdistill.distillation.cache.record import MAPS, MOMENTS, ROWS, Layout, dense_of, joined, record_errors, record_of
from locdistill.distillation.cache.store import CacheRecord, Store
from locdistill.distillation.settings import NumberFormat
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.geometry.grid import Grid
from locdistill.models.fold import SpeedUps
from locdistill.objective.objective import Objective
from locdistill.objective.term import Need, Term
from locdistill.types import Batch, Dense, Instances

KEYS = "keys"
FACTS = "said"
ERRORS = "errors"
DIGEST = 16
"""Bytes of a digest of contents."""


@dataclass(frozen=True)
class Recall:
    """Lookup of the records of a batch's images, in the worker processes that read the images.

    A record is identified by an image's content, its objects, and its exact size and view, for a mosaic by those of all
    its images: nothing else of the file system or the run matters.

    Attributes:
        store: Store of the records.
        contents: A digest of each image and its objects, ``(n, 16)`` uint8.
        layout: Layout of the student's locations.
    """

    store: Store
    contents: np.ndarray
    layout: Layout

    def key(self, image: int, size: tuple[int, int], view: View) -> bytes:
        """Return the key of one view of an image."""
        key = bytes(self.contents[image]) + struct.pack("<II", *size) + view.mark
        if view.mosaic is None:
            return key
        others = b"".join(bytes(self.contents[other]) for other, _ in view.mosaic.others)
        return key + hashlib.blake2b(others, digest_size=DIGEST).digest()

    def recall(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]], views: Sequence[View]
    ) -> Mapping[str, Tensor]:
        """Return the keys of a batch's images and, if all have records, their joined records; see `CachedTeacher`.

        Args:
            images: Positions of the images in the data set.
            sizes: Height and width of each, before padding.
            views: View of each.
        """
        keys = [self.key(*own) for own in zip(images, sizes, views, strict=True)]
        # keys of any length as rows: the length, the key, zeros
        longest = max(map(len, keys))
        rows = b"".join(bytes([len(key)]) + key.ljust(longest, b"\0") for key in keys)
        named = {KEYS: torch.from_numpy(np.frombuffer(rows, np.uint8).reshape(len(keys), -1).copy())}
        found = self.store.get(keys)
        records = [record for record in found if record is not None]
        return named | joined(records, sizes, self.layout) if len(records) == len(keys) else named


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """Selection of a teacher's predictions to keep.

    Attributes:
        objective: The loss with the terms to keep them for; its assigner and regions decide at which locations.
        layout: Layout of the student's locations.
        terms: Those of its terms that use a teacher's predictions.
        predictions: Whether terms, or the monitored agreement, use predictions.
        maps: Maps to keep: ``features``, ``towers``, or the ``moments`` of the towers.
        numbers: Number format of the records.
    """

    objective: Objective
    layout: Layout
    terms: tuple[Term, ...] = ()
    predictions: bool = True
    maps: tuple[str, ...] = ()
    numbers: NumberFormat = "half"

    @classmethod
    def of(cls, objective: Objective, layout: Layout, *, comparable: bool, numbers: NumberFormat = "half") -> Keeping:
        """Return the selection that the terms of an objective need.

        Args:
            objective: The loss.
            layout: Layout of the student's locations.
            comparable: Whether the teacher's predictions are comparable with the student's; their agreement is then
                monitored.
            numbers: Number format of the records.
        """
        terms = list(objective.terms.values())
        towers = any(Need.TOWERS in term.needs for term in terms)
        maps = [
            *(["features"] if objective.needs_features else []),
            *(["towers"] if towers else []),
            *([MOMENTS] if objective.needs_cross and not towers else []),
        ]
        return cls(
            objective=objective,
            layout=layout,
            terms=tuple(term for term in terms if term.needs_teacher and term.needs_predictions),
            predictions=comparable or any(term.needs_predictions for term in terms),
            maps=tuple(maps),
            numbers=numbers,
        )

    @property
    def regions(self) -> tuple[str, ...]:
        """Names of the regions at which predictions are kept besides the positives, or ``everywhere``."""
        if any(not term.bounded for term in self.terms):
            return ("everywhere",)
        names = set()
        for term in self.terms:
            # all settings but the weighting of the locations
            own = [field.name for field in fields(term.on) if field.name != "by"]  # type: ignore[arg-type]
            names.add(" ".join([type(term.on).__name__, *(f"{name}={getattr(term.on, name)}" for name in own)]))
        return tuple(sorted(names))

    def where(self, dense: Dense, instances: Instances, grid: Grid) -> Bool[Tensor, "b l"]:
        """Return the locations at which predictions are kept: the positives, and all that a term may use."""
        with torch.autocast(grid.points.device.type, enabled=False):
            objective = self.objective
            scene = objective.scene(dense, dense, grid=grid, instances=instances, checked=False)
            kept = scene.assignment.positive
            for term in self.terms:
                kept = kept | term.reach(scene)
        return kept


class CachedTeacher(FrozenTeacher):
    """A teacher that reads its predictions from a store, and adds those that are missing.

    Predictions of an image do not depend on the other images of its batch: each is processed with its own padding. They
    are rounded as in the store, also on first use, so that a run does not depend on the previous contents of the store.
    For a batch without cache keys (from another loader), the teacher itself is run.

    Args:
        teacher: The teacher to run where records are missing; it is moved to the device only then.
        store: Store of the records.
        keeping: Selection of what is kept.
        grid_for: Function from height and width of padded images to the student's locations.

    Attributes:
        errors: Largest rounding error of the records so far, by name.
    """

    def __init__(
        self, teacher: FrozenTeacher, store: Store, keeping: Keeping, grid_for: Callable[[Sequence[int]], Grid]
    ) -> None:
        self.teacher, self.store, self.keeping, self._grid_for = teacher, store, keeping, grid_for
        self.notes, self.comparable = teacher.notes, teacher.comparable
        self.errors: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._brought_to: torch.device | None = None
        self._how: SpeedUps | None = None
        self._facts: tuple[tuple[int, ...] | None, bool] | None = None

    def to(self, device: torch.device) -> CachedTeacher:
        """Record the device of the batches; the teacher is moved there when it is needed."""
        self._device = device
        return self

    def optimise(self, how: SpeedUps) -> None:
        """Record the speed-ups; they are applied to the teacher when it is needed."""
        self._how, self._brought_to = how, None

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """Return the teacher's predictions on the batch; see :meth:`FrozenTeacher.__call__`."""
        from_cache = batch.from_cache
        if from_cache is None:
            return self._present()(batch, features=features, towers=towers)
        records = None if len(from_cache) > 1 else self.look(batch)
        with torch.autocast(batch.images.device.type, enabled=False):
            if records is not None:
                keys = [bytes(row[1 : 1 + row[0]]) for row in from_cache[KEYS].tolist()]
                self.store.put(dict(zip(keys, records, strict=True)))
                known_errors = noted_errors(self.store) or {}
                grown = {name: error for name, error in self.errors.items() if error > known_errors.get(name, -1.0)}
                if grown:
                    self.store.note(
                        {f"{ERRORS}.{name}".encode(): repr(error).encode() for name, error in grown.items()}
                    )
                # the same as a record that comes with the batch
                sizes = [(int(h), int(w)) for h, w in batch.sizes.tolist()]
                cpu = [{name: values.cpu() for name, values in record.items()} for record in records]
                together = joined(cpu, sizes, self.keeping.layout)
                from_cache = {name: values.to(batch.images.device) for name, values in together.items()}
            locations = self.keeping.layout.locations((int(batch.images.shape[-2]), int(batch.images.shape[-1])))
            dense = dense_of(from_cache, len(batch.images), locations)
        # the known classes and the use of the quality are the same for all images
        if self._facts is None:
            facts = self.store.about(FACTS)
            self._facts = None if facts["known"] is None else tuple(facts["known"]), facts["quality_in_score"]
        known, quality_in_score = self._facts
        return dense._replace(known=known, quality_in_score=quality_in_score)

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """Return the predictions of the teacher's head for the student's features; the head is run each time."""
        return self._present().cross(student, teacher)

    @torch.no_grad()
    def look(self, batch: Batch) -> list[CacheRecord]:
        """Run the teacher on a batch, images of equal extents together, and return the record of each image."""
        keeping = self.keeping
        kept_towers = "towers" in keeping.maps or MOMENTS in keeping.maps
        extents = [keeping.layout.extents((int(h), int(w))) for h, w in batch.sizes.tolist()]
        records: dict[int, CacheRecord] = {}
        for own in sorted(set(extents)):
            images = [i for i, other in enumerate(extents) if other == own]
            part = batch._replace(
                images=batch.images[images, :, : own[0], : own[1]],
                sizes=batch.sizes[images],
                original_sizes=batch.original_sizes[images],
                image_ids=batch.image_ids[images],
                instances=batch.instances.of(images),
                from_cache=None,
            )
            dense = self._present()(part, features="features" in keeping.maps, towers=kept_towers)
            if self._facts is None:
                self.store.claim(FACTS, {"known": dense.known, "quality_in_score": dense.quality_in_score})
            where = None
            if keeping.predictions:
                where = keeping.where(dense, part.instances, self._grid_for(part.images.shape[-2:]))
            for place, image in enumerate(images):
                index = None if where is None else where[place].nonzero()[:, 0]
                records[image] = record_of(dense, place, index, maps=keeping.maps, numbers=keeping.numbers)
                for name, error in record_errors(records[image], dense, place, index).items():
                    self.errors[name] = max(self.errors.get(name, 0.0), error)
        return [records[i] for i in range(len(extents))]

    def _present(self) -> FrozenTeacher:
        """Return the teacher on the device of the batches."""
        if self._brought_to != self._device:
            self.teacher.to(self._device)
            if self._how is not None:
                self.teacher.optimise(self._how)
            self._brought_to = self._device
        return self.teacher


def noted_errors(store: Store) -> dict[str, float] | None:
    """Return the largest rounding error of class and edge logits, qualities and maps; None if none is known."""
    names = (*ROWS, *MAPS)
    notes = zip(names, store.notes([f"{ERRORS}.{name}".encode() for name in names]), strict=True)
    return {name: float(note) for name, note in notes if note is not None} or None
