"""Colours, translation, mosaics and erasing: where pixels and corners go, what is drawn, and what stays as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from locdistill.data.augment import HIDDEN, ColourChange, Patch, coloured, erased
from locdistill.data.loader import Pictures, every_view_loader, training_loader, training_plan
from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.samplers import Draw, GroupedSampler
from locdistill.data.settings import STRENGTHS, DataSettings
from locdistill.data.transforms import FILL, Mosaic, View, assembled, look_at, pieces_of
from locdistill.data.views import ViewPlan
from locdistill.distillation.cache.record import Layout
from locdistill.distillation.cache.store import Store
from locdistill.distillation.cache.teacher import KEYS, Recall
from locdistill.geometry.kinds import kind_of
from locdistill.recipe.overrides import apply_overrides
from locdistill.types import Batch
from tests.unit.data.test_views import sample

ALL: dict[str, Any] = {
    **{"translate": 0.2, "scale": (0.6, 1.6), "mosaic": 0.6, "erase": 0.5},
    "colour": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.5, "hue": 0.1, "grey": 0.2},
}


def noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return torch.from_numpy(pixels).permute(2, 0, 1)


def write_squares(folder: Path, *, images: int = 5) -> Path:
    """A COCO folder of images of several shapes with one green square each; the last has none, unless it is alone."""
    (folder / "images").mkdir(parents=True)
    entries, annotations = [], []
    for i in range(images):
        height, width = ((64, 80), (90, 50), (40, 120))[i % 3]
        pixels = np.full((height, width, 3), (200, 30, 30), np.uint8)
        if i + 1 < max(images, 2):
            x, y = 5 + 3 * i, 8 + 2 * i
            pixels[y : y + 20, x : x + 24] = (30, 200, 30)
            annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1, "bbox": [x, y, 24, 20]})
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        entries.append({"id": i + 1, "file_name": f"{i}.png", "width": width, "height": height})
    content = {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "square"}]}
    (folder / "train.json").write_text(json.dumps(content))
    return folder


def settings_of(folder: Path, **changes: Any) -> DataSettings:
    given = {"path": str(folder), "sizes": ((96, 64),), "batch_per_device": 2, "workers": 0, "filter_empty": False}
    return DataSettings(**{**given, **changes})


def batches_of(dataset: Dataset, data: DataSettings, *, epoch: int = 0, skip: int = 0) -> list[Batch]:
    loader = training_loader(dataset, data, seed=5)
    loader.sampler.ends_at(2 * len(loader))  # type: ignore[attr-defined]
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    loader.sampler.skip(skip)  # type: ignore[attr-defined]
    return list(loader)


# --- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [0.4, 0.9, 1.0, 1.6])
def test_colours_are_those_of_torchvision(factor: float) -> None:
    image = noise(13, 17)
    for name, expected in (
        ("brightness", tv.adjust_brightness(image, factor)),
        ("contrast", tv.adjust_contrast(image, factor)),
        ("saturation", tv.adjust_saturation(image, factor)),
    ):
        found = coloured(image, ColourChange(**{name: factor}))
        assert int((found.int() - expected.int()).abs().max()) <= 1, name


def test_grey_is_that_of_torchvision() -> None:
    image = noise(9, 11)
    found = coloured(image, ColourChange(grey=True))
    assert int((found.int() - tv.rgb_to_grayscale(image, 3).int()).abs().max()) <= 1


def test_steps_follow_each_other() -> None:
    image = (noise(9, 11) // 4) + 96  # so that nothing is clipped between them
    unrounded = tv.adjust_contrast(tv.adjust_brightness(image / 255, 1.1), 0.8)
    expected = 255 * tv.adjust_saturation(unrounded, 1.3)
    assert float((coloured(image, ColourChange(1.1, 0.8, 1.3)) - expected).abs().max()) < 0.6


def test_a_hue_turns_colours_and_leaves_greys() -> None:
    grey = torch.arange(0, 256, 5, dtype=torch.uint8).expand(3, 1, -1)
    assert int((coloured(grey, ColourChange(hue=0.3)).int() - grey.int()).abs().max()) <= 1
    image = (noise(9, 11) // 4) + 96
    there = coloured(image, ColourChange(hue=0.2))
    assert int((there.int() - image.int()).abs().max()) > 10
    back = coloured(there, ColourChange(hue=-0.2))
    assert int((back.int() - image.int()).abs().max()) <= 3


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(-0.5, 0.5), st.floats(0, 2))
def test_colours_do_not_depend_on_layout_or_neighbours(height: int, width: int, hue: float, saturation: float) -> None:
    image, change = noise(height, width), ColourChange(saturation=saturation, hue=hue)
    found = coloured(image, change)
    assert found.shape == image.shape
    assert torch.equal(coloured(image.contiguous(), change), found)
    assert torch.equal(coloured(image.flip(-1), change).flip(-1), found)
    assert torch.equal(coloured(image[:, -1:, -1:], change), found[:, -1:, -1:])


# --- erasing -------------------------------------------------------------------------------------------------------


def test_rectangles_are_erased_where_they_leave_half_of_each_object() -> None:
    image = torch.zeros(3, 40, 60, dtype=torch.uint8)
    corners = torch.tensor([[[0.0, 0], [20, 0], [20, 20], [0, 20]]])
    beside, over = Patch(0.5, 0.5, 0.2, 0.3, 1), Patch(0.0, 0.0, 0.3, 0.4, 2)
    found = erased(image, (over, beside), corners)
    assert not image.any()  # which may be kept in memory
    assert not found[:, :20, :20].any()
    assert found[:, 21:31, 31:40].float().std() > 50
    assert torch.equal(erased(image, (beside,), corners[:0]), found)
    some = erased(image, (over._replace(width=0.1), over._replace(y=0.25, width=0.3)), corners)
    assert 0 < (some[:, :20, :20].amax(0) > 0).float().mean() <= HIDDEN


# --- places --------------------------------------------------------------------------------------------------------


def test_a_shift_moves_content_and_boxes_and_fills_the_margin() -> None:
    seen = look_at(sample([[0, 0, 1, 1], [2, 0, 4, 2]]), View(4, 2, shift=(0.5, 0.0), least=0.5))
    assert seen.image[0, :, 2:].tolist() == [[0, 1], [4, 5]]
    assert seen.image[:, 0, 0].tolist() == list(FILL)
    assert seen.boxes.tolist() == [[2, 0, 3, 1]]
    away = look_at(sample([[0, 0, 1, 1]]), View(4, 2, shift=(0.9, 0.9)))
    assert away.image[:, :, 0].unique(dim=-1)[:, 0].tolist() == list(FILL)


def test_a_mosaic_by_hand() -> None:
    ones = [sample([[0, 0, 4, 2], [0, 0, 1, 1]])._replace(image_id=i) for i in range(4)]
    corner = View(4, 2, window=(0.0, 0.0), least=0.5)
    view = corner._replace(mosaic=Mosaic(0.5, 0.5, ((1, corner._replace(flipped=True)), (2, corner), (3, corner))))
    pieces = pieces_of(0, view, view.size(2, 4))
    assert [(p.image, p.x, p.y, p.view.frame) for p in pieces] == [
        *((0, 0, 0, (1, 2)), (1, 2, 0, (1, 2))),
        *((2, 0, 1, (1, 2)), (3, 2, 1, (1, 2))),
    ]
    seen = assembled([(p, look_at(ones[p.image], p.view)) for p in pieces], (2, 4))
    assert seen.image[0].tolist() == [[0, 1, 3, 2], [0, 1, 0, 1]]
    # Of the large object of each image a quarter is seen; the small one is beyond the flipped image's part.
    assert seen.boxes.tolist() == [
        *([0, 0, 2, 1], [0, 0, 1, 1], [2, 0, 4, 1]),
        *([0, 1, 2, 2], [0, 1, 1, 2], [2, 1, 4, 2], [2, 1, 3, 2]),
    ]
    assert seen.ignored.tolist() == [True, False, True, True, False, True, False]
    assert seen.image_id == 0


@pytest.mark.parametrize("rotate", [0, 40])
def test_every_corner_lies_on_its_square(tmp_path: Path, rotate: int) -> None:
    ways: dict[str, Any] = {"translate": 0.2, "scale": (0.6, 1.6), "mosaic": 0.5, "turns": True, "flip_vertical": 0.5}
    data = settings_of(write_squares(tmp_path), min_visible=0.999, rotate=rotate, **ways)
    dataset = open_dataset(data, "train").as_oriented(rotate > 0)
    pictures, looked, mosaics = Pictures(dataset, plan := training_plan(data, 5, len(dataset))), 0, 0
    for draw in (Draw(i, epoch) for epoch in range(20) for i in range(len(dataset))):
        view, record = plan.view(draw), dataset.records[draw.image]
        batch = pictures[[draw]]
        height, width = batch.sizes[0].tolist()
        assert (height, width) == view.size(record.height, record.width)
        mosaics += view.mosaic is not None
        objects = batch.instances.targets[0][batch.instances.present[0]]
        if not len(objects):
            continue
        image = batch.images[0, :, :height, :width].int()
        green = torch.nn.functional.pad(image[1] - image[0] > 60, (50, 50, 50, 50))
        corners = kind_of(objects).corners(objects)
        middles = corners.mean(1, keepdim=True)
        sizes = (corners - middles).norm(dim=-1, keepdim=True)
        for factor, expected in ((1 - 2.5 / sizes, True), (1 + 2.5 / sizes, False)):
            x, y = (middles + factor * (corners - middles)).flatten(0, 1).floor().long().unbind(-1)
            right = (green[y + 50, x + 50] == expected).float().mean()
            # beyond a corner there may be another image's square
            assert float(right) >= (1 if expected or view.mosaic is None else 0.7)
        looked += len(corners)
    assert looked > 25
    assert mosaics > 20


def test_one_image_and_images_without_objects(tmp_path: Path) -> None:
    data = settings_of(write_squares(tmp_path, images=1), **{**ALL, "mosaic": 1})
    dataset = open_dataset(data, "train")
    for epoch in range(4):
        assert all(batch.images.shape[1:] == (3, 64, 96) for batch in batches_of(dataset, data, epoch=epoch))


# --- what is drawn -------------------------------------------------------------------------------------------------


def plan_of(**changes: Any) -> ViewPlan:
    return training_plan(DataSettings(**{**ALL, "sizes": ((80, 60),), **changes}), 3, 50)


def test_new_parts_leave_what_is_drawn_before_them() -> None:
    plain, more = ViewPlan(sizes=((80, 60),), flip=0.5, seed=3, scale=(0.6, 1.6)), plan_of(mosaic=0)
    for draw in (Draw(i, 1) for i in range(60)):
        assert plain.view(draw)[:8] == more.view(draw)[:8]


def test_marks_tell_apart_all_that_differs_and_stay() -> None:
    view = View(80, 60, zoom=1.2, least=0.5)
    assert view.mark[0] == 0
    assert len(view.mark) == 41
    changed = ColourChange(brightness=1.1)
    mosaic = Mosaic(0.4, 0.6, ((1, view), (2, view), (3, view)))
    others = [
        view._replace(shift=(0.1, 0.0)),
        view._replace(colour=changed),
        view._replace(colour=changed._replace(grey=True)),
        view._replace(patches=(Patch(0, 0, 0.1, 0.1, 1),)),
        view._replace(patches=(Patch(0, 0, 0.1, 0.1, 2),)),
        *(view._replace(mosaic=m) for m in (mosaic, mosaic._replace(x=0.5))),
        view._replace(mosaic=mosaic._replace(others=((1, view), (2, view), (4, view)))),
        view._replace(mosaic=mosaic._replace(others=((1, view), (2, view), (3, view._replace(colour=changed))))),
        view._replace(mosaic=mosaic._replace(others=((1, view), (2, view), (3, view._replace(long=90))))),
    ]
    assert len({each.mark for each in (view, *others)}) == len(others) + 1


def test_the_end_of_a_run_has_no_mosaics() -> None:
    drawn = [(plan_of().view(Draw(i)), plan_of().view(Draw(i, late=True))) for i in range(80)]
    assert 30 < sum(early.mosaic is not None for early, _ in drawn) < 65
    assert not any(late.mosaic for _, late in drawn)
    sampler = GroupedSampler([True] * 8, batch=2, late=0.3)
    assert not any(draw.late for batch in sampler for draw in batch)  # of a run of unknown length
    sampler.ends_at(10)
    late = []
    for epoch, skipped in ((0, 0), (1, 2), (2, 0)):
        sampler.set_epoch(epoch)
        sampler.skip(skipped)
        late += [[draw.late for draw in batch] for batch in sampler]
    assert late == [[False] * 2] * 5 + [[True] * 2] * 5


def test_stated_views_are_the_same_for_all_runs_and_some_have_no_mosaic() -> None:
    few, many = plan_of(views=6, mosaic=1), plan_of(views=11, mosaic=1)
    views = many.all_views(7)
    assert views[:6] == few.all_views(7)
    assert [way for way, view in enumerate(views) if view.mosaic is None] == [0, 5, 10]
    assert {many.view(Draw(7, epoch, late=True)) for epoch in range(60)} == {views[0], views[5], views[10]}
    assert {many.view(Draw(7, epoch)) for epoch in range(200)} == set(views)
    assert len({view.mark for view in views}) == 11


def test_workers_memory_and_a_restart_change_nothing(tmp_path: Path) -> None:
    folder = write_squares(tmp_path)
    plain = settings_of(folder, **ALL, crowd="ignore")
    dataset = open_dataset(plain, "train").as_oriented(True)
    first = [batch for epoch in (0, 1) for batch in batches_of(dataset, plain, epoch=epoch)]
    for more in ({"workers": 2}, {"cache": True}):
        data = settings_of(folder, **ALL, crowd="ignore", **more)
        again = [batch for epoch in (0, 1) for batch in batches_of(dataset, data, epoch=epoch)]
        assert all(torch.equal(a.images, b.images) for a, b in zip(first, again, strict=True))
        assert all(torch.equal(a.instances.targets, b.instances.targets) for a, b in zip(first, again, strict=True))
    rest = batches_of(dataset, plain, epoch=1, skip=1)
    assert len(rest) == len(first) // 2 - 1
    assert all(torch.equal(a.images, b.images) for a, b in zip(first[-len(rest) :], rest, strict=True))


def test_keys_of_a_cache_know_all_images_of_a_mosaic(tmp_path: Path) -> None:
    data = settings_of(write_squares(tmp_path), **ALL, views=4)
    dataset = open_dataset(data, "train")
    contents = np.arange(16 * len(dataset), dtype=np.uint8).reshape(-1, 16)
    recall = Recall(Store(tmp_path / "cache"), contents, Layout(strides=(8,), per_cell=1, pad_to=32))
    plan = training_plan(data, 5, len(dataset))
    views = [(i, view) for i in range(len(dataset)) for view in plan.all_views(i)]
    keys = [recall.key(i, (64, 96), view) for i, view in views]
    assert len({*keys}) == len(keys) == 4 * len(dataset)
    image, view = next((i, view) for i, view in views if view.mosaic is not None and view.mosaic.others[0][0] != i)
    assert view.mosaic is not None
    changed = contents.copy()
    changed[view.mosaic.others[0][0]] += 1
    assert Recall(recall.store, changed, recall.layout).key(image, (64, 96), view) not in keys
    draws = [Draw(image, way=way) for image in range(len(dataset)) for way in range(4)]
    asked = []  # keys of one batch may be of unequal lengths
    for batch in every_view_loader(dataset, data, seed=5, draws=draws, memory=recall):
        assert batch.from_cache is not None
        asked += [bytes(row) for row in batch.from_cache[KEYS].tolist()]
    assert len(asked) == len(set(asked)) == len(draws)


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", ["light", "strong"])
def test_a_strength_fills_in_what_is_not_set(strength: Any) -> None:
    plain = DataSettings(augment=strength)
    for name, value in STRENGTHS[strength].items():
        found = getattr(plain, name)
        assert found == value or found.model_dump().items() >= value.items()
    own = DataSettings(augment=strength, scale=None, colour={"hue": 0.1})
    assert own.scale is None
    assert own.colour == plain.colour.model_copy(update={"hue": 0.1})
    assert DataSettings(**plain.model_dump()) == plain
    assert DataSettings(augment="none") == DataSettings()


def test_a_new_strength_replaces_the_parts_of_a_saved_recipe() -> None:
    saved = {"data": DataSettings(path="x", augment="strong", rotate=5).model_dump(mode="json")}
    for strength, words in (("none", []), ("light", ["data.mosaic=0.25"])):
        changed = apply_overrides(saved, [*words, f"data.augment={strength}"])["data"]
        expected = {"path": "x", "augment": strength, "rotate": 5, **({"mosaic": 0.25} if words else {})}
        assert DataSettings(**changed) == DataSettings(**expected)


def test_settings_that_make_no_sense() -> None:
    for wrong in ({"mosaic": 1.1}, {"translate": 1}, {"colour": {"hue": 0.6}}, {"erase": -0.1}, {"augment": "much"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DataSettings(**wrong)
    with pytest.raises(ValueError, match="smallest and the largest factor"):
        DataSettings(mosaic_scale=(2.0, 0.5))
    assert DataSettings(**ALL).ranges == ("scale", "translate", "mosaic", "colour", "erase")
    assert training_plan(DataSettings(**ALL), 0, 3).ways is None
