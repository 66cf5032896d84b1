"""The digest that identifies a data set: everything that training and evaluation read of it, except the pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from locdistill.annotations.sources import parts_between
from locdistill.data.records import Dataset, Record

_SIZE = 16


def data_digest(dataset: Dataset, *, ordered: bool = True) -> str:
    """Compute the digest of a data set: its format, classes, images (name, identifier, size) and objects.

    The name and path of the data set and its category ids do not enter.

    Args:
        dataset: The data set.
        ordered: Whether the order of classes, images and objects matters, as in training.
    """
    images = [
        json.dumps([record.path.name, record.image_id, record.width, record.height]).encode() + objects
        for record, objects in zip(dataset.records, object_digests(dataset, ordered=ordered), strict=True)
    ]
    classes = list(dataset.classes) if ordered else sorted(dataset.classes)
    whole = hashlib.sha256(json.dumps([dataset.kind, dataset.oriented, classes]).encode())
    for image in images if ordered else sorted(images):
        whole.update(hashlib.sha256(image).digest())
    return whole.hexdigest()


def object_digests(dataset: Dataset, *, ordered: bool = True, records: Sequence[Record] | None = None) -> list[bytes]:
    """Compute a 16-byte digest of each image's objects: boxes, class names, ignore flags, areas, quadrilaterals.

    Args:
        dataset: The data set.
        ordered: Whether the order of the objects of an image matters.
        records: Records to use instead of the data set's.
    """
    names = [hashlib.blake2b(name.encode(), digest_size=_SIZE).digest() for name in dataset.classes]
    table = np.frombuffer(b"".join(names), np.uint8).reshape(-1, _SIZE)
    chosen = dataset.records if records is None else records
    if not chosen:
        return []
    kinds: list[tuple[str, type]] = [("boxes", np.float32), ("ignored", bool), ("areas", np.float32)]
    if chosen[0].quads is not None:
        kinds.append(("quads", np.float32))
    # the rows of all images at once, because a large data set has many
    labels = np.concatenate([record.labels for record in chosen])
    columns: list[np.ndarray] = [
        np.concatenate([getattr(record, name) for record in chosen]).astype(kind) for name, kind in kinds
    ]
    flat = [np.ascontiguousarray(column).view(np.uint8).reshape(len(labels), -1) for column in columns if len(labels)]
    rows = np.concatenate([table[labels], *flat], axis=1)
    start = b"boxes" if chosen[0].quads is None else b"quads"
    digests = []
    for own in parts_between(rows, np.cumsum([len(record.labels) for record in chosen]).tolist()):
        whole = hashlib.blake2b(start, digest_size=_SIZE)
        whole.update(own.tobytes() if ordered else b"".join(sorted(row.tobytes() for row in own)))
        digests.append(whole.digest())
    return digests
