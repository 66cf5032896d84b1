"""The digest that identifies a data set: everything that training and evaluation read of it, except the pixels."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

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
    digests = []
    for record in dataset.records if records is None else records:
        whole = hashlib.blake2b(b"boxes" if record.quads is None else b"quads", digest_size=_SIZE)
        count = len(record.labels)
        if count:
            values: list[np.ndarray] = [
                record.boxes.astype(np.float32),
                record.ignored.astype(bool),
                record.areas.astype(np.float32),
            ]
            if record.quads is not None:
                values.append(record.quads.astype(np.float32))
            columns = [np.ascontiguousarray(column).view(np.uint8).reshape(count, -1) for column in values]
            rows = np.concatenate([table[record.labels], *columns], axis=1)
            whole.update(rows.tobytes() if ordered else b"".join(sorted(row.tobytes() for row in rows)))
        digests.append(whole.digest())
    return digests
