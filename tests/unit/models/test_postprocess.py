"""From predictions to candidates and detections: what each kind of detector asks for, views, nothing at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models.detector import Detector
from locdistill.models.postprocess import candidates, suppress
from locdistill.models.settings import AugmentSettings, DetectionSettings, DetectorSettings
from locdistill.types import Dense, Detections

KINDS = ("gfl", "gflv2", "atss", "fcos", "retinanet")
LINE = Grid.build(((1, 6),), (8,))  # six locations, 8 pixels apart


def logit(scores: list[Any]) -> Tensor:
    return torch.tensor(scores).logit()


def dense_of(scores: list[list[float]], quality: list[float] | None = None, *, in_score: bool = False) -> Dense:
    """One image whose boxes reach one stride to all sides."""
    edges = torch.full((1, len(scores), 4, 17), -100.0)
    edges[..., 1] = 100.0
    return Dense(
        logit(scores)[None], edges, None if quality is None else logit(quality)[None], quality_in_score=in_score
    )


def candidates_of(dense: Dense, grid: Grid = LINE, *, flipped: bool = False, **values: Any) -> Detections:
    size = torch.tensor([[grid.shapes[0][0] * 8, grid.shapes[0][1] * 8]])
    (found,) = candidates(
        dense,
        grid,
        bins=Bins(),
        sizes=size,
        scales=torch.ones(1, 2),
        settings=DetectionSettings(**values),
        flipped=flipped,
    )
    return found


def detector_of(model: str, **values: Any) -> Detector:
    torch.manual_seed(0)
    settings = {
        "model": model,
        "backbone": "resnet18",
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 24]},
        "pretrained": False,
        "classes": ("a", "b"),
        "channels": 8,
        "depth": 1,
        "norm_groups": 0 if model == "retinanet" else 4,
        "input": {"short": 64, "long": 96},
    }
    return Detector(DetectorSettings.model_validate(settings | values)).eval()


# Scores.


def test_candidates_are_pairs_of_location_and_class() -> None:
    dense = dense_of([[0.3, 0.05, 0.6], [0.04, 0.2, 0.001], *[[0.01] * 3] * 4])
    found = candidates_of(dense, score_threshold=float(dense.cls_logits[0, 0, 1].sigmoid()))
    assert found.scores.tolist() == pytest.approx([0.3, 0.6, 0.2])  # one is not greater than the threshold
    assert found.labels.tolist() == [0, 2, 1]
    assert found.boxes.tolist() == [[0, 0, 8, 8], [0, 0, 8, 8], [0, 0, 16, 8]]


def test_a_quality_that_ranks_is_not_held_against_the_threshold() -> None:
    """ATSS and FCOS: score 0.4 x 0.1 is reported as 0.04; 0.04 x 0.9 is no candidate."""
    dense = dense_of([[0.4], [0.3], [0.04], *[[0.01]] * 3], [0.1, 0.9, 0.9, 0.5, 0.5, 0.5])
    found = candidates_of(dense)
    assert found.scores.tolist() == pytest.approx([0.04, 0.27])
    assert found.boxes[:, 2].tolist() == [8, 16]
    # Both of one class, their IoU is a half: the better product suppresses, whatever the class scores.
    (one,) = suppress([[found]], DetectionSettings(nms_iou=0.4))
    assert one.scores.tolist() == pytest.approx([0.27])
    (both,) = suppress([[found]], DetectionSettings())
    assert both.scores.tolist() == pytest.approx([0.27, 0.04])
    # The product also chooses the locations that go on.
    assert candidates_of(dense, candidates=1).scores.tolist() == pytest.approx([0.27])


def test_a_quality_that_is_part_of_the_score() -> None:
    """GFL v2: the product is the score, as the losses have it."""
    dense = dense_of([[0.4], [0.06], [0.3], *[[0.01]] * 3], [0.1, 0.9, 0.9, 0.5, 0.5, 0.5], in_score=True)
    found = candidates_of(dense)
    assert found.scores.tolist() == pytest.approx([0.06 * 0.9, 0.27])
    torch.testing.assert_close(found.scores, dense.score_logits[0, [1, 2], 0].sigmoid())


def test_the_background_channel_is_never_reported() -> None:
    """The strongest channel of all locations is that of the background; it neither appears nor chooses locations."""
    detector = detector_of("gflv2", background_channel=True, detections={"candidates": 2})
    assert detector.head.classes == 3
    grid = detector.grid_for((64, 64))
    count = len(grid.points)
    scores = torch.full((1, count, 3), 0.01)
    scores[..., 2] = torch.linspace(0.9, 0.5, count)
    scores[0, 40:42, 1] = torch.tensor([0.3, 0.2])
    dense = Dense(scores.logit(), torch.zeros(1, count, 4, 17), torch.full((1, count), 20.0), quality_in_score=True)
    size = torch.tensor([[64, 64]])
    (found,) = detector.candidates(dense, grid, size, size)
    assert found.labels.tolist() == [1, 1]
    assert found.scores.tolist() == pytest.approx([0.3, 0.2])
    (reported,) = detector.detections(dense, grid, size, size)
    assert reported.labels.unique().tolist() == [1]


@pytest.mark.parametrize("nms", ["plain", "voting_cluster_diou"])
@pytest.mark.parametrize("model", KINDS)
def test_every_kind_detects(model: str, nms: str) -> None:
    detector = detector_of(model, detections={"score_threshold": 0.001, "candidates": 20, "nms": nms})
    (found,) = detector.detect(torch.randint(0, 256, (3, 50, 90), dtype=torch.uint8))
    assert 0 < len(found.scores) <= 100
    assert (found.scores.diff() <= 0).all()
    assert set(found.labels.tolist()) <= {0, 1}
    assert found.boxes.isfinite().all()


def test_all_locations_of_a_cell_are_counted() -> None:
    """RetinaNet has nine per cell: of the 9 x 12 locations of this level the best ten go on."""
    detector = detector_of("retinanet", levels=(3,), detections={"candidates": 10, "score_threshold": 0})
    grid = detector.grid_for((24, 32))
    assert grid.level_sizes == (108,)
    dense = dense_of([[0.5, 0.001 * i] for i in range(108)])
    (found,) = detector.candidates(dense, grid, torch.tensor([[24, 32]]), torch.tensor([[24, 32]]))
    assert len(found.scores) == 20  # two classes each


# Nothing found.


@pytest.mark.parametrize("nms", ["plain", "voting_cluster_diou"])
@pytest.mark.parametrize("scores", [0.01, float("nan")])
@pytest.mark.parametrize("views", [1, 3])
def test_no_candidates(nms: Any, scores: float, views: int) -> None:
    found = candidates_of(dense_of([[scores] * 2] * 6))
    (reported,) = suppress([[found]] * views, DetectionSettings(nms=nms))
    assert [tuple(part.shape) for part in reported] == [(0, 4), (0,), (0,)]
    assert [part.dtype for part in reported] == [torch.float32, torch.float32, torch.long]


def test_no_images() -> None:
    assert suppress([[]], DetectionSettings()) == []


def test_at_most_so_many_detections_the_best_ones() -> None:
    found = candidates_of(dense_of([[0.1 * i + 0.1] for i in range(6)]))
    (reported,) = suppress([[found]], DetectionSettings(max_detections=3, nms_iou=1))
    assert reported.scores.tolist() == pytest.approx([0.6, 0.5, 0.4])


# Views.


def test_a_mirrored_view_is_mirrored_back() -> None:
    """Sides, not the padding, decide: the image is 40 pixels wide on a map of 48."""
    dense = dense_of([[0.5], [0.01], [0.6], [0.01], [0.7], [0.01]])
    arguments: dict[str, Any] = {
        "bins": Bins(),
        "sizes": torch.tensor([[8, 40]]),
        "scales": torch.tensor([[1.0, 2.0]]),
        "settings": DetectionSettings(),
    }
    (plain,) = candidates(dense, LINE, **arguments)
    (mirrored,) = candidates(dense, LINE, **arguments, flipped=True)
    assert plain.boxes[:, [0, 2]].tolist() == [[0, 4], [4, 12], [12, 20]]
    assert mirrored.boxes[:, [0, 2]].tolist() == [[16, 20], [8, 16], [0, 8]]
    assert torch.equal(mirrored.boxes[:, [1, 3]], plain.boxes[:, [1, 3]])
    assert torch.equal(mirrored.scores, plain.scores)


def test_views_are_put_together_before_suppression() -> None:
    first = Detections(
        torch.tensor([[0.0, 0, 10, 10], [50, 0, 60, 10]]), torch.tensor([0.6, 0.5]), torch.tensor([0, 1])
    )
    second = Detections(
        torch.tensor([[1.0, 0, 11, 10], [80, 0, 90, 10]]), torch.tensor([0.9, 0.4]), torch.tensor([0, 1])
    )
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    one, other = suppress([[first, none], [second, none]], DetectionSettings())
    assert one.boxes.tolist() == [[1, 0, 11, 10], [50, 0, 60, 10], [80, 0, 90, 10]]
    assert one.labels.tolist() == [0, 1, 1]
    assert len(other.scores) == 0
    (voted, _) = suppress([[first, none], [second, none]], DetectionSettings(nms="voting_cluster_diou"))
    assert 0 < float(voted.boxes[0, 0]) < 1  # the box of the other view has a vote


def test_views_of_the_settings() -> None:
    assert DetectionSettings().augment.views == ((1.0, False),)
    views = AugmentSettings(scales=(0.5, 2), flip=True).views
    assert views == ((0.5, False), (0.5, True), (2.0, False), (2.0, True))
    assert views[0].limits(short=801, long=1333) == (401, 667)
    assert views[0].limits(short=1, long=1) == (1, 1)
    for scales in ((), (0.0,), (1, 1), (-1,)):
        with pytest.raises(ValueError, match="positive numbers that all differ"):
            AugmentSettings(scales=scales)
    with pytest.raises(ValueError, match="voting_cluster_diou"):
        DetectionSettings.model_validate({"nms": "soft"})
