"""How many slots a batch has for its objects."""

from __future__ import annotations

from torch.nn.functional import pad

from locdistill.types import Instances

FEWEST = 8


def bucketed(instances: Instances) -> Instances:
    """The same objects in 8, 16, 32, ... slots.

    A batch has as many slots as its fullest image has objects, so that hardly any two batches are alike, and compiled
    code or memory that is planned ahead meets new shapes all the time. Empty slots change no loss. Whoever compiles the
    objective is to do this where batches are put together or before they are used; nothing here depends on it.
    """
    objects = instances.boxes.shape[1]
    slots = FEWEST
    while slots < objects:
        slots *= 2
    more = (0, slots - objects)
    oriented = instances.oriented
    return instances._replace(
        oriented=None if oriented is None else pad(oriented, (0, 0, *more)),
        boxes=pad(instances.boxes, (0, 0, *more)),
        labels=pad(instances.labels, more),
        present=pad(instances.present, more),
        ignored=pad(instances.ignored, more),
    )
