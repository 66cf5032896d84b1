"""What must hold of every method by name, for every batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from locdistill.assign.vocabulary import ASSIGNERS
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import supervised
from locdistill.objective.moment import Learned, Moment
from locdistill.objective.objective import Objective
from locdistill.types import Dense, Instances
from tests.scenes import ASSIGNER_OF, grid_of_kind, instances_of

SHAPES = ((8, 10), (4, 5), (2, 3))
OWN = ("fitnets", "inside_gt", "main_region", "fine_grained", "defeat", "gi", "pkd", "cwd", "mgd", "fgd", "dist")
REBUILDS = {"mgd"}  # its network has to learn to rebuild what it sees, with holes that differ from batch to batch
seeds = st.integers(0, 2**31 - 1)
methods = pytest.mark.parametrize("method", OWN)
models = pytest.mark.parametrize("model", ["gfl", "retinanet"])


def dense_of(rng: torch.Generator, images: int, model: str, width: int) -> Dense:
    locations = len(grid_of_kind(model, SHAPES).points)
    return Dense(
        torch.randn(images, locations, 3, generator=rng),
        torch.randn(images, locations, 4, 17, generator=rng),
        features=tuple(torch.randn(images, width, h, w, generator=rng) for h, w in SHAPES),
    )


def batch(seed: int, images: int, model: str, *, width: int = 4) -> tuple[Dense, Dense, Instances]:
    """Random predictions and objects; some images have none, and not all fill the grid."""
    rng = torch.Generator().manual_seed(seed)
    boxes, extents = [], []
    for _ in range(images):
        count = int(torch.randint(0, 4, (1,), generator=rng))
        corner = torch.rand(count, 2, generator=rng) * 40
        boxes.append(torch.cat((corner, corner + 8 + torch.rand(count, 2, generator=rng) * 32), -1).tolist())
        extents.append((64 - 32 * int(torch.randint(0, 2, (1,), generator=rng)), 80))
    instances = instances_of(boxes, [[0] * len(b) for b in boxes], extents, slots=1)
    return dense_of(rng, images, model, 4), dense_of(rng, images, model, width), instances


def objective_of(method: str, model: str) -> Objective:
    return Objective(terms=METHODS[method](model), assigner=ASSIGNERS[ASSIGNER_OF[model]]())


def losses(
    objective: Objective, model: str, student: Dense, teacher: Dense, instances: Instances, learned: Learned | None
) -> dict[str, Tensor]:
    scene = objective.scene(
        student, teacher, grid=grid_of_kind(model, SHAPES), instances=instances, moment=Moment(0.0, learned)
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
    wanted = [dense.cls_logits, dense.edge_logits, *dense.features]
    leaf = [x.clone().requires_grad_() for x in wanted]
    return dense._replace(cls_logits=leaf[0], edge_logits=leaf[1], features=tuple(leaf[2:])), leaf


def test_every_method_of_features_is_tested_here():
    assert set(OWN) <= set(METHODS)


@methods
@models
@settings(max_examples=3)
@given(seeds)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(method: str, model: str, seed: int):
    student, _, instances = batch(seed, 2, model)
    objective = objective_of(method, model)
    values = losses(objective, model, student, student, instances, learned_of(objective, student, student))
    for name, value in values.items():
        if method not in REBUILDS:
            assert float(value.detach()) == pytest.approx(0, abs=1e-5), name


@methods
@models
@settings(max_examples=3)
@given(seeds, st.sampled_from([4, 6]))
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
@settings(max_examples=4)
@given(seeds)
def test_the_split_of_a_batch_does_not_matter(method: str, seed: int):
    if method in REBUILDS:
        return
    student, teacher, instances = batch(seed, 4, "gfl", width=6)
    objective = objective_of(method, "gfl")
    learned = learned_of(objective, student, teacher)
    whole = losses(objective, "gfl", student, teacher, instances, learned)
    halves = [
        losses(objective, "gfl", *(part(x, i, i + 2) for x in (student, teacher, instances)), learned) for i in (0, 2)
    ]
    for name, value in whole.items():
        torch.testing.assert_close((halves[0][name] + halves[1][name]) / 2, value, rtol=1e-4, atol=1e-6)


@methods
def test_flat_maps_and_images_without_objects_are_ordinary(method: str):
    """A student at its very start may have maps of zeros, and levels of one cell."""
    grid = grid_of_kind("gfl", ((2, 2), (1, 1)))
    student = Dense(
        torch.zeros(2, 5, 3), torch.zeros(2, 5, 4, 17), features=(torch.zeros(2, 4, 2, 2), torch.zeros(2, 4, 1, 1))
    )
    teacher = student._replace(features=tuple(torch.randn(m.shape) for m in student.features))
    objective = Objective(terms=supervised() | METHODS[method]("gfl"))
    learned = learned_of(objective, student, teacher)
    mine, own = leaves(student)
    instances = instances_of([[], []], [[], []], [(16, 16), (8, 8)], slots=1)
    scene = objective.scene(mine, teacher, grid=grid, instances=instances, moment=Moment(0.0, learned))
    values = objective.losses(scene)
    total = torch.stack(list(values.values())).sum()
    assert total.isfinite()
    found = torch.autograd.grad(total, [*own, *learned.parameters()], allow_unused=True)
    assert all(g.isfinite().all() for g in found if g is not None)
