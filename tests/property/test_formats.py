"""A random data set, written in each format and read back, has the same boxes, within the format's rounding."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from locdistill.data.open import open_dataset
from locdistill.data.records import Dataset
from locdistill.data.settings import DataSettings

CLASSES = ("cat", "dog", "no")
SIZES = ((64, 48), (50, 70), (33, 33))


class Drawn(NamedTuple):
    """An image: its sides, the class of each object, and the corners, clockwise on screen."""

    size: tuple[int, int]
    labels: list[int]
    quads: np.ndarray


def draw(seed: int, *, upright: bool) -> list[Drawn]:
    """Draw images with none to six objects that touch or leave no border."""
    rng = np.random.default_rng(seed)
    images = []
    for number in range(6):
        width, height = SIZES[number % len(SIZES)]
        count = 3 if number < 3 else int(rng.integers(0, 7))  # every class is there
        labels = [*range(3)] if number < 3 else rng.integers(0, 3, count).tolist()
        centres = rng.uniform((12, 12), (width - 12, height - 12), (count, 2))
        sides, angles = rng.uniform(3, 14, (count, 2)), rng.uniform(0.1, 1.4, count) * (not upright)
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * sides[:, None] / 2
        turn = np.stack((np.cos(angles), np.sin(angles), -np.sin(angles), np.cos(angles)), -1).reshape(-1, 2, 2)
        images.append(Drawn((width, height), labels, centres[:, None] + corners @ turn))
    return images


def pictures(images: list[Drawn], folder: Path) -> list[str]:
    """Write the pictures, and return the stems of their names."""
    folder.mkdir(parents=True)
    stems = [f"picture {number}.a" for number in range(len(images))]
    for stem, image in zip(stems, images, strict=True):
        Image.new("RGB", image.size, (90, 90, 90)).save(folder / f"{stem}.png")
    return stems


def hulls(image: Drawn) -> np.ndarray:
    return np.concatenate((image.quads.min(1), image.quads.max(1)), axis=1)


def write_coco(images: list[Drawn], folder: Path) -> None:
    names = [f"{stem}.png" for stem in pictures(images, folder / "images")]
    rows = [(n, label, box) for n, i in enumerate(images) for label, box in zip(i.labels, hulls(i), strict=True)]
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [
            {"id": k, "image_id": n, "category_id": 7 * label + 1, "bbox": [x, y, right - x, bottom - y]}
            for k, (n, label, (x, y, right, bottom)) in enumerate(rows)
        ],
        "categories": [{"id": 7 * n + 1, "name": name} for n, name in enumerate(CLASSES)],
    }
    (folder / "train.json").write_text(json.dumps(content))


def write_yolo(images: list[Drawn], folder: Path) -> None:
    def rows(image: Drawn) -> np.ndarray:
        boxes = hulls(image)
        return np.concatenate(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), 1).reshape(-1, 2, 2)

    _labels(images, folder, rows)


def write_yolo_obb(images: list[Drawn], folder: Path) -> None:
    _labels(images, folder, lambda image: image.quads)


def _labels(images: list[Drawn], folder: Path, rows: Callable[[Drawn], np.ndarray]) -> None:
    stems = pictures(images, folder / "images" / "train")
    (folder / "labels" / "train").mkdir(parents=True)
    for stem, image in zip(stems, images, strict=True):
        shares = (rows(image) / image.size).reshape(len(image.labels), -1)
        lines = [f"{k} {' '.join(f'{v:.6f}' for v in row)}\n" for k, row in zip(image.labels, shares, strict=True)]
        (folder / "labels" / "train" / f"{stem}.txt").write_text("".join(lines))
    (folder / "data.yaml").write_text(f"path: .\ntrain: images/train\nnames: [{', '.join(CLASSES)}]\n")


def write_voc(images: list[Drawn], folder: Path) -> None:
    stems = pictures(images, folder / "JPEGImages")
    for place in ("Annotations", "ImageSets/Main"):
        (folder / place).mkdir(parents=True)
    for stem, image in zip(stems, images, strict=True):
        objects = "".join(
            f"<object><name>{CLASSES[label]}</name><bndbox><xmin>{x:.2f}</xmin><ymin>{y:.2f}</ymin>"
            f"<xmax>{right:.2f}</xmax><ymax>{bottom:.2f}</ymax></bndbox></object>"
            for label, (x, y, right, bottom) in zip(image.labels, hulls(image), strict=True)
        )
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{objects}</annotation>")
    (folder / "ImageSets" / "Main" / "train.txt").write_text("\n".join(stems))


def write_dota(images: list[Drawn], folder: Path) -> None:
    stems = pictures(images, folder / "train" / "images")
    (folder / "train" / "labelTxt").mkdir()
    for stem, image in zip(stems, images, strict=True):
        lines = [
            f"{' '.join(f'{v:.1f}' for v in quad.reshape(-1))} {CLASSES[label]} 0\n"
            for label, quad in zip(image.labels, image.quads, strict=True)
        ]
        (folder / "train" / "labelTxt" / f"{stem}.txt").write_text("imagesource:drawn\ngsd:1\n" + "".join(lines))


def check_equal(dataset: Dataset, images: list[Drawn], error: float) -> None:
    assert dataset.classes == CLASSES
    for record, image in zip(dataset.records, images, strict=True):
        assert (record.width, record.height) == image.size
        assert record.labels.tolist() == image.labels
        assert not record.ignored.any()
        assert np.abs(record.boxes - hulls(image)).max(initial=0) <= error
        if record.quads is not None:
            assert np.abs(record.quads - image.quads).max(initial=0) <= error


FLOAT32 = 70 * 2.0**-23
"""Rounding of a coordinate, which is stored in single precision."""


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("write", "rounding", "upright"),
    [
        (write_coco, 0.0, True),
        (write_yolo, 70 * 1e-6, True),  # half a digit of the centre and a quarter of the size, at 70 pixels
        (write_voc, 0.005, True),
        (write_yolo_obb, 70 * 5e-7, False),
        (write_dota, 0.05, False),
    ],
)
def test_what_is_written_is_read(
    write: Callable[[list[Drawn], Path], None], rounding: float, upright: bool, seed: int, tmp_path: Path
) -> None:
    images = draw(seed, upright=upright)
    write(images, tmp_path / "data")
    dataset = open_dataset(DataSettings(path=str(tmp_path / "data")), "train", training=False)
    assert dataset.oriented != upright
    check_equal(dataset, images, rounding + FLOAT32)
