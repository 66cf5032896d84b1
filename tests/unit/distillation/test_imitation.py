"""Feature imitation: its divergence, its regions and its normaliser, on cases small enough to work out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import nms

from locdistill.assign.atss import ATSS
from locdistill.distillation.imitation import (
    Everywhere,
    FeatureL2,
    FineGrained,
    GatedLevelMean,
    GeneralInstances,
    OutsideBoxes,
    best_apart,
)
from locdistill.errors import TeacherError
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.objective.normalisers import ImageLevelMean, LevelMean
from locdistill.objective.objective import Objective
from locdistill.objective.regions import InsideBoxes, Positives
from locdistill.objective.scene import Scene
from locdistill.objective.supervised import QualityFocal
from locdistill.objective.term import Need, Term
from locdistill.recipe.terms import TermSettings
from locdistill.types import Dense, Instances
from tests.processes import printed_by
from tests.scenes import instances_of

SHAPES = ((8, 10), (4, 5), (2, 3))
GRID = Grid.build(SHAPES, (8, 16, 32), anchor_scale=4.0)
INSIDE = InsideBoxes(positives=True)
REGIONS = {
    "everywhere": Everywhere(),
    "map": Everywhere(padding=True),
    "inside": INSIDE,
    "outside": OutsideBoxes(),
    "main": Positives(),
    "fine": FineGrained(),
    "gi": GeneralInstances(top=3),
    "gi_batch": GeneralInstances(top=3, per="batch"),
    "gi_mixed": GeneralInstances(top=3, score="mixed"),
    "gi_logit": GeneralInstances(top=3, score="logit"),
}
OF_IMAGES = {name: region for name, region in REGIONS.items() if name != "gi_batch"}
seeds = st.integers(0, 2**31 - 1)


def logits_of_edges(distances: Tensor) -> Tensor:
    """Edge logits whose expected distances are the given ones, in strides."""
    return Bins().two_hot(distances).clamp(min=1e-12).log()


def scene_of(student: Dense, teacher: Dense, grid: Grid, instances: Instances) -> Scene:
    return Scene.build(student, teacher, grid=grid, instances=instances, assigner=ATSS(), bins=Bins())


def random_dense(rng: torch.Generator, images: int, *, classes: int = 3, grid: Grid = GRID) -> Dense:
    locations = len(grid.points)
    return Dense(
        torch.randn(images, locations, classes, generator=rng),
        torch.randn(images, locations, 4, 17, generator=rng),
        features=tuple(torch.randn(images, 4, h, w, generator=rng) for h, w in grid.shapes),
    )


def random_batch(seed: int, images: int) -> tuple[Dense, Dense, Instances]:
    """Random predictions and objects; some images have none, and not all fill the grid."""
    rng = torch.Generator().manual_seed(seed)
    boxes, extents = [], []
    for _ in range(images):
        count = int(torch.randint(0, 4, (1,), generator=rng))
        corner = torch.rand(count, 2, generator=rng) * 40
        boxes.append(torch.cat((corner, corner + 8 + torch.rand(count, 2, generator=rng) * 32), -1).tolist())
        extents.append((64 - 32 * int(torch.randint(0, 2, (1,), generator=rng)), 80))
    instances = instances_of(boxes, [[0] * len(b) for b in boxes], extents, slots=1)
    return random_dense(rng, images), random_dense(rng, images), instances


def part(item: tuple, start: int, stop: int):
    """Some images of predictions or ground truth."""
    pieces = [
        field[start:stop] if isinstance(field, Tensor)
        else tuple(m[start:stop] for m in field) if isinstance(field, tuple)
        else field
        for field in item
    ]  # fmt: skip
    return type(item)(*pieces)


def test_feature_l2_is_the_mean_over_channels_in_the_grid_s_order():
    grid = Grid.build(((1, 2), (1, 1)), (8, 16))
    student = (torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]), torch.tensor([[[[5.0]], [[6.0]]]]))
    teacher = (torch.tensor([[[[1.0, 5.0]], [[3.0, 3.0]]]]), torch.tensor([[[[7.0]], [[6.0]]]]))
    empty = Dense(torch.zeros(1, 3, 2), torch.zeros(1, 3, 4, 17))
    scene = scene_of(
        empty._replace(features=student), empty._replace(features=teacher), grid, instances_of([[]], [[]], [(16, 16)])
    )
    assert FeatureL2()(scene).tolist() == [[0.0, (9 + 1) / 2, 4 / 2]]


def test_locations_of_a_cell_share_its_feature():
    grid = Grid.build(((1, 2),), (8,), octaves=2, ratios=(1.0,))
    dense = Dense(torch.zeros(1, 4, 2), torch.zeros(1, 4, 4, 17))
    student = dense._replace(features=(torch.tensor([[[[1.0, 2.0]]]]),))
    teacher = dense._replace(features=(torch.tensor([[[[0.0, 5.0]]]]),))
    scene = scene_of(student, teacher, grid, instances_of([[]], [[]], [(8, 16)]))
    assert FeatureL2()(scene).tolist() == [[1.0, 1.0, 9.0, 9.0]]


def test_features_of_half_precision_are_compared_in_float32():
    student, teacher, instances = random_batch(1, 1)
    halves = [d._replace(features=tuple(m.bfloat16() for m in d.features)) for d in (student, teacher)]
    wholes = [d._replace(features=tuple(m.float() for m in d.features)) for d in halves]
    got, want = (FeatureL2()(scene_of(*pair, GRID, instances)) for pair in (halves, wholes))
    assert got.dtype == torch.float32
    assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ([(4, 8, 10)], [(2, 8, 10)], ("have [4] channels", "teacher's [2];", "detector.channels", "Objective.learned")),
        ([(4, 8, 10)], [], ("teacher", "features=True")),
        ([], [(4, 8, 10)], ("student", "features=True")),
    ],
    ids=["width", "no teacher", "no student"],
)
def test_pyramids_that_cannot_be_compared_are_refused(student, teacher, words):
    grid = Grid.build(((8, 10),), (8,))
    empty = Dense(torch.zeros(1, 80, 2), torch.zeros(1, 80, 4, 17))
    dense = [empty._replace(features=tuple(torch.zeros(1, *m) for m in maps)) for maps in (student, teacher)]
    with pytest.raises(TeacherError) as caught:
        FeatureL2()(scene_of(*dense, grid, instances_of([[]], [[]], [(64, 80)])))
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_pyramids_are_compared_when_the_term_is_used():
    student, teacher, instances = random_batch(1, 1)
    narrow = teacher._replace(features=tuple(m[:, :2] for m in teacher.features))
    term = {"im": Term(of=FeatureL2(), on=Everywhere(), norm=LevelMean())}
    with pytest.raises(TeacherError, match=r"\[4, 4, 4\] channels, the teacher's \[2, 2, 2\]"):
        Objective(terms=term)(student, narrow, grid=GRID, instances=instances)


def _truth_scene() -> Scene:
    """One object on a 4 x 4 map of stride 8; the last column lies in the padding; a slot is empty."""
    grid = Grid.build(((4, 4),), (8,), anchor_scale=2.0)
    dense = Dense(torch.zeros(1, 16, 2), torch.zeros(1, 16, 4, 17))
    instances = instances_of([[[0.0, 7.0, 17.0, 25.0]]], [[0]], [(32, 24)], slots=2)
    return scene_of(dense, dense, grid, instances)


def _cells(weights: Tensor) -> list[list[float]]:
    return weights.view(4, 4).tolist()


def test_regions_of_the_ground_truth():
    """Centres at multiples of 8: those at x 8 and 16, y 8, 16 and 24 lie inside; x = 0 lies on the edge."""
    scene = _truth_scene()
    assert _cells(Everywhere()(scene)) == [[1, 1, 1, 0]] * 4
    assert _cells(Everywhere(padding=True)(scene)) == [[1] * 4] * 4
    assert _cells(INSIDE(scene)) == [[0] * 4] + [[0, 1, 1, 0]] * 3
    assert _cells(OutsideBoxes()(scene)) == [[1, 1, 1, 0]] + [[1, 0, 0, 0]] * 3
    assert _cells(OutsideBoxes(padding=True)(scene)) == [[1] * 4] + [[1, 0, 0, 1]] * 3


def test_inside_boxes_with_positives_is_the_complement_of_outside():
    student, teacher, instances = random_batch(5, 6)
    scene = scene_of(student, teacher, GRID, instances)
    assert torch.equal(INSIDE(scene) + OutsideBoxes()(scene), Everywhere()(scene))
    assert float((INSIDE(scene) - InsideBoxes()(scene)).sum()) == float((INSIDE(scene) * Positives()(scene)).sum()) > 0


def test_fine_grained_region():
    """The 16 x 16 anchor at (8, 16) has IoU 256 / 306 with the 17 x 18 object, the one at (16, 16) 144 / 418."""
    got = _cells(FineGrained()(_truth_scene()))
    # Rows y = 8 and 24 overlap in height by 9: (8, 8) has 16 * 9 = 144 / 418 = 0.344 < 0.418; (0, 16) 8 * 16 / 434.
    assert got == [[0] * 4, [0] * 4, [0, 1, 0, 0], [0] * 4]
    # 0.35 of 256 / 306 is 0.293: (8, 8), (8, 24) at 0.344, (0, 16) at 0.295, (16, 16) at 144 / 418.
    assert _cells(FineGrained(part=0.35)(_truth_scene())) == [[0] * 4, [0, 1, 0, 0], [1, 1, 1, 0], [0, 1, 0, 0]]


def _row_scene(student: list[float], teacher: list[float], *, reach: float, its: float, images: int = 1) -> Scene:
    """Five locations in a row, one class: probabilities and half widths (in strides) of both."""
    grid = Grid.build(((1, 5),), (8,))

    def dense(probabilities: list[float], half: float) -> Dense:
        cls = torch.tensor(probabilities).logit()[None, :, None].expand(images, -1, -1)
        return Dense(cls, logits_of_edges(torch.full((images, 5, 4), half)))

    return scene_of(
        dense(student, reach), dense(teacher, its), grid, instances_of([[]] * images, [[]] * images, [(8, 40)] * images)
    )


SCORES = [0.1, 0.1, 0.1, 0.1, 0.1], [0.2, 0.9, 0.8, 0.3, 0.7]


def test_general_instances_are_the_best_that_do_not_overlap():
    """Half width h at distance 1: IoU (2h - 1) / (2h + 1); 0.2 <= 0.3 for 0.75, 0.6 for 2."""
    narrow = _row_scene(*SCORES, reach=2.0, its=0.75)
    assert GeneralInstances(top=3)(narrow).tolist() == [[0, 1, 1, 0, 1]]
    assert GeneralInstances(top=10)(narrow).tolist() == [[1] * 5]
    # At distance 2 IoU is 1/3, at distance 3 it is 1/7.
    wide = _row_scene(*SCORES, reach=0.75, its=2.0)
    assert GeneralInstances()(wide).tolist() == [[0, 1, 0, 0, 1]]
    assert GeneralInstances(nms_iou=0.7)(wide).tolist() == [[1] * 5]


def test_general_instances_take_the_box_of_whoever_scores_higher():
    student_higher = _row_scene(SCORES[1], SCORES[0], reach=2.0, its=0.75)
    assert GeneralInstances()(student_higher).tolist() == [[0, 1, 0, 0, 1]]


def test_locations_in_the_padding_are_no_general_instances_of_an_image():
    scene = _row_scene(*SCORES, reach=2.0, its=0.75)
    scene.assignment.inside[:, 2:] = False
    assert GeneralInstances()(scene).tolist() == [[1, 1, 0, 0, 0]]
    # Published: they take part, with boxes around the corner, so that the best of them leaves no other.
    assert GeneralInstances(per="batch")(scene).tolist() == [[0, 1, 1, 0, 0]]


def test_published_general_instances_share_a_level_among_images():
    scene = _row_scene(*SCORES, reach=2.0, its=0.75, images=2)
    assert GeneralInstances(top=3)(scene).tolist() == [[0, 1, 1, 0, 1]] * 2
    # Equal boxes of the second image are suppressed by those of the first.
    assert GeneralInstances(top=10, per="batch")(scene).tolist() == [[1] * 5, [0] * 5]


def test_scores_of_gfl_v2_are_probabilities_unless_the_published_ones_are_asked_for():
    scene = _row_scene([0.5] * 5, [0.5, 0.9, 0.01, 0.6, 0.5], reach=0.5, its=0.5)
    student, teacher = scene.student, scene.teacher
    assert teacher is not None
    student = student._replace(quality_logits=torch.full((1, 5), 40.0), quality_in_score=True)
    teacher = teacher._replace(quality_logits=torch.tensor([[40.0, -40, 40, 40, 40]]), quality_in_score=True)
    scene = scene_of(student, teacher, scene.grid, scene.instances)

    def best(score: str) -> int:
        return int(GeneralInstances(top=1, score=score)(scene)[0].argmax())

    # |p_t - p_s| with p_t(1) = 0.9 * 0: the second and third are 0.5 and 0.49 away.
    assert best("probability") == 1
    assert best("mixed") == 2  # logit(0.01) - 0.5 = -5.1
    assert best("logit") == 2  # logit(0.01) - 0


def test_a_background_channel_of_one_is_not_compared():
    scene = _row_scene(*SCORES, reach=2.0, its=0.75)
    assert scene.teacher is not None
    more = torch.cat((scene.teacher.cls_logits, torch.full((1, 5, 1), 30.0)), -1)
    teacher = scene.teacher._replace(cls_logits=more)
    got = GeneralInstances(top=3)(scene_of(scene.student, teacher, scene.grid, scene.instances))
    assert got.tolist() == [[0, 1, 1, 0, 1]]


@given(seeds, st.integers(1, 40), st.integers(1, 8), st.sampled_from([0.0, 0.3, 0.6]))
def test_best_apart_is_the_beginning_of_nms(seed, boxes, count, iou):
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(boxes, 2, generator=rng) * 20
    rows = torch.cat((corner, corner + torch.rand(boxes, 2, generator=rng) * 10), -1)
    scores = torch.randperm(boxes, generator=rng).float()
    got = best_apart(rows, scores, count=count, iou=iou).nonzero().flatten().tolist()
    assert got == sorted(nms(rows, scores, iou)[:count].tolist())


def test_best_apart_takes_boxes_of_no_area_and_leaves_what_takes_no_part():
    boxes = torch.tensor([[3.0, 3, 3, 3], [3.0, 3, 3, 3], [0.0, 0, 9, 9]])
    assert best_apart(boxes, torch.tensor([2.0, 1.0, -torch.inf]), count=5, iou=0.3).tolist() == [True, True, False]


def test_gated_level_mean_counts_levels_with_positives_only():
    student, teacher, _ = random_batch(2, 2)
    instances = instances_of([[], [[8.5, 8.5, 40.5, 40.5]]], [[], [0]], [(64, 80)] * 2)
    scene = scene_of(student, teacher, GRID, instances)
    weights = Everywhere()(scene)
    gate = [bool(scene.assignment.positive[:, GRID.levels == level].any()) for level in range(3)]
    assert gate == [True, False, False]
    denominators = GatedLevelMean()(weights, scene)
    assert [float(denominators[0, GRID.levels == level][0]) for level in range(3)] == [160.0, torch.inf, torch.inf]
    term = Term(of=FeatureL2(), on=Everywhere(), norm=GatedLevelMean(), weight=2.0)
    want = 2 * (student.features[0] - teacher.features[0]).square().mean()
    torch.testing.assert_close(term(scene), want)


def _terms(norm: object, regions: dict[str, object] = REGIONS) -> dict[str, Term]:
    return {name: Term(of=FeatureL2(), on=region, norm=norm, weight=2.0) for name, region in regions.items()}


@settings(max_examples=15)
@given(seeds)
def test_general_instances_of_an_image_do_not_depend_on_the_others(seed):
    student, teacher, instances = random_batch(seed, 4)
    region = GeneralInstances(top=3)
    whole = region(scene_of(student, teacher, GRID, instances))
    for i in range(4):
        alone = scene_of(part(student, i, i + 1), part(teacher, i, i + 1), GRID, part(instances, i, i + 1))
        assert torch.equal(region(alone)[0], whole[i])


@settings(max_examples=15)
@given(seeds)
def test_imitation_does_not_depend_on_how_the_batch_is_split(seed):
    student, teacher, instances = random_batch(seed, 4)
    objective = Objective(terms=_terms(ImageLevelMean(), OF_IMAGES))
    whole = objective(student, teacher, grid=GRID, instances=instances)
    parts = [
        objective(*(part(d, i, i + 2) for d in (student, teacher)), grid=GRID, instances=part(instances, i, i + 2))
        for i in (0, 2)
    ]
    for name, value in whole.items():
        torch.testing.assert_close((parts[0][name] + parts[1][name]) / 2, value, rtol=1e-5, atol=1e-7)


def test_published_general_instances_do_depend_on_the_split():
    """The defect that ours mends, so that the tests above are known to be able to fail."""
    student, teacher, instances = random_batch(3, 4)
    region = GeneralInstances(top=3, per="batch")
    whole = region(scene_of(student, teacher, GRID, instances))
    alone = scene_of(part(student, 0, 1), part(teacher, 0, 1), GRID, part(instances, 0, 1))
    assert not torch.equal(region(alone)[0], whole[0])


@settings(max_examples=15)
@given(seeds)
@pytest.mark.parametrize("norm", [LevelMean(), ImageLevelMean(), GatedLevelMean()], ids=lambda n: type(n).__name__)
def test_equal_features_cost_nothing_and_the_teacher_gets_no_gradient(norm, seed):
    student, teacher, instances = random_batch(seed, 2)
    terms = _terms(norm)
    own = Objective(terms=terms)(student, teacher._replace(features=student.features), grid=GRID, instances=instances)
    assert all(float(value) == 0 for value in own.values())
    leaves = [
        Dense(
            *(f.clone().requires_grad_() for f in d[:2]), features=tuple(f.clone().requires_grad_() for f in d.features)
        )
        for d in (student, teacher)
    ]
    sum(Objective(terms=terms)(*leaves, grid=GRID, instances=instances).values()).backward()
    assert all(f.grad is None for f in (leaves[1].cls_logits, leaves[1].edge_logits, *leaves[1].features))
    assert leaves[0].cls_logits.grad is None
    assert leaves[0].edge_logits.grad is None
    assert all(torch.isfinite(f.grad).all() for f in leaves[0].features)


@pytest.mark.parametrize("slots", [0, 2])
def test_batches_without_objects_train(slots):
    student, teacher, _ = random_batch(4, 2)
    student = student._replace(features=tuple(f.requires_grad_() for f in student.features))
    instances = instances_of([[], []], [[], []], [(64, 80)] * 2, slots=slots)
    for norm in (LevelMean(), ImageLevelMean(), GatedLevelMean()):
        losses = Objective(terms=_terms(norm))(student, teacher, grid=GRID, instances=instances)
        grads = torch.autograd.grad(sum(losses.values()), student.features)
        values = {name: float(value.detach()) for name, value in losses.items()}
        assert all(math.isfinite(value) for value in values.values())
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert all(values[name] == 0 for name in ("inside", "main", "fine"))
        assert (values["gi"] > 0) == (not isinstance(norm, GatedLevelMean))


def test_a_term_of_a_recipe():
    settings_ = TermSettings(
        of="feature_l2", on={"general_instances": {"per": "batch"}}, norm="gated_level_mean", weight=2
    )
    term = settings_.build()
    assert term == Term(of=FeatureL2(), on=GeneralInstances(per="batch"), norm=GatedLevelMean(), weight=2.0)
    assert TermSettings.of_term(term) == settings_
    assert term.needs_teacher
    assert Need.FEATURES in term.needs
    assert Need.FEATURES not in Term(of=QualityFocal(), on=GeneralInstances()).needs
    for name in ("everywhere", "outside_boxes", "fine_grained"):
        assert TermSettings(of="feature_l2", on=name, norm="level_mean").build().needs >= {Need.FEATURES}


COMPILE = """
import torch
from locdistill.objective.normalisers import LevelMean
from locdistill.objective.objective import Objective
from tests.unit.distillation.test_imitation import GRID, _terms, random_batch

student, teacher, instances = random_batch(5, 2)
objective = Objective(terms=_terms(LevelMean()))
want = objective(student, teacher, grid=GRID, instances=instances)
got = torch.compile(objective.__call__, fullgraph=True, backend="eager")(
    student, teacher, grid=GRID, instances=instances
)
for name, value in want.items():
    torch.testing.assert_close(got[name], value)
print("one graph")
"""


def test_imitation_compiles_into_one_graph():
    """No value of the data decides a branch. In its own process, where no type checker wraps the functions."""
    assert "one graph" in printed_by(COMPILE)
