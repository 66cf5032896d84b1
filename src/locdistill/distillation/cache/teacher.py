"""A teacher that looks at each image once, and is remembered ever after."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from locdistill.data.transforms import Look
from locdistill.distillation.cache.record import (
    MAPS,
    MOMENTS,
    ROWS,
    Layout,
    Record,
    dense_of,
    joined,
    record_errors,
    record_of,
)
from locdistill.distillation.cache.store import Store
from locdistill.distillation.settings import Numbers
from locdistill.distillation.teacher import FrozenTeacher
from locdistill.geometry.grid import Grid
from locdistill.models.fold import Haste
from locdistill.objective.objective import Objective
from locdistill.objective.term import Need, Region, Term
from locdistill.types import Batch, Dense, Instances

KEYS = "keys"
SAID = "said"
ERRORS = "errors"


@dataclass(frozen=True)
class Recall:
    """Hands on with each batch what is remembered of its images, in the processes that read them.

    A record belongs to an image's content, its objects, and the exact size and way in which it is looked at: nothing
    else of the file system or the run counts.

    Attributes:
        store: Where the records are.
        contents: A digest of each image and its objects, ``(n, 16)`` uint8.
        layout: Of the student's locations.
    """

    store: Store
    contents: np.ndarray
    layout: Layout

    def key(self, image: int, size: tuple[int, int], look: Look) -> bytes:
        """The key of one image, looked at in one way."""
        return bytes(self.contents[image]) + struct.pack("<II", *size) + look.mark

    def recall(
        self, images: Sequence[int], sizes: Sequence[tuple[int, int]], looks: Sequence[Look]
    ) -> Mapping[str, Tensor]:
        """The keys of a batch's images and, if there is a record of all of them, what they say; see `CachedTeacher`.

        Args:
            images: Their positions in the data set.
            sizes: Height and width of each, before padding.
            looks: How each is looked at.
        """
        keys = [self.key(*own) for own in zip(images, sizes, looks, strict=True)]
        named = {KEYS: torch.from_numpy(np.frombuffer(b"".join(keys), np.uint8).reshape(len(keys), -1).copy())}
        found = self.store.get(keys)
        records = [record for record in found if record is not None]
        return named | joined(records, sizes, self.layout) if len(records) == len(keys) else named


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """What is kept of what a teacher says.

    Attributes:
        objective: Whose terms it is kept for: its assigner and regions say at which locations.
        layout: Of the student's locations.
        predictions: Whether terms, or what is watched, look at predictions.
        maps: Which maps are kept: ``features``, ``towers``, or the ``moments`` of the towers.
        numbers: How precisely.
    """

    objective: Objective
    layout: Layout
    predictions: bool = True
    maps: tuple[str, ...] = ()
    numbers: Numbers = "half"

    @classmethod
    def of(cls, objective: Objective, layout: Layout, *, comparable: bool, numbers: Numbers = "half") -> Keeping:
        """What the terms of an objective look at.

        Args:
            objective: The loss.
            layout: Of the student's locations.
            comparable: Whether the teacher's predictions are in the student's terms: how well both agree is watched.
            numbers: How precisely to keep it.
        """
        terms = list(objective.terms.values())
        towers = any(Need.TOWERS in term.needs for term in terms)
        maps = [
            *(["features"] if objective.needs_features else []),
            *(["towers"] if towers else []),
            *([MOMENTS] if objective.needs_cross and not towers else []),
        ]
        needed = comparable or any(term.needs_predictions for term in terms)
        return cls(objective=objective, layout=layout, predictions=needed, maps=tuple(maps), numbers=numbers)

    @property
    def everywhere(self) -> bool:
        """Whether predictions are kept at all locations, since a term may look at any."""
        return any(not term.bounded for term in self._asking)

    @property
    def regions(self) -> tuple[str, ...]:
        """The regions at whose locations predictions are kept, beside the positives, in words."""
        return ("everywhere",) if self.everywhere else tuple(sorted({_footprint(term.on) for term in self._asking}))

    @property
    def _asking(self) -> list[Term]:
        return [term for term in self.objective.terms.values() if term.needs_teacher and term.needs_predictions]

    def where(self, dense: Dense, instances: Instances, grid: Grid) -> Bool[Tensor, "b l"]:
        """The locations at which predictions are kept: the positives, and all that a term may look at."""
        with torch.autocast(grid.points.device.type, enabled=False):
            objective = self.objective
            scene = objective.unchecked(dense, dense, grid=grid, instances=instances)
            kept = scene.assignment.positive
            for term in self._asking:
                kept = kept | term.reach(scene)
        return kept


class CachedTeacher(FrozenTeacher):
    """A teacher whose predictions are taken from a store where they are there, and put there where they are not.

    Predictions of an image do not depend on which images share its batch: each is looked at in its own padding. They
    are rounded as the store keeps them, the first time too, so that a run does not change with what was there before.
    A batch that does not come with what is remembered (another loader's) is shown to the teacher itself.

    Args:
        teacher: Who is asked where nothing is remembered; it is brought to the device only then.
        store: Where the records are.
        keeping: What is kept.
        grid_for: From height and width of padded images to the student's locations.

    Attributes:
        errors: Largest difference, by rounding, between what the teacher said and what was kept, by name.
    """

    def __init__(
        self, teacher: FrozenTeacher, store: Store, keeping: Keeping, grid_for: Callable[[tuple[int, int]], Grid]
    ) -> None:
        self.teacher, self.store, self.keeping, self._grid_for = teacher, store, keeping, grid_for
        self.notes, self.comparable = teacher.notes, teacher.comparable
        self.errors: dict[str, float] = {}
        self._device = torch.device("cpu")
        self._brought_to: torch.device | None = None
        self._how: Haste | None = None
        self._said: tuple[tuple[int, ...] | None, bool] | None = None

    def to(self, device: torch.device) -> CachedTeacher:
        """Note where the batches are; the teacher follows when it is needed."""
        self._device = device
        return self

    def hasten(self, how: Haste) -> None:
        """Note how; the teacher does so when it is needed."""
        self._how, self._brought_to = how, None

    @torch.no_grad()
    def __call__(self, batch: Batch, *, features: bool = False, towers: bool = False) -> Dense:
        """The teacher's predictions on the batch; see :meth:`FrozenTeacher.__call__`."""
        recalled = batch.recalled
        if recalled is None:
            return self._asked(batch, features=features, towers=towers)
        records = None if len(recalled) > 1 else self.look(batch)
        with torch.autocast(batch.images.device.type, enabled=False):
            if records is not None:
                keys = [bytes(key) for key in recalled[KEYS].tolist()]
                self.store.put(dict(zip(keys, records, strict=True)))
                self._note_errors()
                recalled = self._together(batch, records)
            locations = self.keeping.layout.locations((int(batch.images.shape[-2]), int(batch.images.shape[-1])))
            dense = dense_of(recalled, len(batch.images), locations)
        known, quality_in_score = self._speaks()
        return dense._replace(known=known, quality_in_score=quality_in_score)

    def _note_errors(self) -> None:
        """Write down the largest errors, where they have grown."""
        known = noted_errors(self.store) or {}
        if grown := {name: error for name, error in self.errors.items() if error > known.get(name, -1.0)}:
            self.store.note({f"{ERRORS}.{name}".encode(): repr(error).encode() for name, error in grown.items()})

    def _together(self, batch: Batch, records: list[Record]) -> Record:
        """What would have come with the batch, had it been there."""
        sizes = [(int(h), int(w)) for h, w in batch.sizes.tolist()]
        cpu = [{name: values.cpu() for name, values in record.items()} for record in records]
        together = joined(cpu, sizes, self.keeping.layout)
        return {name: values.to(batch.images.device) for name, values in together.items()}

    def cross(self, student: Dense, teacher: Dense) -> Dense:
        """What the teacher's head makes of the student's features: it is run each time."""
        return self._present().cross(student, teacher)

    @torch.no_grad()
    def look(self, batch: Batch) -> list[Record]:
        """What is kept of each image of a batch, seen by the teacher now."""
        extents = [self.keeping.layout.extents((int(h), int(w))) for h, w in batch.sizes.tolist()]
        records: dict[int, Record] = {}
        for own in sorted(set(extents)):
            images = [i for i, other in enumerate(extents) if other == own]
            records |= zip(images, self._look_alike(_part(batch, images, own)), strict=True)
        return [records[i] for i in range(len(extents))]

    def _look_alike(self, batch: Batch) -> list[Record]:
        """Records of images that fill a batch with their extents."""
        keeping = self.keeping
        kept_towers = "towers" in keeping.maps or MOMENTS in keeping.maps
        dense = self._asked(batch, features="features" in keeping.maps, towers=kept_towers)
        if self._said is None:
            self.store.claim(SAID, {"known": dense.known, "quality_in_score": dense.quality_in_score})
        where = None
        if keeping.predictions:
            grid = self._grid_for((int(batch.images.shape[-2]), int(batch.images.shape[-1])))
            where = keeping.where(dense, batch.instances, grid)
        records = []
        for image in range(len(batch.images)):
            index = None if where is None else where[image].nonzero()[:, 0]
            record = record_of(dense, image, index, maps=keeping.maps, numbers=keeping.numbers)
            for name, error in record_errors(record, dense, image, index).items():
                self.errors[name] = max(self.errors.get(name, 0.0), error)
            records.append(record)
        return records

    def _asked(self, batch: Batch, *, features: bool, towers: bool) -> Dense:
        return self._present()(batch, features=features, towers=towers)

    def _present(self) -> FrozenTeacher:
        """The teacher, where the batches are."""
        if self._brought_to != self._device:
            self.teacher.to(self._device)
            if self._how is not None:
                self.teacher.hasten(self._how)
            self._brought_to = self._device
        return self.teacher

    def _speaks(self) -> tuple[tuple[int, ...] | None, bool]:
        """Which classes are known, and what the quality is for: the same of all images."""
        if self._said is None:
            said = self.store.about(SAID)
            self._said = None if said["known"] is None else tuple(said["known"]), said["quality_in_score"]
        return self._said


def noted_errors(store: Store) -> dict[str, float] | None:
    """Largest rounding error of what is kept: of class and edge logits, qualities and maps; None if none is known."""
    names = (*ROWS, *MAPS)
    notes = zip(names, store.notes([f"{ERRORS}.{name}".encode() for name in names]), strict=True)
    return {name: float(note) for name, note in notes if note is not None} or None


def _footprint(region: Region) -> str:
    """A region in words, without how it weighs its locations."""
    own = {field.name: getattr(region, field.name) for field in fields(region) if field.name != "by"}  # type: ignore[arg-type]
    return " ".join([type(region).__name__, *(f"{name}={value}" for name, value in own.items())])


def _part(batch: Batch, images: list[int], extents: tuple[int, int]) -> Batch:
    """Some images of a batch, without what pads them beyond their extents."""
    height, width = extents
    return batch._replace(
        images=batch.images[images, :, :height, :width],
        sizes=batch.sizes[images],
        original_sizes=batch.original_sizes[images],
        image_ids=batch.image_ids[images],
        instances=batch.instances.of(images),
        recalled=None,
    )
