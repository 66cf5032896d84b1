"""The drawn data set: same seed, same files; boxes lie where the pixels are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from locdistill.data.shapes import CLASSES, Shape, ShapesSettings, draw_picture, jittered, write_shapes
from locdistill.errors import RunError

TINY = ShapesSettings(train=6, val=4)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_settings_draw_the_same_bytes(tmp_path: Path) -> None:
    first = _bytes(write_shapes(tmp_path / "a", TINY))
    assert first == _bytes(write_shapes(tmp_path / "b", TINY))
    assert len(first) == 6 + 4 + 3
    other = _bytes(write_shapes(tmp_path / "c", TINY.model_copy(update={"seed": 1})))
    assert all(first[name] != other[name] for name in first)


def test_an_image_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few, more = (
        write_shapes(tmp_path / "few", TINY),
        write_shapes(tmp_path / "more", TINY.model_copy(update={"train": 9})),
    )
    for name in ("train_00005.png", "val_00003.png"):
        assert (few / "images" / name).read_bytes() == (more / "images" / name).read_bytes()


def test_a_finished_folder_is_kept_and_another_drawing_refused(tmp_path: Path) -> None:
    folder = write_shapes(tmp_path / "a", TINY)
    (folder / "images" / "train_00000.png").unlink()
    write_shapes(folder, TINY)
    assert not (folder / "images" / "train_00000.png").exists()
    with pytest.raises(RunError, match="other settings"):
        write_shapes(folder, TINY.model_copy(update={"noise": 0.1}))


def test_the_folder_is_coco(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    folder = write_shapes(tmp_path / "a", TINY, report=lambda done, total: seen.append((done, total)))
    assert seen == [(done, 10) for done in range(1, 11)]
    numbers = []
    for split, count in (("train", 6), ("val", 4)):
        content = json.loads((folder / f"{split}.json").read_text())
        assert [category["name"] for category in content["categories"]] == list(CLASSES)
        assert len(content["images"]) == count
        numbers += [image["id"] for image in content["images"]]
        assert {annotation["image_id"] for annotation in content["annotations"]} <= set(numbers[-count:])
        for image in content["images"]:
            assert Image.open(folder / "images" / image["file_name"]).size == (image["width"], image["height"])
        for annotation in content["annotations"]:
            x, y, w, h = annotation["bbox"]
            assert x >= -1e-3
            assert y >= -1e-3
            assert w > 0
            assert h > 0
            assert x + w <= 128.002
            assert y + h <= 128.002
    assert len(set(numbers)) == 10


@pytest.mark.parametrize("seed", range(12))
def test_boxes_are_within_a_pixel_of_the_half_opaque_pixels(seed: int) -> None:
    for shape in draw_picture(ShapesSettings(objects=(4, 4)), np.random.default_rng(seed)).shapes:
        rows, columns = np.nonzero(shape.alpha(128) >= 0.5)
        drawn = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        # A star's tip is thinner than a pixel over its last pixel and a half.
        assert np.abs(drawn - np.array(shape.box)).max() < (2.0 if shape.label == 2 else 1.0)


def test_box_of_a_turned_rectangle_and_ellipse_by_hand() -> None:
    colour, angle = (1.0, 0.0, 0.0), float(np.pi / 4)
    square = Shape(1, (50.0, 60.0), (10.0, 10.0), angle, 1.0, colour)
    assert square.box == pytest.approx((50 - 200**0.5, 60 - 200**0.5, 50 + 200**0.5, 60 + 200**0.5), abs=1e-3)
    ellipse = Shape(0, (50.0, 60.0), (10.0, 4.0), angle, 1.0, colour)
    assert ellipse.box == pytest.approx((50 - 58**0.5, 60 - 58**0.5, 50 + 58**0.5, 60 + 58**0.5), abs=1e-3)


def test_distance_of_an_upright_rectangle_by_hand() -> None:
    shape = Shape(1, (50.0, 50.0), (10.0, 5.0), 0.0, 1.0, (0.0, 1.0, 0.0))
    x, y = np.array([50.0, 63.0, 63.0, 50.0], np.float32), np.array([50.0, 50.0, 59.0, 54.0], np.float32)
    assert shape.distance(x, y) == pytest.approx([-5.0, 3.0, 5.0, -1.0], abs=1e-4)


def test_jitter_has_the_stated_spread_and_bound() -> None:
    settings, rng = ShapesSettings(jitter=0.08), np.random.default_rng(0)
    box = (40.0, 30.0, 60.0, 80.0)
    moved = np.array([jittered(box, settings, rng) for _ in range(4000)]) - np.array(box)
    relative = moved / np.array([20, 50, 20, 50])
    assert np.abs(relative).max() <= 0.16 + 1e-9
    assert relative.std(0) == pytest.approx(np.full(4, 0.077), abs=0.003)  # 0.08, cut at two deviations
    assert np.abs(relative.mean(0)).max() < 0.005


def test_hue_tells_the_class() -> None:
    rng = np.random.default_rng(3)
    for _ in range(30):
        for shape in draw_picture(ShapesSettings(), rng).shapes:
            assert int(np.argmax(shape.colour)) == shape.label
