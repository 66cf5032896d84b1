"""What must hold for every input: bins, divergences, boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from locdistill.geometry.bins import Bins
from locdistill.geometry.boxes import paired_ciou, paired_diou, paired_giou, paired_iou
from locdistill.geometry.coding import decode, encode
from locdistill.losses.distribution import softened_kl

seeds = st.integers(0, 2**31 - 1)


def _boxes(seed: int, count: int = 32) -> torch.Tensor:
    rng = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=rng, dtype=torch.float64) * 100
    return torch.cat((corner, corner + 0.5 + torch.rand(count, 2, generator=rng, dtype=torch.float64) * 60), -1)


@given(st.integers(1, 40), st.floats(0, 1))
def test_two_hot_keeps_the_expectation(reg_max, part):
    bins = Bins(reg_max)
    distance = torch.tensor([part * reg_max], dtype=torch.float64)
    target = bins.two_hot(distance)
    assert float(target.sum()) == pytest.approx(1.0, abs=1e-12)
    assert int((target > 0).sum()) <= 2
    assert float(bins.expect(target.clamp(min=1e-300).log())) == pytest.approx(float(distance), abs=1e-9)


@given(seeds, st.sampled_from([1.0, 2.0, 10.0, 25.0]), st.floats(-50, 50))
def test_softened_kl_is_a_divergence(seed, temperature, shift):
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 6, 17, generator=rng, dtype=torch.float64) * 4
    value = softened_kl(student, teacher, temperature=temperature)
    assert (value >= -1e-12).all()
    torch.testing.assert_close(softened_kl(student, student, temperature=temperature), torch.zeros_like(value))
    torch.testing.assert_close(softened_kl(student + shift, teacher - shift, temperature=temperature), value)


@given(seeds, st.sampled_from([1.0, 2.0, 10.0]))
def test_gradient_of_softened_kl_in_closed_form(seed, temperature):
    """``d/dz = T/n (softmax(z/T) - softmax(teacher/T))``, and none to the teacher."""
    rng = torch.Generator().manual_seed(seed)
    student, teacher = torch.randn(2, 5, 17, generator=rng, dtype=torch.float64) * 3
    student.requires_grad_()
    teacher.requires_grad_()
    softened_kl(student, teacher, temperature=temperature).sum().backward()
    want = temperature / 17 * ((student / temperature).softmax(-1) - (teacher / temperature).softmax(-1))
    torch.testing.assert_close(student.grad, want.detach())
    assert teacher.grad is None


@given(seeds, st.floats(0.1, 30), st.floats(-500, 500))
def test_overlaps_are_symmetric_and_know_no_scale_and_place(seed, scale, shift):
    a, b = _boxes(seed), _boxes(seed + 1)
    for overlap in (paired_iou, paired_giou, paired_diou, paired_ciou):
        value = overlap(a, b)
        torch.testing.assert_close(overlap(b, a), value, atol=1e-6, rtol=0)
        torch.testing.assert_close(overlap(a * scale + shift, b * scale + shift), value, atol=2e-4, rtol=0)
        torch.testing.assert_close(overlap(a, a), torch.ones(len(a), dtype=a.dtype), atol=1e-5, rtol=0)
    assert ((paired_iou(a, b) >= 0) & (paired_iou(a, b) <= 1)).all()
    assert (paired_giou(a, b) <= paired_iou(a, b) + 1e-12).all()
    assert (paired_giou(a, b) > -1).all()
    assert (paired_ciou(a, b) <= paired_diou(a, b) + 1e-12).all()


@given(seeds)
def test_ciou_is_finite_with_its_gradient_on_identical_boxes(seed):
    a = _boxes(seed).float().requires_grad_()
    value = paired_ciou(a, a.detach().clone())
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(a.grad).all()


@given(seeds)
def test_encode_inverts_decode(seed):
    rng = torch.Generator().manual_seed(seed)
    points = torch.rand(20, 2, generator=rng) * 50
    distances = torch.rand(2, 20, 4, generator=rng) * 16
    torch.testing.assert_close(encode(points, decode(points, distances)), distances, atol=1e-4, rtol=1e-4)


def test_expectation_of_equal_bins_is_the_middle():
    assert float(Bins(16).expect(torch.zeros(17))) == pytest.approx(8.0)
    assert math.isclose(float(Bins(16).clamp(torch.tensor(99.0))), 15.9, rel_tol=1e-6)
