"""VOC AP of the executed reference implementation on a toy of three images and two classes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.voc import VOC, average_precision
from locdistill.types import Detections

voc_metrics = partial(average_precision, rules=VOC)

pytestmark = pytest.mark.golden

# (box, label, difficult) and (box, score, label) by image.
TRUTH = {
    0: [((10, 10, 50, 52), 0, False), ((98, 100, 150, 158), 0, False), ((200, 200, 221, 221), 0, True)],
    1: [((22, 20, 80, 90), 0, False), ((0, 0, 11, 14), 0, False)],
    2: [((30, 30, 66, 60), 0, False), ((40, 41, 90, 90), 1, False)],
}
FOUND = {
    0: [
        ((10, 10, 50, 50), 0.9, 0),
        ((12, 12, 52, 52), 0.8, 0),
        ((100, 100, 150, 160), 0.7, 0),
        ((200, 200, 220, 220), 0.3, 0),
        ((5, 5, 30, 30), 0.6, 1),
    ],
    1: [((20, 20, 80, 90), 0.85, 0), ((0, 0, 10, 10), 0.4, 0)],
    2: [((30, 30, 60, 60), 0.5, 0), ((40, 40, 90, 90), 0.95, 1), ((42, 40, 92, 91), 0.2, 1)],
}


def toy() -> tuple[Dataset, dict[int, Detections]]:
    records = tuple(
        Record(
            path=Path(f"{i}.jpg"),
            image_id=i,
            width=300,
            height=300,
            boxes=np.array([o[0] for o in objects], np.float32),
            labels=np.array([o[1] for o in objects], np.int64),
            ignored=np.array([o[2] for o in objects], bool),
        )
        for i, objects in TRUTH.items()
    )
    found = {
        i: Detections(
            torch.tensor([f[0] for f in here], dtype=torch.float32),
            torch.tensor([f[1] for f in here]),
            torch.tensor([f[2] for f in here]),
        )
        for i, here in FOUND.items()
    }
    return Dataset(name="toy", classes=("c0", "c1"), records=records, kind="voc", category_ids=(1, 2)), found


@pytest.mark.parametrize(
    ("eleven_point", "values", "mean"),
    [(True, (0.954545, 0.872727, 0.761364, 0.727273), 0.860455), (False, (0.95, 0.86, 0.775, 0.70), 0.854)],
)
def test_ap_at_ten_overlaps(eleven_point: bool, values: tuple[float, ...], mean: float) -> None:
    data, found = toy()
    result = voc_metrics(data, found, eleven_point=eleven_point)
    expected = np.repeat(values, (3, 4, 2, 1))
    names = [f"AP{p}" for p in range(50, 100, 5)]
    assert [result.stats[name] for name in names] == pytest.approx(expected.tolist(), abs=1e-6)
    assert result.stats["AP"] == pytest.approx(mean, abs=1e-6)
    assert result.stats["mAP"] == result.stats["AP50"]
    if eleven_point:
        assert result.ap[0].tolist() == pytest.approx([0.909091, 1.0], abs=1e-6)
    assert result.objects.tolist() == [5, 1]
