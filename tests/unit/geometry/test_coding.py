"""What the predicted numbers mean, and the bins of their distributions, by hand."""

from __future__ import annotations

import math

import pytest
import torch

from locdistill.geometry.bins import Bins, CircularBins, RowBins
from locdistill.geometry.coding import DISTANCES, AnchorDeltas, Coding, RotatedDistances
from locdistill.geometry.grid import Grid
from locdistill.geometry.kinds import Horizontal, Rotated, kind_of
from locdistill.geometry.rotated import AngleRange, canonical, corners
from locdistill.models.kinds import KINDS
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings

PUBLISHED = RowBins(8, (*4 * ((-2.0, 2.0),), (-5.0, 2.0)))
LENGTHS = RowBins(16, 4 * ((0.0, 16.0),))
CIRCLE = CircularBins(LENGTHS, first=-math.pi / 4)
BINS_OF_STRIDES = Bins(4)
RANGES: tuple[AngleRange, ...] = ("oc", "le90", "le135")


def one_cell(**anchors: object) -> Grid:
    """A single location at (8, 8) on a level of stride 8; a cell may have several anchors."""
    return Grid.build(((2, 2),), (8,), **anchors)  # type: ignore[arg-type]


def random_boxes(count: int, angles: AngleRange) -> torch.Tensor:
    torch.manual_seed(count)
    low, high = torch.tensor([0.0, 0, 1, 1, -7]), torch.tensor([4.0, 4, 9, 9, 7])
    return canonical((low + torch.rand(count, 5) * (high - low)).double(), angles)


def test_published_bins():
    """Uniform distributions mean no shift, no growth, and -1.5 radians."""
    positions = PUBLISHED.positions(torch.zeros(1))
    assert positions[0].tolist() == [-2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2]
    assert torch.allclose(positions[4], torch.linspace(-5, 2, 9))
    assert torch.allclose(PUBLISHED.expect(torch.zeros(3, 5, 9)), torch.tensor([0.0, 0, 0, 0, -1.5]), atol=1e-6)


@pytest.mark.parametrize("bins", [PUBLISHED, CIRCLE], ids=["rows", "circle"])
def test_two_hot_is_a_distribution_whose_mean_is_the_value(bins: Bins):
    torch.manual_seed(0)
    first, last = bins.positions(torch.zeros(1))[:4, [0, -1]].T
    lengths = first + torch.rand(200, 4) * (last - first)
    angles = torch.linspace(-0.7, 1.9, 200)[:, None]
    values = torch.cat((lengths, angles), 1).double()
    hot = bins.two_hot(bins.clamp(values, margin=0))
    assert torch.allclose(hot.sum(-1), torch.ones(200, 5).double())
    assert int((hot > 1e-9).sum(-1).max()) <= 2
    apart = bins.difference(bins.expect(hot.clamp(min=1e-300).log()), values).abs()
    assert float(apart[:, :4].max()) < 1e-9
    assert float(apart[:, 4].max()) < (math.radians(0.05) if bins is CIRCLE else 1e-9)


def test_the_first_and_the_last_bin_of_a_circle_are_neighbours():
    """Just below a whole period the angle lies between both."""
    step = math.pi / 17
    hot = CIRCLE.two_hot(torch.tensor([[0.0, 0, 0, 0, math.pi - step / 4]]))[0, 4]
    assert hot[0].item() == pytest.approx(0.75, abs=1e-5)
    assert hot[16].item() == pytest.approx(0.25, abs=1e-5)
    assert CIRCLE.difference(torch.tensor([0.0, 0, 0, 0, 3.1]), torch.zeros(5))[4].item() == pytest.approx(
        3.1 - math.pi, rel=1e-4
    )


def test_an_angle_differs_by_the_short_way_round_and_the_sign_says_which():
    angles = torch.tensor([[-0.2, math.pi - 0.2], [math.pi - 0.2, -0.3], [0.1, math.pi - 0.1], [-0.1, 0.1]])
    a, b = (torch.cat((torch.full((4, 4), length), angles[:, i : i + 1]), 1) for i, length in enumerate((3.0, 5.0)))
    found = CIRCLE.difference(a, b)
    assert found[:, :4].eq(-2).all()
    assert found[:, 4].tolist() == pytest.approx([0, 0.1, 0.2, -0.2], abs=1e-6)
    assert PUBLISHED.difference(a, b)[:, 4].tolist() == pytest.approx((angles[:, 0] - angles[:, 1]).tolist())


def test_every_number_has_steps_of_its_own():
    assert BINS_OF_STRIDES.steps(torch.zeros(1)).tolist() == [1]
    assert PUBLISHED.steps(torch.zeros(1)).tolist() == pytest.approx([0.5, 0.5, 0.5, 0.5, 7 / 8])
    assert CIRCLE.steps(torch.zeros(1)).tolist() == pytest.approx([1, 1, 1, 1, math.pi / 17])
    for bins in (BINS_OF_STRIDES, PUBLISHED, CIRCLE):
        places = bins.positions(torch.zeros(1))
        assert torch.allclose(places.diff(dim=-1), bins.steps(places)[:, None], atol=1e-6)


def test_bins_on_a_circle_are_as_many_as_those_of_the_lengths():
    assert (CIRCLE.reg_max, CIRCLE.count) == (16, 17)
    assert CircularBins(RowBins(8, LENGTHS.ranges)) != CircularBins(LENGTHS)
    with pytest.raises(TypeError):
        RowBins(8)  # type: ignore[call-arg]  # ranges are not optional


def test_angles_come_in_the_range_that_was_asked_for():
    logits = torch.randn(500, 5, 17) * 4
    for name, first in (("le90", -math.pi / 2), ("le135", -math.pi / 4)):
        angles = CircularBins(LENGTHS, first=first).expect(logits)[:, 4]
        assert first - 1e-6 <= angles.min() < angles.max() <= first + math.pi + 1e-6, name


def test_a_direction_has_a_gradient_that_points_to_the_target_and_does_not_explode():
    """Of a nearly uniform distribution, as at the beginning of training."""
    logits = (1e-3 * torch.randn(64, 5, 17)).requires_grad_()
    CIRCLE.expect(logits)[:, 4].sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())
    assert float(logits.grad.abs().max()) < 1
    start = torch.zeros(1, 5, 17)
    start[0, 4, 4] = 3.0
    values = start.requires_grad_()
    (gradient,) = torch.autograd.grad(CIRCLE.expect(values)[0, 4], values)
    assert gradient[0, 4, 5] > 0 > gradient[0, 4, 3]


def test_deviation_of_a_circle_does_not_know_where_it_is_cut():
    probs = torch.tensor([0.25, 0.5, 0.25])
    cut, whole = torch.full((1, 5, 17), -50.0), torch.full((1, 5, 17), -50.0)
    cut[0, :, [16, 0, 1]], whole[0, :, [6, 7, 8]] = probs.log(), probs.log()
    assert CIRCLE.deviation(cut)[0, 4].item() == pytest.approx(CIRCLE.deviation(whole)[0, 4].item(), rel=1e-4)
    assert CIRCLE.deviation(whole)[0, 0].item() == pytest.approx(math.sqrt(0.5), rel=1e-4)


@pytest.mark.parametrize("angles", RANGES)
@pytest.mark.parametrize("coding", [RotatedDistances, AnchorDeltas])
def test_encoding_and_decoding_are_inverse(coding: type[RotatedDistances | AnchorDeltas], angles: AngleRange):
    grid = one_cell(octaves=3, ratios=(1.0, 0.5, 2.0))
    boxes = random_boxes(len(grid.points), angles)[None]
    there = coding(Rotated(angles))
    assert torch.allclose(there.decode(grid, there.encode(grid, boxes)), boxes, atol=1e-6)


def test_distances_lie_along_the_sides_of_a_rotated_box():
    """A box of 6 by 2 strides that stands on its end, seen from a location a stride below its middle."""
    grid = one_cell()
    box = torch.tensor([1.0, 0.0, 6.0, 2.0, math.pi / 2]).expand(1, 4, 5)
    values = RotatedDistances().encode(grid, box)[0, 3]
    assert torch.allclose(values, torch.tensor([4.0, 1.0, 2.0, 1.0, math.pi / 2]), atol=1e-6)


def test_upright_rotated_distances_are_distances():
    grid = one_cell()
    values = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 4, 4)
    flat = DISTANCES.decode(grid, values)
    turned = RotatedDistances().decode(grid, torch.cat((values, torch.zeros(1, 4, 1)), -1))
    assert torch.allclose(Rotated().hull(turned), flat)


def test_published_deltas():
    """An anchor of 32 pixels at (8, 8), moved by half its side and grown by e; the angle is counted in pi in JDet."""
    grid = one_cell(anchor_scale=4.0)
    values = torch.tensor([0.5, 0.0, 1.0, 0.0, 0.25]).expand(1, 4, 5)
    box = AnchorDeltas().decode(grid, values)[0, 3]
    assert torch.allclose(box, torch.tensor([1 + 2.0, 1.0, 4 * math.e, 4.0, 0.25]))
    assert AnchorDeltas(unit=math.pi).decode(grid, values)[0, 3, 4].item() == pytest.approx(math.pi / 4)


def test_locations_without_an_object_are_finite():
    for coding in (RotatedDistances(), AnchorDeltas()):
        values = coding.encode(one_cell(), torch.zeros(1, 4, 5))
        assert bool(values.isfinite().all())


@pytest.mark.parametrize("model", KINDS)
def test_numbers_of_a_kind_agree(model: str):
    settings = DetectorSettings(model=model, classes=("a",), pretrained=False)
    coding, bins = meaning_of(settings)
    assert isinstance(coding, Coding)
    assert len(coding.names) == len(coding.units) == settings.edges
    assert bins.count == settings.reg_max + 1
    logits = torch.zeros(2, 3, settings.edges, bins.count)
    assert bins.expect(logits).shape == (2, 3, settings.edges)
    assert coding.kind.numbers == (5 if settings.rotated else 4)


def test_kinds_do_the_same_to_upright_boxes():
    """What a rotated box of angle 0 comes to is what the axis-aligned one comes to."""
    flat = torch.tensor([[2.0, 3, 12, 9], [5, 5, 9, 30]])
    horizontal, rotated = Horizontal(), Rotated("le90")
    turned = rotated.upright(flat)
    factors = torch.tensor([2.0, 4.0])
    width = torch.tensor(40.0)
    assert torch.equal(corners(turned), horizontal.corners(flat))
    assert torch.allclose(rotated.hull(rotated.shrunk(turned, factors)), horizontal.shrunk(flat, factors), atol=1e-5)
    assert torch.allclose(rotated.hull(rotated.mirrored(turned, width)), horizontal.mirrored(flat, width), atol=1e-5)
    assert torch.allclose(rotated.hull(rotated.scaled(turned, factors[:1])), horizontal.scaled(flat, factors[:1]))
    assert torch.allclose(rotated.pairwise_iou(turned, turned), horizontal.pairwise_iou(flat, flat), atol=1e-6)
    points = torch.tensor([[4.0, 4.0], [0.0, 20.0]])
    assert torch.allclose(rotated.depth(points, turned), horizontal.depth(points, flat), atol=1e-5)
    anchors = torch.tensor([[0.0, 0, 8, 8], [4, 4, 20, 20], [50, 50, 60, 60]])
    assert torch.allclose(
        rotated.anchor_iou(anchors, turned[None]), horizontal.anchor_iou(anchors, flat[None]), atol=1e-6
    )
    assert (kind_of(flat).numbers, kind_of(turned).numbers) == (4, 5)
    with pytest.raises(AssertionError, match=r"boxes have 4 numbers, or 5 .* shape \(2, 4, 2\)"):
        kind_of(horizontal.corners(flat))


def test_shrinking_unevenly_keeps_side_and_area():
    """A square on its corner, in an image that was enlarged twice along x, was half as wide."""
    box = torch.tensor([[8.0, 4, 2 * math.sqrt(2), 2 * math.sqrt(2), math.pi / 4]])
    there = Rotated("le90").shrunk(box, torch.tensor([2.0, 1.0]))[0]
    assert there[:2].tolist() == pytest.approx([4.0, 4.0])
    assert (there[2] * there[3]).item() == pytest.approx(4.0, rel=1e-5)
    assert there[2].item() == pytest.approx(math.hypot(1, 2), rel=1e-5)


def test_centres_are_kept_in_the_image_and_boxes_whole():
    box = torch.tensor([[-3.0, 50.0, 20, 10, 0.3]])
    assert Rotated().clipped(box, torch.tensor([[40, 60]]))[0].tolist() == pytest.approx([0, 40, 20, 10, 0.3])


def test_bins_of_strides_are_what_they_were():
    assert Bins(4).clamp(torch.tensor([-1.0, 2.5, 9.0]), margin=0).tolist() == [0, 2.5, 4]
    assert Bins(4).difference(torch.tensor(1.0), torch.tensor(3.0)).item() == -2
