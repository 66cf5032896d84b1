"""Curves, confusion and types of errors: small cases by hand, and what must hold for any detections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from locdistill.data.records import Dataset
from locdistill.evaluation.confusion import confusion_matrix, image_scores
from locdistill.evaluation.curves import ClassCurve, class_curves, minimum_scores, thresholds
from locdistill.evaluation.error_types import ERROR_TYPES, ap_without, error_costs, label_errors
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.matching import Matches, match
from locdistill.types import Detections
from tests.unit.evaluation.test_coco import dataset, detections, pycocotools_arrays, random_case, record

KINDS = ("coco", "voc", "rotated")
BOX, FAR = [0, 0, 100, 100], [200, 200, 300, 300]
NOWHERE = [320, 20, 380, 60]


def case(seed: int, kind: str) -> tuple[Dataset, dict[int, Detections]]:
    """A random case of COCO, the same by VOC's rules, and with boxes turned a little, by those of rotated boxes."""
    data, found = random_case(seed)
    if kind != "rotated":
        return replace(data, kind=kind), found
    turned = {}
    for image_id, here in found.items():
        centres, sides = (here.boxes[:, :2] + here.boxes[:, 2:]) / 2, here.boxes[:, 2:] - here.boxes[:, :2]
        angle = 0.3 * here.scores[:, None] - 0.1
        turned[image_id] = here._replace(boxes=torch.cat((centres, sides, angle), 1))
    return data.as_oriented(True), turned


def perfect(data: Dataset) -> dict[int, Detections]:
    found = {}
    for r in data.records:
        boxes, kept = torch.from_numpy(r.boxes), torch.from_numpy(~r.ignored)
        if data.oriented:
            sides = boxes[:, 2:] - boxes[:, :2]
            boxes = torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, sides, torch.zeros(len(boxes), 1)), 1)
        scores = torch.linspace(0.5, 0.9, len(boxes))
        found[r.image_id] = Detections(boxes[kept], scores[kept], torch.from_numpy(r.labels)[kept])
    return found


def matched(boxes: list, labels: list, found: Detections, ignored: list | None = None) -> Matches:
    return match(dataset(record(1, boxes, labels, ignored)), {1: found})


def mean_ap(curves: tuple[ClassCurve, ...]) -> float | None:
    values = [curve.ap for curve in curves if curve.ap is not None]
    return sum(values) / len(values) if values else None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(6))
def test_ap_of_the_curves_is_ap50_of_the_evaluator(seed: int, kind: str) -> None:
    data, found = case(seed, kind)
    curves = class_curves(match(data, found))
    result = Evaluator(data).result(found)
    assert mean_ap(curves) == pytest.approx(result.stats["AP50"], abs=1e-9)
    assert [curve.ap is None for curve in curves] == [False] * 4 + [True]
    assert np.isnan(curves[4].recall).all()
    assert error_costs(match(data, found)).ap == pytest.approx(result.stats["AP50"], abs=1e-9)


@pytest.mark.parametrize("eleven_point", [True, False])
def test_ap_by_both_averages_of_voc(eleven_point: bool) -> None:
    data, found = case(2, "voc")
    curves = class_curves(match(data, found, eleven_point=eleven_point))
    assert mean_ap(curves) == pytest.approx(Evaluator(data, eleven_point).result(found).stats["AP50"], abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_precision_and_recall_are_those_of_pycocotools(seed: int) -> None:
    data, found = random_case(seed)
    oracle = pycocotools_arrays(data, found).eval
    for c, curve in enumerate(class_curves(match(data, found))[:4]):
        envelope = np.maximum.accumulate(curve.precision[::-1])[::-1]
        # Scores that are equal are one point here and several there: at the recalls of our points both must agree.
        for level, precision in zip(np.linspace(0, 1, 101), oracle["precision"][0, :, c, 0, 2], strict=True):
            place = np.searchsorted(curve.recall, level)
            reached = envelope[place] if place < len(envelope) else 0.0
            assert precision >= reached - 1e-9
        assert curve.recall[-1] == pytest.approx(oracle["recall"][0, c, 0, 2])


def test_the_best_score_is_that_of_the_best_f1() -> None:
    # true, false, true, false, false: F1 is 2/3, 1/2, 4/5 (2 of 2 found, 2 of 3 true), ...
    found = detections([BOX, NOWHERE, FAR, NOWHERE, NOWHERE], [0.9, 0.8, 0.7, 0.6, 0.5], [0] * 5)
    (cat, dog) = class_curves(matched([BOX, FAR], [0, 0], found))
    assert cat.scores.tolist() == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])
    assert cat.precision.tolist() == pytest.approx([1, 1 / 2, 2 / 3, 1 / 2, 2 / 5])
    assert cat.recall.tolist() == [0.5, 0.5, 1, 1, 1]
    assert cat.f1.tolist() == pytest.approx([2 / 3, 1 / 2, 4 / 5, 2 / 3, 4 / 7])
    assert cat.threshold == pytest.approx(0.7)
    assert cat.at_best() == pytest.approx({"threshold": 0.7, "precision": 2 / 3, "recall": 1.0, "f1": 0.8})
    assert (dog.threshold, dog.ap, dog.objects) == (None, None, 0)
    assert set(dog.at_best().values()) == {None}
    assert thresholds((cat, dog)) == {"cat": cat.threshold}
    assert minimum_scores(("cat", "dog"), thresholds((cat, dog))).tolist() == [cat.threshold, 0.3]


def test_equal_scores_are_kept_or_left_out_together() -> None:
    found = detections([BOX, NOWHERE, FAR], [0.5, 0.5, 0.4], [0, 0, 0])
    curve = class_curves(matched([BOX, FAR], [0, 0], found))[0]
    assert curve.scores.tolist() == pytest.approx([0.5, 0.4])
    assert curve.precision.tolist() == pytest.approx([1 / 2, 2 / 3])


def test_confusion_by_hand() -> None:
    boxes, labels = [BOX, FAR, [0, 200, 50, 250], [350, 350, 390, 390]], [0, 0, 1, 1]
    found = detections(
        # true; a dog on a cat; a false cat; a dog that is too low; one for a crowd; a duplicate
        [BOX, FAR, NOWHERE, [0, 200, 50, 250], [350, 350, 390, 390], [0, 0, 100, 90]],
        [0.9, 0.8, 0.7, 0.2, 0.9, 0.6],
        [0, 1, 0, 1, 1, 0],
    )
    matches = matched(boxes, labels, found, [False, False, False, True])
    matrix = confusion_matrix(matches, np.array([0.5, 0.5]))
    #                        cat  dog  missed
    assert matrix.tolist() == [[1, 1, 0], [0, 0, 1], [2, 0, 0]]
    low = confusion_matrix(matches, np.array([0.5, 0.1]))
    assert low.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 0]]
    (score,) = image_scores(matches, np.array([0.5, 0.5]))
    assert (score.found, score.missed, score.false) == (1, 2, 3)
    assert score.f1 == pytest.approx(2 / 7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_the_confusion_matrix_counts_every_object_and_detection_once(seed: int, kind: str) -> None:
    data, found = case(seed, kind)
    matches = match(data, found)
    curves = class_curves(matches)
    scores = minimum_scores(data.classes, thresholds(curves))
    matrix = confusion_matrix(matches, scores)
    assert matrix[:-1].sum(1).tolist() == [curve.objects for curve in curves]
    shown = matches.counted & (matches.reported.values >= scores[matches.reported.labels])
    assert matrix[:, :-1].sum(0).tolist() == np.bincount(matches.reported.labels[shown], minlength=5).tolist()
    assert matrix.diagonal()[:-1].sum() == (shown & matches.true).sum()
    ranked = image_scores(matches, scores)
    assert sum(one.found for one in ranked) == (shown & matches.true).sum()
    assert [one.f1 for one in ranked] == sorted(one.f1 for one in ranked)


def test_types_of_errors_by_hand() -> None:
    # Two cats and a dog; the second cat is found by nothing, and the dog by a detection of another class.
    boxes, labels = [BOX, FAR, [0, 200, 100, 300]], [0, 0, 1]
    found = detections(
        [BOX, [0, 0, 100, 95], [0, 200, 100, 300], [0, 60, 100, 160], [100, 230, 0, 330], NOWHERE],
        [0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        [0, 0, 0, 0, 0, 1],
    )
    found.boxes[4] = torch.tensor([40.0, 230.0, 140.0, 330.0])  # IoU with the dog 60 * 70 / 15800 = 0.27
    matches = matched(boxes, labels, found)
    kinds = dict(zip(matches.reported.values.round(1).tolist(), label_errors(matches).kind.tolist(), strict=True))
    names = {round(score, 1): ERROR_TYPES[kind] if kind >= 0 else "" for score, kind in kinds.items()}
    assert names == {
        **{0.9: "", 0.8: "duplicate", 0.7: "classification", 0.6: "localization", 0.5: "both", 0.4: "background"}
    }
    errors = error_costs(matches)
    assert errors.counts == dict.fromkeys(ERROR_TYPES, 1)
    # Cats: one of two is found, without a false detection before it: 51 of 101 levels. Dogs: none.
    half = 51 / 101
    assert errors.ap == pytest.approx(half / 2)
    costs = errors.costs
    assert costs["classification"] == pytest.approx(1 / 2)  # the dog is found first
    assert costs["localization"] == pytest.approx(0)  # a second one for a cat that has been found
    assert costs["both"] == costs["duplicate"] == pytest.approx(0)
    assert costs["background"] == pytest.approx(0)
    assert costs["missed"] == pytest.approx((1 - half) / 2)


def test_a_corrected_detection_takes_the_place_of_a_worse_one() -> None:
    # The better detection is of the wrong class; corrected it has the dog, and the other is removed as a duplicate.
    found = detections([BOX, BOX, NOWHERE], [0.9, 0.5, 0.7], [0, 1, 1])
    matches = matched([BOX], [1], found)
    errors = error_costs(matches)
    assert errors.ap == pytest.approx(0.5)
    assert errors.costs["classification"] == pytest.approx(0.5)
    assert errors.costs["background"] == pytest.approx(0.5)
    assert errors.counts["missed"] == 0


def test_own_class_comes_first_where_overlaps_are_equal() -> None:
    found = detections([BOX, BOX, [0, 0, 100, 40]], [0.9, 0.8, 0.7], [0, 0, 0])
    matches = matched([BOX, BOX], [0, 1], found)
    labels = label_errors(matches)
    assert [ERROR_TYPES[kind] for kind in labels.kind[1:]] == ["duplicate", "localization"]
    assert matches.objects.labels[labels.missed].tolist() == [1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(8))
def test_with_all_errors_fixed_ap_is_1_and_no_fix_hurts(seed: int, kind: str) -> None:
    data, found = case(seed, kind)
    matches = match(data, found)
    labels = label_errors(matches)
    assert ap_without(matches, labels, ERROR_TYPES) == pytest.approx(1.0)
    without_the_missed = ap_without(matches, labels, ERROR_TYPES[:-1])
    assert without_the_missed is not None
    assert (without_the_missed < 1 - 1e-9) == bool(labels.missed.any())
    errors = error_costs(matches)
    assert min(errors.costs.values()) >= 0
    false = int((matches.counted & ~matches.true).sum())
    assert sum(errors.counts[name] for name in ERROR_TYPES[:-1]) == false
    assert (labels.kind[matches.true | ~matches.counted] == -1).all()


@pytest.mark.parametrize("kind", KINDS)
def test_perfect_detections_have_no_errors(kind: str) -> None:
    data, _ = case(1, kind)
    matches = match(data, perfect(data))
    errors = error_costs(matches)
    assert errors.ap == pytest.approx(1.0)
    assert set(errors.costs.values()) == {0.0}
    assert set(errors.counts.values()) == {0}
    curves = class_curves(matches)
    assert [curve.f1.max() for curve in curves[:4]] == pytest.approx([1.0] * 4)
    matrix = confusion_matrix(matches, minimum_scores(data.classes, thresholds(curves)))
    assert matrix.sum() == matrix.diagonal().sum() == sum(curve.objects for curve in curves)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_found_and_nothing_to_find(kind: str) -> None:
    data, found = case(0, kind)
    nothing = error_costs(match(data, {}))
    assert nothing.ap == 0.0
    assert nothing.costs["missed"] == 1.0
    empty = replace(data, records=tuple(r.of(np.zeros(len(r.labels), bool)) for r in data.records))
    matches = match(empty, found)
    errors = error_costs(matches)
    assert errors.ap is None
    assert set(errors.costs.values()) == {0.0}
    assert errors.counts["background"] == sum(len(here.scores) for here in found.values())
    assert mean_ap(class_curves(matches)) is None
    assert confusion_matrix(matches, np.zeros(5))[:-1].sum() == 0
    assert confusion_matrix(match(replace(data, records=()), {}), np.zeros(5)).sum() == 0


def test_more_detections_than_coco_counts_are_left_out() -> None:
    many = [[300, 3 * i, 310, 3 * i + 2] for i in range(100)]
    found = detections([*many, BOX], [0.9] * 100 + [0.5], [0] * 101)
    matches = matched([BOX], [0], found)
    assert matches.counted.sum() == 100
    assert not matches.true.any()
