"""What must hold of every method by name, for every batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from locdistill.distillation.methods import METHODS
from locdistill.distillation.mgd import Generator, MaskedGeneration
from locdistill.distillation.presets import supervised
from locdistill.distillation.teacher import LiveTeacher
from locdistill.models.detector import Detector
from locdistill.models.settings import DetectorSettings
from locdistill.objective.learned import Learned, TrainingProgress
from locdistill.objective.objective import Objective
from locdistill.objective.term import Term
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Dense, Instances
from tests.scenes import ASSIGNER_OF, grid_of_kind, instances_of

SHAPES = ((8, 10), (4, 5), (2, 3))
TINY = ((2, 2), (1, 1))
WIDTH = 4
seeds = st.integers(0, 2**31 - 1)
methods = pytest.mark.parametrize("method", METHODS)
models = pytest.mark.parametrize("model", ["gfl", "retinanet"])


@cache
def teacher_of(model: str) -> LiveTeacher:
    """A detector whose head tells its features apart, for methods that send the student's through it."""
    detector = Detector(
        DetectorSettings(
            model=model,
            backbone="test_resnet",
            pretrained=False,
            classes=("a", "b", "c"),
            channels=WIDTH,
            norm_groups=2,
            depth=2,
            levels=(3, 4, 5),
        )
    )
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in detector.head.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator) / 3)
    return LiveTeacher(detector)


def dense_of(rng: torch.Generator, images: int, model: str, width: int, inside: int) -> Dense:
    """Random predictions and maps, those of the pyramid so wide and those inside the head."""
    locations = len(grid_of_kind(model, SHAPES).points)
    return Dense(
        torch.randn(images, locations, 3, generator=rng),
        torch.randn(images, locations, 4, 17, generator=rng),
        features=tuple(torch.randn(images, width, h, w, generator=rng) for h, w in SHAPES),
        towers=tuple(torch.randn(images, inside, h, w, generator=rng) for h, w in SHAPES for _ in range(2)),
    )


def batch(seed: int, images: int, model: str, *, width: int = WIDTH) -> tuple[Dense, Dense, Instances]:
    """Random predictions and objects; some images have none, and not all fill the grid.

    What the teacher says is what its head makes of its own towers. With another width its pyramid and the student's
    head are so wide.
    """
    rng = torch.Generator().manual_seed(seed)
    boxes, extents = [], []
    for _ in range(images):
        count = int(torch.randint(0, 4, (1,), generator=rng))
        corner = torch.rand(count, 2, generator=rng) * 40
        boxes.append(torch.cat((corner, corner + 8 + torch.rand(count, 2, generator=rng) * 32), -1).tolist())
        extents.append((64 - 32 * int(torch.randint(0, 2, (1,), generator=rng)), 80))
    instances = instances_of(boxes, [[0] * len(b) for b in boxes], extents, slots=1)
    student, teacher = dense_of(rng, images, model, WIDTH, width), dense_of(rng, images, model, width, WIDTH)
    return student, consistent(teacher, model), instances


@torch.no_grad()
def consistent(teacher: Dense, model: str) -> Dense:
    said = teacher_of(model).detector.head.finish([tower.clone() for tower in teacher.towers])
    return teacher._replace(cls_logits=said.cls_logits, edge_logits=said.edge_logits)


def objective_of(method: str, model: str) -> Objective:
    return Objective(terms=METHODS[method](model), assigner=ASSIGNERS[ASSIGNER_OF[model]]())


def losses(
    objective: Objective, model: str, student: Dense, teacher: Dense, instances: Instances, learned: Learned
) -> dict[str, Tensor]:
    shapes = tuple((m.shape[-2], m.shape[-1]) for m in student.features)
    scene = objective.scene(
        student,
        teacher,
        grid=grid_of_kind(model, shapes),
        instances=instances,
        cross=teacher_of(model).cross(learned.crossing(student), teacher) if objective.needs_cross else None,
        progress=TrainingProgress(0.0, learned),
    )
    return objective.losses(scene)


def learned_of(objective: Objective, student: Dense, teacher: Dense) -> Learned:
    torch.manual_seed(0)
    return objective.learned(lambda: (student, teacher))


def part(item: tuple, start: int, stop: int):
    pieces = [
        field[start:stop] if isinstance(field, Tensor)
        else tuple(m[start:stop] for m in field) if isinstance(field, tuple)
        else field
        for field in item
    ]  # fmt: skip
    return type(item)(*pieces)


def leaves(dense: Dense) -> tuple[Dense, list[Tensor]]:
    """The same predictions, and all that a gradient may reach."""
    leaf = [x.clone().requires_grad_() for x in (dense.cls_logits, dense.edge_logits, *dense.features, *dense.towers)]
    maps, count = leaf[2:], len(dense.features)
    return (
        dense._replace(
            cls_logits=leaf[0], edge_logits=leaf[1], features=tuple(maps[:count]), towers=tuple(maps[count:])
        ),
        leaf,
    )


def without_chance(term: Term) -> Term:
    """MGD hides places at random, others in each batch; here it hides none."""
    return replace(term, of=replace(term.of, hidden=0.0)) if isinstance(term.of, MaskedGeneration) else term


def knowing(learned: Learned) -> Learned:
    """Generators that have learned to rebuild what they see; at their start they rebuild nothing."""
    with torch.no_grad():
        for generator in (m for m in learned.modules() if isinstance(m, Generator)):
            for convolution in (generator.generation[0], generator.generation[2]):
                nn.init.dirac_(convolution.weight)
                nn.init.zeros_(convolution.bias)
    return learned


@methods
@models
@settings(max_examples=3)
@given(seeds)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(method: str, model: str, seed: int):
    """Of MGD that holds once its generator rebuilds what it sees, and nothing is hidden."""
    _, teacher, instances = batch(seed, 2, model)
    teacher = teacher._replace(features=tuple(m.abs() for m in teacher.features))  # a generator has a ReLU inside
    objective = objective_of(method, model)
    objective = replace(objective, terms={name: without_chance(term) for name, term in objective.terms.items()})
    learned = knowing(learned_of(objective, teacher, teacher))
    values = losses(objective, model, teacher, teacher, instances, learned)
    for name, value in values.items():
        assert float(value.detach()) == pytest.approx(0, abs=1e-4), name


@methods
@models
@settings(max_examples=3)
@given(seeds, st.sampled_from([WIDTH, 6]))
def test_the_student_gets_a_gradient_and_the_teacher_none(method: str, model: str, seed: int, width: int):
    student, teacher, instances = batch(seed, 2, model, width=width)
    objective = objective_of(method, model)
    learned = learned_of(objective, student, teacher)
    (mine, own), (its, theirs) = leaves(student), leaves(teacher)
    total = torch.stack(list(losses(objective, model, mine, its, instances, learned).values())).sum()
    gradients = torch.autograd.grad(total, [*own, *theirs], allow_unused=True, retain_graph=True)
    assert all(g is None for g in gradients[len(own) :])
    assert any(g is not None for g in gradients[: len(own)])
    assert all(g.isfinite().all() for g in gradients if g is not None)
    # Every weight that is learned takes part in every batch: processes need not look for those that do not.
    weights = list(learned.parameters())
    if weights:
        found = torch.autograd.grad(total, weights)
        assert all(g.isfinite().all() for g in found)


@methods
@models
@settings(max_examples=3)
@given(seeds)
def test_the_split_of_a_batch_does_not_matter(method: str, model: str, seed: int):
    student, teacher, instances = batch(seed, 4, model, width=6)
    objective = objective_of(method, model)
    objective = replace(objective, terms={name: without_chance(term) for name, term in objective.terms.items()})
    learned = learned_of(objective, student, teacher)
    whole = losses(objective, model, student, teacher, instances, learned)
    halves = [
        losses(objective, model, *(part(x, i, i + 2) for x in (student, teacher, instances)), learned) for i in (0, 2)
    ]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, rtol=1e-4, atol=1e-6)


@methods
@models
@pytest.mark.parametrize("boxes", [[], [[5.2, 5.1, 5.9, 5.8]]], ids=["no object", "tiny object"])
def test_images_without_objects_and_flat_maps_are_ordinary(method: str, model: str, boxes: list[list[float]]):
    """A student at its very start may have maps of zeros, levels of one cell, and objects between all locations."""
    locations = len(grid_of_kind(model, TINY).points)
    student = Dense(
        torch.zeros(2, locations, 3),
        torch.zeros(2, locations, 4, 17),
        features=tuple(torch.zeros(2, WIDTH, *size) for size in TINY),
        towers=tuple(torch.zeros(2, WIDTH, *size) for size in TINY for _ in range(2)),
    )
    maps = {key: tuple(torch.randn(m.shape) for m in getattr(student, key)) for key in ("features", "towers")}
    teacher = consistent(student._replace(**maps), model)
    objective = replace(objective_of(method, model), terms=supervised(model) | METHODS[method](model))
    learned = learned_of(objective, student, teacher)
    mine, own = leaves(student)
    instances = instances_of([boxes, []], [[0] * len(boxes), []], [(16, 16), (8, 8)], slots=1)
    total = torch.stack(list(losses(objective, model, mine, teacher, instances, learned).values())).sum()
    assert total.isfinite()
    found = torch.autograd.grad(total, [*own, *learned.parameters()], allow_unused=True)
    assert all(g.isfinite().all() for g in found if g is not None)
