"""Score-voting Cluster-DIoU-NMS in blocks is what its matrix formulation says, for every input and every block size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.geometry import nms
from locdistill.geometry.nms import voting_nms
from tests.voting import published_voting_nms

seeds = st.integers(0, 2**31 - 1)


def crowd(seed: int, count: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes that crowd around a few objects, in double precision; some scores tie."""
    rng = torch.Generator().manual_seed(seed)
    objects = 1 + count // 12
    corner = torch.rand(objects, 2, generator=rng, dtype=torch.float64) * 200
    truth = torch.cat((corner, corner + 10 + torch.rand(objects, 2, generator=rng, dtype=torch.float64) * 80), -1)
    noise = torch.randn(count, 4, generator=rng, dtype=torch.float64) * torch.rand(count, 1, generator=rng) * 6
    boxes = truth[torch.randint(objects, (count,), generator=rng)] + noise
    boxes = torch.cat((torch.minimum(boxes[:, :2], boxes[:, 2:] - 1), boxes[:, 2:]), -1)
    scores = (torch.rand(count, generator=rng, dtype=torch.float64) * 50).ceil() / 50
    return boxes, scores, torch.randint(classes, (count,), generator=rng)


@pytest.mark.parametrize(("block", "pairs"), [(256, 2**18), (7, 50)])
@given(seed=seeds, count=st.integers(0, 150), classes=st.integers(1, 4), limit=st.sampled_from([1, 5, 1000]))
def test_blocks_give_what_the_matrix_gives(block: int, pairs: int, seed: int, count: int, classes: int, limit: int):
    boxes, scores, labels = crowd(seed, count, classes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nms, "BLOCK", block)
        patch.setattr(nms, "PAIRS", pairs)
        voted, kept = voting_nms(boxes, scores, labels, threshold=0.6, limit=limit)
    expected, expected_kept = published_voting_nms(boxes, scores, labels, threshold=0.6, limit=limit)
    assert kept.tolist() == expected_kept.tolist()
    torch.testing.assert_close(voted, expected, rtol=1e-6, atol=1e-6)


@given(seeds, st.floats(0.5, 1e5))
def test_classes_do_not_mix_however_wide_the_image(seed: int, width: float):
    """Each class on its own gives the boxes that all of them give together."""
    boxes, scores, labels = crowd(seed, 60, 3)
    boxes = boxes * width / 280
    together, kept = voting_nms(boxes, scores, labels, threshold=0.6, limit=1000)
    for label in range(3):
        own = (labels == label).nonzero()[:, 0]
        alone, own_kept = voting_nms(boxes[own], scores[own], labels[own], threshold=0.6, limit=1000)
        assert own[own_kept].tolist() == kept[labels[kept] == label].tolist()
        torch.testing.assert_close(alone, together[labels[kept] == label])


@given(seeds)
def test_votes_stay_among_the_voters(seed: int):
    boxes, scores, labels = crowd(seed, 80, 2)
    voted, kept = voting_nms(boxes.float(), scores.float(), labels, threshold=0.6, limit=1000)
    for box, index in zip(voted, kept.tolist(), strict=True):
        own = boxes[labels == labels[index]].float()
        assert (box >= own.amin(0) - 1e-3).all()
        assert (box <= own.amax(0) + 1e-3).all()
