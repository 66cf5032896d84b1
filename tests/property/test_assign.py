"""What must hold for every assignment."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from locdistill.assign.atss import ATSS, Candidates, nearest_in_window, nearest_of_allowed
from locdistill.geometry.boxes import centres
from locdistill.geometry.grid import Grid
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Instances
from tests.scenes import instances_of

seeds = st.integers(0, 2**31 - 1)
SHAPES = ((32, 48), (16, 24), (8, 12), (4, 6), (2, 3))


def _grid(offset: float = 0.0, octaves: int = 1, ratios: tuple[float, ...] = (1.0,)) -> Grid:
    return Grid.build(SHAPES, (8, 16, 32, 64, 128), offset=offset, octaves=octaves, ratios=ratios)


def _instances(seed: int, counts: list[int], extent: tuple[int, int] = (256, 384)) -> Instances:
    rng = torch.Generator().manual_seed(seed)
    boxes = []
    for count in counts:
        side = torch.exp(torch.rand(count, 2, generator=rng) * 3.5) * 8
        centre = torch.rand(count, 2, generator=rng) * torch.tensor([extent[1], extent[0]])
        boxes.append(torch.cat((centre - side / 2, centre + side / 2), -1).numpy())
    labels = [torch.randint(0, 5, (c,), generator=rng).numpy() for c in counts]
    return instances_of(boxes, labels, [extent] * len(counts))


def _distances(grid: Grid, instances: Instances, found: Candidates) -> torch.Tensor:
    offset = grid.points[found.locations] - centres(instances.boxes)[:, :, None]
    return offset.norm(dim=-1).masked_fill(~found.usable, torch.inf)


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("anchors", [(1, (1.0,)), (1, (1.0, 2.0)), (3, (0.5, 1.0, 2.0))], ids=["1", "2", "9"])
@settings(max_examples=12)
@given(
    seeds,
    st.sampled_from([(256, 384), (224, 384), (96, 160), (32, 384), (256, 64)]),
    st.sampled_from([1, 4, 9, 12]),
)
def test_window_finds_the_nearest_of_all(offset, anchors, seed, extent, topk):
    """The window of the fast path holds the same distances as a search through every location."""
    grid, instances = _grid(offset, *anchors), _instances(seed, [6, 3])
    instances = instances._replace(extents=torch.tensor([extent, (256, 384)]))
    fast = nearest_in_window(grid, instances, topk)
    slow = nearest_of_allowed(grid, instances, grid.within(instances.extents), topk)
    assert fast.usable.sum() == slow.usable.sum()
    got, want = (_distances(grid, instances, found).view(2, 6, 5, -1).sort(-1).values for found in (fast, slow))
    torch.testing.assert_close(got, want)


@settings(max_examples=40)
@given(seeds, st.sampled_from([None, 0.5]))
def test_flips_commute_with_assignment(seed, ignore_iof):
    """On a grid that is symmetric about the image's middle, up to ties."""
    grid, instances = _grid(offset=0.5), _instances(seed, [5, 2])
    width = 384
    flipped = instances.boxes.clone()
    flipped[..., 0], flipped[..., 2] = width - instances.boxes[..., 2], width - instances.boxes[..., 0]
    flipped = flipped * instances.present[..., None]
    assigner = ATSS(ignore_iof=ignore_iof)
    plain = assigner(grid, instances).gt_index
    mirrored = assigner(grid, instances._replace(boxes=flipped)).gt_index
    pages, start = [], 0
    for height, columns in SHAPES:
        page = mirrored[:, start : start + height * columns].view(2, height, columns)
        pages.append(page.flip(-1).flatten(1))
        start += height * columns
    differ = (torch.cat(pages, 1) != plain).sum()
    # Rounding of distances and of the threshold may turn a tie; each object has few positives at its margin.
    assert int(differ) <= 2


@pytest.mark.parametrize("assigner", ASSIGNERS)
@settings(max_examples=15)
@given(seeds)
def test_each_image_is_assigned_as_if_alone(assigner, seed):
    grid, instances = _grid(), _instances(seed, [4, 0, 7])
    assign = ASSIGNERS[assigner]()
    together = assign(grid, instances)
    for i in range(3):
        alone = assign(grid, instances.of([i]))
        assert torch.equal(alone.gt_index[0], together.gt_index[i])
        assert torch.equal(alone.counted[0], together.counted[i])
    assert not together.positive[1].any()


@pytest.mark.parametrize("assigner", ASSIGNERS)
@pytest.mark.parametrize("ignoring", [False, True])
@settings(max_examples=10)
@given(seeds)
def test_every_positive_counts_and_every_other_location_is_blank(assigner, ignoring, seed):
    """Offset and several anchors per cell are no special case, nor are objects that reach beyond the image."""
    instances = _instances(seed, [8, 3])
    instances = instances._replace(extents=torch.tensor([[256, 384], [96, 160]]))
    mine = torch.rand(instances.present.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    instances = instances._replace(present=instances.present & mine, ignored=instances.present & ~mine)
    assign = ASSIGNERS[assigner]()
    for grid in (_grid(), _grid(offset=0.5), _grid(octaves=3, ratios=(0.5, 1.0, 2.0))):
        got = (assign.ignoring() if ignoring else assign)(grid, instances)
        assert torch.equal(got.positive, got.gt_index >= 0)
        assert not (got.positive & ~got.counted).any()
        assert not (got.counted & ~got.inside).any()
        assert instances.present.gather(1, got.gt_index.clamp(min=0))[got.positive].all()
        assert not got.boxes[~got.positive].any()
        assert not got.labels[~got.positive].any()
        assert not got.overlaps[~got.positive].any()
        assert torch.isinf(got.thresholds).all() == (assigner != "atss") or not instances.present.any()


@settings(max_examples=30)
@given(seeds)
def test_positives_hold_their_object(seed):
    grid, instances = _grid(), _instances(seed, [8])
    got = ATSS()(grid, instances)
    points = grid.points.expand(1, -1, -1)[got.positive]
    boxes = got.boxes[got.positive]
    assert ((points > boxes[:, :2]) & (points < boxes[:, 2:])).all()
    slots = got.gt_index[got.positive]
    assert (got.overlaps[got.positive] >= got.thresholds[0][slots] - 1e-6).all()
    assert torch.equal(got.labels[got.positive], instances.labels[0][slots])


@pytest.mark.parametrize("slots", [0, 1, 3])
def test_images_without_objects(slots):
    grid = _grid()
    instances = instances_of([[], []], [[], []], [(256, 384), (128, 384)], slots=slots)
    for assigner in (build() for build in ASSIGNERS.values()):
        assert torch.equal(assigner(grid, instances).counted, assigner.ignoring()(grid, instances).counted)
        got = assigner(grid, instances)
        assert not got.positive.any()
        assert (got.gt_index == -1).all()
        assert bool(got.counted[0].all())
        assert int(got.counted[1].sum()) < len(grid.points)
