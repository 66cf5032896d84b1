"""Rotated NMS is going through the boxes by falling score, for every set of boxes and every size of block."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.geometry import nms, rotated, sweep
from locdistill.geometry.nms import class_nms, rotated_class_nms
from locdistill.geometry.rotated import hull, paired_iou
from tests.rotated_boxes import draw, random_boxes, shapely_iou

seeds = st.integers(0, 2**31 - 1)
Found = tuple[Tensor, Tensor, Tensor]


def crowd(seed: int, count: int, classes: int) -> Found:
    """Boxes that crowd around a few objects; some scores tie."""
    rng = torch.Generator().manual_seed(seed)
    objects = random_boxes(rng, 1 + count // 12, extent=200, sides=(10, 100))
    noise = torch.randn(count, 5, generator=rng, dtype=torch.float64) * torch.tensor([5, 5, 3, 3, 0.1])
    boxes = objects[torch.randint(len(objects), (count,), generator=rng)] + noise
    boxes[:, 2:4].clamp_(min=1)
    scores = (draw(rng, count, 0, 1) * 50).ceil() / 50
    return boxes, scores, torch.randint(classes, (count,), generator=rng)


def greedy(iou: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    """By a table of all overlaps."""
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if not any(labels[i] == labels[k] and iou[k, i] > threshold for k in kept):
            kept.append(i)
    return kept


@pytest.mark.parametrize("block", [512, 5])
@given(seed=seeds, count=st.integers(0, 60), classes=st.integers(1, 4), threshold=st.sampled_from([0.1, 0.5, 0.8]))
def test_it_is_the_greedy_loop(block: int, seed: int, count: int, classes: int, threshold: float):
    found = crowd(seed, count, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "SPARSE_BLOCK", block)
        patch.setattr(nms, "SPARSE_BLOCK_LIMIT", 3 * block)
        kept = rotated_class_nms(*found, threshold)
    boxes, scores, labels = found
    assert kept.tolist() == greedy(paired_iou(boxes[:, None], boxes), scores, labels, threshold)


def test_it_is_the_greedy_loop_of_shapely():
    boxes, scores, labels = crowd(0, 250, 2)
    i, j = torch.meshgrid(torch.arange(250), torch.arange(250), indexing="ij")
    iou = shapely_iou(boxes[i.flatten()], boxes[j.flatten()]).reshape(250, 250)
    assert rotated_class_nms(boxes, scores, labels, 0.1).tolist() == greedy(iou, scores, labels, 0.1)


@given(seeds, st.integers(1, 100))
def test_classes_and_order_and_repetition_make_no_difference(seed: int, count: int):
    boxes, scores, labels = crowd(seed, count, 3)
    rng = torch.Generator().manual_seed(seed)
    scores = torch.randperm(count, generator=rng) / count  # no ties
    kept = rotated_class_nms(boxes, scores, labels, 0.3)
    for label in range(3):
        own = (labels == label).nonzero()[:, 0]
        alone = own[rotated_class_nms(boxes[own], scores[own], labels[own], 0.3)]
        assert alone.tolist() == kept[labels[kept] == label].tolist()
    order = torch.randperm(count, generator=rng)
    assert order[rotated_class_nms(boxes[order], scores[order], labels[order], 0.3)].tolist() == kept.tolist()
    again = rotated_class_nms(boxes[kept], scores[kept], labels[kept], 0.3)
    assert again.tolist() == list(range(len(kept)))


@given(seeds, st.integers(0, 100), st.sampled_from([0.1, 0.5, 0.7]))
def test_of_upright_boxes_it_is_class_nms(seed: int, count: int, threshold: float):
    boxes, scores, labels = crowd(seed, count, 3)
    boxes[:, 4] = 0
    expected = class_nms(hull(boxes), scores, labels, threshold).tolist()
    assert rotated_class_nms(boxes, scores, labels, threshold).tolist() == expected


def test_a_crowd_of_20_000_is_never_compared_all_at_once(monkeypatch: pytest.MonkeyPatch):
    """Two hundred million pairs overlap; few are compared, and fewer at a time."""
    seen = Counter[str]()

    iou = rotated._iou

    def watched(a: Tensor, b: Tensor) -> Tensor:
        seen["compared"] += a.shape[1]
        seen["at once"] = max(seen["at once"], a.shape[1])
        return iou(a, b)

    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, 5, generator=rng) * torch.tensor([3, 3, 2, 2, 0.05])
    boxes = torch.tensor([50, 50, 90, 80, 0.3]) + noise
    scores, labels = torch.rand(20_000, generator=rng), torch.zeros(20_000, dtype=torch.long)
    monkeypatch.setattr(rotated, "_iou", watched)
    kept = rotated_class_nms(boxes, scores, labels, 0.1)
    assert kept.tolist() == [int(scores.argmax())]
    assert 20_000 <= seen["compared"] < 2e8 / 500
    assert seen["at once"] <= sweep.PAIRS["cpu"]


def test_boxes_in_a_column_do_not_take_memory(monkeypatch: pytest.MonkeyPatch):
    """All share their horizontal extent: more than a million candidates, of which few overlap."""
    asked: list[int] = []
    repeat = torch.Tensor.repeat_interleave

    def watched(rows: Tensor, counts: Tensor) -> Tensor:
        repeated = repeat(rows, counts)
        asked.append(len(repeated))
        return repeated

    monkeypatch.setattr(torch.Tensor, "repeat_interleave", watched)
    monkeypatch.setattr(sweep, "CANDIDATES", 2**14)
    boxes = torch.tensor([50.0, 0, 90, 3, 0]).repeat(2000, 1)
    boxes[:, 1] = torch.arange(2000) * 2
    kept = rotated_class_nms(boxes, torch.linspace(1, 0, 2000), torch.zeros(2000, dtype=torch.long), 0.1)
    assert kept.tolist() == list(range(0, 2000, 2))  # a third of each overlaps the next
    assert sum(asked) > 1_000_000
    assert max(asked) < 2**14 + 2000
