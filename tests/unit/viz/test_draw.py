"""Boxes and sheets of pictures, checked pixel by pixel."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from locdistill.geometry.grid import Grid
from locdistill.geometry.rotated import corners
from locdistill.types import Batch, Detections, Instances
from locdistill.viz import draw
from locdistill.viz.draw import MANY, Layer, Style, draw_detections, draw_layers
from locdistill.viz.mosaic import batch_mosaic, mosaic
from locdistill.viz.regions import MAIN, VALUABLE, draw_regions
from locdistill.viz.style import MUTED, PAPER, class_colour, font, ink_on

GREY = (90, 90, 90)


def grey(height: int = 120, width: int = 160) -> torch.Tensor:
    return torch.full((3, height, width), 90, dtype=torch.uint8)


def draw_boxes(
    image: torch.Tensor | Image.Image,
    found: torch.Tensor,
    *,
    labels: torch.Tensor,
    scores: torch.Tensor | None = None,
    classes: tuple[str, ...] = (),
    style: Style = "predicted",
    min_side: int = 0,
) -> Image.Image:
    return draw_layers(image, [Layer(found, labels, scores, style)], classes=classes, min_side=min_side)


def boxes(*rows: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def colours(picture: Image.Image) -> set[tuple[int, int, int]]:
    return {tuple(int(v) for v in c) for c in np.unique(np.asarray(picture).reshape(-1, 3), axis=0)}


def test_the_outline_lies_on_the_first_and_last_pixel_of_the_box() -> None:
    picture = draw_boxes(grey(), boxes((20, 40, 90, 100)), labels=torch.tensor([1]), classes=("a", "b"))
    assert picture.size == (160, 120)
    colour = class_colour(1)
    for x, y in ((20, 70), (89, 70), (50, 40), (50, 99)):
        assert picture.getpixel((x, y)) == colour
    for x, y in ((19, 70), (90, 70), (50, 100), (50, 70), (21, 70)):
        assert picture.getpixel((x, y)) == GREY


def test_the_tag_stands_above_the_box_in_its_colour() -> None:
    picture = draw_boxes(grey(), boxes((20, 40, 90, 100)), labels=torch.tensor([0]), classes=("name",))
    assert picture.getpixel((21, 38)) == class_colour(0)
    above = picture.crop((20, 20, 90, 40))
    assert ink_on(class_colour(0)) in colours(above)


def test_a_box_beyond_the_border_is_drawn_at_the_border_and_its_tag_inside() -> None:
    picture = draw_boxes(grey(), boxes((-30, -20, 500, 400)), labels=torch.tensor([2]), classes=("a", "b", "c"))
    assert picture.getpixel((0, 60)) == picture.getpixel((159, 60)) == picture.getpixel((80, 119)) == class_colour(2)
    assert ink_on(class_colour(2)) in colours(picture)


def test_small_images_are_enlarged_by_a_whole_factor() -> None:
    picture = draw_boxes(grey(48, 64), boxes((10, 10, 30, 30)), labels=torch.tensor([0]), min_side=200)
    assert picture.size == (256, 192)
    assert picture.getpixel((40, 80)) == class_colour(0)
    assert picture.getpixel((119, 80)) == class_colour(0)
    assert picture.getpixel((120, 80)) == GREY


def test_truth_is_dashed_with_white_and_ignored_is_grey() -> None:
    picture = draw_boxes(grey(), boxes((20, 40, 120, 100)), labels=torch.tensor([0]), style="truth")
    edge = [picture.getpixel((20, y)) for y in range(41, 99)]
    assert set(edge) == {class_colour(0), PAPER}
    assert 20 < edge.count(PAPER) < 40
    ignored = draw_boxes(grey(), boxes((20, 40, 120, 100)), labels=torch.tensor([0]), style="ignored")
    assert colours(ignored) == {GREY, MUTED, PAPER}


def test_truth_has_a_tag_only_when_it_stands_alone() -> None:
    truth = Layer(boxes((20, 40, 120, 100)), torch.tensor([0]), style="truth")
    dark = (20, 22, 26)
    assert dark in colours(draw_layers(grey(), [truth], classes=("a",)))
    assert dark not in colours(draw_layers(grey(), [truth], classes=None))
    both = draw_layers(grey(), [truth, Layer(truth.boxes, truth.labels)], classes=("a",))
    assert dark not in colours(both)


def test_only_detections_above_the_threshold_are_drawn() -> None:
    found = Detections(boxes((10, 20, 50, 60), (80, 20, 120, 60)), torch.tensor([0.9, 0.29]), torch.tensor([0, 1]))
    seen = colours(draw_detections(grey(), found, classes=("a", "b")))
    assert class_colour(0) in seen
    assert class_colour(1) not in seen


def test_the_better_score_lies_on_top() -> None:
    same = boxes((20, 40, 90, 100), (20, 40, 90, 100))
    picture = draw_boxes(grey(), same, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.4]))
    assert picture.getpixel((20, 70)) == class_colour(0)


def test_tags_of_equal_boxes_do_not_cover_each_other() -> None:
    same = boxes((20, 40, 90, 100), (20, 40, 90, 100))
    picture = draw_boxes(grey(), same, labels=torch.tensor([0, 1]), scores=torch.tensor([0.9, 0.4]))
    assert picture.getpixel((21, 38)) == class_colour(0)  # above the box
    assert picture.getpixel((21, 102)) == class_colour(1)  # below it


def test_no_boxes_leave_the_image_as_it_is() -> None:
    image = torch.randint(0, 255, (3, 20, 30), dtype=torch.uint8)
    picture = draw_boxes(image, boxes(), labels=torch.zeros(0, dtype=torch.int64), scores=torch.zeros(0))
    assert (np.asarray(picture) == image.permute(1, 2, 0).numpy()).all()


def test_the_image_given_is_not_drawn_on() -> None:
    original = Image.new("RGB", (60, 60), GREY)
    draw_boxes(original, boxes((5, 5, 50, 50)), labels=torch.tensor([0]))
    assert colours(original) == {GREY}


def test_class_colours_differ() -> None:
    palette = np.array([class_colour(i) for i in range(26)], float)
    apart = np.abs(palette[:, None] - palette[None]).sum(-1) + 1e3 * np.eye(26)
    assert apart.min() >= 80
    assert len({class_colour(i) for i in range(200)}) == 200
    assert ink_on((255, 255, 255)) != ink_on((0, 0, 0)) == PAPER


def test_mosaic_places_pictures_in_rows_with_captions() -> None:
    red, blue = Image.new("RGB", (100, 50), (255, 0, 0)), Image.new("RGB", (400, 400), (0, 0, 255))
    sheet = mosaic(
        [red, blue, red], ["one", "two", "a caption that is far too long for its picture"], columns=2, cell=200
    )
    assert sheet.size == (10 + 100 + 10 + 200 + 10, 10 + 220 + 10 + 70 + 10)
    assert sheet.getpixel((10, 10)) == (255, 0, 0)
    assert sheet.getpixel((120, 10)) == sheet.getpixel((319, 209)) == (0, 0, 255)
    assert sheet.getpixel((10, 240)) == (255, 0, 0)
    caption = np.asarray(sheet.crop((0, 291, 330, 310)))
    assert (caption[:, 10:110] < 100).any()
    assert (caption[:, 112:] == 255).all()  # cut at the width of its picture


def test_mosaic_of_nothing_and_mismatched_captions() -> None:
    assert mosaic([]).width >= 100
    with pytest.raises(ValueError, match="2 pictures need as many captions, got 1"):
        mosaic([Image.new("RGB", (9, 9))] * 2, ["one"])
    titled = mosaic([Image.new("RGB", (9, 9))], title="a title wider than the pictures")
    assert titled.width >= font(14, bold=True).getlength("a title wider than the pictures")


def make_batch() -> Batch:
    """Two images, the second padded; the first has an object and a crowd, the second nothing."""
    images = torch.full((2, 3, 200, 300), 90, dtype=torch.uint8)
    images[1, :, 100:] = 0
    images[1, :, :, 150:] = 0
    sizes = torch.tensor([[200, 300], [100, 150]])
    instances = Instances(
        boxes=torch.tensor([[[50.0, 60, 150, 160], [200, 20, 280, 180]], [[0, 0, 0, 0], [0, 0, 0, 0]]]),
        labels=torch.tensor([[1, 0], [0, 0]]),
        present=torch.tensor([[True, False], [False, False]]),
        ignored=torch.tensor([[False, True], [False, False]]),
        extents=sizes,
    )
    return Batch(images, sizes, sizes, torch.tensor([7, 8]), instances)


def test_batch_mosaic_shows_objects_without_padding() -> None:
    sheet = batch_mosaic(make_batch(), ("a", "b"), cell=300)
    assert sheet.size == (10 + 300 + 10 + 150 + 10, 10 + 220 + 10)
    assert sheet.getpixel((10 + 50, 10 + 110)) == class_colour(1)
    assert sheet.getpixel((10 + 200, 10 + 20)) == MUTED
    assert sheet.getpixel((320, 10)) == sheet.getpixel((469, 109)) == GREY
    assert class_colour(0) not in colours(sheet)
    assert batch_mosaic(make_batch(), ("a", "b"), limit=1, cell=300).width == 320


def test_regions_are_shown_level_by_level() -> None:
    grid = Grid.build(((4, 4), (2, 2)), (32, 64))
    main, valuable = torch.zeros(20), torch.zeros(20)
    main[5] = 0.8  # level 0, x 32, y 32
    valuable[6] = 0.3  # level 0, x 64, y 32
    valuable[17] = 0.3  # level 1, x 64, y 0
    truth = Layer(boxes((30, 30, 90, 90)), torch.tensor([0]), style="truth")
    sheet = draw_regions(grey(128, 128), grid, main=main, valuable=valuable, truth=truth)
    # 128 pixels are enlarged to 384; the title takes 34.
    first, second = (10, 44), (10 + 384 + 10, 44)

    def at(corner: tuple[int, int], x: int, y: int) -> np.ndarray:
        return np.array(sheet.getpixel((corner[0] + 3 * x, corner[1] + 3 * y)), float)

    assert np.abs(at(first, 32, 32) - MAIN).max() < 25
    assert np.abs(at(first, 64, 32) - VALUABLE).max() < 25
    assert np.abs(at(second, 64, 0) - VALUABLE).max() < 25
    assert at(second, 32, 96).max() < 60
    assert at(second, 48, 20).tolist() == [40, 40, 40]  # the image, darkened


def test_regions_without_any_weight() -> None:
    grid = Grid.build(((4, 4),), (32,))
    sheet = draw_regions(grey(128, 128), grid, main=torch.zeros(16), valuable=torch.zeros(16))
    assert sheet.width > 384


TURNED = torch.tensor([[80.0, 60.0, 60.0, 20.0, 0.6]])
LABEL = torch.tensor([1])


def along(picture: Image.Image, box: torch.Tensor, part: float) -> list[tuple[int, int, int]]:
    """On the edges of a box, or within it: at each point what is drawn there or on a pixel beside it, or else grey."""
    middle = box[:, None, :2]
    quad = (corners(box) - middle)[0] * part + middle[0]
    points = torch.cat(
        [quad[i] + (quad[(i + 1) % 4] - quad[i]) * torch.linspace(0.1, 0.9, 20)[:, None] for i in range(4)]
    )
    beside = [(0, 0), (1, 0), (-1, 0), (0, 1), (0, -1)]
    seen = [[picture.getpixel((int(x) + i, int(y) + j)) for i, j in beside] for x, y in points.tolist()]
    return [next((pixel for pixel in here if pixel != GREY), GREY) for here in seen]


def test_a_rotated_box_is_drawn_along_its_edges() -> None:
    picture = draw_layers(grey(), [Layer(TURNED, LABEL)], classes=None)
    assert set(along(picture, TURNED, 1.0)) == {class_colour(1)}
    assert set(along(picture, TURNED, 0.7) + along(picture, TURNED, 1.4)) == {GREY}
    as_corners = draw_layers(grey(), [Layer(corners(TURNED), LABEL)], classes=None)
    assert (np.asarray(as_corners) == np.asarray(picture)).all()


def test_a_rotated_box_grows_with_the_picture_and_keeps_its_angle() -> None:
    picture = draw_layers(grey(), [Layer(TURNED, LABEL)], classes=None, min_side=320)
    assert picture.size == (320, 240)
    twice = TURNED * torch.tensor([2, 2, 2, 2, 1.0])
    assert set(along(picture, twice, 1.0)) == {class_colour(1)}
    layer = Layer(corners(TURNED), LABEL)
    torch.testing.assert_close(layer.scaled(2).boxes, corners(twice))
    torch.testing.assert_close(Layer(TURNED, LABEL).scaled(2).boxes, twice)
    torch.testing.assert_close(Layer(boxes((1, 2, 3, 4)), LABEL).scaled(2).boxes, boxes((2, 4, 6, 8)))


def test_rotated_truth_is_dashed_and_its_tag_stands_at_its_tip() -> None:
    truth = draw_layers(grey(), [Layer(corners(TURNED), LABEL, style="truth")], classes=("a", "b"))
    edge = along(truth, TURNED, 1.0)
    assert min(edge.count(class_colour(1)), edge.count(PAPER)) > 15
    upright = torch.tensor([[80.0, 80.0, 12.0, 70.0, 0.5]])  # leans to the left at its upper end
    picture = np.asarray(draw_layers(grey(), [Layer(upright, LABEL)], classes=("a", "b")))
    tip = corners(upright)[0][corners(upright)[0, :, 1].argmin()]
    tag = (picture[: int(tip[1]) - 2] == class_colour(1)).all(-1).nonzero()[1]
    assert tag.size
    assert abs(tag.mean() - float(tip[0])) < 4


def test_rotated_detections_and_boxes_beyond_the_border() -> None:
    beyond = torch.tensor([[10.0, 10.0, 60.0, 30.0, 0.7], [500.0, 500.0, 9.0, 9.0, 0.1]])
    found = Detections(beyond, torch.tensor([0.9, 0.8]), torch.tensor([1, 0]))
    picture = draw_detections(grey(), found, classes=("a", "b"), truth=Layer(corners(TURNED), LABEL, style="truth"))
    assert picture.size == (160, 120)
    assert {class_colour(0), class_colour(1), PAPER} <= colours(picture)
    nothing = draw_boxes(grey(), torch.zeros(0, 5), labels=torch.zeros(0, dtype=torch.int64))
    assert colours(nothing) == {GREY}


def test_batch_mosaic_shows_rotated_objects_as_such() -> None:
    batch = make_batch()
    oriented = torch.zeros(2, 2, 5)
    oriented[0] = torch.tensor([[100.0, 110, 100, 40, 0.6], [240, 100, 60, 30, -0.5]])
    sheet = batch_mosaic(batch._replace(instances=batch.instances._replace(oriented=oriented)), ("a", "b"), cell=300)
    picture = sheet.crop((10, 10, 310, 210))
    assert along(picture, oriented[0, :1], 1.0).count(class_colour(1)) > 70  # the tag may cover some
    assert MUTED in along(picture, oriented[0, 1:], 1.0)
    assert picture.getpixel((50, 110)) == GREY  # the circumscribed box is not drawn


def crowd(count: int, *, rotated: bool = False, seed: int = 0, size: int = 1024) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes all over a picture, and their labels."""
    rng = np.random.default_rng(seed)
    centres, sides = rng.uniform(20, size - 20, (count, 2)), rng.uniform(12, 60, (count, 2))
    angles = rng.uniform(-1.5, 1.5, (count, 1))
    found = [centres, sides, angles] if rotated else [centres - sides / 2, centres + sides / 2]
    return torch.tensor(np.hstack(found), dtype=torch.float32), torch.tensor(rng.integers(0, 5, count))


def steps_to_draw(count: int, *, rotated: bool, style: str) -> int:
    """Calls of functions, Python's own among them, that a picture takes: a measure of work without a clock."""
    found, labels = crowd(count, rotated=rotated)
    layer = Layer(found, labels, torch.rand(count) if style == "predicted" else None, style)
    picture, calls = grey(1024, 1024), 0

    def count_call(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count_call)
    try:
        draw_layers(picture, [layer], classes=("aeroplane", "b", "c", "d", "e"))
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("style", ["predicted", "truth", "ignored"])
def test_twice_the_boxes_take_twice_the_work(rotated: bool, style: str) -> None:
    for few in (MANY // 4, 2 * MANY):
        work = [steps_to_draw(count, rotated=rotated, style=style) for count in (few, 2 * few)]
        assert work[1] < 2.2 * work[0], (few, work)


def written_at(found: torch.Tensor, labels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Where tags are, as ``x, y, width, height``."""
    places, choose = [], draw._free_place

    def noted(outline: draw._Outline, size: tuple[int, int], taken: np.ndarray) -> tuple[int, int]:
        place = choose(outline, size, taken)
        places.append((*place, *size))
        return place

    monkeypatch.setattr(draw, "_free_place", noted)
    draw_boxes(grey(1024, 1024), found, labels=labels, scores=torch.rand(len(found)), classes=("plane", "ship"))
    monkeypatch.undo()
    return places


@pytest.mark.parametrize("rotated", [False, True])
def test_tags_of_a_few_boxes_do_not_cover_each_other(rotated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    places = written_at(*crowd(20, rotated=rotated), monkeypatch)
    assert len(places) == 20
    taken = np.zeros((1024, 1024), int)
    for x, y, width, height in places:
        taken[y : y + height, x : x + width] += 1
    assert taken.max() == 1
    assert taken.sum() == sum(width * height for _, _, width, height in places)  # all inside the picture


def test_many_boxes_have_thin_lines_and_no_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    for count in (MANY, MANY + 1):
        places = written_at(*crowd(count), monkeypatch)
        assert len(places) == (MANY if count == MANY else 0)
        first = boxes(*[(200, 200, 400, 400)] * count)
        picture = draw_boxes(grey(1024, 1024), first, labels=torch.zeros(count, dtype=torch.int64))
        inner = picture.getpixel((201, 300))
        assert inner == (class_colour(0) if count == MANY else GREY)
        assert picture.getpixel((200, 300)) == class_colour(0)
