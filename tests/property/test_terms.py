"""What must hold for every batch: distillation does not depend on how the batch is split."""

from __future__ import annotations

import itertools
import os
import pickle
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.methods import METHODS
from locdistill.distillation.presets import ld_full, ld_main, supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.objective.normalisers import Constant, ImageLevelMean, PerImage
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Positives
from locdistill.objective.term import Term
from locdistill.recipe.vocabulary import ASSIGNERS
from locdistill.types import Dense, Instances
from tests.processes import SERVER, printed_by
from tests.scenes import (
    ASSIGNER_OF,
    ROTATED_ASSIGNER_OF,
    grid_of_kind,
    instances_of,
    meaning_of,
    published_terms,
    settings_of,
    turned,
)

SHAPES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
CLASSES = 5
ASSIGNERS_OF = ASSIGNER_OF | ROTATED_ASSIGNER_OF
GRIDS = {model: grid_of_kind(model, SHAPES, anchor_scale=4.0) for model in ASSIGNERS_OF}
GRID = GRIDS["gfl"]
DISTILLING = {model: ld_full(model) | METHODS["bckd"](model) for model in ASSIGNERS_OF}
DISTILLING["gfl"] |= {
    "kd_vlr": Term(
        of=ClassKL(temperature=2.0), on=ValuableLocations(by="mask", metric="diou"), norm=ImageLevelMean(), weight=3.0
    ),
    "ld_vlr_paper": Term(
        of=EdgeKL(temperature=5.0),
        on=ValuableLocations(metric="diou", by="mask"),
        norm=PerImage(reference_batch=2, divisor=4.0),
    ),
}
DISTILLING["retinanet"] |= {"ld_joint": ld_main("retinanet", joint=True)["ld"]}
DISTILLING["rotated_retinanet"] |= {
    f"ld_published_{box}": Term(
        of=EdgeKL(temperature=5.0),
        on=ValuableLocations(metric="iou", ring=False, threshold="adaptive", box=box),  # type: ignore[arg-type]
        norm=ImageLevelMean(over="locations"),
        weight=50.0,
    )
    for box in ("unturned", "own")
}
seeds = st.integers(0, 2**31 - 1)
models = pytest.mark.parametrize("model", ASSIGNERS_OF)


def _objective(terms: dict[str, Term], model: str = "gfl") -> Objective:
    coding, bins = meaning_of(model)
    return Objective(terms=terms, assigner=ASSIGNERS[ASSIGNERS_OF[model]](), coding=coding, bins=bins)


def _scene(seed: int, images: int = 8, model: str = "gfl") -> tuple[Dense, Dense, Instances]:
    """Random predictions and objects; every third image or so has none."""
    rng = torch.Generator().manual_seed(seed)
    boxes, labels = [], []
    for _ in range(images):
        count = int(torch.randint(0, 6, (1,), generator=rng)) * int(torch.rand(1, generator=rng) > 0.3)
        side = torch.exp(torch.rand(count, 2, generator=rng) * 2) * 10
        centre = torch.rand(count, 2, generator=rng) * torch.tensor([128.0, 96.0])
        boxes.append(torch.cat((centre - side / 2, centre + side / 2), -1).double().numpy())
        labels.append(torch.randint(0, CLASSES, (count,), generator=rng).numpy())

    def dense() -> Dense:
        locations = len(GRIDS[model].points)
        cls = torch.randn(images, locations, CLASSES, generator=rng)
        settings_ = settings_of(model)
        edges = torch.randn(images, locations, settings_.edges, settings_.reg_max + 1, generator=rng)
        has_quality = model in ("gflv2", "atss", "fcos")
        quality = torch.randn(images, locations, generator=rng) if has_quality else None
        return Dense(cls, edges, quality, quality_in_score=model == "gflv2")

    instances = turned(instances_of(boxes, labels, [(96, 128)] * images, slots=1), model, seed)
    return dense(), dense(), instances


def _part(item: tuple, start: int, stop: int):
    return type(item)(*(f[start:stop] if isinstance(f, Tensor) else f for f in item))


def _leaves(dense: Dense) -> Dense:
    return Dense(*(f.clone().requires_grad_() if isinstance(f, Tensor) else f for f in dense))


def _tensors(dense: Dense) -> list[Tensor]:
    return [field for field in dense if isinstance(field, Tensor)]


def _losses_and_gradients(
    seed: int, parts: list[tuple[int, int]], model: str, terms: dict[str, Term]
) -> tuple[dict[str, Tensor], dict[str, list[Tensor]]]:
    """Mean over the parts of each term and of its gradient on the whole batch's predictions."""
    student, teacher, instances = _scene(seed, model=model)
    leaf, objective = _leaves(student), _objective(terms, model)
    pieces = [
        objective(_part(leaf, a, b), _part(teacher, a, b), grid=GRIDS[model], instances=_part(instances, a, b))
        for a, b in parts
    ]
    values, grads = {}, {}
    for name in terms:
        value = torch.stack([piece[name] for piece in pieces]).mean()
        found = torch.autograd.grad(value, _tensors(leaf), allow_unused=True, retain_graph=True)
        grads[name], values[name] = [grad for grad in found if grad is not None], value.detach()
    return values, grads


@models
@settings(max_examples=3)
@given(seeds)
def test_micro_batches_do_not_change_distillation(model, seed):
    terms = DISTILLING[model]
    whole = _losses_and_gradients(seed, [(0, 8)], model, terms)
    split = _losses_and_gradients(seed, [(i, i + 2) for i in range(0, 8, 2)], model, terms)
    for name in terms:
        torch.testing.assert_close(split[0][name], whole[0][name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(split[1][name], whole[1][name], rtol=1e-5, atol=1e-8)


RANK_MODELS = ("gfl", "atss", "fcos", "retinanet", "rotated_gfl", "rotated_retinanet")  # v2 has the terms of GFL


def _rank(rank: int, rendezvous: str, seeds_: list[int], out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    results = [
        _losses_and_gradients(seed, [(4 * rank, 4 * rank + 4)], model, supervised(model) | DISTILLING[model])
        for model, seed in itertools.product(RANK_MODELS, seeds_)
    ]
    torch.save(results, os.path.join(out, f"rank{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_ranks_do_not_change_the_losses(tmp_path: Path):
    """Two processes with four images each, as DDP averages them, equal one process with eight."""
    chosen = [0, 1]
    arguments = (str(tmp_path / "rendezvous"), chosen, str(tmp_path))
    mp.start_processes(_rank, args=arguments, nprocs=2, start_method=SERVER.get_start_method())
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    for i, (model, seed) in enumerate(itertools.product(RANK_MODELS, chosen)):
        terms = supervised(model) | DISTILLING[model]
        values, grads = _losses_and_gradients(seed, [(0, 8)], model, terms)
        for name in terms:
            mean = (ranks[0][i][0][name] + ranks[1][i][0][name]) / 2
            torch.testing.assert_close(mean, values[name], rtol=1e-5, atol=1e-7)
            assert len(grads[name]) > 0
            for mine, one, other in zip(grads[name], ranks[0][i][1][name], ranks[1][i][1][name], strict=True):
                torch.testing.assert_close((one + other) / 2, mine, rtol=1e-5, atol=1e-8)


def test_published_normalisation_does_depend_on_the_split():
    """The defect that ours mends, so that the tests above are known to be able to fail."""
    student, teacher, instances = _scene(7)
    term = {"ld": Term(of=EdgeKL(), on=Positives(by="student_confidence"), norm=Constant())}
    whole = Objective(terms=term)(student, teacher, grid=GRID, instances=instances)["ld"]
    halves = [
        Objective(terms=term)(
            _part(student, a, a + 4), _part(teacher, a, a + 4), grid=GRID, instances=_part(instances, a, a + 4)
        )["ld"]
        for a in (0, 4)
    ]
    assert float(whole) > 0
    assert float(sum(halves) / 2) == pytest.approx(float(whole) / 2, rel=1e-5)


@models
@settings(max_examples=4)
@given(seeds)
def test_ours_equals_published_at_the_reference_batch(model, seed):
    images = 3 if model in ("gfl", "gflv2", "rotated_gfl") else 2
    student, teacher, instances = _scene(seed, images=images, model=model)
    terms = ld_full(model, joint=model.endswith("retinanet"))
    ours = _objective(terms, model)(student, teacher, grid=GRIDS[model], instances=instances)
    published = _objective(published_terms(model), model)(student, teacher, grid=GRIDS[model], instances=instances)
    for name in ("ld", "ld_vlr"):
        torch.testing.assert_close(ours[name], published[name])


@models
@settings(max_examples=4)
@given(seeds)
def test_self_distillation_is_zero_and_the_teacher_gets_no_gradient(model, seed):
    student, _, instances = _scene(seed, images=3, model=model)
    own = _objective(DISTILLING[model], model)(student, student, grid=GRIDS[model], instances=instances)
    for value in own.values():
        assert abs(float(value)) < 1e-6
    leaf = _leaves(student)
    teacher = Dense(student.cls_logits.flip(1).requires_grad_(), student.edge_logits.flip(1).requires_grad_())
    objective = _objective(supervised(model) | DISTILLING[model], model)
    sum(objective(leaf, teacher, grid=GRIDS[model], instances=instances).values()).backward()
    assert teacher.cls_logits.grad is None
    assert teacher.edge_logits.grad is None
    assert all(tensor.grad is not None for tensor in _tensors(leaf))


@models
@pytest.mark.parametrize("boxes", [[[], []], [[[9.7, 9.3, 11.9, 11.2]], []]], ids=["no box", "no positive"])
@pytest.mark.parametrize("slots", [0, 2])
def test_batches_without_objects_or_positives_train(model, boxes, slots):
    """RetinaNet finds anchors for the small box too, unless it lies outside the image."""
    student, teacher, _ = _scene(3, images=2, model=model)
    leaf = _leaves(student)
    if model.endswith("retinanet"):
        boxes = [[[x + 500 for x in box] for box in image] for image in boxes]
    instances = turned(instances_of(boxes, [[0] * len(b) for b in boxes], [(96, 128)] * 2, slots=slots), model)
    for terms in (supervised(model) | DISTILLING[model], published_terms(model)):
        losses = _objective(terms, model)(leaf, teacher, grid=GRIDS[model], instances=instances)
        grads = torch.autograd.grad(sum(losses.values()), _tensors(leaf))
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert float(losses["cls"]) > 0
        assert all(float(losses[name]) == 0 for name in losses.keys() & {"bbox", "dfl", "centerness", "ld", "kd"})


@models
def test_extreme_predictions_have_finite_losses_and_gradients(model):
    student, teacher, instances = _scene(6, images=2, model=model)
    leaf = _leaves(Dense(*(1e4 * f if isinstance(f, Tensor) else f for f in student)))
    terms = supervised(model) | DISTILLING[model]
    losses = _objective(terms, model)(leaf, teacher, grid=GRIDS[model], instances=instances)
    grads = torch.autograd.grad(sum(losses.values()), _tensors(leaf))
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(grad).all() for grad in grads)


COMPILE = """
from dataclasses import replace

import torch
from tests.property.test_terms import DISTILLING, GRIDS, _objective, _scene
from locdistill.distillation.presets import supervised

for model in MODELS:
    grid = GRIDS[model]
    student, teacher, instances = _scene(5, images=2, model=model)
    objective = _objective(supervised(model) | DISTILLING[model], model)
    if not model.startswith("gfl"):
        objective = replace(objective, assigner=objective.assigner.ignoring())
    want = objective(student, teacher, grid=grid, instances=instances)
    torch._dynamo.reset()
    compiled = torch.compile(objective.__call__, fullgraph=True, backend="eager")
    got = compiled(student, teacher, grid=grid, instances=instances)
    for name, value in want.items():
        torch.testing.assert_close(got[name], value)
    print("one graph for", model)
"""


def test_objective_compiles_into_one_graph():
    """No value of the data decides a branch. In its own process, where no type checker wraps the functions.

    GFL and RetinaNet are compiled with more terms in `test_compile`, and GFL v2 has those of GFL.
    """
    models = ["gfl", "fcos", "rotated_gfl", "rotated_retinanet"]
    printed = [line for line in printed_by(f"MODELS = {models}\n" + COMPILE).splitlines() if line.startswith("one")]
    assert printed == [f"one graph for {model}" for model in models]


@models
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_half_precision_predictions_are_computed_in_float32(model, dtype):
    student, teacher, instances = _scene(4, images=2, model=model)
    half = Dense(*(f.to(dtype) if isinstance(f, Tensor) else f for f in student))
    back = Dense(*(f.float() if isinstance(f, Tensor) else f for f in half))
    objective = _objective(supervised(model) | ld_full(model), model)
    losses = objective(half, teacher, grid=GRIDS[model], instances=instances)
    want = objective(back, teacher, grid=GRIDS[model], instances=instances)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, want[name])


@models
def test_terms_compare_equal_and_are_picklable(model):
    terms = supervised(model) | ld_full(model)
    assert pickle.loads(pickle.dumps(terms)) == terms
    assert terms == supervised(model) | ld_full(model)
    assert terms["ld"] != terms["ld_vlr"]
