"""Gaussian distances of rotated boxes in scalars are those of their matrices, and defined where those are not."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.geometry.gaussian import gwd, hellinger, kld
from locdistill.geometry.rotated import area
from locdistill.losses.overlap import OverlapKind, overlap_loss
from tests.rotated_boxes import random_boxes, renamed

seeds = st.integers(0, 2**31 - 1)
KINDS: tuple[OverlapKind, ...] = ("gwd", "kld", "probiou")
of_all_kinds = pytest.mark.parametrize("kind", KINDS)


def covariance(boxes: Tensor, share: float) -> Tensor:
    cos, sin = boxes[..., 4].cos(), boxes[..., 4].sin()
    turn = torch.stack((torch.stack((cos, -sin), -1), torch.stack((sin, cos), -1)), -2)
    return turn @ torch.diag_embed(boxes[..., 2:4].square() * share) @ turn.mT


def trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)


def root(matrices: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrices)
    return vectors @ torch.diag_embed(values.clamp(min=0).sqrt()) @ vectors.mT


def by_matrices(p: Tensor, t: Tensor) -> dict[str, Tensor]:
    """The three distances as their papers define them."""
    way = (p - t)[..., :2, None]
    s, q = covariance(p, 1 / 4), covariance(t, 1 / 4)
    squared = way.square().sum((-2, -1)) + trace(s + q - 2 * root(root(s) @ q @ root(s)))
    scale = 2 * (s.det() * q.det()) ** 0.125
    divergence = ((way.mT @ q.inverse() @ way)[..., 0, 0] + trace(q.inverse() @ s) + (q.det() / s.det()).log() - 2) / 2
    s, q = covariance(p, 1 / 12), covariance(t, 1 / 12)
    mean = (s + q) / 2
    bhattacharyya = (way.mT @ mean.inverse() @ way)[..., 0, 0] / 8 + (mean.det() / (s.det() * q.det()).sqrt()).log() / 2
    return {
        "gwd": squared.clamp(min=0).sqrt() / scale,
        "kld": 2 * divergence,
        "probiou": (1 - torch.exp(-bhattacharyya)).sqrt(),
    }


DISTANCES = {"gwd": gwd, "kld": kld, "probiou": hellinger}


@given(seeds, st.sampled_from([20, 300]))
def test_the_closed_form_is_the_matrix_form(seed: int, extent: int):
    p, t = (random_boxes(s, 64, extent=extent, sides=(4, 200)) for s in (seed, seed + 1))
    for kind, expected in by_matrices(p, t).items():
        torch.testing.assert_close(DISTANCES[kind](p, t), expected, rtol=1e-9, atol=1e-9)
        single = DISTANCES[kind](p.float(), t.float())
        torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-5)


def test_losses_by_hand():
    # Equal boxes of 4 x 2, two apart along the width. Wasserstein: 2 / sqrt(8). Divergence: (2 / 2)^2.
    # Bhattacharyya: 2^2 / (8 * 16 / 12).
    p, t = torch.tensor([[2.0, 0, 4, 2, 0]]), torch.tensor([[0.0, 0, 4, 2, 0]])
    expected = {
        "gwd": math.log1p(2 / math.sqrt(8)),
        "kld": 1 - 1 / (1 + math.log(2)),
        "probiou": math.sqrt(1 - math.exp(-4 / (8 * 16 / 12))),
    }
    assert {kind: float(overlap_loss(p, t, kind=kind)) for kind in KINDS} == pytest.approx(expected, rel=1e-6)
    # Of the same shape at the same place, in twice the size. Wasserstein: |(1, 2) - (2, 4)| / (8 * 32)^(1/4).
    large = torch.tensor([[0.0, 0, 8, 4, 0]])
    assert float(gwd(large, t)) == pytest.approx(math.sqrt(5) / 4, rel=1e-6)
    assert float(kld(large, t)) == pytest.approx(4 + 4 - math.log(16) - 2, rel=1e-6)
    assert float(kld(t, large)) == pytest.approx(0.5 + math.log(16) - 2, rel=1e-6)
    assert float(hellinger(large, t)) == pytest.approx(math.sqrt(1 - math.sqrt(16 / 25)), rel=1e-6)


@of_all_kinds
@given(seed=seeds, turns=st.integers(-4, 4), scale=st.floats(0.05, 20))
def test_losses_know_no_name_and_no_scale(kind: OverlapKind, seed: int, turns: int, scale: float):
    p, t = random_boxes(seed, 64), random_boxes(seed + 1, 64)
    loss = overlap_loss(p, t, kind=kind)
    assert bool((loss >= 0).all())
    assert kind == "gwd" or bool((loss <= 1).all())
    factors = torch.tensor([scale] * 4 + [1], dtype=torch.float64)
    for other in (overlap_loss(renamed(p, turns), t, kind=kind), overlap_loss(p, renamed(t, turns), kind=kind)):
        torch.testing.assert_close(other, loss, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(overlap_loss(p * factors, t * factors, kind=kind), loss, rtol=1e-9, atol=1e-12)
    if kind != "kld":
        torch.testing.assert_close(overlap_loss(t, p, kind=kind), loss)


@given(seeds)
def test_the_scale_of_the_wasserstein_distance(seed: int):
    """Moving a box far away is all that counts: the distance is the way over the fourth root of both areas."""
    p, t = random_boxes(seed, 64, sides=(4, 40)), random_boxes(seed + 1, 64, sides=(4, 40))
    p[:, 0] += 1e9
    way = (p - t)[:, :2].norm(dim=-1)
    torch.testing.assert_close(gwd(p, t), way / (area(p) * area(t)) ** 0.25, rtol=1e-12, atol=0)


@of_all_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_that_coincide_have_no_loss_and_no_gradient(kind: OverlapKind, dtype: torch.dtype):
    boxes = random_boxes(0, 200).to(dtype)
    square = boxes.clone()
    square[:, 3] = square[:, 2]
    turned = square + torch.tensor([0, 0, 0, 0, 0.7], dtype=dtype)
    empty = torch.zeros_like(boxes)
    for same, t in ((boxes, boxes), (square, turned), (empty, empty)):
        p = same.clone().requires_grad_()
        loss = overlap_loss(p, t, kind=kind)
        (gradient,) = torch.autograd.grad(loss.sum(), p)
        assert not bool(loss.any())
        assert not bool(gradient.any())
    # By another name they coincide but for rounding.
    rounding = 1e-3 if dtype == torch.float32 else 1e-7
    assert float(overlap_loss(boxes, renamed(boxes, 1), kind=kind).max()) < rounding


@of_all_kinds
def test_gradients_in_both_arguments(kind: OverlapKind):
    p, t = (random_boxes(seed, 12, extent=60, sides=(10, 80)).requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(lambda a, b: overlap_loss(a, b, kind=kind), (p, t))


@of_all_kinds
def test_gradients_are_finite_whatever_the_boxes(kind: OverlapKind):
    """Without extent and with the largest, near and far, in single precision: all with all."""
    sides, places, angles = (0, 1e-7, 1, 500, 1e7), (0, 1e5), (0, math.pi / 4, 1.57)
    boxes = torch.tensor([[x, 0, w, h, angle] for w, h, x, angle in product(sides, sides, places, angles)]).float()
    p = boxes[:, None].repeat(1, len(boxes), 1).requires_grad_()
    t = boxes[None].repeat(len(boxes), 1, 1).requires_grad_()
    loss = overlap_loss(p, t, kind=kind)
    assert bool(loss.isfinite().all())
    for gradient in torch.autograd.grad(loss.sum(), (p, t)):
        assert bool(gradient.isfinite().all())


@of_all_kinds
def test_small_differences_are_not_lost(kind: OverlapKind):
    """In single precision, of boxes of a hundred pixels that are a thousandth apart."""
    p = random_boxes(0, 200, sides=(60, 200)).float()
    t = p + torch.tensor([0, 0, 0.001, 0.001, 0.0])
    exact = by_matrices(p.double(), t.double())[kind]
    # A square of a side is rounded by eps of it, and differs by 2/1000 of the side: of 200 pixels that is 1.2 %, and
    # twice as much of the square of the difference. Where it is lost, all of it is.
    torch.testing.assert_close(DISTANCES[kind](p, t).double(), exact, rtol=5e-2, atol=1e-8)


@of_all_kinds
def test_half_precision_is_widened(kind: OverlapKind):
    p, t = random_boxes(0, 50).bfloat16(), random_boxes(1, 50).bfloat16()
    expected = overlap_loss(p.float(), t.float(), kind=kind)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(overlap_loss(p, t, kind=kind), expected)
        assert torch.equal(overlap_loss(p.float(), t.float(), kind=kind), expected)


def test_of_none():
    assert overlap_loss(torch.zeros(0, 5), torch.zeros(0, 5), kind="gwd").shape == (0,)
