"""One digest of a data set: whatever training or evaluation reads changes it, wherever it is used."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locdistill.data.digest import data_digest
from locdistill.data.records import Dataset, Record
from locdistill.data.tiling import TilingSettings, cut
from locdistill.distillation.cache.open import contents
from locdistill.distillation.cache.store import Store
from locdistill.errors import DataError, RunError
from locdistill.recipe import run_folder

QUADS = np.array([[[1, 9], [9, 1], [15, 7], [7, 15]], [[20, 20], [30, 20], [30, 28], [20, 28]]], np.float32)


def _record(path: Path, image_id: int) -> Record:
    return Record(
        path=path,
        image_id=image_id,
        width=64,
        height=48,
        boxes=np.concatenate([QUADS.min(1), QUADS.max(1)], axis=1),
        labels=np.array([0, 1]),
        ignored=np.array([False, False]),
        quads=QUADS,
    )


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    paths = [tmp_path / f"{name}.png" for name in "ab"]
    for shade, path in enumerate(paths):
        Image.new("RGB", (64, 48), (shade, 0, 0)).save(path)
    records = tuple(_record(path, i + 1) for i, path in enumerate(paths))
    return Dataset("d/val", ("cat", "dog"), records, "dota", (1, 2), oriented=True)


def _with(data: Dataset, **changes: object) -> Dataset:
    """The data with a change of the first image."""
    return replace(data, records=(replace(data.records[0], **changes), *data.records[1:]))


def _elsewhere(data: Dataset) -> Dataset:
    path = data.records[0].path.with_name("c.png")
    path.write_bytes(data.records[0].path.read_bytes())
    return _with(data, path=path)


def _moved(values: np.ndarray) -> np.ndarray:
    moved = values.copy()
    moved.flat[-1] += 1
    return moved


FIELDS: dict[str, Callable[[Dataset], Dataset]] = {
    "path": _elsewhere,
    "image_id": lambda data: _with(data, image_id=7),
    "width": lambda data: _with(data, width=65),
    "height": lambda data: _with(data, height=49),
    "boxes": lambda data: _with(data, boxes=_moved(data.records[0].boxes)),
    "labels": lambda data: _with(data, labels=np.array([0, 0])),
    "ignored": lambda data: _with(data, ignored=np.array([False, True])),
    "areas": lambda data: _with(data, areas=_moved(data.records[0].areas)),
    "quads": lambda data: _with(data, quads=_moved(data.records[0].quads)),
}
"""A change of each field of an image."""
OTHERS: dict[str, Callable[[Dataset], Dataset]] = {
    "no quads": lambda data: data.as_oriented(False),
    "quads exchanged": lambda data: _with(data, quads=data.records[0].quads[::-1].copy()),
    "classes renamed": lambda data: replace(data, classes=("cat", "cow")),
    "format": lambda data: replace(data, kind="voc"),
    "one image less": lambda data: replace(data, records=data.records[1:]),
    "one object less": lambda data: replace(
        data, records=(data.records[0].of(np.array([True, False])), *data.records[1:])
    ),
}


def test_every_field_has_a_change() -> None:
    assert set(FIELDS) == {field.name for field in fields(Record)}


@pytest.mark.parametrize("change", [*FIELDS, *OTHERS])
def test_what_is_read_changes_the_digest_of_a_run_of_a_comparison_and_of_tiles(
    change: str, data: Dataset, tmp_path: Path
) -> None:
    other = (FIELDS | OTHERS)[change](data)
    assert data_digest(other) != data_digest(data)
    assert data_digest(other, ordered=False) != data_digest(data, ordered=False)  # of a comparison
    (tmp_path / "run.json").write_text(json.dumps(run_folder.facts_of({"train": data})))
    run_folder.check_unchanged(tmp_path, run_folder.facts_of({"train": data}))
    with pytest.raises(RunError, match="the train data have changed since the run began"):
        run_folder.check_unchanged(tmp_path, run_folder.facts_of({"train": other}))
    settings = TilingSettings(size=48, overlap=8)
    cut(data, tmp_path / "tiles", settings)
    with pytest.raises(DataError, match="holds other content"):
        cut(other, tmp_path / "tiles", settings)


@pytest.mark.parametrize("change", [*FIELDS, "no quads", "classes renamed"])
def test_what_a_teacher_or_a_region_sees_changes_the_keys_of_a_cache(
    change: str, data: Dataset, tmp_path: Path
) -> None:
    other = (FIELDS | OTHERS)[change](data)
    before, after = (contents(each, Store(tmp_path / "cache"), keep_ignored=True) for each in (data, other))
    assert (before[1] == after[1]).all() or change in ("no quads", "classes renamed")
    # Name and place of an image are nothing to the teacher; its size is that of the file, and in the key.
    same = change in ("path", "image_id", "width", "height")
    assert (before[0] == after[0]).all() == same


def test_objects_that_are_dropped_are_nothing_to_a_cache(data: Dataset, tmp_path: Path) -> None:
    marked = _with(data, ignored=np.array([False, True]))
    store = Store(tmp_path / "cache")
    moved = _with(marked, boxes=_moved(marked.records[0].boxes), quads=_moved(marked.records[0].quads))
    for keep in (False, True):
        same = contents(marked, store, keep_ignored=keep) == contents(moved, store, keep_ignored=keep)
        assert same.all() != keep


def test_search_and_landscape_use_the_same_digest() -> None:
    from locdistill.study import landscape
    from locdistill.study.tune import tune

    assert landscape.data_digest is tune.data_digest is run_folder.data_digest is data_digest


def test_the_order_of_images_objects_and_classes(data: Dataset) -> None:
    turned = [
        replace(r.of(np.array([1, 0])), labels=1 - r.labels[::-1])  # the same objects, under the other numbers
        for r in reversed(data.records)
    ]
    other = replace(data, records=tuple(turned), classes=("dog", "cat"), name="elsewhere/val", category_ids=(3, 9))
    assert data_digest(other, ordered=False) == data_digest(data, ordered=False)
    assert data_digest(other) != data_digest(data)
    for same in (replace(data, name="x"), replace(data, category_ids=(3, 9)), replace(data, angles="oc")):
        assert data_digest(same) == data_digest(data)


def test_no_objects_and_no_images(data: Dataset) -> None:
    nothing = replace(data, records=tuple(record.of(np.zeros(2, bool)) for record in data.records))
    empty = replace(data, records=())
    assert len({data_digest(each) for each in (data, nothing, empty, nothing.as_oriented(False))}) == 4
