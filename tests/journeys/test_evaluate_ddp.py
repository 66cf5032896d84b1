"""Two processes that share the images find what one finds, in every view."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from locdistill.cli import main
from locdistill.inference.evaluate import evaluate
from tests.processes import together
from tests.unit.inference.test_augment import detector_of

pytestmark = pytest.mark.journey


def test_two_processes_share_the_images(tiny_coco: Path, tmp_path: Path) -> None:
    weights = detector_of().save(tmp_path / "w")
    words = ["evaluate", str(weights), "--data", str(tiny_coco), "data.workers=0", "--tta"]
    results = tmp_path / "results.json"
    code, output = together(main, [*words, "--format-only", str(results)])
    assert code == 0, output
    alone = tmp_path / "alone.json"
    views = "detections.augment={scales: [0.8, 1.0, 1.2], flip: true}"
    evaluate(weights, tiny_coco, overrides=["data.workers=0", views], format_only=alone)
    found, expected = (json.loads(path.read_text()) for path in (results, alone))
    assert len(found) == len(expected) > 100
    for ours, theirs in zip(found, expected, strict=True):
        assert ours["image_id"] == theirs["image_id"]
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=1e-2)
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
