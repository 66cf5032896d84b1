"""Annotations of COCO read all at once are those read one by one."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from locdistill.annotations import coco_entries
from locdistill.annotations.sources import Source

IMAGES: dict[int, dict[str, Any]] = {3: {}, 8: {}, 11: {}}
NAMES = {1: "cat", 90: "dog"}
SIDE = st.one_of(st.integers(0, 500), st.floats(0, 500, width=32))
START = st.one_of(st.integers(-50, 500), st.floats(-50, 500, width=32))
REGULAR = st.fixed_dictionaries(
    {
        "id": st.integers(0, 5),
        "image_id": st.sampled_from(sorted(IMAGES)),
        "category_id": st.sampled_from(sorted(NAMES)),
        "bbox": st.tuples(START, START, SIDE, SIDE).map(list),
    },
    optional={
        "area": st.one_of(st.none(), SIDE),
        "iscrowd": st.sampled_from([0, 1, True, False]),
        "ignore": st.sampled_from([0, 1]),
        "segmentation": st.just([]),
    },
)
CHANGES: tuple[tuple[str, Any], ...] = (
    *(("id", "7"), ("id", None), ("image_id", 4), ("image_id", "3"), ("category_id", 2), ("category_id", 1.0)),
    *(("bbox", None), ("bbox", [1, 2, 3]), ("bbox", [1, 2, -1, 3]), ("bbox", [1, 2, "3", 4]), ("bbox", (1, 2, 3, 4))),
    *(("bbox", [1, 2, float("nan"), 3]), ("bbox", [1, 2, float("inf"), 3]), ("bbox", [1, 2, True, 3])),
    *(("bbox", [1, 2, 10**400, 3]), ("area", "12"), ("area", float("nan")), ("area", 1e30), ("iscrowd", "1")),
    *(("iscrowd", 2), ("iscrowd", [1]), ("ignore", None), ("rbox", [9, 9, 4, 2, 0.1]), ("rbox", None)),
)


def read(entries: list[Any], *, at_once: bool) -> tuple[coco_entries.AnnotationTable, Source]:
    source = Source(file="x.json", categories=[])
    with pytest.MonkeyPatch.context() as patch:
        if not at_once:
            patch.setattr(coco_entries, "_regular", lambda *_: None)
        return coco_entries.read_annotations(copy.deepcopy(entries), IMAGES, NAMES, source), source


def check_equal(entries: list[Any]) -> None:
    (one, first), (other, second) = (read(entries, at_once=at_once) for at_once in (True, False))
    assert first.problems == second.problems
    assert +first.notes == +second.notes
    assert one.turned == other.turned
    for name in ("images", "categories", "boxes", "ignored", "areas"):
        a, b = getattr(one, name), getattr(other, name)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)


@given(st.lists(REGULAR, max_size=8))
def test_regular_annotations(entries: list[Any]) -> None:
    source = Source(file="x.json", categories=[])
    assert coco_entries._regular(entries, IMAGES, NAMES, source.notes) is not None
    check_equal(entries)


@given(st.lists(REGULAR, min_size=1, max_size=4), st.data())
def test_annotations_of_which_one_needs_a_word(entries: list[Any], data: st.DataObject) -> None:
    change = data.draw(st.sampled_from([*CHANGES, ("drop", "id"), ("drop", "bbox"), ("drop", "image_id"), None]))
    entry = data.draw(st.sampled_from(entries))
    if change is None:
        entries.insert(0, "no object")
    elif change[0] == "drop":
        del entry[change[1]]
    else:
        entry[change[0]] = change[1]
    check_equal(entries)
