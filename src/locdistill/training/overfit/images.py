"""Choice of the few images to be learnt by heart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from locdistill.data.records import Dataset, Record, evenly


def choose(dataset: Dataset, count: int) -> Dataset:
    """Return ``count`` images of one shape that show most of the classes; fewer if there are no more with objects.

    Images of one shape are one batch, with the same padding in training and evaluation. Without any object, images are
    evenly spaced.
    """
    there = [record for record in dataset.records if (~record.ignored).any()]
    if not there:
        return evenly(dataset, count)
    # the images of the commonest size; those of the commonest orientation if too few have that size
    by_size = Counter((record.width, record.height) for record in there)
    size, alike = max(by_size.items(), key=lambda item: item[1])
    wide = sum(record.width > record.height for record in there) * 2 > len(there)
    if alike >= count:
        there = [record for record in there if (record.width, record.height) == size]
    else:
        there = [record for record in there if (record.width > record.height) == wide]
    return replace(dataset, records=tuple(_covering(there, count)))


def _covering(records: Sequence[Record], count: int) -> list[Record]:
    """Choose images one by one: the most classes that none before shows, then the fewest objects, then the first.

    When no image adds a class, the classes are covered once more.
    """
    classes = [frozenset(record.labels[~record.ignored].tolist()) for record in records]
    rest, seen = list(range(len(records))), frozenset[int]()
    chosen: list[int] = []
    while rest and len(chosen) < count:
        if not any(classes[i] - seen for i in rest):
            seen = frozenset()
        best = min(rest, key=lambda i: (-len(classes[i] - seen), len(records[i].labels), i))
        rest.remove(best)
        chosen.append(best)
        seen |= classes[best]
    return [records[i] for i in sorted(chosen)]
