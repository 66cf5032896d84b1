"""What is drawn for each image, batches of rotated objects, and what tells one look from another."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.data.loader import collate, evaluation_loader, every_view_loader, training_loader, training_plan
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.samplers import Draw
from locdistill.data.settings import DataSettings
from locdistill.data.transforms import FILL, Sample, View, look_at
from locdistill.data.views import ViewPlan
from locdistill.geometry.rotated import corners, hull
from locdistill.types import Batch

SIZES = ((80, 60),)


class Size(NamedTuple):
    short: int
    long: int
    pad_to: int
    bits: int | None = None


def plan(**changes: Any) -> ViewPlan:
    return ViewPlan(**{"sizes": SIZES, "flip": 0.5, "seed": 3, **changes})


def drawn(chosen: ViewPlan, count: int = 400) -> list[View]:
    return [chosen.view(Draw(image)) for image in range(count)]


def write_turned(folder: Path, *, images: int = 4) -> Path:
    """A COCO folder with a bright bar at some angle in each image, and its ``rbox``."""
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    rows, columns = np.mgrid[:64, :80] + 0.5
    for i in range(images):
        cx, cy, w, h, theta = 40 + i, 30 - i, 36, 10, 0.4 + 0.7 * i
        cos, sin = math.cos(theta), math.sin(theta)
        along, across = (columns - cx) * cos + (rows - cy) * sin, (rows - cy) * cos - (columns - cx) * sin
        pixels = np.full((64, 80, 3), 20, np.uint8)
        pixels[(abs(along) < w / 2) & (abs(across) < h / 2)] = 230
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        entries.append({"id": i + 1, "file_name": f"{i}.png", "width": 80, "height": 64})
        (x1, y1, x2, y2) = hull(torch.tensor([cx, cy, w, h, theta], dtype=torch.float64)).tolist()
        box = {"bbox": [x1, y1, x2 - x1, y2 - y1], "rbox": [cx, cy, w, h, theta]}
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1, **box})
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "bar"}]}
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


def settings_of(folder: Path, **changes: Any) -> DataSettings:
    return DataSettings(**{"path": str(folder), "sizes": SIZES, "batch_per_device": 2, "workers": 0, **changes})


def batches_of(dataset: Dataset, settings: DataSettings, epoch: int = 0) -> list[Batch]:
    loader = training_loader(dataset, settings, seed=5)
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return list(loader)


# --- what is drawn -------------------------------------------------------------------------------------------------


def test_looks_of_runs_that_ask_for_nothing_new_are_what_they_were() -> None:
    ranged = plan(sizes=((80, 60), (120, 40)), mode="range")
    for view, draw in ((ranged.view(draw), draw) for draw in (Draw(i, epoch=2, turn=1) for i in range(50))):
        random = np.random.default_rng((3, 2, 1, draw.image))
        long, short = int(random.integers(80, 121)), int(random.integers(40, 61))
        assert view == View(long, min(long, short), bool(random.random() < 0.5))
    more = plan(sizes=((80, 60), (120, 40)), mode="range", turns=True, rotate=10.0, scale=(0.5, 2.0))
    for one, other in zip(drawn(ranged), drawn(more), strict=True):
        assert one[:2] == other[:2]  # what is drawn first stays


def test_how_often_each_is_drawn() -> None:
    views = drawn(plan(flip_vertical=0.25, turns=True))
    counts = np.bincount([view.flipped * 4 + view.turns for view in views], minlength=8)
    assert (counts > 25).all()  # 50 each
    upended = drawn(plan(flip=0.0, flip_vertical=0.25))
    assert {(view.flipped, view.turns) for view in upended} == {(False, 0), (True, 2)}
    assert 70 < sum(view.flipped for view in upended) < 130
    assert not any(view.cuts or view.least for view in views + upended)


def test_rotations_and_scales_fill_their_ranges() -> None:
    views = drawn(plan(rotate=30.0, scale=(0.5, 2.0), min_visible=0.3))
    degrees = np.array([view.degrees for view in views])
    zooms = np.log([view.zoom for view in views])
    windows = np.array([view.window for view in views])
    assert -30 <= degrees.min() < -28
    assert 28 < degrees.max() <= 30
    assert abs(np.median(zooms)) < 0.15  # as many enlarged as shrunk
    assert np.log(0.5) <= zooms.min() < zooms.max() <= np.log(2)
    assert 0 <= windows.min() < 0.02
    assert 0.98 < windows.max() <= 1
    assert {view.least for view in views} == {0.3}


@pytest.mark.parametrize(
    ("changes", "ways"),
    [
        ({}, 2),
        ({"flip": 0.0, "flip_vertical": 0.5}, 2),
        ({"flip_vertical": 0.5}, 4),
        ({"turns": True, "flip": 0.0}, 4),
        ({"turns": True}, 8),
        ({"turns": True, "flip_vertical": 0.5, "sizes": ((80, 60), (40, 30))}, 16),
        ({"rotate": 5.0}, None),
        ({"scale": (1.0, 1.0)}, None),
        ({"rotate": 5.0, "per_image": 3}, 3),
    ],
)
def test_ways_are_counted_once_each(changes: dict[str, Any], ways: int | None) -> None:
    chosen = plan(**changes)
    assert chosen.ways == ways
    if ways is not None:
        views = chosen.all_views(7)
        assert len(views) == len(set(views)) == ways
        assert {chosen.view(Draw(7, epoch)) for epoch in range(200)} == set(views)
        # Of equal sizes, the marks tell them apart: the image is not square, so sizes alone tell quarter turns.
        assert len({(view.size(30, 40), view.mark) for view in views}) == ways


def test_marks_of_what_there_always_was_stay() -> None:
    assert View(80, 60).mark == b"\0"
    assert View(80, 60, flipped=True).mark == b"\1"
    least = View(80, 60, degrees=3.0, least=0.5)
    others = [least._replace(degrees=3.1), least._replace(zoom=0.9), least._replace(window=(0.1, 0.5))]
    assert len({view.mark for view in (least, *others, least._replace(least=0.4), least._replace(turns=1))}) == 6


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match="smallest and the largest factor"):
        DataSettings(scale=(2.0, 0.5))
    with pytest.raises(ValueError, match="less than or equal to 180"):
        DataSettings(rotate=200)
    assert DataSettings(rotate=5, scale=(0.5, 2)).ranges == ("rotate", "scale")
    assert DataSettings(turns=True, flip_vertical=0.5).ranges == ()


# --- by hand -------------------------------------------------------------------------------------------------------


def sample(boxes: list[list[float]], *, width: int = 4, height: int = 2) -> Sample:
    pixels = torch.arange(3 * height * width, dtype=torch.uint8).reshape(3, height, width)
    count = len(boxes)
    return Sample(
        pixels,
        torch.tensor(boxes).float().reshape(-1, 4),
        torch.arange(count),
        torch.zeros(count) > 0,
        (height, width),
        1,
    )


def test_an_enlarged_image_is_cut_to_a_window() -> None:
    seen = look_at(
        sample([[0, 0, 1, 1], [2, 0, 4, 2], [3, 1, 4, 2]]), View(4, 2, zoom=2.0, window=(1.0, 0.0), least=0.5)
    )
    # 8 x 4 pixels, of which the right upper 4 x 2 are seen.
    assert seen.image.shape == (3, 2, 4)
    assert seen.labels.tolist() == [1]  # the first and the last are beyond
    assert seen.boxes.tolist() == [[0, 0, 4, 2]]
    assert seen.ignored.tolist() == [False]  # half of it


def test_a_shrunk_image_has_a_margin() -> None:
    seen = look_at(sample([[0, 0, 4, 2]]), View(4, 2, zoom=0.5, window=(0.0, 1.0)))
    assert seen.image.shape == (3, 2, 4)
    assert seen.image[:, 0].unique(dim=-1)[:, 0].tolist() == list(FILL)
    assert seen.image[:, 1, 2:].unique(dim=-1)[:, 0].tolist() == list(FILL)
    assert seen.boxes.tolist() == [[0, 1, 2, 2]]


def test_a_quarter_turn_is_clockwise_and_changes_the_sides() -> None:
    first = sample([[0, 0, 1, 1]])
    seen = look_at(first, View(4, 2, turns=1))
    assert seen.image[0].tolist() == [[4, 0], [5, 1], [6, 2], [7, 3]]
    assert seen.boxes.tolist() == [[1, 0, 2, 1]]  # from the upper left to the upper right


# --- batches -------------------------------------------------------------------------------------------------------


def test_rotated_objects_in_batches(tmp_path: Path) -> None:
    folder = write_turned(tmp_path)
    settings = settings_of(folder, flip=0.0)
    dataset = open_dataset(settings, "train").as_oriented(True, "le90")
    for batch in batches_of(dataset, settings):
        oriented = batch.instances.oriented
        assert oriented is not None
        assert torch.equal(batch.instances.targets, oriented)
        torch.testing.assert_close(batch.instances.boxes, hull(oriented))
        for image_id, (box,) in zip(batch.image_ids.tolist(), oriented.tolist(), strict=True):
            theta = 0.4 + 0.7 * (image_id - 1)
            scale = 75 / 80  # 80 x 64 within 80 x 60
            assert box[:4] == pytest.approx([scale * v for v in (39 + image_id, 31 - image_id, 36, 10)], abs=0.02)
            assert math.sin(box[4] - theta) == pytest.approx(0, abs=1e-3)  # whatever pi more or less
            assert -math.pi / 2 <= box[4] < math.pi / 2
    flat = dataset.as_oriented(False)
    assert all(batch.instances.oriented is None for batch in batches_of(flat, settings))


def test_every_object_stays_on_its_bar(tmp_path: Path) -> None:
    folder = write_turned(tmp_path)
    ways = {"turns": True, "flip_vertical": 0.5, "rotate": 45.0, "scale": (0.6, 1.2), "min_visible": 0.9}
    settings = settings_of(folder, crowd="ignore", **ways)
    dataset = open_dataset(settings, "train").as_oriented(True)
    rows, columns = torch.meshgrid(torch.arange(96) + 0.5, torch.arange(96) + 0.5, indexing="ij")
    looked = 0
    for batch in (batch for epoch in range(6) for batch in batches_of(dataset, settings, epoch)):
        for i, image in enumerate(batch.images):
            assert batch.instances.oriented is not None
            height, width = image.shape[-2:]
            x, y, w, h, theta = batch.instances.oriented[i, 0].tolist()
            across, down = columns[:height, :width] - x, rows[:height, :width] - y
            along, aside = (
                across * math.cos(theta) + down * math.sin(theta),
                down * math.cos(theta) - across * math.sin(theta),
            )
            inside = (along.abs() < w / 2 - 1.5) & (aside.abs() < h / 2 - 1.5)
            outside = (along.abs() > w / 2 + 2) | (aside.abs() > h / 2 + 2)
            if bool(batch.instances.present[i, 0]):
                assert float(image[:, inside].float().mean()) > 215
                looked += 1
            assert int(image[:, outside].max()) < 140  # the fill at most
    assert looked > 12


def test_ignored_objects_are_left_out_where_they_train_as_background(tmp_path: Path) -> None:
    folder = write_turned(tmp_path)
    ways = {"scale": (3.0, 3.0), "min_visible": 1.0}
    for crowd in ("background", "ignore"):
        settings = settings_of(folder, crowd=crowd, **ways)
        batches = batches_of(open_dataset(settings, "train"), settings)
        assert not any(bool(batch.instances.present.any()) for batch in batches)
        assert any(bool(batch.instances.ignored.any()) for batch in batches) == (crowd == "ignore")


def test_empty_images_have_empty_slots(tmp_path: Path) -> None:
    dataset = open_dataset(settings_of(write_turned(tmp_path)), "val").as_oriented(True)
    first = dataset.records[0].of(np.zeros(0, dtype=np.int64))
    (batch,) = evaluation_loader(
        replace(dataset, records=(first, dataset.records[1])), Size(48, 80, 32), batch=2, workers=0
    )
    assert batch.instances.oriented is not None
    assert batch.instances.oriented[0].tolist() == [[0] * 5]
    assert batch.instances.boxes[0].tolist() == [[0] * 4]
    assert batch.instances.present.tolist() == [[False], [True]]


def test_evaluation_hands_on_objects_as_they_are_annotated(tmp_path: Path) -> None:
    dataset = open_dataset(settings_of(write_turned(tmp_path)), "val").as_oriented(True)
    beyond = replace(dataset.records[0], quads=corners(torch.tensor([[0.0, 0, 40, 8, 0.5]])).numpy())
    (batch,) = evaluation_loader(replace(dataset, records=(beyond,)), Size(64, 80, 32), workers=0)
    assert batch.instances.oriented is not None
    assert batch.instances.present.tolist() == [[True]]
    assert batch.instances.oriented[0, 0].tolist() == pytest.approx([0, 0, 40, 8, 0.5], abs=1e-4)


def test_workers_and_kept_images_change_nothing(tmp_path: Path) -> None:
    ways = {"turns": True, "rotate": 20.0, "scale": (0.6, 1.5)}
    folder = write_turned(tmp_path)
    results = []
    for more in ({}, {"workers": 2}, {"cache": True}):
        settings = settings_of(folder, **ways, **more)
        dataset = open_dataset(settings, "train").as_oriented(True)
        results.append(
            [(b.images, b.instances.oriented) for epoch in (0, 1) for b in batches_of(dataset, settings, epoch)]
        )
    for other in results[1:]:
        for (image, box), (same_image, same_box) in zip(results[0], other, strict=True):
            assert torch.equal(image, same_image)
            assert torch.equal(box, same_box)  # type: ignore[arg-type]


class Notes:
    """A memory that writes down what it is asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, tuple[int, int], View]] = []

    def recall(self, images: Any, sizes: Any, views: Any) -> dict[str, torch.Tensor]:
        self.asked += zip(images, sizes, views, strict=True)
        return {}


def test_every_look_is_asked_for_as_training_asks(tmp_path: Path) -> None:
    settings = settings_of(write_turned(tmp_path), turns=True, rotate=20.0, scale=(0.6, 1.5), views=3)
    dataset = open_dataset(settings, "train").as_oriented(True)
    plan = training_plan(settings, 5, len(dataset))
    before, later = Notes(), Notes()
    draws = [Draw(image, way=way) for image in range(len(dataset)) for way in range(3)]
    batches = list(every_view_loader(dataset, settings, seed=5, draws=draws, memory=before))
    assert sum(len(batch.images) for batch in batches) == len(before.asked) == 12
    for image, size, view in before.asked:
        assert view in plan.all_views(image)
        assert size == view.size(64, 80)
    loader = training_loader(dataset, settings, seed=5, memory=later)
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        list(loader)
    assert set(later.asked) <= set(before.asked)
    assert len(set(later.asked)) > 6


def test_a_batch_of_axis_aligned_samples_has_no_rotated_boxes() -> None:
    seen = look_at(sample([[0, 0, 2, 2]]), View(4, 2))
    assert collate([seen], pad_to=4).instances.oriented is None
