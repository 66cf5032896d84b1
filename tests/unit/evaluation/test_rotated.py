"""AP of rotated boxes against quadrilaterals: overlaps, matching, both averages and the published series, by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from shapely import Polygon

from locdistill.data.records import Dataset, Record
from locdistill.evaluation.arrays import Rows
from locdistill.evaluation.evaluator import Evaluator
from locdistill.evaluation.rotated import PUBLISHED_CLASSES, ROTATED, published_sum, published_table
from locdistill.evaluation.voc import NAMES, VocResult, average_precision
from locdistill.geometry.rotated import canonical, corners, fit
from locdistill.types import Detections

TURNED = (100.0, 100.0, 60.0, 20.0, 0.5)
FAR = (300.0, 300.0, 80.0, 30.0, -1.0)


def quad(box: tuple[float, ...]) -> np.ndarray:
    return corners(torch.tensor(box, dtype=torch.float64)).float().numpy()


def dataset(*images: list[tuple], classes=("ship",), kind="dota") -> Dataset:
    """Images as lists of (rotated box or quadrilateral, label, difficult)."""
    records = []
    for i, objects in enumerate(images):
        quads = np.array([o[0] if np.shape(o[0]) == (4, 2) else quad(o[0]) for o in objects], np.float32)
        quads = quads.reshape(-1, 4, 2)
        records.append(
            Record(
                path=Path("images") / f"P{i}.png",
                image_id=i,
                width=500,
                height=500,
                boxes=np.concatenate((quads.min(1), quads.max(1)), 1),
                labels=np.array([o[1] for o in objects], np.int64),
                ignored=np.array([o[2] for o in objects], bool),
                quads=quads,
            )
        )
    return Dataset("toy", classes, tuple(records), kind, tuple(range(1, len(classes) + 1)), oriented=True)


def detections(*found: tuple) -> Detections:
    """Detections as (box, score, label)."""
    return Detections(
        torch.tensor([f[0] for f in found], dtype=torch.float32).reshape(-1, 5),
        torch.tensor([f[1] for f in found], dtype=torch.float32),
        torch.tensor([f[2] for f in found], dtype=torch.int64),
    )


def scaled(box: tuple[float, ...], height: float) -> tuple[float, ...]:
    """The box with its upper edge moved down: overlap ``height`` with what it was."""
    x, y, w, h, theta = box
    cut = h * (1 - height) / 2
    return (x - cut * math.sin(theta), y + cut * math.cos(theta), w, h * height, theta)


def metrics(data: Dataset, *found: Detections, eleven_point: bool = True) -> VocResult:
    return average_precision(data, dict(enumerate(found)), ROTATED, eleven_point=eleven_point)


def nearest(boxes: np.ndarray, quads: np.ndarray, *images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each box the object that it overlaps most, and how much; all in one image unless said."""
    mine, others = images or (np.zeros(len(boxes), np.int64), np.zeros(len(quads), np.int64))
    unused = np.zeros(0)
    return ROTATED.nearest(Rows(mine, unused, boxes, unused, unused), Rows(others, unused, quads, unused, unused))


@pytest.mark.parametrize("angles", ["oc", "le90", "le135"])
def test_perfect_detections_have_ap_1_at_all_overlaps_in_any_angle_range(angles: str) -> None:
    boxes = [
        (80.0 + 90 * i, 80.0 + 70 * j, 61.0, 7.0 + 4 * i, 0.37 * (i + 5 * j) - 1.4) for i in range(4) for j in range(4)
    ]
    data = dataset([(box, i % 2, False) for i, box in enumerate(boxes)], classes=("ship", "plane"))
    again = canonical(torch.tensor(boxes), angles)
    found = Detections(again, torch.linspace(0.1, 0.9, 16), torch.arange(16) % 2)
    result = metrics(data, found)
    assert result.ap.tolist() == [[1.0, 1.0]] * 10
    assert result.objects.tolist() == [8, 8]


def test_the_overlap_must_be_greater_than_the_threshold() -> None:
    square = (100.0, 100.0, 64.0, 64.0, 0.0)
    upper_half = (100.0, 84.0, 64.0, 32.0, 0.0)  # all of these numbers are exact
    assert metrics(dataset([(square, 0, False)]), detections((upper_half, 0.9, 0))).ap[:, 0].tolist() == [0.0] * 10
    a_little_more = (100.0, 84.5, 64.0, 33.0, 0.0)
    assert metrics(dataset([(square, 0, False)]), detections((a_little_more, 0.9, 0))).ap[0, 0] == 1.0


@pytest.mark.parametrize("overlap", [0.52, 0.63, 0.74, 0.86, 0.97])
def test_each_threshold_sees_the_same_overlap(overlap: float) -> None:
    result = metrics(dataset([(TURNED, 0, False)]), detections((scaled(TURNED, overlap), 0.9, 0)))
    assert result.ap[:, 0].tolist() == [float(overlap > t) for t in np.arange(50, 100, 5) / 100]


def test_the_quadrilateral_counts_as_annotated_and_not_the_rectangle_around_it() -> None:
    # A kite, half as large as the smallest rectangle around it: the perfect rectangle reaches an overlap of 1/2.
    kite = np.array([[100, 60], [120, 100], [100, 140], [80, 100]], np.float32)
    box = fit(torch.from_numpy(kite), "le90")
    overlap = Polygon(kite).area / float(box[2] * box[3])
    assert overlap < 0.9
    result = metrics(dataset([(kite, 0, False)]), Detections(box[None], torch.tensor([0.9]), torch.tensor([0])))
    assert result.ap[:, 0].tolist() == [float(overlap > t + 1e-6) for t in np.arange(50, 100, 5) / 100]


def test_overlaps_are_those_of_polygons() -> None:
    rng = np.random.default_rng(0)
    boxes = np.column_stack(
        (rng.uniform(50, 150, (40, 2)), rng.uniform(5, 80, (40, 2)), rng.uniform(-4, 4, 40))
    ).astype(np.float32)
    quads = corners(torch.from_numpy(boxes[:15]).double()).numpy() + rng.normal(0, 2, (15, 4, 2))
    quads = quads.astype(np.float32)
    target, overlap = nearest(boxes, quads)
    mine = [Polygon(c) for c in corners(torch.from_numpy(boxes).double()).numpy()]
    truth = [Polygon(q.astype(np.float64)) for q in quads]
    expected = np.array([[a.intersection(b).area / a.union(b).area for b in truth] for a in mine])
    np.testing.assert_allclose(overlap, expected.max(1), atol=1e-9)
    some = expected.max(1) > 0
    assert some.sum() > 30
    np.testing.assert_array_equal(target[some], expected.argmax(1)[some])


def test_of_equal_overlaps_the_first_object_counts() -> None:
    boxes = np.array([TURNED], np.float32)
    assert nearest(boxes, np.stack([quad(FAR), quad(TURNED), quad(TURNED)]))[0].tolist() == [1]


def test_objects_of_other_images_are_not_looked_at() -> None:
    rng = np.random.default_rng(1)
    boxes = np.column_stack((rng.uniform(-50, 90, (60, 2)), rng.uniform(30, 90, (60, 2)), rng.uniform(-4, 4, 60)))
    boxes = boxes.astype(np.float32)
    quads = corners(torch.from_numpy(boxes[::2]).double()).float().numpy()[::-1].copy()
    images, others = np.sort(rng.integers(3, size=60)), np.sort(rng.integers(1, 4, size=30))
    target, overlap = nearest(boxes, quads, images, others)
    for image in range(3):
        own, theirs = images == image, np.flatnonzero(others == image)
        if not len(theirs):
            assert (overlap[own] == 0).all()
            continue
        alone, much = nearest(boxes[own], quads[theirs])
        np.testing.assert_array_equal(overlap[own], much)
        np.testing.assert_array_equal(target[own][much > 0], theirs[alone[much > 0]])


# True, false, true of two objects: precision 1 at recall 1/2, then 2/3 at recall 1.
@pytest.mark.parametrize(("eleven_point", "expected"), [(True, (6 + 5 * 2 / 3) / 11), (False, 0.5 + 0.5 * 2 / 3)])
def test_both_averages(eleven_point: bool, expected: float) -> None:
    data = dataset([(TURNED, 0, False), (FAR, 0, False)])
    nowhere = (430.0, 60.0, 30.0, 30.0, 0.3)
    result = metrics(data, detections((TURNED, 0.9, 0), (nowhere, 0.8, 0), (FAR, 0.7, 0)), eleven_point=eleven_point)
    assert result.ap[:, 0] == pytest.approx([expected] * 10)
    assert Evaluator(data, eleven_point).result({0: detections((TURNED, 0.9, 0), (nowhere, 0.8, 0), (FAR, 0.7, 0))}).ap[
        0, 0
    ] == pytest.approx(expected)


def test_a_duplicate_is_false_also_if_another_object_is_free() -> None:
    x, y, w, h, theta = TURNED
    beside = (x - 6 * math.sin(theta), y + 6 * math.cos(theta), w, h, theta)
    between = (x - 2 * math.sin(theta), y + 2 * math.cos(theta), w, h, theta)
    data = dataset([(TURNED, 0, False), (beside, 0, False)])
    result = metrics(data, detections((TURNED, 0.9, 0), (between, 0.8, 0)), eleven_point=False)
    assert result.recall[0, 0] == 0.5
    assert result.ap[0, 0] == pytest.approx(0.5)
    same = metrics(dataset([(TURNED, 0, False)]), detections((TURNED, 0.8, 0), (TURNED, 0.9, 0)), eleven_point=False)
    assert same.ap[:, 0].tolist() == [1.0] * 10
    first_wrong = metrics(
        dataset([(TURNED, 0, False)], [(TURNED, 0, False)]),
        detections((TURNED, 0.9, 0), (TURNED, 0.8, 0)),
        detections((TURNED, 0.7, 0)),
        eleven_point=False,
    )
    assert first_wrong.ap[0, 0] == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_difficult_objects_are_neither_asked_for_nor_false() -> None:
    data = dataset([(TURNED, 0, True), (FAR, 0, False)])
    result = metrics(data, detections((TURNED, 0.9, 0), (TURNED, 0.85, 0), (FAR, 0.8, 0)), eleven_point=False)
    assert result.objects.tolist() == [1]
    assert result.ap[:, 0].tolist() == [1.0] * 10
    # Where it does not overlap the difficult object enough, a detection is false.
    result = metrics(data, detections((scaled(TURNED, 0.58), 0.9, 0), (FAR, 0.8, 0)), eleven_point=False)
    assert result.ap[:, 0].tolist() == [1.0] * 2 + [0.5] * 8


def test_classes_without_objects_take_no_part_and_are_shown() -> None:
    data = dataset([(TURNED, 0, False)], [], classes=("ship", "plane", "bridge"))
    result = metrics(data, detections((TURNED, 0.9, 0)), detections((FAR, 0.8, 1)))
    assert result.stats["AP"] == 1.0
    assert result.objects.tolist() == [1, 0, 0]
    assert [row[:3] for row in result.tables()[1].rows] == [
        ("ship", "1", "1"),
        ("plane", "0", "1"),
        ("bridge", "0", "0"),
        ("mean", "1", "2"),
    ]
    assert set(result.tables()[1].rows[1][3:]) == {"-"}
    only_difficult = metrics(dataset([(TURNED, 0, True)]), detections((TURNED, 0.9, 0)))
    assert set(only_difficult.stats.values()) == {None}
    assert published_sum(only_difficult) == dict.fromkeys(("AP", *NAMES))
    assert set(published_table(only_difficult).rows[1][1:]) == {"-"}


def test_equal_scores_are_ranked_by_image_and_then_as_given() -> None:
    data = dataset([(TURNED, 0, False)], [(TURNED, 0, False)])
    nowhere = (430.0, 60.0, 30.0, 30.0, 0.3)
    wrong_last = metrics(data, detections((TURNED, 0.5, 0)), detections((nowhere, 0.5, 0)), eleven_point=False)
    wrong_first = metrics(data, detections((nowhere, 0.5, 0)), detections((TURNED, 0.5, 0)), eleven_point=False)
    assert (wrong_last.ap[0, 0], wrong_first.ap[0, 0]) == (0.5, 0.25)


def test_the_published_running_sum() -> None:
    data = dataset([(TURNED, 0, False), (FAR, 0, False)], [(FAR, 1, False)], classes=("ship", "plane"))
    found = detections((scaled(TURNED, 0.72), 0.9, 0), (scaled(FAR, 0.93), 0.8, 0))
    result = metrics(data, found, detections((scaled(FAR, 0.61), 0.7, 1)))
    series, stats = published_sum(result), result.stats
    # The script: add the AP of all classes to what is left from the overlap before, then divide by 15 classes. With 15
    # classes of which each has the mean, that is the mean.
    total = 0.0
    for t, name in enumerate(NAMES):
        total = (total + PUBLISHED_CLASSES * float(result.ap[t].mean())) / PUBLISHED_CLASSES
        assert series[name] == pytest.approx(total, abs=1e-12)
    assert series["AP50"] == stats["AP50"] == pytest.approx(1.0)
    for before, name in pairwise(NAMES):
        assert series[name] - series[before] / 15 == pytest.approx(stats[name], abs=1e-12)
    mean = series["AP"]
    assert mean == pytest.approx(sum(series[name] for name in NAMES) / 10)
    # True AP from the printed numbers, as the spec of the correction has it.
    assert stats["AP"] == pytest.approx(mean - (10 * mean - series["AP95"]) / 150)
    table = published_table(result)
    assert table.header == ("", "AP", *NAMES)
    assert table.rows[0][1:3] == (f"{100 * stats['AP']:.1f}", "100.0")


def test_empty_is_ordinary() -> None:
    assert metrics(dataset([(TURNED, 0, False)])).stats["AP"] == 0.0
    assert metrics(dataset([]), detections((TURNED, 0.9, 0))).stats["AP"] is None
    upright = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    assert metrics(dataset([(TURNED, 0, False)]), upright).stats["AP"] == 0.0
    assert metrics(dataset()).stats["AP"] is None


def test_boxes_of_another_kind_than_the_objects_are_an_error() -> None:
    data = dataset([(TURNED, 0, False)])
    upright = Detections(torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.9]), torch.tensor([0]))
    with pytest.raises(ValueError, match=r"expected rotated boxes.* came axis-aligned ones.*as_oriented\(False\)"):
        Evaluator(data)({0: upright})
    with pytest.raises(ValueError, match=r"expected axis-aligned boxes.*came rotated ones.*as_oriented\(True\)"):
        Evaluator(data.as_oriented(False))({0: detections((TURNED, 0.9, 0))})


@pytest.mark.parametrize(("kind", "expected"), [("dota", True), ("hrsc", True), ("coco", False), ("voc", False)])
def test_the_evaluator_averages_as_published_numbers_of_the_data_do(kind: str, expected: bool) -> None:
    data = dataset([(TURNED, 0, False)], kind=kind)
    found = {0: detections((TURNED, 0.9, 0))}
    result = Evaluator(data).result(found)
    assert result.eleven_point is expected
    assert "Rotated boxes" in result.tables()[0].title
    assert Evaluator(data, not expected).result(found).eleven_point is not expected


def test_rotated_data_with_upright_boxes_are_evaluated_as_such() -> None:
    data = dataset([(TURNED, 0, False)]).as_oriented(False)
    found = {0: Detections(torch.from_numpy(data.records[0].boxes), torch.tensor([0.9]), torch.tensor([0]))}
    assert "AR100" in Evaluator(data)(found)
    assert Evaluator(replace(data, kind="voc")).result(found).name == "VOC"


@pytest.mark.parametrize("eleven_point", [False, True])
def test_the_judge_gives_the_same_numbers(eleven_point: bool) -> None:
    rng = np.random.default_rng(3)
    images, found = [], {}
    for image in range(6):
        boxes = [(*rng.uniform(60, 440, 2), *rng.uniform(20, 60, 2), rng.uniform(-2, 2)) for _ in range(8)]
        images.append([(box, int(rng.integers(2)), bool(rng.random() < 0.2)) for box in boxes])
        noise = rng.normal(0, (2, 2, 3, 3, 0.05), (8, 5))
        moved = [(*(np.array(o[0]) + n), rng.random(), o[1]) for o, n in zip(images[-1], noise, strict=True)]
        found[image] = detections(*((row[:5], *row[5:]) for row in [*moved, *moved[:2]]))
    evaluator = Evaluator(dataset(*images, classes=("ship", "plane")), eleven_point)
    stats, numbers = evaluator.result(found).stats, evaluator.judge(found).numbers().means
    assert 0.1 < stats["AP"] < 0.95
    for name in ("AP", "AP50", "AP75", "AP90"):
        assert numbers[name][0] == pytest.approx(stats[name])
