"""Tiles: windows, the objects in them, what is written, and detections put together again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from shapely import Polygon, box

from locdistill.annotations.tiles import WINDOWS, image_name
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset, Record
from locdistill.data.settings import DataSettings
from locdistill.data.tiling import (
    Tiles,
    TilingSettings,
    Window,
    cut,
    parts_inside,
    windows,
)
from locdistill.errors import DataError
from locdistill.geometry.rotated import corners
from locdistill.types import Detections

SMALL = TilingSettings(size=100, overlap=20)


def test_the_last_window_is_moved_back_to_the_end() -> None:
    assert windows(250, 100, SMALL) == [Window(0, 0, 100), Window(80, 0, 100), Window(150, 0, 100)]
    assert windows(260, 90, SMALL) == [Window(0, 0, 100), Window(80, 0, 100), Window(160, 0, 100)]
    assert windows(100, 100, SMALL) == windows(30, 40, SMALL) == [Window(0, 0, 100)]
    assert windows(100, 101, SMALL) == [Window(0, 0, 100), Window(0, 1, 100)]


def test_published_windows_of_an_image_of_dota() -> None:
    # 4000 x 2000, tiles of 1024 with an overlap of 200: ceil((4000 - 1024) / 824 + 1) = 5 and ceil(976 / 824 + 1) = 3.
    places = windows(4000, 2000, TilingSettings())
    assert sorted({place.x for place in places}) == [0, 824, 1648, 2472, 2976]
    assert sorted({place.y for place in places}) == [0, 824, 976]
    assert len(places) == 15


def test_a_tile_is_called_after_its_image() -> None:
    assert image_name("P0__1__1024__824___0") == "P0__1"
    assert [image_name(name) for name in ("P0__0.5__-3___-4", "P0", "P0__1__2", "__1__2___3")] == [
        "P0",
        "P0",
        "P0__1__2",
        "__1__2___3",
    ]


def test_a_scale_has_windows_of_its_own_size() -> None:
    places = windows(300, 100, TilingSettings(size=100, overlap=20, scales=(0.5, 1, 1.0, 2)))
    assert [place for place in places if place.side == 200] == [Window(0, 0, 200), Window(100, 0, 200)]
    assert len([place for place in places if place.side == 100]) == 4
    assert {place.side for place in places} == {50, 100, 200}


@given(
    st.integers(1, 400),
    st.integers(1, 400),
    st.integers(10, 150),
    st.data(),
    st.lists(st.sampled_from([0.5, 0.75, 1.0, 1.5]), min_size=1, max_size=3),
)
def test_every_pixel_is_covered_at_every_scale(
    width: int, height: int, size: int, data: st.DataObject, scales: list[float]
) -> None:
    overlap = data.draw(st.integers(0, size // 2))
    settings = TilingSettings(size=size, overlap=overlap, scales=tuple(scales))
    places = windows(width, height, settings)
    assert len(set(places)) == len(places)
    for scale in scales:
        side = int(size / scale)
        covered = np.zeros((height, width), bool)
        for place in places:
            if place.side == side:
                covered[place.y : place.y + side, place.x : place.x + side] = True
                assert place.x + side <= max(width, side)
                assert place.y + side <= max(height, side)
        assert covered.all()


def test_tiles_must_advance() -> None:
    with pytest.raises(ValidationError, match="overlap < size"):
        TilingSettings(size=100, overlap=100)


def test_parts_are_those_of_polygons_and_add_up() -> None:
    rng = np.random.default_rng(0)
    boxes = torch.tensor(
        np.column_stack((rng.uniform(0, 300, (60, 2)), rng.uniform(5, 90, (60, 2)), rng.uniform(-4, 4, 60)))
    )
    quads = (corners(boxes).numpy() + rng.normal(0, 3, (60, 4, 2))).astype(np.float32)
    places = windows(300, 300, TilingSettings(size=100, overlap=0))
    inside = parts_inside(quads, places)
    assert inside.shape == (9, 60)
    for i, quad in enumerate(quads.astype(np.float64)):
        polygon = Polygon(quad)
        expected = [polygon.intersection(box(x, y, x + s, y + s)).area / polygon.area for x, y, s in places]
        np.testing.assert_allclose(inside[:, i], expected, atol=1e-9)
        whole = polygon.intersection(box(0, 0, 300, 300)).area / polygon.area
        assert inside[:, i].sum() == pytest.approx(whole)
    assert parts_inside(quads[:0], places).shape == (9, 0)
    point = np.full((1, 4, 2), 50, np.float32)
    assert parts_inside(point, places).tolist() == [[0.0]] * 9


def record(
    folder: Path, name: str, image_id: int, quads: list, *, size=(250, 100), labels=None, ignored=None
) -> Record:
    rng = np.random.default_rng(image_id)
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)).save(folder / f"{name}.png")
    shaped = np.array(quads, np.float32).reshape(-1, 4, 2)
    return Record(
        path=folder / f"{name}.png",
        image_id=image_id,
        width=size[0],
        height=size[1],
        boxes=np.concatenate((shaped.min(1), shaped.max(1)), 1) if len(shaped) else np.zeros((0, 4), np.float32),
        labels=np.array(labels or [0] * len(shaped), np.int64),
        ignored=np.array(ignored or [False] * len(shaped), bool),
        quads=shaped,
    )


def square(x: float, y: float, side: float) -> list[list[float]]:
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    folder = tmp_path / "whole"
    records = (
        record(
            folder,
            "P1",
            4,
            [square(60, 10, 50), square(85, 60, 10), square(200, 20, 30)],
            labels=[1, 0, 1],
            ignored=[False, False, True],
        ),
        record(folder, "P0", 9, [], size=(60, 40)),
    )
    return Dataset("whole/val", ("fuel tank", "ship"), records, "coco", (7, 3), oriented=True)


def test_what_is_written(tmp_path: Path, data: Dataset) -> None:
    tiles = cut(data, tmp_path / "tiles" / "val", SMALL)
    folder = tmp_path / "tiles" / "val"
    names = ["P0__100__0___0", "P1__100__0___0", "P1__100__150___0", "P1__100__80___0"]
    assert sorted(path.stem for path in (folder / "images").iterdir()) == names
    assert sorted(path.stem for path in (folder / "labelTxt").iterdir()) == names
    assert [path.name for path in (tmp_path / "tiles").iterdir()] == ["val"]
    assert set(tiles.windows) == set(names)
    assert tiles.windows["P1__100__150___0"] == (4, Window(150, 0, 100))
    read = {name: (folder / "labelTxt" / f"{name}.txt").read_text() for name in names}
    # The first square lies with 40 of its 50 columns in the first window, with 30 in the second (0.6 is too little).
    assert read["P1__100__0___0"] == (
        "60.00 10.00 110.00 10.00 110.00 60.00 60.00 60.00 ship 2\n"
        "85.00 60.00 95.00 60.00 95.00 70.00 85.00 70.00 fuel-tank 0\n"
    )
    assert read["P1__100__80___0"] == "5.00 60.00 15.00 60.00 15.00 70.00 5.00 70.00 fuel-tank 0\n"
    assert read["P1__100__150___0"] == "50.00 20.00 80.00 20.00 80.00 50.00 50.00 50.00 ship 1\n"
    assert read["P0__100__0___0"] == ""
    whole = np.asarray(Image.open(data.records[0].path))
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "images" / "P1__100__150___0.png")), whole[:, 150:])
    padded = np.asarray(Image.open(folder / "images" / "P0__100__0___0.png"))
    np.testing.assert_array_equal(padded[:40, :60], np.asarray(Image.open(data.records[1].path)))
    assert (padded[40:] == (124, 116, 104)).all()
    assert (padded[:, 60:] == (124, 116, 104)).all()


def test_tiles_are_a_data_set(tmp_path: Path, data: Dataset) -> None:
    cut(data, tmp_path / "tiles" / "val", SMALL)
    opened = open_dataset(DataSettings(path=str(tmp_path / "tiles")), "val", training=False)
    assert opened.oriented
    assert opened.classes == ("fuel tank", "ship")  # not as the label files have it
    assert [len(r.boxes) for r in opened.records] == [0, 2, 1, 1]
    assert [r.ignored.tolist() for r in opened.records] == [[], [True, False], [True], [False]]


def test_objects_that_a_tile_cuts_keep_their_own_mark_on_request(tmp_path: Path, data: Dataset) -> None:
    """As in JDet, where difficult objects are background and those that a tile cuts are not."""
    cut(data, tmp_path / "tiles" / "val", SMALL.model_copy(update={"mark_cut": False}))
    opened = open_dataset(DataSettings(path=str(tmp_path / "tiles")), "val", training=False)
    assert [r.ignored.tolist() for r in opened.records] == [[], [False, False], [True], [False]]


def test_a_scale_shows_more_in_as_many_pixels(tmp_path: Path, data: Dataset) -> None:
    settings = TilingSettings(size=100, overlap=20, scales=(0.5,), pad=(0, 0, 0))
    tiles = cut(data, tmp_path / "half", settings)
    assert sorted(tiles.windows) == ["P0__200__0___0", "P1__200__0___0", "P1__200__50___0"]
    picture = Image.open(tmp_path / "half" / "images" / "P1__200__50___0.png")
    assert picture.size == (100, 100)
    lines = (tmp_path / "half" / "labelTxt" / "P1__200__50___0.txt").read_text().splitlines()
    assert lines[0] == "5.00 5.00 30.00 5.00 30.00 30.00 5.00 30.00 ship 0"
    assert (np.asarray(picture)[52:] == 0).all()


def test_upright_boxes_have_their_corners(tmp_path: Path, data: Dataset) -> None:
    cut(data.as_oriented(False), tmp_path / "tiles", SMALL)
    line = (tmp_path / "tiles" / "labelTxt" / "P1__100__150___0.txt").read_text()
    assert line == "50.00 20.00 80.00 20.00 80.00 50.00 50.00 50.00 ship 1\n"


def test_an_interrupted_cut_goes_on_and_a_complete_one_is_left_alone(
    tmp_path: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from locdistill.data import tiling

    folder, read = tmp_path / "val", []

    def fail(path: Path, **_: object) -> torch.Tensor:
        if len(read):
            raise KeyboardInterrupt
        read.append(path.stem)
        return real(path)

    real = tiling.read_image
    monkeypatch.setattr(tiling, "read_image", fail)
    with pytest.raises(KeyboardInterrupt):
        cut(data, folder, SMALL, threads=1)
    assert not folder.exists()
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / ".val.unfinished" / "images").iterdir()}
    assert len(done) == 3
    with pytest.raises(DataError, match="interrupted cut of other images or with other settings"):
        cut(data, folder, TilingSettings(size=50, overlap=0))
    again: list[str] = []
    monkeypatch.setattr(tiling, "read_image", lambda path, **_: (again.append(path.stem), real(path))[1])
    bar: list[int] = []

    def progress(items, total):
        bar.append(total)
        return items

    tiles = cut(data, folder, SMALL, progress=progress)
    assert (again, bar) == (["P0"], [2])
    assert all((folder / "images" / path.name).stat().st_mtime_ns == then for path, then in done.items())
    assert cut(data, folder, SMALL).windows == tiles.windows
    assert again == ["P0"]
    with pytest.raises(DataError, match="holds other content than the tiles of 'whole/val' with these settings"):
        cut(data, folder, TilingSettings(size=100, overlap=30))
    with pytest.raises(DataError, match="holds other content"):
        cut(data, data.records[0].path.parent, SMALL)


def test_a_broken_image_is_named(tmp_path: Path, data: Dataset) -> None:
    data.records[0].path.write_bytes(b"no image")
    with pytest.raises(Exception, match=r"P1.png"):
        cut(data, tmp_path / "val", SMALL)
    assert not (tmp_path / "val").exists()


def test_images_of_one_name_are_told_apart(tmp_path: Path) -> None:
    records = tuple(record(tmp_path / str(i), "P1", i, [], size=(50, 50)) for i in (3, 8))
    tiles = cut(Dataset("d", ("ship",), records, "dota", (1,), oriented=True), tmp_path / "out", SMALL)
    assert set(tiles.windows) == {"P1-3__100__0___0", "P1-8__100__0___0"}


def test_what_is_no_folder_of_tiles(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"{WINDOWS}: no readable list of windows"):
        Tiles.read(tmp_path)
    (tmp_path / WINDOWS).write_text(json.dumps({"images": []}))
    with pytest.raises(DataError, match=f"{WINDOWS}: no readable list of windows"):
        Tiles.read(tmp_path)


def detections(boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    return Detections(torch.tensor(boxes), torch.tensor(scores), torch.tensor(labels))


def test_detections_move_to_where_they_are_and_duplicates_go(tmp_path: Path, data: Dataset) -> None:
    tiles = cut(data, tmp_path / "val", TilingSettings(size=100, overlap=20, scales=(1.0, 0.5)))
    found = {
        "P1__100__80___0": detections([[10.0, 65, 10, 10, 0.2], [60.0, 30, 20, 8, 1.0]], [0.6, 0.9], [0, 1]),
        "P1__100__0___0": detections([[90.0, 65, 10, 10, 0.2], [90.0, 65, 10, 10, 0.2]], [0.7, 0.3], [0, 1]),
        "P1__200__50___0": detections([[45.0, 15, 10, 4, 1.0]], [0.8], [1]),
    }
    joined = tiles.joined(found, iou=0.1)
    assert joined.keys() == {4, 9}
    assert len(joined[9].scores) == 0
    assert joined[4].scores.tolist() == pytest.approx([0.9, 0.7, 0.3])
    assert joined[4].labels.tolist() == [1, 0, 1]
    torch.testing.assert_close(
        joined[4].boxes, torch.tensor([[140.0, 30, 20, 8, 1.0], [90, 65, 10, 10, 0.2], [90, 65, 10, 10, 0.2]])
    )
    assert len(tiles.joined(found, iou=1.0)[4].scores) == 5
    upright = tiles.joined({"P1__200__50___0": detections([[10.0, 20, 30, 40]], [0.8], [1])}, iou=0.3)
    assert upright[4].boxes.tolist() == [[70, 40, 110, 80]]
