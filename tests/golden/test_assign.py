"""ATSS against the numbers of the executed reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from locdistill.assign.atss import ATSS
from locdistill.geometry.grid import Grid
from locdistill.types import Instances

pytestmark = pytest.mark.golden
CASES = (
    "typical",
    "many",
    "one_small",
    "huge",
    "tiny",
    "nopos",
    "nested",
    "outside",
    "crowd",
    "crowd_all",
    "empty",
    "empty_ign",
)


def _grid() -> Grid:
    return Grid.build(((40, 52), (20, 26), (10, 13), (5, 7), (3, 4)), (8, 16, 32, 64, 128))


def _instances(arrays: dict[str, np.ndarray], case: str) -> Instances:
    boxes = torch.from_numpy(arrays[f"{case}/gt_bboxes"]).float().reshape(-1, 4)
    crowd = torch.from_numpy(arrays[f"{case}/gt_ignore"]).float().reshape(-1, 4)
    labels = torch.from_numpy(arrays[f"{case}/gt_labels"]).long()
    present = torch.tensor([True] * len(boxes) + [False] * len(crowd), dtype=torch.bool)
    labels = torch.cat((labels, torch.zeros(len(crowd), dtype=torch.long)))
    extents = torch.tensor([[320, 416]])
    return Instances(torch.cat((boxes, crowd))[None], labels[None], present[None], ~present[None], extents)


def test_anchors(golden):
    arrays = golden("b_assign")
    np.testing.assert_array_equal(_grid().anchors().numpy(), arrays["anchors"])
    assert _grid().level_sizes == tuple(arrays["num_level_anchors"])


RULES = [(case, "throff") for case in CASES] + [("crowd", "thr0.5"), ("crowd_all", "thr0.5")]


@pytest.mark.parametrize(("case", "rule"), RULES)
def test_assignment(golden, case, rule):
    arrays = golden("b_assign")
    got = ATSS(ignore_iof=None if rule == "throff" else 0.5)(_grid(), _instances(arrays, case))
    prefix = f"{case}/{rule}"
    want = arrays[f"{prefix}/gt_inds"].astype(np.int64)
    index = torch.where(got.counted, got.gt_index + 1, -1)[0].numpy()
    np.testing.assert_array_equal(index, want)
    positive = want > 0
    np.testing.assert_array_equal(got.positive[0].numpy(), positive)
    if positive.any():
        np.testing.assert_array_equal(got.labels[0].numpy()[positive], arrays[f"{prefix}/labels"][positive])
        np.testing.assert_allclose(
            got.overlaps[0].numpy()[positive], arrays[f"{prefix}/max_overlaps"][positive], rtol=1e-5, atol=1e-6
        )


def test_ties_differ_at_most_in_which_of_equal_distances(golden):
    """Distances tie on grid-aligned boxes; which location wins is not defined, how many do is."""
    arrays = golden("b_assign")
    got = ATSS()(_grid(), _instances(arrays, "ties"))
    want = arrays["ties/throff/gt_inds"].astype(np.int64)
    index = (got.gt_index + 1)[0].numpy()
    assert abs((index > 0).sum() - (want > 0).sum()) <= 3
    assert (index != want).sum() <= 12


def test_crowd_only_image_is_ignored_where_the_reference_trains_background(golden):
    """The reference returns early without objects and forgets the ignored box; we leave its locations out."""
    arrays = golden("b_assign")
    got = ATSS(ignore_iof=0.5)(_grid(), _instances(arrays, "empty_ign"))
    assert (arrays["empty_ign/thr0.5/gt_inds"] == 0).all()
    assert not got.positive.any()
    x1, y1, x2, y2 = arrays["empty_ign/gt_ignore"][0]
    anchors = arrays["anchors"]
    width = np.minimum(anchors[:, 2], x2) - np.maximum(anchors[:, 0], x1)
    height = np.minimum(anchors[:, 3], y2) - np.maximum(anchors[:, 1], y1)
    part = width.clip(0) * height.clip(0) / ((anchors[:, 2] - anchors[:, 0]) * (anchors[:, 3] - anchors[:, 1]))
    np.testing.assert_array_equal(got.counted[0].numpy(), part <= 0.5)
