"""The default run fits images, objects and machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.engine.optim import average_decay, warmup_length
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RecipeError
from locdistill.models.count import multiply_adds, parameters
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.recipe.defaults import resolve
from locdistill.recipe.fitted import (
    BATCH,
    ENOUGH,
    FEW,
    FEWEST_EPOCHS,
    MOST_EPOCHS,
    PASSES,
    SIZES,
    VIEWS,
    DataFacts,
    anchor_for,
    data_for,
    engine_for,
    epochs_for,
    input_size,
    levels_for,
)
from locdistill.recipe.request import Request

GPU = DataFacts(images=1000, long=640, short=480, small=None, oriented=False, cpu=False, pretrained=True)


def dataset(*sides: tuple[int, int], boxes: np.ndarray | None = None) -> Dataset:
    rows = np.zeros((0, 4), np.float32) if boxes is None else boxes
    rest = np.zeros(len(rows), np.int64), np.zeros(len(rows), bool)
    records = tuple(Record(Path(f"{i}.png"), i, w, h, rows, *rest) for i, (w, h) in enumerate(sides))
    return Dataset("d", ("a",), records, "coco", (1,))


@pytest.mark.parametrize(
    ("sides", "expected"),
    [
        ([(640, 480)], (640, 480)),
        ([(480, 640), (640, 480), (100, 100)], (640, 480)),
        ([(130, 100)], (160, 128)),  # rounded up: never fewer pixels than the images have
        ([(200, 200)], (224, 224)),
        ([(20, 10)], (32, 32)),
        ([(4000, 3000)], (1088, 800)),
        ([(4000, 1000)], (1333, 352)),
        ([(1333, 800)], (1333, 800)),
    ],
)
def test_the_input_has_the_sides_of_the_median_image(sides: list[tuple[int, int]], expected: tuple[int, int]) -> None:
    assert input_size(DataFacts.of(dataset(*sides), cpu=False, pretrained=True)) == expected


@pytest.mark.parametrize(
    ("small", "cpu", "expected"),
    [
        (FEW, False, (640, 480)),
        (FEW / 1.5, False, (960, 736)),  # small objects get their pixels
        (1.0, False, (1088, 800)),  # at most twice the size, within the limits
        (10 * ENOUGH, False, (640, 480)),
        (2 * ENOUGH, True, (320, 256)),  # a CPU does without the pixels that no object needs
        (100 * ENOUGH, True, (256, 192)),
        (1.0, True, (640, 480)),
    ],
)
def test_the_input_follows_the_small_objects(small: float, cpu: bool, expected: tuple[int, int]) -> None:
    assert input_size(replace(GPU, small=small, cpu=cpu)) == expected


def test_a_short_time_takes_pixels_as_far_as_small_objects_stay_visible() -> None:
    facts = replace(GPU, small=ENOUGH)
    assert input_size(replace(facts, passes=PASSES / 4)) == (320, 256)
    assert input_size(replace(facts, passes=0.01)) == (256, 192)
    assert input_size(replace(facts, small=FEW, passes=1)) == (640, 480)
    assert input_size(replace(facts, passes=4 * PASSES)) == (640, 480)


def test_images_that_are_seen_often_are_changed_most() -> None:
    assert [data_for(GPU, epochs)["augment"] for epochs in (1, 5.9, 6, 49, 50)] == [
        *("none", "none", "light", "light", "strong")
    ]


def test_rotated_objects_have_a_square_limit() -> None:
    assert input_size(replace(GPU, long=1500, short=1500, oriented=True)) == (1024, 1024)


def test_small_objects_are_the_lowest_fifth_without_ignored_ones() -> None:
    sides = np.arange(1, 12, dtype=np.float32)
    boxes = np.stack((0 * sides, 0 * sides, sides, sides), -1)
    assert DataFacts.of(dataset((64, 64), boxes=boxes), cpu=True, pretrained=True).small == pytest.approx(3)
    data = dataset((64, 64), boxes=boxes)
    ignored = replace(data, records=(replace(data.records[0], ignored=sides < 6),))
    assert DataFacts.of(ignored, cpu=True, pretrained=True).small == pytest.approx(7)


def test_no_images_are_an_error() -> None:
    with pytest.raises(RecipeError, match="there are no training images"):
        DataFacts.of(dataset(), cpu=True, pretrained=True)


@pytest.mark.parametrize(
    ("images", "pretrained", "expected"),
    [(10, True, MOST_EPOCHS), (600, True, 60), (600, False, 120), (50_000, True, FEWEST_EPOCHS)],
)
def test_fewer_images_are_seen_more_often(images: int, pretrained: bool, expected: int) -> None:
    assert epochs_for(replace(GPU, images=images, pretrained=pretrained)) == expected


def test_the_engine_is_in_proportion_to_the_run() -> None:
    settings = EngineSettings(**engine_for(GPU, 100))
    assert (settings.epochs, settings.eval_every) == (100, 5)
    assert warmup_length(settings, 10_000) == 500
    assert warmup_length(settings, 100) == 5
    assert average_decay(settings, 10_000) == pytest.approx(1 - 1 / 200)
    assert average_decay(settings, 10) == pytest.approx(0.9)
    assert average_decay(settings, 10**9) == pytest.approx(1 - 1 / 2000)
    assert engine_for(GPU, 3)["eval_every"] == 1


def test_the_pyramid_has_no_maps_of_a_few_cells() -> None:
    assert [levels_for((side, side))[-1] for side in (64, 416, 448, 800, 1024)] == [5, 5, 6, 6, 7]


def test_anchors_are_no_larger_than_they_must_be() -> None:
    scales = [anchor_for(replace(GPU, small=small), (640, 480)) for small in (5, 32, 48, 64, 500)]
    assert scales == [4, 4, 6, 8, 8]
    assert anchor_for(replace(GPU, small=96), (320, 240)) == 6


def test_a_size_is_backbone_width_and_depth(tiny_coco: Path) -> None:
    for name, size in SIZES.items():
        chosen = resolve(Request(data=tiny_coco, size=name)).detector
        assert (chosen.backbone, chosen.channels, chosen.depth) == size
        assert resolve(Request(data=tiny_coco, size=name)).name == f"gfl_{size.backbone}"
    named = resolve(Request(data=tiny_coco, size="m", backbone="resnet50")).detector
    assert (named.backbone, named.channels) == ("resnet50", SIZES["m"].channels)
    published = resolve(Request(recipe="gfl_r18_1x", size="n")).detector
    assert (published.backbone, published.channels, published.depth) == SIZES["n"]
    with pytest.raises(RecipeError, match="--size xl: expected one of n, s, m, l"):
        resolve(Request(data=tiny_coco, size="xl"))


def test_the_guide_gives_the_cost_of_each_size() -> None:
    guide = (Path(__file__).resolve().parents[3] / "docs" / "guide.md").read_text()
    for name, size in SIZES.items():
        words: dict[str, Any] = {"backbone": size.backbone, "channels": size.channels, "depth": size.depth}
        settings = DetectorSettings(**words, levels=(3, 4, 5, 6), classes=tuple(map(str, range(80))), pretrained=False)
        with torch.device("meta"):
            millions = parameters(Detector(settings)) / 1e6
        row = next(line for line in guide.splitlines() if line.startswith(f"| `{name}` |"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        operations = 2e-9 * multiply_adds(settings, (640, 640))
        assert cells[2:] == [str(size.channels), str(size.depth), f"{millions:.1f}", f"{operations:.1f}"]


def test_the_size_follows_the_device(tiny_coco: Path) -> None:
    def backbone(accelerator: str) -> str:
        return resolve(Request(data=tiny_coco, overrides=[f"engine.accelerator={accelerator}"])).detector.backbone

    assert backbone("cpu") == SIZES["n"].backbone
    assert backbone("cuda") == SIZES["s"].backbone


def test_background_images_are_trained_on(tiny_coco: Path) -> None:
    data = resolve(Request(data=tiny_coco)).data
    assert not data.filter_empty
    assert data.batch_per_device == BATCH


def test_a_cache_holds_a_number_of_views(tiny_coco: Path, tmp_path: Path) -> None:
    settings = DetectorSettings(backbone="test_resnet", pretrained=False, classes=("box", "disc", "bar"), levels=(3, 4))
    asked = Request(data=tiny_coco, teacher=Detector(settings).save(tmp_path / "teacher"))
    assert resolve(asked).data.views is None
    assert resolve({**asked, "overrides": ["teacher.cache.path=cache"]}).data.views == VIEWS
    assert resolve({**asked, "epochs": 3, "overrides": ["teacher.cache.path=cache"]}).data.views == 3
