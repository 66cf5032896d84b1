"""A bin or class that is impossible (a logit of ``-inf``) adds nothing to a divergence, and no NaN to a gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.distillation.logits import ClassBinary, ClassKL, EdgeKL, TeacherOverlap
from locdistill.distillation.patterns import ChannelKL
from locdistill.distillation.regions import ScoreGap, TeacherConfidence
from locdistill.evaluation.agreement import agreement, agreement_sums
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.losses.distribution import distribution_focal_loss, softened_kl
from locdistill.losses.focal import focal_loss, quality_focal_loss
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Counted
from locdistill.objective.scene import Scene
from locdistill.objective.term import Term
from locdistill.training.pictures import objects_by_doubt
from locdistill.types import Dense
from tests.scenes import instances_of

INF = float("inf")
GRID, BINS, CLASSES = Grid.build(((2, 2),), (8,)), Bins(4), 3
FLOATS = (torch.float32, torch.bfloat16)


def draws(seed: int, *shape: int) -> Tensor:
    return 3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def some_impossible(logits: Tensor, seed: int, left: int | None) -> Tensor:
    """With some entries of the last axis at ``-inf``; ``left`` of each stay, or any number from one."""
    order = torch.rand(logits.shape, generator=torch.Generator().manual_seed(seed)).argsort(-1)
    stay = left or 1 + seed % logits.shape[-1]
    return logits.masked_fill(order >= stay, -INF)


def by_hand(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """The divergence of one pair of distributions, over the possible bins alone, in double precision."""
    p, q = ((x.double() / temperature).softmax(-1).tolist() for x in (student, teacher))
    total = math.fsum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True) if b > 0)
    return temperature**2 * total / len(p)


@given(st.integers(0, 10**6), st.sampled_from([None, 1, 2]), st.sampled_from([0.5, 1.0, 10.0]), st.sampled_from(FLOATS))
def test_the_divergence_is_finite_with_its_gradient(
    seed: int, left: int | None, temperature: float, dtype: torch.dtype
) -> None:
    student = draws(seed, 6, 7).to(dtype).requires_grad_()
    teacher = some_impossible(draws(seed + 1, 6, 7), seed, left).to(dtype)
    values = softened_kl(student, teacher, temperature=temperature)
    values.sum().backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    expected = [by_hand(s, t, temperature) for s, t in zip(student.detach(), teacher, strict=True)]
    loose = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05 * temperature**2}
    torch.testing.assert_close(values.detach().double(), torch.tensor(expected, dtype=torch.float64), **loose)
    # T / n (p - q), also where q is 0
    slope = temperature / 7 * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)).detach()
    torch.testing.assert_close(student.grad, slope, **loose)


@given(st.integers(0, 10**6), st.sampled_from(FLOATS), st.sampled_from([1.0, 10.0]))
def test_finite_logits_have_the_very_bits_of_the_formula(seed: int, dtype: torch.dtype, temperature: float) -> None:
    teacher = (20 * draws(seed + 1, 5, 17)).to(dtype)
    found, plain = (draws(seed, 5, 17).to(dtype).requires_grad_() for _ in range(2))
    values = softened_kl(found, teacher, temperature=temperature)
    log_p, log_q = ((x / temperature).log_softmax(-1) for x in (plain, teacher))
    expected = temperature**2 * (log_q.exp() * (log_q - log_p)).mean(-1)
    assert torch.equal(values, expected)
    values.sum().backward()
    expected.sum().backward()
    assert torch.equal(found.grad, plain.grad)
    targets = Bins(16).two_hot(16 * torch.rand(5, generator=torch.Generator().manual_seed(seed))).to(dtype)
    both = [distribution_focal_loss(found, targets), -(targets * plain.log_softmax(-1)).sum(-1)]
    assert torch.equal(*both)
    grads = [torch.autograd.grad(value.sum(), x)[0] for value, x in zip(both, (found, plain), strict=True)]
    assert torch.equal(*grads)


@given(st.integers(0, 10**6), st.sampled_from(FLOATS))
def test_cross_entropies_know_impossible_bins_and_sure_classes(seed: int, dtype: torch.dtype) -> None:
    logits = draws(seed, 4, 5).to(dtype)
    targets = some_impossible(draws(seed + 1, 4, 5), seed, None).softmax(-1).to(dtype)
    student = logits.masked_fill(targets == 0, -INF).requires_grad_()
    distribution_focal_loss(student, targets).sum().backward()
    for loss in (focal_loss, quality_focal_loss):
        for sure in (-INF, INF):  # a teacher's score of exactly 0 or 1
            student = logits.clone().requires_grad_()
            value = loss(student, torch.full_like(logits, sure).sigmoid())
            value.sum().backward()
            assert value.isfinite().all()
            assert student.grad is not None
            assert student.grad.isfinite().all()


def scene(seed: int, left: int | None, dtype: torch.dtype) -> tuple[Scene, list[Tensor]]:
    """Four locations on which a teacher holds some bins and classes for impossible; the student's leaves."""
    leaves = [draws(seed, 1, 4, CLASSES).to(dtype), draws(seed + 1, 1, 4, 4, BINS.count).to(dtype)]
    student = Dense(*[leaf.requires_grad_() for leaf in leaves])
    shown = []
    for k, leaf in enumerate(leaves):
        logits = draws(seed + k + 2, *leaf.shape)
        # One location without: a distribution over places, as ChannelKL has it, is of at least one place.
        shown.append(torch.cat((logits[:, :1], some_impossible(logits[:, 1:], seed, left)), 1))
    teacher = Dense(*[logits.to(dtype) for logits in shown])
    truth = instances_of([[[2.0, 2.0, 14.0, 14.0]]], [[0]], [(16, 16)], slots=1)
    objective = Objective(terms={"x": Term(of=ClassBinary(), on=Counted())}, bins=BINS)
    return objective.scene(student, teacher, grid=GRID, instances=truth), leaves


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("left", [None, 1])
@pytest.mark.parametrize(
    "divergence",
    [
        *(EdgeKL(temperature=t, joint=j, summed=s) for t, j, s in ((10.0, False, False), (1.0, True, True))),
        *(ClassKL(), ClassBinary(), TeacherOverlap(), ChannelKL(what="classes")),
    ],
    ids=str,
)
def test_every_divergence_of_predictions(divergence: object, left: int | None, dtype: torch.dtype) -> None:
    for seed in range(5):
        looked_at, leaves = scene(seed, left, dtype)
        value = divergence(looked_at)  # type: ignore[operator]
        assert value.isfinite().all()
        for grad in torch.autograd.grad(value.sum(), leaves, allow_unused=True):
            assert grad is None or grad.isfinite().all()


@pytest.mark.parametrize("left", [None, 1, 2])
def test_what_is_logged_evaluated_and_drawn(left: int | None) -> None:
    for seed in range(5):
        looked_at, _ = scene(seed, left, torch.float32)
        assert all(value.isfinite().all() for value in agreement(looked_at).values())
        assert agreement_sums(looked_at, torch.ones(1, 4, dtype=torch.bool)).isfinite().all()
        assert all(region(looked_at).isfinite().all() for region in (ScoreGap(), TeacherConfidence()))
        assert objects_by_doubt(looked_at, 2)
