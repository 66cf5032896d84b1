"""What holds for every rotated box: names, hulls, fitted rectangles; and overlap, which is that of shapely."""

from __future__ import annotations

import math
from pathlib import Path
from typing import get_args

import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.geometry.rotated import (
    AngleRange,
    area,
    canonical,
    corners,
    fit,
    hull,
    paired_iou,
    paired_polygon_iou,
    pairwise_iou,
    polygon_area,
    rectangle_polygon_area,
)
from locdistill.geometry.sweep import overlapping_pairs
from tests.processes import printed_by
from tests.rotated_boxes import draw, exact_iou, families, outlines, random_boxes, renamed, shapely_iou

ROOT = Path(__file__).resolve().parents[2]
RANGES: tuple[AngleRange, ...] = get_args(AngleRange)
WITHIN = {"oc": (0, math.pi / 2), "le90": (-math.pi / 2, math.pi / 2), "le135": (-math.pi / 4, 3 * math.pi / 4)}
seeds = st.integers(0, 2**31 - 1)
of_all_ranges = pytest.mark.parametrize("angles", RANGES)


def same_rectangle(a: Tensor, b: Tensor, tolerance: float) -> None:
    """Every corner of the one is a corner of the other."""
    far = (corners(a)[..., :, None, :] - corners(b)[..., None, :, :]).norm(dim=-1)
    assert float(far.amin(-1).max()) <= tolerance
    assert float(far.amin(-2).max()) <= tolerance


# ---------------------------------------------------------------------------------------------------------------- names


def on_the_edges(dtype: torch.dtype) -> Tensor:
    """Boxes whose angles are multiples of 45 degrees, one number more or less, and the sides alike or not."""
    angles = torch.arange(-24, 25, dtype=dtype) * (math.pi / 4)
    beside = (torch.full_like(angles, limit) for limit in (-math.inf, math.inf))
    angles = torch.cat((angles, *(angles.nextafter(limit) for limit in beside), angles.new_tensor([1e-30, -1e-30])))
    sides = torch.tensor([[4.0, 2.0], [2.0, 4.0], [3.0, 3.0]], dtype=dtype).repeat_interleave(len(angles), 0)
    return torch.cat((torch.full_like(sides, 5.0), sides, angles.repeat(3)[:, None]), 1)


@of_all_ranges
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_names_on_the_edges_of_a_range(angles: AngleRange, dtype: torch.dtype):
    boxes = on_the_edges(dtype)
    named = canonical(boxes, angles)
    low, high = (torch.tensor(limit, dtype=dtype) for limit in WITHIN[angles])
    theta = named[:, 4]
    inside = (theta > low) & (theta <= high) if angles == "oc" else (theta >= low) & (theta < high)
    assert inside.all()
    assert angles == "oc" or bool((named[:, 2] >= named[:, 3]).all())
    assert torch.equal(canonical(named, angles), named)
    same_rectangle(named, boxes, 1e-5 if dtype == torch.float32 else 1e-13)


@of_all_ranges
@given(seed=seeds, turns=st.integers(-9, 9))
def test_names_keep_the_rectangle_and_themselves(angles: AngleRange, seed: int, turns: int):
    boxes = random_boxes(seed, 64)
    named = canonical(renamed(boxes, turns), angles)
    same_rectangle(named, boxes, 1e-11)
    assert torch.equal(canonical(named, angles), named)
    single = canonical(boxes.float(), angles)
    assert torch.equal(canonical(single, angles), single)
    torch.testing.assert_close(named, canonical(boxes, angles), rtol=0, atol=1e-12)


@of_all_ranges
@given(seed=seeds)
def test_corners_say_all_of_a_box(angles: AngleRange, seed: int):
    boxes = random_boxes(seed, 64)
    found = fit(corners(boxes), angles)
    same_rectangle(found, boxes, 1e-10)
    assert torch.equal(canonical(found, angles), found)
    # In any order.
    same_rectangle(fit(corners(boxes)[:, [2, 0, 3, 1]], angles), boxes, 1e-10)


@given(seeds)
def test_a_hull_has_the_corners_on_its_edges(seed: int):
    boxes = random_boxes(seed, 64)
    points = corners(boxes)
    torch.testing.assert_close(hull(boxes), torch.cat((points.amin(1), points.amax(1)), -1), rtol=0, atol=1e-11)


@given(seeds)
def test_flipping_a_box_is_flipping_its_corners(seed: int):
    boxes = random_boxes(seed, 64)
    mirrored = boxes * torch.tensor([-1.0, 1, 1, 1, -1])
    flipped = corners(boxes) * torch.tensor([-1.0, 1])
    same_rectangle(fit(flipped, "le90"), mirrored, 1e-10)
    assert torch.equal(mirrored * torch.tensor([-1.0, 1, 1, 1, -1]), boxes)


@given(seeds)
def test_no_rectangle_around_four_points_is_smaller(seed: int):
    rng = torch.Generator().manual_seed(seed)
    quads = draw(rng, 64 * 8, -50, 50).reshape(64, 4, 2)  # some concave, some crossed
    found = fit(quads, "oc")
    x, y, w, h, theta = found.T[:, :, None]
    cos, sin = theta.cos(), theta.sin()
    across, down = quads[..., 0] - x, quads[..., 1] - y
    assert bool(((cos * across + sin * down).abs() <= w / 2 + 1e-11).all())
    assert bool(((cos * down - sin * across).abs() <= h / 2 + 1e-11).all())
    # Whatever way one turns.
    turn = torch.linspace(0, math.pi / 2, 500, dtype=torch.float64)[:, None, None]
    ways = (
        turn.cos() * quads[..., 0] + turn.sin() * quads[..., 1],
        turn.cos() * quads[..., 1] - turn.sin() * quads[..., 0],
    )
    areas = math.prod(way.amax(-1) - way.amin(-1) for way in ways)
    assert bool((area(found) <= areas.amin(0) + 1e-9).all())


# -------------------------------------------------------------------------------------------------------------- overlap


@pytest.mark.parametrize("count", [10_000, pytest.param(50_000, marks=pytest.mark.long)])
def test_overlap_of_many_pairs_is_that_of_shapely(count: int):
    """Random, thin, nested, nearly equal, identical; where shapely is wrong, arithmetic without rounding decides."""
    pairs, repaired, worst = 0, 0, 0.0
    for _, a, b in families(torch.Generator().manual_seed(0), count):
        ours, theirs = paired_iou(a, b), shapely_iou(a, b)
        doubtful = ((ours - theirs).abs() > 1e-9).nonzero()[:, 0].tolist()
        theirs[doubtful] = torch.tensor([exact_iou(a[k], b[k]) for k in doubtful[:500]], dtype=torch.float64)
        worst = max(worst, float((ours - theirs).abs().max()))
        pairs, repaired = pairs + len(a), repaired + len(doubtful)
    assert pairs == 6 * count
    assert worst < 1e-9
    assert repaired < 100


@of_all_ranges
def test_a_box_overlaps_itself_by_any_name_entirely(angles: AngleRange):
    boxes = random_boxes(3, 20_000, extent=20_000, sides=(2, 1000))
    for turns in range(-3, 4):
        other = canonical(renamed(boxes, turns), angles)
        for value in (paired_iou(boxes, other), paired_iou(other, boxes)):
            assert float((value - 1).abs().max()) < 1e-12
        # Corners 20 000 pixels away are rounded, by 2e-12 pixels.
        assert float((paired_polygon_iou(boxes, corners(other)) - 1).abs().max()) < 1e-11


@pytest.mark.parametrize("count", [3, 4, 5, 9])
def test_overlap_with_polygons_is_that_of_shapely(count: int):
    """Of polygons around a centre with corners at any distance from it, most of them concave."""
    rng = torch.Generator().manual_seed(count)
    boxes = random_boxes(rng, 5000, extent=100, sides=(2, 200))
    angle = draw(rng, 5000 * count, 0, 2 * math.pi).reshape(5000, count).sort(-1).values
    angle = torch.where(torch.rand(5000, 1, generator=rng) < 0.5, angle, angle.flip(-1))
    radius = draw(rng, 5000 * count, 5, 80).reshape(5000, count)
    middle = draw(rng, 10_000, 0, 100).reshape(5000, 1, 2)
    polygons = torch.stack((angle.cos() * radius, angle.sin() * radius), -1) + middle
    theirs = shapely.polygons(polygons.numpy())
    simple = torch.from_numpy(shapely.is_valid(theirs))  # where the middle is outside, some cross themselves
    assert float(simple.double().mean()) > 0.85
    shared = torch.from_numpy(shapely.area(shapely.intersection(outlines(boxes)[simple], theirs[simple])))
    torch.testing.assert_close(rectangle_polygon_area(boxes, polygons)[simple], shared, rtol=1e-9, atol=1e-9)
    areas = torch.from_numpy(shapely.area(theirs[simple]))
    torch.testing.assert_close(polygon_area(polygons)[simple], areas, rtol=1e-12, atol=1e-9)
    union = area(boxes)[simple] + areas - shared
    torch.testing.assert_close(paired_polygon_iou(boxes, polygons)[simple], shared / union, rtol=1e-9, atol=1e-12)


@given(seeds, st.floats(-10, 10), st.floats(0.05, 20), st.floats(-1e4, 1e4))
def test_overlap_knows_no_order_place_direction_and_scale(seed: int, angle: float, scale: float, shift: float):
    a, b = random_boxes(seed, 64), random_boxes(seed + 1, 64)
    value = paired_iou(a, b)
    assert bool(((value >= 0) & (value <= 1)).all())
    torch.testing.assert_close(paired_iou(b, a), value, rtol=0, atol=1e-13)

    def moved(boxes: Tensor) -> Tensor:
        x, y, w, h, theta = boxes.unbind(-1)
        cos, sin = math.cos(angle), math.sin(angle)
        place = scale * (cos * x - sin * y) + shift, scale * (sin * x + cos * y) - shift
        return torch.stack((*place, scale * w, scale * h, theta + angle), -1)

    torch.testing.assert_close(paired_iou(moved(a), moved(b)), value, rtol=0, atol=1e-10)
    shared = rectangle_polygon_area(a, corners(b))
    torch.testing.assert_close(
        rectangle_polygon_area(moved(a), corners(moved(b))), scale**2 * shared, rtol=1e-9, atol=1e-7 * scale
    )
    torch.testing.assert_close(rectangle_polygon_area(a, corners(b).flip(-2)), shared)


@given(seeds, st.floats(0, 50), st.floats(0, 50))
def test_a_box_that_grows_has_no_less_in_common(seed: int, wider: float, higher: float):
    a, b = random_boxes(seed, 64), random_boxes(seed + 1, 64)
    larger = a + torch.tensor([0, 0, wider, higher, 0], dtype=torch.float64)
    before, after = (rectangle_polygon_area(boxes, corners(b)) for boxes in (a, larger))
    assert bool((after >= before - 1e-9).all())
    assert bool((after <= torch.minimum(area(larger), area(b)) + 1e-9).all())


def test_single_precision():
    """Boxes of 16 pixels and more in an image of 1024, given in float32."""
    rng = torch.Generator().manual_seed(0)
    a = random_boxes(rng, 50_000, extent=1024, sides=(16, 1024)).float()
    near = (a + torch.randn(50_000, 5, generator=rng) * torch.tensor([3, 3, 3, 3, 0.05])).clamp(min=-99)
    for b in (random_boxes(rng, 50_000, extent=1024, sides=(16, 1024)).float(), near, a):
        value = paired_iou(a, b)
        assert value.dtype == torch.float32
        assert float((value - paired_iou(a.double(), b.double())).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype):
    a, b = random_boxes(0, 200).to(dtype), random_boxes(1, 200).to(dtype)
    expected = paired_iou(a.float(), b.float())
    with torch.autocast("cpu", dtype):
        for value in (paired_iou(a, b), paired_iou(a.float(), b.float()), pairwise_iou(a, b).diagonal()):
            torch.testing.assert_close(value, expected, rtol=0, atol=2e-6)
        assert rectangle_polygon_area(a, corners(b)).dtype == polygon_area(corners(b).to(dtype)).dtype == torch.float32


# ------------------------------------------------------------------------------------------------------ many with many


@given(seeds, st.integers(0, 40), st.integers(0, 40))
def test_some_pairs_are_all_pairs(seed: int, n: int, m: int):
    a, b = random_boxes(seed, n, extent=900), random_boxes(seed + 1, m, extent=900)
    torch.testing.assert_close(pairwise_iou(a, b), paired_iou(a[:, None], b), rtol=0, atol=1e-14)


def test_gradients_of_some_pairs_are_those_of_all():
    a, b = random_boxes(0, 30, extent=900).requires_grad_(), random_boxes(1, 20, extent=900).requires_grad_()
    weight = torch.rand(30, 20, dtype=torch.float64)
    some, all_ = ((weight * value).sum() for value in (pairwise_iou(a, b), paired_iou(a[:, None], b)))
    for ours, theirs in zip(*(torch.autograd.grad(value, (a, b)) for value in (some, all_)), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("candidates", [2**20, 1, 37])
@given(seed=seeds, n=st.integers(0, 40), m=st.integers(0, 40), grid=st.booleans())
def test_a_sweep_finds_every_pair_once(candidates: int, seed: int, n: int, m: int, grid: bool):
    a, b = (hull(random_boxes(s, k, extent=900)) for s, k in ((seed, n), (seed + 1, m)))
    if grid:  # so that edges coincide
        a, b = (a / 100).round(), (b / 100).round()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("locdistill.geometry.sweep.CANDIDATES", candidates)
        within, between = overlapping_pairs(a), overlapping_pairs(a, b)

    def meet(one: Tensor, other: Tensor) -> Tensor:
        across = (one[:, None, 0] <= other[:, 2]) & (other[:, 0] <= one[:, None, 2])
        return across & (one[:, None, 1] < other[:, 3]) & (other[:, 1] < one[:, None, 3])

    found = list(zip(*(places.tolist() for places in between), strict=True))
    assert sorted(found) == [tuple(pair) for pair in meet(a, b).nonzero().tolist()]
    found = [tuple(sorted(pair)) for pair in zip(*(places.tolist() for places in within), strict=True)]
    assert sorted(found) == [tuple(pair) for pair in meet(a, a).triu(1).nonzero().tolist()]


# ------------------------------------------------------------------------------------------------------------ gradients


def test_gradients_in_both_arguments():
    a, b = (random_boxes(seed, 12, extent=60, sides=(20, 80)).requires_grad_() for seed in (0, 1))
    assert int((paired_iou(a, b) > 0).sum()) > 8
    assert torch.autograd.gradcheck(paired_iou, (a, b), atol=1e-7)
    assert torch.autograd.gradcheck(pairwise_iou, (a[:5].detach().requires_grad_(), b), atol=1e-7)
    quads = corners(b).detach().requires_grad_()
    assert torch.autograd.gradcheck(rectangle_polygon_area, (a, quads), atol=1e-6)
    assert torch.autograd.gradcheck(paired_polygon_iou, (a, quads), atol=1e-7)


def test_gradients_of_boxes_side_by_side():
    """Their edges are parallel, so that nothing crosses; turning one still makes a difference."""
    a = torch.tensor([[0, 0, 40, 20, 0.0], [0, 0, 40, 20, 0.3]], dtype=torch.float64).requires_grad_()
    b = torch.tensor([[7, 5, 30, 20, 0.0], [3, 2, 30, 50, 0.3]], dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(paired_iou, (a, b), atol=1e-7)
    # The limit of what it is at a small angle.
    turned = (b.detach() + torch.tensor([0, 0, 0, 0, 1e-9])).requires_grad_()
    for here, there in zip(*(torch.autograd.grad(paired_iou(a, x).sum(), (a, x)) for x in (b, turned)), strict=True):
        torch.testing.assert_close(here, there, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_there_is_nothing_to_tell(dtype: torch.dtype):
    """Empty slots, lines, points, boxes that are nearly equal or the same: all with all."""
    empty = torch.zeros(1, 5, dtype=dtype)
    flat = torch.tensor([[0, 0, 4, 0, 0.0], [1, 0, 0, 0, 0.5], [0, 0, 1e-30, 1e-30, 0]], dtype=dtype)
    boxes = random_boxes(0, 50).to(dtype)
    near = boxes + torch.randn(50, 5, generator=torch.Generator().manual_seed(0)).to(dtype) * 1e-6
    everything = torch.cat((empty, flat, boxes, near)).requires_grad_()
    other = everything.detach().clone().requires_grad_()
    value = paired_iou(everything[:, None], other)
    assert bool(value.isfinite().all())
    assert not bool(value[0].any() | value[:, 0].any())
    for gradient in torch.autograd.grad(value.sum(), (everything, other)):
        assert bool(gradient.isfinite().all())
        assert float(gradient.abs().max()) < 1e3


def test_upright_boxes_that_coincide_pull_nowhere():
    """There is no derivative; what is returned is the mean of all directions."""
    boxes = random_boxes(0, 50)
    boxes[:, 4] = 0
    same = boxes.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(paired_iou(same, boxes).sum(), same)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-12)


# ------------------------------------------------------------------------------------------------------------- compiled


def test_nothing_depends_on_values():
    """There are none on the meta device."""
    a, b = torch.zeros(2, 3, 1, 5, device="meta"), torch.zeros(2, 1, 4, 5, device="meta")
    assert paired_iou(a, b).shape == (2, 3, 4)
    assert paired_polygon_iou(a, corners(b)).shape == (2, 3, 4)
    assert fit(corners(canonical(a, "oc")), "le135").shape == (2, 3, 1, 5)


SCRIPT = """
import torch
from locdistill.geometry import rotated
from locdistill.losses.overlap import overlap_loss

def all_of_it(a, b):
    named = [rotated.canonical(a, angles) for angles in ("oc", "le90", "le135")]
    quads = rotated.corners(b)
    losses = [overlap_loss(a, b, kind=kind) for kind in ("gwd", "kld", "probiou")]
    shared = rotated.rectangle_polygon_area(a, quads), rotated.paired_polygon_iou(a, quads)
    return *named, rotated.hull(a), rotated.fit(quads, "oc"), rotated.paired_iou(a, b), *shared, *losses

compiled = torch.compile(all_of_it, fullgraph=True, backend="eager")
a, b = (torch.rand(9, 5) * 40 + 1 for _ in range(2))
far = [float((x - y).abs().max()) for x, y in zip(compiled(a, b), all_of_it(a, b), strict=True)]
print(max(far))
"""


def test_it_compiles_in_one_graph():
    """In a process of its own, where no type checker wraps the functions."""
    assert float(printed_by(SCRIPT).splitlines()[-1]) < 1e-4
