"""What must hold for every batch: distillation does not depend on how the batch is split."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from locdistill.distillation.logits import ClassKL, EdgeKL
from locdistill.distillation.presets import ld_full, supervised
from locdistill.distillation.regions import ValuableLocations
from locdistill.geometry.grid import Grid
from locdistill.objective.normalisers import Constant, ImageLevelMean, PerImage
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Positives
from locdistill.objective.term import Term
from locdistill.types import Dense, Instances
from tests.scenes import instances_of, published_terms

SHAPES = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1))
GRID = Grid.build(SHAPES, (8, 16, 32, 64, 128), anchor_scale=4.0)
LOCATIONS, CLASSES = sum(GRID.level_sizes), 5
DISTILLING = ld_full() | {
    "kd_vlr": Term(
        of=ClassKL(temperature=2.0), on=ValuableLocations(by="mask", metric="diou"), norm=ImageLevelMean(), weight=3.0
    ),
    "ld_vlr_paper": Term(
        of=EdgeKL(temperature=5.0),
        on=ValuableLocations(metric="diou", by="mask"),
        norm=PerImage(reference_batch=2, divisor=4.0),
    ),
}
seeds = st.integers(0, 2**31 - 1)


def _scene(seed: int, images: int = 8) -> tuple[Dense, Dense, Instances]:
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
        cls = torch.randn(images, LOCATIONS, CLASSES, generator=rng)
        return Dense(cls, torch.randn(images, LOCATIONS, 4, 17, generator=rng))

    instances = instances_of(boxes, labels, [(96, 128)] * images, slots=1)
    return dense(), dense(), instances


def _part(item: tuple, start: int, stop: int):
    return type(item)(*(f[start:stop] if isinstance(f, Tensor) else f for f in item))


def _losses_and_gradients(seed: int, parts: list[tuple[int, int]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean over the parts of each term and of its gradient on the whole batch's predictions."""
    student, teacher, instances = _scene(seed)
    values, grads = {}, {}
    for name, term in DISTILLING.items():
        leaf = Dense(student.cls_logits.clone().requires_grad_(), student.edge_logits.clone().requires_grad_())
        objective = Objective(terms={name: term})
        pieces = [
            objective(_part(leaf, a, b), _part(teacher, a, b), grid=GRID, instances=_part(instances, a, b))[name]
            for a, b in parts
        ]
        values[name] = sum(pieces) / len(parts)
        values[name].backward()
        edge_grad, cls_grad = leaf.edge_logits.grad, leaf.cls_logits.grad
        grads[name] = edge_grad if edge_grad is not None else cls_grad
        values[name] = values[name].detach()
    return values, grads


@settings(max_examples=15)
@given(seeds)
def test_micro_batches_do_not_change_distillation(seed):
    whole = _losses_and_gradients(seed, [(0, 8)])
    split = _losses_and_gradients(seed, [(i, i + 2) for i in range(0, 8, 2)])
    for name in DISTILLING:
        torch.testing.assert_close(split[0][name], whole[0][name], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(split[1][name], whole[1][name], rtol=1e-5, atol=1e-8)


def _rank(rank: int, rendezvous: str, seeds_: list[int], out: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    results = [_losses_and_gradients(seed, [(4 * rank, 4 * rank + 4)]) for seed in seeds_]
    torch.save(results, os.path.join(out, f"rank{rank}.pt"))
    torch.distributed.destroy_process_group()


def test_ranks_do_not_change_distillation(tmp_path: Path):
    """Two processes with four images each, as DDP averages them, equal one process with eight."""
    chosen = [0, 1, 2, 3, 4]
    mp.spawn(_rank, args=(str(tmp_path / "rendezvous"), chosen, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"rank{r}.pt", weights_only=True) for r in range(2)]
    for i, seed in enumerate(chosen):
        values, grads = _losses_and_gradients(seed, [(0, 8)])
        for name in DISTILLING:
            mean = (ranks[0][i][0][name] + ranks[1][i][0][name]) / 2
            torch.testing.assert_close(mean, values[name], rtol=1e-5, atol=1e-7)
            grad = (ranks[0][i][1][name] + ranks[1][i][1][name]) / 2
            torch.testing.assert_close(grad, grads[name], rtol=1e-5, atol=1e-8)


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


@settings(max_examples=20)
@given(seeds)
def test_ours_equals_published_at_the_reference_batch(seed):
    student, teacher, instances = _scene(seed, images=3)
    ours = Objective(terms=ld_full(reference_batch=3))(student, teacher, grid=GRID, instances=instances)
    published = Objective(terms=published_terms())(student, teacher, grid=GRID, instances=instances)
    for name in ("ld", "ld_vlr"):
        torch.testing.assert_close(ours[name], published[name])


@settings(max_examples=20)
@given(seeds)
def test_self_distillation_is_zero_and_the_teacher_gets_no_gradient(seed):
    student, _, instances = _scene(seed, images=3)
    own = Objective(terms=DISTILLING)(student, student, grid=GRID, instances=instances)
    for value in own.values():
        assert abs(float(value)) < 1e-6
    leaf = Dense(student.cls_logits.clone().requires_grad_(), student.edge_logits.clone().requires_grad_())
    teacher = Dense(student.cls_logits.flip(1).requires_grad_(), student.edge_logits.flip(1).requires_grad_())
    sum(Objective(terms=supervised() | DISTILLING)(leaf, teacher, grid=GRID, instances=instances).values()).backward()
    assert teacher.cls_logits.grad is None
    assert teacher.edge_logits.grad is None
    assert leaf.edge_logits.grad is not None


@pytest.mark.parametrize("boxes", [[[], []], [[[9.7, 9.3, 11.9, 11.2]], []]], ids=["no box", "no positive"])
@pytest.mark.parametrize("slots", [0, 2])
def test_batches_without_objects_or_positives_train(boxes, slots):
    student, teacher, _ = _scene(3, images=2)
    leaf = Dense(student.cls_logits.requires_grad_(), student.edge_logits.requires_grad_())
    instances = instances_of(boxes, [[0] * len(b) for b in boxes], [(96, 128)] * 2, slots=slots)
    for terms in (supervised() | DISTILLING, published_terms()):
        losses = Objective(terms=terms)(leaf, teacher, grid=GRID, instances=instances)
        grads = torch.autograd.grad(sum(losses.values()), leaf[:2])
        assert all(torch.isfinite(value) for value in losses.values())
        assert all(torch.isfinite(grad).all() for grad in grads)
        assert float(losses["cls"]) > 0
        assert all(float(losses[name]) == 0 for name in ("bbox", "dfl", "ld", "kd"))


COMPILE = """
import torch
from tests.property.test_terms import GRID, _scene
from locdistill.distillation.presets import ld_full, supervised
from locdistill.objective.objective import Objective

student, teacher, instances = _scene(5, images=2)
objective = Objective(terms=supervised() | ld_full())
want = objective(student, teacher, grid=GRID, instances=instances)
compiled = torch.compile(objective.__call__, fullgraph=True, backend="eager")
got = compiled(student, teacher, grid=GRID, instances=instances)
for name, value in want.items():
    torch.testing.assert_close(got[name], value)
print("one graph")
"""


def test_objective_compiles_into_one_graph():
    """No value of the data decides a branch. In its own process, where no type checker wraps the functions."""
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", COMPILE], cwd=root, check=False, capture_output=True, text=True)
    assert "one graph" in done.stdout, done.stderr


def test_losses_of_half_precision_predictions_are_computed_in_float32():
    student, teacher, instances = _scene(4, images=2)
    half = Dense(student.cls_logits.bfloat16(), student.edge_logits.bfloat16())
    losses = Objective(terms=supervised() | ld_full())(half, teacher, grid=GRID, instances=instances)
    back = Dense(half.cls_logits.float(), half.edge_logits.float())
    want = Objective(terms=supervised() | ld_full())(back, teacher, grid=GRID, instances=instances)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, want[name])


def test_terms_compare_equal_and_are_picklable():
    terms = supervised() | ld_full()
    assert pickle.loads(pickle.dumps(terms)) == terms
    assert terms == supervised() | ld_full()
    assert terms["ld"] != terms["ld_vlr"]
