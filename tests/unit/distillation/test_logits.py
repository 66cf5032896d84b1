"""What compares predictions: hand-computed values, classes that a teacher does not know, and CrossKD."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from locdistill.distillation.logits import ClassBinary, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.presets import supervised
from locdistill.distillation.regions import ScoreGap, TeacherConfidence, ValuableLocations
from locdistill.distillation.teacher import AverageTeacher, LiveTeacher, like
from locdistill.engine.module import TrainingModule
from locdistill.engine.plan import Plan
from locdistill.engine.settings import EngineSettings
from locdistill.errors import TeacherError
from locdistill.evaluation.agreement import agreement
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.normalisers import ImagePositiveCount, ImageWeightSum
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Counted, InsideBoxes, Positives
from locdistill.objective.scene import Scene
from locdistill.objective.term import Term
from locdistill.types import Batch, Dense, Instances
from tests.scenes import instances_of

GRID = Grid.build(((2, 2),), (8,))
BINS = Bins(4)


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def dense(scores: list[list[float]], distances: list[list[float]] | None = None) -> Dense:
    """Four locations; scores per location and class, distances of the four edges."""
    edges = BINS.two_hot(torch.tensor(distances or [[1.0, 1.0, 1.0, 1.0]] * 4)).clamp(min=1e-30).log()
    return Dense(torch.tensor([[[logit(p) for p in row] for row in scores]]), edges[None])


def scene(student: Dense, teacher: Dense, boxes: list[list[float]] | None = None) -> Scene:
    truth = instances_of([boxes or []], [[0] * len(boxes or [])], [(16, 16)], slots=1)
    return Objective(terms={"x": Term(of=ClassBinary(), on=Counted())}, bins=BINS).scene(
        student, teacher, grid=GRID, instances=truth
    )


ALIKE = [[0.1, 0.2]] * 4


def test_binary_class_distance_by_hand() -> None:
    value = ClassBinary()(scene(dense([[0.5, 0.2], *ALIKE[1:]]), dense([[0.9, 0.2], *ALIKE[1:]])))
    assert value[0, 0].item() == pytest.approx(0.4 * math.log(2), rel=1e-5)  # BCE of 0.5 is log 2, whatever the target
    torch.testing.assert_close(value[0, 1:], torch.zeros(3), atol=1e-6, rtol=0)
    squared = ClassBinary(beta=2.0)(scene(dense([[0.5, 0.2], *ALIKE[1:]]), dense([[0.9, 0.2], *ALIKE[1:]])))
    assert squared[0, 0].item() == pytest.approx(0.16 * math.log(2), rel=1e-5)


def test_the_class_distance_sees_the_product_with_a_quality() -> None:
    student, teacher = dense(ALIKE), dense(ALIKE)
    doubtful = teacher._replace(quality_logits=torch.zeros(1, 4), quality_in_score=True)
    value = ClassBinary()(scene(student, doubtful))  # scores 0.05 and 0.1
    want = sum((p / 2) * -((p / 2) * math.log(p) + (1 - p / 2) * math.log(1 - p)) for p in (0.1, 0.2))
    assert value[0, 0].item() == pytest.approx(want, rel=1e-4)


def test_boxes_and_their_weight_by_hand() -> None:
    student = dense([[0.5, 0.2], *ALIKE[1:]])
    teacher = dense([[0.9, 0.3], *ALIKE[1:]], [[1.0, 1.0, 3.0, 1.0], *[[1.0] * 4] * 3])
    view = scene(student, teacher)
    gap = ScoreGap()(view)
    torch.testing.assert_close(gap, torch.tensor([[0.4, 0.0, 0.0, 0.0]]), atol=1e-6, rtol=0)
    # 2 x 2 inside 4 x 2: IoU a half, and the enclosing box is the larger one
    torch.testing.assert_close(TeacherOverlap()(view), torch.tensor([[0.5, 0.0, 0.0, 0.0]]), atol=1e-5, rtol=0)
    torch.testing.assert_close(TeacherConfidence()(view), torch.tensor([[0.9, 0.2, 0.2, 0.2]]), atol=1e-6, rtol=0)


def test_the_sum_over_bins_is_the_divergence_in_nats() -> None:
    student, teacher = dense(ALIKE), dense(ALIKE)
    q, p = torch.tensor([0.6, 0.1, 0.1, 0.1, 0.1]), torch.full((5,), 0.2)
    student = student._replace(edge_logits=p.log().expand(1, 4, 4, 5))
    teacher = teacher._replace(edge_logits=q.log().expand(1, 4, 4, 5))
    want = float((q * (q / p).log()).sum())
    view = scene(student, teacher)
    assert EdgeKL(temperature=1.0, summed=True)(view)[0, 0].item() == pytest.approx(want, rel=1e-5)
    assert EdgeKL(temperature=1.0)(view)[0, 0].item() == pytest.approx(want / 5, rel=1e-5)


@pytest.mark.parametrize("part", [ClassBinary(), ClassKL(), ScoreGap(), TeacherConfidence()])
def test_nothing_is_learned_of_classes_that_the_teacher_does_not_know(part) -> None:
    student, teacher = dense([[0.3, 0.6, 0.1]] * 4), dense([[0.4, 0.5, 0.2]] * 4)
    partial = teacher._replace(known=(0, 2))
    first = part(scene(student, partial))
    changed = teacher.cls_logits.clone()
    changed[..., 1] = 7.0
    torch.testing.assert_close(part(scene(student, partial._replace(cls_logits=changed))), first)
    only = student._replace(cls_logits=student.cls_logits[..., [0, 2]])
    torch.testing.assert_close(first, part(scene(only, teacher._replace(cls_logits=teacher.cls_logits[..., [0, 2]]))))
    if part in (ClassBinary(), ClassKL()):
        leaf = student.cls_logits.clone().requires_grad_()
        part(scene(student._replace(cls_logits=leaf), partial)).sum().backward()
        assert leaf.grad is not None
        assert (leaf.grad[..., 1] == 0).all()
        assert (leaf.grad[..., 0] != 0).all()


@pytest.mark.parametrize("region", [Positives(), ValuableLocations(), InsideBoxes(), InsideBoxes(positives=True)])
def test_nothing_is_learned_at_objects_that_the_teacher_does_not_know(region) -> None:
    """The teacher's boxes are of something else there; where it knows both objects, both count."""
    grid = Grid.build(((16, 16),), (8,))
    random = torch.Generator().manual_seed(0)
    said = [
        Dense(torch.randn(1, 256, 2, generator=random), torch.randn(1, 256, 4, 5, generator=random)) for _ in range(2)
    ]
    boxes = [[2.0, 2.0, 62.0, 58.0], [70.0, 66.0, 120.0, 122.0]]
    term = Term(of=EdgeKL(), on=region, norm=ImagePositiveCount(at_least=1.0))
    objective = Objective(terms={"ld": term}, bins=BINS)

    def learned(known: tuple[int, ...] | None, objects: list[int]) -> dict[str, torch.Tensor]:
        truth = instances_of([[boxes[i] for i in objects]], [objects], [(128, 128)])
        view = objective.scene(said[0], said[1]._replace(known=known), grid=grid, instances=truth)
        return {"ld": term(view)} | {name: value[0] for name, value in agreement(view).items()}

    partly, alone, both = learned((1,), [0, 1]), learned(None, [1]), learned(None, [0, 1])
    for name, value in alone.items():
        torch.testing.assert_close(partly[name], value)
        assert not torch.allclose(partly[name], both[name])


def test_the_teachers_numbers_get_no_gradient() -> None:
    its = dense([[0.9, 0.3], *ALIKE[1:]], [[1.0, 1.0, 3.0, 1.0], *[[1.0] * 4] * 3])
    teacher = Dense(its.cls_logits.requires_grad_(), its.edge_logits.requires_grad_())
    student = dense(ALIKE)
    leaves = Dense(student.cls_logits.requires_grad_(), student.edge_logits.requires_grad_())
    view = scene(leaves, teacher)
    for part in (ClassBinary(), ClassKL(), EdgeKL(), TeacherOverlap()):
        (part(view) * ScoreGap()(view)).sum().backward()
    assert leaves.edge_logits.grad is not None
    assert teacher.cls_logits.grad is None
    assert teacher.edge_logits.grad is None


def test_normalisers_of_single_images() -> None:
    big = Grid.build(((8, 8),), (8,))
    locations = len(big.points)
    said = Dense(torch.zeros(2, locations, 1), torch.zeros(2, locations, 4, 5))
    truth = instances_of([[[8.0, 8.0, 56.0, 56.0]], []], [[0], []], [(64, 64)] * 2)
    view = Objective(terms={"x": Term(of=ClassBinary(), on=Counted())}, bins=BINS).scene(
        said, said, grid=big, instances=truth
    )
    positives = float(view.assignment.positive[0].sum())
    assert positives > 0
    weights = torch.rand(2, locations)
    count = ImagePositiveCount(at_least=3.0)(weights, view)
    assert count.flatten().tolist() == [2 * max(positives, 3.0), 6.0]
    torch.testing.assert_close(ImageWeightSum(epsilon=0.0)(weights, view), 2 * weights.sum(-1, keepdim=True))


SMALL = DetectorSettings(
    backbone="test_resnet",
    pretrained=False,
    classes=("a", "b"),
    channels=16,
    depth=2,
    norm_groups=4,
    levels=(3, 4, 5),
    reg_max=4,
)
CROSS = {
    "cls": Term(of=ClassBinary(head="teacher"), on=TeacherConfidence(), norm=ImageWeightSum()),
    "edges": Term(
        of=EdgeKL(head="teacher", temperature=1.0, summed=True), on=TeacherConfidence(), norm=ImageWeightSum()
    ),
    "boxes": Term(of=TeacherOverlap(head="teacher"), on=TeacherConfidence(), norm=ImageWeightSum()),
}


def detector(seed: int, **changes: object) -> Detector:
    torch.manual_seed(seed)
    built = Detector(SMALL.model_copy(update=changes))
    with torch.no_grad():  # a new head says nearly the same of everything
        for parameter in built.head.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return built


@pytest.fixture
def batch() -> Batch:
    images = torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([[64, 96], [50, 80]])
    nothing = torch.zeros(2, 0)
    truth = Instances(torch.zeros(2, 0, 4), nothing.long(), nothing.bool(), nothing.bool(), sizes)
    return Batch(images=images, sizes=sizes, original_sizes=sizes, image_ids=torch.tensor([1, 2]), instances=truth)


def crossed(student: Detector, teacher: LiveTeacher, batch: Batch) -> tuple[Dense, Dense, Dense]:
    mine = student(student.normalise(batch.images, batch.sizes), towers=True)
    its = teacher(batch, towers=True)
    return mine, its, teacher.cross(mine, its)


def losses(student: Detector, teacher: LiveTeacher, batch: Batch) -> dict[str, torch.Tensor]:
    mine, its, cross = crossed(student, teacher, batch)
    objective = Objective(terms=CROSS, bins=student.bins)
    grid = student.grid_for((64, 96))
    return objective.losses(objective.scene(mine, its, grid=grid, instances=batch.instances, cross=cross))


@pytest.mark.parametrize("kind", ["gfl", "gflv2", "atss", "fcos", "retinanet"])
@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_student_that_is_its_teacher_says_the_same_through_its_head(kind: str, depth: int, batch: Batch) -> None:
    model = detector(0, model=kind, depth=depth).eval()
    _, its, cross = crossed(model, AverageTeacher(model, 0.9), batch)
    torch.testing.assert_close(cross.cls_logits, its.cls_logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(cross.edge_logits, its.edge_logits, atol=1e-4, rtol=1e-4)
    plain = model(model.normalise(batch.images, batch.sizes))
    assert torch.equal(plain.cls_logits, its.cls_logits)  # handing out maps changes nothing
    assert plain.towers == ()
    for value in losses(model, AverageTeacher(model, 0.9), batch).values():
        assert abs(float(value.detach())) < 1e-5


def test_what_the_teachers_head_teaches_reaches_the_student_below_it(batch: Batch) -> None:
    student, teacher = detector(1), LiveTeacher(detector(2))
    values = losses(student, teacher, batch)
    assert all(float(value) > 1e-3 for value in values.values())
    sum(values.values()).backward()
    grads = {name: p.grad for name, p in student.named_parameters()}
    assert grads["head.cls_tower.0.conv.weight"].abs().sum() > 0
    assert grads["head.reg_tower.0.conv.weight"].abs().sum() > 0
    assert grads["backbone.conv1.0.weight"].abs().sum() > 0
    for own in ("head.cls_tower.1.conv.weight", "head.cls.weight", "head.reg.weight"):
        assert grads[own] is None  # the student's own predictions are left to the ground truth
    assert all(p.grad is None for p in teacher.detector.parameters())


def test_an_image_does_not_depend_on_its_batch_through_the_teachers_head(batch: Batch) -> None:
    student, teacher = detector(1).eval(), LiveTeacher(detector(2))
    together = crossed(student, teacher, batch)[2]
    alone = [
        crossed(student, teacher, batch._replace(images=batch.images[i : i + 1], sizes=batch.sizes[i : i + 1]))[2]
        for i in range(2)
    ]
    torch.testing.assert_close(torch.cat([d.cls_logits for d in alone]), together.cls_logits, atol=1e-4, rtol=1e-4)


def test_maps_take_on_mean_and_spread_of_others() -> None:
    x, model = torch.randn(2, 3, 4, 5) * 7 + 2, (torch.randn(2, 3, 4, 5) * 0.5 - 1).requires_grad_()
    made = like(x, model)
    torch.testing.assert_close(made.mean((2, 3)), model.mean((2, 3)))
    torch.testing.assert_close(made.std((2, 3)), model.std((2, 3)), rtol=1e-3, atol=1e-3)
    assert not made.requires_grad
    single = like(torch.randn(1, 3, 1, 1).requires_grad_(), torch.ones(1, 3, 1, 1))
    torch.testing.assert_close(single, torch.ones(1, 3, 1, 1))
    single.sum().backward()


def test_unequal_widths_are_bridged_before_the_teachers_head(batch: Batch) -> None:
    """One adapter for each map, shared by all terms; trained with the student, and no part of it."""
    student, teacher = detector(1), LiveTeacher(detector(2, channels=32))
    objective = Objective(terms=supervised() | {f"cross_{n}": t for n, t in CROSS.items()}, bins=student.bins)
    module = TrainingModule(student, objective, teacher, EngineSettings(accelerator="cpu"))
    assert module.learned is not None
    assert [tuple(m.weight.shape) for m in module.learned.cross] == [(32, 16, 1, 1)] * 6  # two towers, three levels
    own = {name for name in module.state_dict() if name.startswith("learned.")}
    assert len(own) == 12
    assert not any(name.startswith("learned") for name in student.state_dict())
    module.plan = Plan(batches_per_epoch=1, accumulate=1, batch_per_device=2, world=1, total_steps=1)
    learning = {id(p) for group in module.optimizer().param_groups for p in group["params"]}
    assert {id(p) for p in module.learned.parameters()} <= learning
    module(batch).total.backward()
    # Those of the coarsest level see one cell each, which has the teacher's mean whatever it is.
    assert all(float(m.weight.grad.abs().sum()) > 0 for m in module.learned.cross[:4])
    assert [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None] == []  # DDP waits
    assert all(p.grad is None for p in teacher.detector.parameters())
    same = TrainingModule(student, objective, LiveTeacher(detector(2)), EngineSettings(accelerator="cpu"))
    assert same.learned is not None
    assert same.learned.cross is None


def test_a_term_through_the_teachers_head_says_what_it_misses(batch: Batch) -> None:
    model = detector(0)
    said = model(model.normalise(batch.images, batch.sizes))
    objective = Objective(terms=CROSS, bins=model.bins)
    assert objective.needs_cross
    assert not Objective(terms={n: replace(t, of=EdgeKL()) for n, t in CROSS.items()}).needs_cross
    with pytest.raises(TeacherError, match="cls, edges, boxes need the predictions of the teacher's head"):
        objective(said, said, grid=model.grid_for((64, 96)), instances=batch.instances)
