"""Agreement by region and edge, calibration of edge distributions and shares of a gradient, worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from locdistill.assign.atss import ATSS
from locdistill.distillation.teacher import LiveTeacher
from locdistill.engine.module import blank_batch
from locdistill.evaluation.agreement import (
    EXPRESSED,
    OTHERS,
    Agreement,
    agreement_sums,
    correlation,
    edge_errors,
    reliability,
)
from locdistill.evaluation.gradients import Pull, pulls, shares
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models import meaning
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.objective.scene import Scene
from locdistill.recipe.load import load_recipe
from locdistill.study.diagnose.diagnose import regions_of
from locdistill.study.diagnose.reopen import Reopened
from locdistill.study.diagnose.result import ALONE, MAIN, OTHER, STUDENT, TEACHER, VALUABLE, Diagnosis, in_words
from locdistill.training.pictures import miss
from locdistill.types import Dense
from tests.scenes import grid_of_kind, instances_of, meaning_of, settings_of, turned

BINS = Bins(4)
NO_EDGES = (math.nan,) * 4


def peaked(*places: int) -> Tensor:
    """Edge distributions that are sure of a bin each."""
    return 50 * torch.nn.functional.one_hot(torch.tensor(places), BINS.count).float()


def scene_of(student: Tensor, teacher: Tensor, *, scores: tuple[float, float] = (0.0, 0.0), box: float = 32.0) -> Scene:
    """One image of 32 x 32 pixels on stride 8, with one object."""
    grid = Grid.build(((4, 4),), (8,), anchor_scale=4)

    def dense(edges: Tensor, score: float) -> Dense:
        return Dense(torch.tensor([0.0, score]).expand(1, 16, 2), edges.expand(1, 16, 4, BINS.count))

    instances = instances_of([[[0.0, 0.0, box, box]]], [[0]], [(32, 32)])
    return Scene.build(
        dense(student, scores[0]),
        dense(teacher, scores[1]),
        grid=grid,
        instances=instances,
        assigner=ATSS(),
        bins=BINS,
    )


def test_agreement_by_edge_by_hand() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(2, 1, 1, 3), scores=(0.0, math.log(3)))
    found = Agreement.of(agreement_sums(scene, scene.assignment.positive))
    assert found.locations == int(scene.assignment.positive.sum()) > 0
    assert found.edge_kl == pytest.approx((50, 0, 0, 50), abs=1e-4)
    assert found.mean_edge_kl == pytest.approx(25, rel=1e-5)
    assert found.distance == pytest.approx((1, 0, 0, 2), abs=1e-5)
    assert found.box_iou == pytest.approx(4 / 12, rel=1e-5)  # 2 x 2 strides inside 3 x 4
    assert found.score == pytest.approx(0.75 - 0.5, abs=1e-6)  # of the class on which they differ most


def test_only_classes_that_both_know_are_compared() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1), scores=(0.0, 9.0))
    assert scene.teacher is not None
    positive = scene.assignment.positive
    first = replace(scene, teacher=scene.teacher._replace(known=(0,)))
    assert Agreement.of(agreement_sums(first, positive)).score == pytest.approx(0, abs=1e-6)
    none = replace(scene, teacher=scene.teacher._replace(known=()))
    found = Agreement.of(agreement_sums(none, positive))
    assert math.isnan(found.score)
    assert found.box_iou == pytest.approx(1)


def test_sums_of_batches_add_up_and_an_empty_region_has_no_means() -> None:
    near, far = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1)), scene_of(peaked(1, 1, 1, 1), peaked(2, 2, 2, 2))
    everywhere = torch.ones_like(near.assignment.positive)
    both = agreement_sums(near, everywhere) + agreement_sums(far, everywhere)
    assert Agreement.of(both).locations == 32
    assert Agreement.of(both).distance == pytest.approx((0.5,) * 4, abs=1e-5)
    empty = agreement_sums(near, ~everywhere)
    assert torch.equal(empty, torch.zeros(2 * 4 + OTHERS, dtype=torch.float64))
    assert math.isnan(Agreement.of(empty).box_iou)


def test_every_location_of_the_image_is_in_one_region() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1), box=20)
    weights = torch.linspace(-1, 1, 16).clamp(min=0)[None]
    regions = regions_of(scene, weights)
    assert list(regions) == [MAIN, VALUABLE, OTHER]
    assert torch.stack(list(regions.values())).sum(0).eq(scene.assignment.inside).all()
    assert not (regions[VALUABLE] & scene.assignment.positive).any()
    assert regions[VALUABLE].any()


def test_the_spread_of_a_distribution() -> None:
    probabilities = torch.tensor([[0.5, 0.0, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    logits = probabilities.clamp(min=1e-30).log()
    assert BINS.deviation(logits).tolist() == pytest.approx([1.0, 0.0, math.sqrt(2)], abs=1e-5)


def test_errors_of_edges_leave_out_what_no_distribution_can_say() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1))
    spread, error = edge_errors(scene, scene.student.edge_logits)
    # The object reaches from 0 to 4 strides, and locations lie at 0, 1, 2 and 3: distances of 0 to 4, all within.
    positives = scene.grid.points[scene.assignment.positive[0]] / 8
    expected = torch.cat((positives - 1, 4 - positives - 1), -1).abs()
    assert error.tolist() == pytest.approx(expected.flatten().tolist(), abs=1e-5)
    assert spread.tolist() == pytest.approx([0.0] * len(error), abs=1e-4)
    # Three strides further to the left, the left edge is out of reach of the locations at 2 and 3.
    far = replace(scene, target_boxes=scene.target_boxes - torch.tensor([3.0, 0.0, 0.0, 0.0]))
    out_of_reach = int((positives[:, 0] > 1).sum())
    assert 0 < out_of_reach < len(error)
    assert len(edge_errors(far, far.student.edge_logits)[1]) == len(error) - out_of_reach


def rotated_scene(model: str, *places: int, against: tuple[int, ...] | None = None) -> Scene:
    """A detector of rotated boxes that is sure of a bin each, everywhere; its teacher perhaps of others."""
    coding, bins = meaning_of(model)
    grid = grid_of_kind(model, ((4, 4),), anchor_scale=4)

    def dense(chosen: tuple[int, ...]) -> Dense:
        edges = 50 * torch.nn.functional.one_hot(torch.tensor(chosen), bins.count).float()
        where = len(grid.points)
        return Dense(torch.zeros(1, where, 1), edges.expand(1, where, 5, bins.count))

    objects = turned(instances_of([[[0.0, 0.0, 32.0, 32.0]]], [[0]], [(32, 32)]), model)
    student, teacher = dense(places), dense(against or places)
    return Scene.build(student, teacher, grid=grid, instances=objects, assigner=ATSS(), bins=bins, coding=coding)


def truth_at(scene: Scene, *places: int) -> Scene:
    """The same where the objects are what these bins make."""
    values = scene.bins.positions(scene.boxes)[torch.arange(5), torch.tensor(places)]
    boxes = scene.coding.decode(scene.grid, values.expand(*scene.boxes.shape))
    return replace(scene, target_boxes=boxes)


@pytest.mark.parametrize("model", ["rotated_gfl", "rotated_retinanet"])
def test_edges_and_angle_are_counted_in_bins(model: str) -> None:
    """Whose bins are strides, shares of an anchor, powers of e and radians apart; the angle's last is beside its first.

    A detector that is wrong by so many bins in each number has these errors, whatever their units.
    """
    last = meaning_of(model)[1].reg_max
    scene = rotated_scene(model, 2, 3, 4, 5, 0)
    wrong = truth_at(scene, 3, 3, 2, 5, last if model == "rotated_gfl" else 1)
    spread, error = edge_errors(wrong, scene.student.edge_logits)
    assert len(error) == 5 * int(scene.assignment.positive.sum()) > 0
    assert error.view(-1, 5).mean(0).tolist() == pytest.approx([1, 0, 2, 0, 1], abs=1e-4)
    assert spread.tolist() == pytest.approx([0.0] * len(spread), abs=1e-4)
    # Between two bins the spread is half a bin.
    between = scene.student.edge_logits + scene.student.edge_logits.roll(1, -1)
    spread, error = edge_errors(truth_at(scene, 2, 3, 4, 5, 0), between)
    assert spread.tolist() == pytest.approx([0.5] * len(spread), rel=0.02)
    assert error.tolist() == pytest.approx([0.5] * len(error), rel=0.02)


@pytest.mark.parametrize("model", ["rotated_gfl", "rotated_retinanet"])
def test_distances_of_rotated_detectors_have_a_mean(model: str) -> None:
    scene = rotated_scene(model, 2, 3, 4, 5, 1, against=(3, 3, 2, 5, 2))
    found = Agreement.of(agreement_sums(scene, scene.assignment.positive))
    assert found.distance == pytest.approx((1, 0, 2, 0, 1), abs=1e-4)


@pytest.mark.parametrize("angles", ["oc", "le90", "le135"])
def test_no_angle_is_out_of_reach_of_a_circle(angles: str) -> None:
    """Nor by rounding, however it comes."""
    bins = meaning.meaning_of(settings_of("rotated_gfl").model_copy(update={"angles": angles}))[1]
    values = torch.ones(20001, 5)
    values[:, 4] = torch.linspace(-math.pi, math.pi, 20001)
    assert float(bins.difference(bins.clamp(values, margin=0), values).abs().amax()) <= EXPRESSED


def test_a_caption_says_how_far_off_an_angle_is() -> None:
    """A perfect prediction of -0.2 radians, whose bins begin at 0, is not wrong by half a turn."""
    scene = rotated_scene("rotated_gfl", 2, 3, 4, 5, 0)
    values = torch.tensor([3.0, 4.0, 5.0, 6.0, -0.2]).expand(1, 16, 5)
    perfect = scene.bins.two_hot(scene.bins.clamp(values)).clamp(min=1e-30).log()
    scene = replace(scene, student=scene.student._replace(edge_logits=perfect), target_values=scene.bins.clamp(values))
    said = miss(scene, 0, 5).replace("-0.00", "+0.00")
    assert said == "Error in strides: left +0.00, top +0.00, right +0.00, bottom +0.00; in radians: angle +0.00"
    off = replace(scene, target_values=scene.bins.clamp(values + torch.tensor([0, 0, 0, 1.0, 0.3])))
    assert "bottom -1.00; in radians: angle -0.30" in miss(off, 0, 5)


def test_a_caption_of_a_horizontal_box() -> None:
    scene = scene_of(peaked(1, 1, 1, 1), peaked(1, 1, 1, 1))
    values = replace(scene, target_values=torch.tensor([1.0, 0.5, 3.0, 1.0]).expand(1, 16, 4))
    assert miss(values, 0, 5).startswith("Error in strides: left +0.00, top +0.50, right -2.00")


def test_a_calibrated_detector() -> None:
    rng = np.random.default_rng(0)
    sigma = rng.uniform(0.1, 2, 20000)
    found = reliability(sigma, rng.normal(0, sigma), bins=5)
    assert [row.count for row in found.bins] == [4000] * 5
    for row in found.bins:
        assert row.rms_error == pytest.approx(row.deviation, rel=0.05)
        assert row.error == pytest.approx(math.sqrt(2 / math.pi) * row.deviation, rel=0.1)
    assert found.ratio == pytest.approx(1, rel=0.03)
    assert found.ence < 0.04
    assert found.spearman > 0.4


def test_reliability_by_hand() -> None:
    found = reliability([2.0, 1.0, 1.0, 4.0], [-4.0, 1.0, 3.0, 8.0], bins=2)
    assert [row.count for row in found.bins] == [2, 2]
    first, second = found.bins
    assert (first.deviation, first.error, first.rms_error) == pytest.approx((1, 2, math.sqrt(5)))
    assert (second.deviation, second.error, second.rms_error) == pytest.approx((math.sqrt(10), 6, math.sqrt(40)))
    assert found.ratio == pytest.approx(math.sqrt(90 / 22))
    assert found.ence == pytest.approx(((math.sqrt(5) - 1) + 1) / 2)
    # Ranks of the spreads 3, 1.5, 1.5, 4 and of the errors 3, 1, 2, 4.
    assert found.spearman == pytest.approx(correlation([3, 1.5, 1.5, 4], [3, 1, 2, 4]))
    assert found.pearson == pytest.approx(np.corrcoef([2, 1, 1, 4], [4, 1, 3, 8])[0, 1])


@pytest.mark.parametrize(("deviations", "errors"), [([], []), ([1.0], [2.0]), ([1.0, 1.0], [0.5, 2.0])])
def test_too_little_to_compare_is_undefined_and_no_error(deviations: list[float], errors: list[float]) -> None:
    found = reliability(deviations, errors)
    assert math.isnan(found.spearman)
    assert found.count == len(deviations) == sum(row.count for row in found.bins)


def test_lists_of_unequal_length_are_refused() -> None:
    with pytest.raises(ValueError, match="equal length"):
        reliability([1.0], [1.0, 2.0])


def test_gradients_by_hand() -> None:
    x, y = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([3.0], requires_grad=True)
    terms = {"label": 3 * x[0], "same": x[0], "against": -2 * x[0], "across": 4 * x[1], "other": y.sum() ** 2}
    found = pulls(terms, {"x": [x], "y": [y], "both": [x, y]}, labels=["label"])
    assert [pull.norm for pull in found["x"].values()] == pytest.approx([3, 1, 2, 4, 0])
    assert [pull.cosine for pull in found["x"].values()][:4] == pytest.approx([1, 1, -1, 0])
    assert math.isnan(found["x"]["other"].cosine)
    assert found["y"]["other"].norm == pytest.approx(6)
    assert found["both"]["other"].norm == pytest.approx(6)


def test_shares_sum_to_one_or_are_undefined() -> None:
    of = shares({"a": 1.0, "b": 3.0, "c": 0.0})
    assert of == {"a": 0.25, "b": 0.75, "c": 0.0}
    assert math.fsum(shares({str(i): 0.1 * i for i in range(7)}).values()) == pytest.approx(1)
    assert all(math.isnan(share) for share in shares({"a": 0.0, "b": 0.0}).values())


def test_a_constant_pulls_nowhere() -> None:
    x = torch.ones(2, requires_grad=True)
    found = pulls({"label": x.sum(), "empty": torch.zeros(())}, {"x": [x]}, labels=["label"])
    assert found["x"]["empty"].norm == 0
    assert pulls({"taught": x.sum()}, {"x": [x]}, labels=[])["x"]["taught"].norm == pytest.approx(math.sqrt(2))


def diagnosis(kl: tuple[float, ...], *, alone: float | None = None, taught: float = 1.0) -> Diagnosis:
    def agreement(edges: tuple[float, ...]) -> dict[str, Agreement]:
        main = Agreement(9, edges, edges, 0.8, 0.1)
        nothing = Agreement(0, NO_EDGES, NO_EDGES, math.nan, math.nan)
        return {MAIN: main, VALUABLE: nothing, OTHER: nothing}

    sigma = np.linspace(0.1, 1, 50)
    return Diagnosis(
        run=Path("run/best.safetensors"),
        teacher="teacher.safetensors",
        against=None,
        out=Path("out"),
        images=1,
        objects=2,
        agreement={STUDENT: agreement(kl)} | ({} if alone is None else {ALONE: agreement((alone,) * 4)}),
        reliability={TEACHER: reliability(sigma, sigma), STUDENT: reliability(sigma, 3 * sigma[::-1])},
        gradients={STUDENT: {"edge logits": {"dfl": Pull(1, 1), "ld": Pull(taught, 0.5)}}},
        taught=("ld",),
        batches=1,
    )


def test_the_numbers_in_words() -> None:
    text = " ".join(in_words(diagnosis((0.2, 0.2, 0.2, 0.6), alone=0.9)))
    assert "0.300 nats from the teacher's" in text
    assert "0.900 nats and 0.80 at the objects: distillation brought it closer to its teacher" in text
    assert "most on the bottom edge" in text
    assert "Teacher: the spread of an edge distribution predicts its error well (rank correlation 1.00)" in text
    assert "Student: the spread of an edge distribution does not predict its error (rank correlation -1.00)" in text
    assert "overconfident" in text
    assert "distillation makes up 50 % (ld 50 %)" in text
    assert "valuable" not in text  # no location was in it


def test_words_say_what_is_wrong() -> None:
    assert "no difference" in " ".join(in_words(diagnosis((0.9,) * 4, alone=0.9)))
    assert "away from" in " ".join(in_words(diagnosis((0.9,) * 4, alone=0.3)))
    assert "All edges" in " ".join(in_words(diagnosis((0.9,) * 4)))
    assert "the teacher has almost no effect" in " ".join(in_words(diagnosis((0.9,) * 4, taught=0.01)))
    assert "labels have little effect" in " ".join(in_words(diagnosis((0.9,) * 4, taught=20)))


def test_classes_that_the_teacher_does_not_know_are_not_compared() -> None:
    """Of two objects the teacher knows the class of one: the locations of the other are in no region of its own."""
    settings = {"backbone": "test_resnet", "pretrained": False, "classes": ["a", "b"], "channels": 8, "depth": 1}
    student = Detector(DetectorSettings.model_validate(settings | {"norm_groups": 4, "levels": [3, 4]})).eval()
    run = Reopened(
        recipe=load_recipe("gfl_r18_1x"),
        folder=Path(),
        weights=Path(),
        students={STUDENT: student},
        teacher=LiveTeacher(student),
        objective=Objective(terms={}),
        device=torch.device("cpu"),
        notes=(),
    )
    objects = instances_of([[[4.0, 4.0, 60.0, 60.0], [64.0, 64.0, 120.0, 120.0]]], [[0, 1]], [(128, 128)])
    batch = blank_batch(torch.device("cpu"))
    batch = batch._replace(images=batch.images[..., :128, :128], sizes=objects.extents, instances=objects)
    said = student(student.normalise(batch.images, batch.sizes))
    everything, half = (run.scene(STUDENT, batch, said._replace(known=known)) for known in (None, (1,)))
    assert set(everything.assignment.labels[everything.assignment.positive].tolist()) == {0, 1}
    assert set(half.assignment.labels[half.assignment.positive].tolist()) == {1}
    assert 0 < (run.valuable(half) > 0).sum() < (run.valuable(everything) > 0).sum()
