"""Looks: one matrix moves image and objects, and what a frame cuts keeps its true extent."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from locdistill.data.transforms import FILL, Sample, View, look_at, moved, pose
from locdistill.geometry.rotated import fit, hull, paired_iou, polygon_area, rectangle_polygon_area
from locdistill.images import keep_ratio_size

SIDES = st.integers(24, 90)
DRAWN = st.integers(0, 10_000)


def sample_of(height: int, width: int, seed: int, *, oriented: bool = True, objects: int = 4) -> Sample:
    """A smooth picture with objects, some of them beyond its border."""
    random = np.random.default_rng(seed)
    centres, sides = random.uniform(-0.1, 1.1, (objects, 2)) * (width, height), random.uniform(3, 30, (objects, 2))
    offsets = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) / 2 * sides[:, None]
    angle = random.uniform(0, np.pi, objects)[:, None, None]
    turned = offsets * np.cos(angle) + offsets[..., ::-1] * (-1, 1) * np.sin(angle)
    quads = torch.from_numpy(turned + centres[:, None]).float()
    rows, columns = np.mgrid[:height, :width] / 16
    pixels = np.stack([127 + 100 * np.sin(rows * a + columns * b + a) for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.6))])
    return Sample(
        torch.from_numpy(pixels.astype(np.uint8)),
        torch.cat((quads.amin(1), quads.amax(1)), -1),
        torch.arange(objects),
        torch.zeros(objects, dtype=torch.bool),
        (height, width),
        1,
        quads if oriented else None,
    )


def look_of(seed: int, *, rotate: bool = True) -> View:
    random = np.random.default_rng(seed)
    return View(
        long=int(random.integers(40, 120)),
        short=40,
        flipped=bool(random.random() < 0.5),
        turns=int(random.integers(4)),
        degrees=float(random.uniform(-180, 180)) if rotate else 0.0,
        zoom=float(random.uniform(0.4, 2.5)),
        window=(float(random.random()), float(random.random())),
    )


def plain(sample: Sample, **changes: object) -> View:
    """A look that leaves the size as it is."""
    height, width = sample.original_size
    return View(max(height, width), min(height, width))._replace(**changes)


def quads_of(sample: Sample) -> torch.Tensor:
    assert sample.quads is not None
    return sample.quads


@given(SIDES, SIDES, st.lists(st.tuples(*[st.floats(-20, 110, width=32)] * 4), max_size=5), DRAWN, st.booleans())
def test_boxes_of_plain_looks_are_to_the_bit_what_they_were_before_there_were_others(
    height: int, width: int, points: list[tuple[float, ...]], seed: int, flipped: bool
) -> None:
    raw = torch.tensor(points, dtype=torch.float32).reshape(-1, 2, 2)
    boxes = torch.cat((raw.amin(1), raw.amax(1)), -1)
    sample = sample_of(height, width, 0, oriented=False, objects=len(points))._replace(boxes=boxes)
    short = 20 + seed % 60
    (rows, columns) = size = keep_ratio_size(height, width, short=short, long=90)
    scale = torch.tensor(2 * (columns / width, rows / height))
    expected = torch.minimum((boxes * scale).clamp_(min=0), torch.tensor(2 * (columns, rows), dtype=torch.float32))
    if flipped:
        x1, y1, x2, y2 = expected.unbind(-1)
        expected = torch.stack((columns - x2, y1, columns - x1, y2), -1)
    seen = look_at(sample, View(90, short, flipped))
    assert torch.equal(seen.boxes, expected)
    assert seen.image.shape[-2:] == size


@given(SIDES, SIDES, DRAWN)
def test_two_flips_or_four_turns_are_none(height: int, width: int, seed: int) -> None:
    sample = sample_of(height, width, seed)
    for look, times in ((plain(sample, flipped=True), 2), (plain(sample, turns=2, flipped=True), 2), (None, 4)):
        seen = sample
        for _ in range(times):
            seen = look_at(seen, look or plain(sample, turns=1))
            seen = seen._replace(original_size=(int(seen.image.shape[-2]), int(seen.image.shape[-1])))
        assert torch.equal(seen.image, sample.image)
        torch.testing.assert_close(quads_of(seen), quads_of(sample), atol=1e-4, rtol=1e-5)


@given(SIDES, SIDES, DRAWN, st.booleans(), st.booleans(), st.integers(0, 3))
def test_flips_and_turns_are_those_of_torch(
    height: int, width: int, seed: int, flipped: bool, upended: bool, turns: int
) -> None:
    sample = sample_of(height, width, seed)
    mirror, quarters = pose(flipped=flipped, upended=upended, turns=turns)
    seen = look_at(sample, plain(sample, flipped=mirror, turns=quarters))
    image = sample.image.flip(-1) if flipped else sample.image
    image = image.flip(-2) if upended else image
    assert torch.equal(seen.image, image.rot90(-turns, (-2, -1)))  # clockwise
    x, y = quads_of(sample).unbind(-1)
    x, y = width - x if flipped else x, height - y if upended else y
    sides = height, width
    for _ in range(turns):
        x, y, sides = sides[0] - y, x, sides[::-1]
    torch.testing.assert_close(quads_of(seen), torch.stack((x, y), -1), atol=1e-4, rtol=1e-5)


@given(SIDES, SIDES, DRAWN)
def test_a_flipped_box_is_the_box_of_flipped_corners(height: int, width: int, seed: int) -> None:
    sample = sample_of(height, width, seed)
    boxes = fit(quads_of(sample), "le90").double()
    by_corners = fit(quads_of(look_at(sample, plain(sample, flipped=True))), "le90").double()
    x, y, w, h, theta = boxes.unbind(-1)
    torch.testing.assert_close(
        paired_iou(torch.stack((width - x, y, w, h, -theta), -1), by_corners), torch.ones(4).double(), atol=1e-4, rtol=0
    )


@given(SIDES, SIDES, DRAWN)
def test_points_are_where_torchvision_takes_them(height: int, width: int, seed: int) -> None:
    sample = sample_of(height, width, seed)
    look = plain(sample, degrees=look_of(seed).degrees, zoom=1.0)
    points = tv_tensors.KeyPoints(quads_of(sample).reshape(-1, 2), canvas_size=(height, width))
    expected = tv.affine(
        points, angle=look.degrees, translate=[0, 0], scale=1.0, shear=[0.0, 0.0], center=[width / 2, height / 2]
    )
    found = moved(quads_of(sample).reshape(-1, 2), look.matrix(height, width))
    # Torchvision limits points to the canvas.
    inside = ((found > 1) & (found < torch.tensor([width - 1, height - 1]))).all(-1)
    torch.testing.assert_close(found[inside], expected[inside].float(), atol=2e-2, rtol=0)


@given(SIDES, SIDES, DRAWN)
def test_pixels_are_where_torchvision_takes_them(height: int, width: int, seed: int) -> None:
    sample = sample_of(height, width, seed, objects=0)
    look = plain(sample, degrees=look_of(seed).degrees)
    expected = tv.affine(
        sample.image,
        angle=look.degrees,
        translate=[0, 0],
        scale=1.0,
        shear=[0.0, 0.0],
        interpolation=InterpolationMode.BILINEAR,
        fill=[*map(float, FILL)],
    )
    difference = (look_at(sample, look).image.int() - expected.int()).abs()
    # At the border torchvision mixes the fill in by a mask of its own.
    assert difference.float().mean() < 3
    assert (difference > 8).float().mean() < 0.12


@settings(max_examples=80)
@given(SIDES, SIDES, DRAWN, DRAWN)
def test_the_image_moves_as_the_points_do(height: int, width: int, seed: int, way: int) -> None:
    sample, look = sample_of(height, width, seed, objects=0), look_of(way)
    seen = look_at(sample, look).image.float()
    rows, columns = seen.shape[-2:]
    assert (rows, columns) == look.size(height, width)
    # Pixels of the frame, taken back to the file, show what is there, as far as a smooth picture tells.
    random = np.random.default_rng(seed)
    to = random.uniform(0, 1, (40, 2)) * (columns - 1) // 1 + 0.5
    of = moved(torch.from_numpy(to), np.linalg.inv(look.matrix(height, width))).numpy()
    inside = ((of > 2) & (of < np.array([width, height]) - 2)).all(-1)
    inside &= (to < np.array([columns, rows])).all(-1)
    for (x, y), (u, v) in zip(of[inside].tolist(), to[inside].tolist(), strict=True):
        true = [
            127 + 100 * np.sin((y - 0.5) / 16 * a + (x - 0.5) / 16 * b + a)
            for a, b in ((1, 0.3), (0.2, 1), (0.7, -0.6))
        ]
        np.testing.assert_allclose(seen[:, int(v), int(u)], true, atol=14)


@given(SIDES, SIDES, DRAWN, DRAWN, st.booleans())
def test_objects_are_whole_ignored_or_gone(height: int, width: int, seed: int, way: int, keep: bool) -> None:
    sample, look = sample_of(height, width, seed), look_of(way)._replace(least=0.5)
    truth = moved(quads_of(sample), look.matrix(height, width))
    rows, columns = look.size(height, width)
    frame = torch.tensor([columns / 2, rows / 2, columns, rows, 0])
    part = (rectangle_polygon_area(frame, truth) / polygon_area(truth)).tolist()
    seen = look_at(sample, look, keep_ignored=keep)
    flat = look_at(sample._replace(quads=None), look, keep_ignored=keep)
    assert [label for label, p in enumerate(part) if p > 0 and (keep or p >= 0.5)] == seen.labels.tolist()
    for label, quad, ignored in zip(seen.labels.tolist(), quads_of(seen), seen.ignored.tolist(), strict=True):
        assert torch.equal(quad, truth[label])  # never limited to the frame
        assert ignored == (part[label] < 0.5)
        # A similarity keeps right angles and the ratio of the sides, but for rounded sizes.
        before, after = polygon_area(quads_of(sample)[label]), polygon_area(quad)
        area = np.linalg.det(look.matrix(height, width))
        np.testing.assert_allclose(after / before, abs(area), rtol=1e-3)
    limit = torch.tensor([columns, rows, columns, rows])
    assert bool((flat.boxes >= 0).all())
    assert bool((flat.boxes <= limit).all())


@given(SIDES, SIDES, DRAWN, DRAWN)
def test_axis_aligned_boxes_are_those_around_their_corners(height: int, width: int, seed: int, way: int) -> None:
    sample = sample_of(height, width, seed, oriented=False)
    look = look_of(way)
    x1, y1, x2, y2 = sample.boxes.unbind(-1)
    corners = torch.stack((x1, y1, x2, y1, x2, y2, x1, y2), -1).unflatten(-1, (4, 2))
    same = look_at(sample._replace(quads=corners), look)
    seen = look_at(sample, look)
    rows, columns = look.size(height, width)
    limit = torch.tensor([columns, rows, columns, rows]).float()
    assert seen.labels.tolist() == same.labels.tolist()
    around = hull(fit(quads_of(same), "oc"))
    torch.testing.assert_close(seen.boxes, torch.minimum(around.clamp(min=0), limit), atol=2e-3, rtol=1e-4)
