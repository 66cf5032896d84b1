"""What must hold when a teacher's predictions are put into the student's terms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from locdistill.distillation.bridges import UNKNOWN, MapClasses, Rebin, averaged, rebin, soft_edges
from locdistill.distillation.logits import ClassBinary, ClassKL
from locdistill.geometry.bins import Bins
from locdistill.geometry.grid import Grid
from locdistill.models.meaning import meaning_of
from locdistill.models.settings import DetectorSettings
from locdistill.objective.objective import Objective
from locdistill.objective.regions import Counted
from locdistill.objective.term import Term
from locdistill.types import Dense
from tests.scenes import instances_of

seeds = st.integers(0, 2**31 - 1)


def _rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _positions(seed: int, count: int, spread: float) -> Tensor:
    """Of four edges, in increasing order, not evenly spaced."""
    return (torch.rand(4, count, generator=_rng(seed)) * spread).cumsum(-1)


@given(seeds, st.integers(2, 33), st.integers(1, 20), st.floats(0.1, 3), st.floats(0.1, 8))
def test_rebinning_keeps_mass_and_mean(seed: int, count: int, reg_max: int, spread: float, sharp: float) -> None:
    bins, positions = Bins(reg_max), _positions(seed, count, spread)
    logits = torch.randn(2, 5, 4, count, generator=_rng(seed)) * sharp
    made = rebin(logits, positions, bins)
    assert made.shape == (2, 5, 4, reg_max + 1)
    assert torch.isfinite(made).all()
    torch.testing.assert_close(made.exp().sum(-1), torch.ones(2, 5, 4))
    # Positions outside the range count as its ends: within it this is the mean itself.
    want = (logits.softmax(-1) * positions.clamp(0, reg_max)).sum(-1)
    torch.testing.assert_close(bins.expect(made), want, atol=2e-5 * (1 + reg_max), rtol=1e-5)


@given(seeds, st.integers(1, 20), st.integers(0, 13))
def test_more_bins_of_the_same_spacing_keep_the_distribution(seed: int, reg_max: int, more: int) -> None:
    """The identity where bins agree; where the student has more, these stay empty, at any temperature of LD."""
    logits = torch.randn(2, 3, 4, reg_max + 1, generator=_rng(seed)) * 2
    dense = Dense(torch.zeros(2, 3, 1), logits)
    made = Rebin(own=Bins(reg_max), bins=Bins(reg_max + more))(dense)
    torch.testing.assert_close(made.edge_logits.softmax(-1)[..., : reg_max + 1], logits.softmax(-1))
    softened = (made.edge_logits / 10).softmax(-1)
    torch.testing.assert_close(softened[..., : reg_max + 1], (logits / 10).softmax(-1), atol=5e-3, rtol=0)
    assert float(softened.detach()[..., reg_max + 1 :].sum(-1).amax()) < 0.01 if more else True


@pytest.mark.parametrize("model", ["rotated_gfl", "rotated_retinanet"])
@pytest.mark.parametrize("angle_bins", ["linear", "circular"])
@given(seed=seeds, many=st.integers(6, 20), few=st.integers(6, 20))
def test_rotated_boxes_keep_their_means(seed: int, model: str, angle_bins: str, many: int, few: int) -> None:
    """Each of the five numbers has bins of its own; on a circle the mean is not quite linear in the shares."""
    own, bins = (
        meaning_of(DetectorSettings(model=model, angle_bins=angle_bins, reg_max=reg_max))[1]  # type: ignore[arg-type]
        for reg_max in (many, few)
    )
    first, last = (bins.clamp(torch.full((5,), end), margin=0) for end in (-2.0, 2.0))
    values = first + (last - first) * torch.rand(2, 3, 5, generator=_rng(seed))
    dense = Dense(torch.zeros(2, 3, 1), own.two_hot(own.clamp(values, margin=0)).clamp(min=1e-30).log())
    made = Rebin(own=own, bins=bins)(dense).edge_logits
    assert made.shape == (2, 3, 5, few + 1)
    torch.testing.assert_close(made.exp().sum(-1), torch.ones(2, 3, 5))
    apart = bins.difference(bins.expect(made), own.expect(dense.edge_logits)).abs()
    assert float(apart[..., :4].amax()) < 1e-4
    assert float(apart[..., 4].amax()) < (1e-4 if angle_bins == "linear" else math.radians(1))


@given(seeds, st.floats(-0.5, 0.5))
def test_boxes_stay_where_they_are_when_locations_move(seed: int, shift: float) -> None:
    bins = Bins(12)
    distances = 1 + 8 * torch.rand(1, 6, 4, generator=_rng(seed))
    dense = Dense(torch.zeros(1, 6, 1), bins.two_hot(distances).clamp(min=1e-30).log())
    moved = bins.expect(Rebin(own=bins, bins=bins, shift=shift)(dense).edge_logits)
    # The student's location is ``shift`` further right and down: x1 = x - left, x2 = x + right.
    torch.testing.assert_close(shift - moved[..., :2], -distances[..., :2], atol=1e-4, rtol=0)
    torch.testing.assert_close(shift + moved[..., 2:], distances[..., 2:], atol=1e-4, rtol=0)


@given(seeds, st.integers(2, 20))
def test_soft_targets_are_distributions_around_the_distance(seed: int, reg_max: int) -> None:
    bins = Bins(reg_max)
    distances = torch.rand(3, 7, 4, generator=_rng(seed)) * (reg_max + 4) - 2
    inside = distances.clamp(0, reg_max)
    for kind, slack in (("two_hot", 1e-3), ("gaussian", 0.5)):
        made = soft_edges(distances, bins, kind=kind)  # type: ignore[arg-type]
        torch.testing.assert_close(made.exp().sum(-1), torch.ones(3, 7, 4))
        assert ((bins.expect(made) - inside).abs() < slack).all()
        assert (made.argmax(-1) - inside).abs().max() <= 0.5 + 1e-5
    middle = torch.full((1, 1, 4), reg_max / 2)
    torch.testing.assert_close(bins.expect(soft_edges(middle, bins, kind="gaussian", width=0.4)), middle)


GRID = Grid.build(((3, 4),), (8,))


def _scene(student: Dense, teacher: Dense):
    objective = Objective(terms={"x": Term(of=ClassKL(), on=Counted())}, bins=Bins(4))
    truth = instances_of([[]] * len(student.cls_logits), [[]] * len(student.cls_logits), [(24, 32)] * 2, slots=1)
    return objective.scene(student, teacher, grid=GRID, instances=truth)


@given(seeds, st.lists(st.one_of(st.none(), st.integers(0, 6)), min_size=2, max_size=8, unique=True))
def test_classes_by_name(seed: int, sources: list[int | None]) -> None:
    rng = _rng(seed)
    edges = torch.zeros(2, 12, 4, 5)
    teacher = Dense(torch.randn(2, 12, 7, generator=rng), edges)
    student = Dense(torch.randn(2, 12, len(sources), generator=rng), edges)
    mapped = MapClasses(sources=tuple(sources))(teacher)
    known = [i for i, source in enumerate(sources) if source is not None]
    assert (mapped.known is None) == (len(known) == len(sources))
    for i, source in enumerate(sources):
        want = teacher.cls_logits[..., source] if source is not None else torch.full((2, 12), UNKNOWN)
        assert torch.equal(mapped.cls_logits[..., i], want)
    leaf = student.cls_logits.clone().requires_grad_()
    for part in (ClassBinary(), ClassKL()):
        (grad,) = torch.autograd.grad(part(_scene(student._replace(cls_logits=leaf), mapped)).sum(), leaf)
        unknown = [i for i, source in enumerate(sources) if source is None]
        assert (grad[..., unknown] == 0).all()
        assert torch.isfinite(grad).all()


@given(seeds, st.integers(1, 4))
def test_means_of_teachers_are_means_of_probabilities(seed: int, count: int) -> None:
    rng = _rng(seed)
    said = [
        Dense(
            torch.randn(2, 5, 3, generator=rng) * 4,
            torch.randn(2, 5, 4, 6, generator=rng) * 4,
            torch.randn(2, 5, generator=rng),
            quality_in_score=bool(k % 2),
        )
        for k in range(count)
    ]
    shares = torch.rand(count, generator=rng) + 0.1
    shares = (shares / shares.sum()).tolist()
    mean = averaged(said, shares)
    scores = sum(share * dense.score_logits.sigmoid() for share, dense in zip(shares, said, strict=True))
    probs = sum(share * dense.edge_logits.softmax(-1) for share, dense in zip(shares, said, strict=True))
    torch.testing.assert_close(mean.cls_logits.sigmoid(), scores)
    torch.testing.assert_close(mean.edge_logits.softmax(-1), probs)
    assert mean.quality_logits is None
    assert mean.known is None


def test_a_score_is_the_mean_of_those_who_know_the_class() -> None:
    edges = torch.zeros(1, 1, 4, 3)
    a = Dense(torch.tensor([[[1.0, 2.0, 3.0, 0.0]]]), edges, known=(0, 1))
    b = Dense(torch.tensor([[[-1.0, 5.0, 4.0, 0.0]]]), edges, known=(0, 2))
    mean = averaged([a, b], [0.25, 0.75])
    assert mean.known == (0, 1, 2)
    want = 0.25 * torch.tensor(1.0).sigmoid() + 0.75 * torch.tensor(-1.0).sigmoid()
    assert float(mean.cls_logits[0, 0, 0].sigmoid()) == pytest.approx(float(want))
    assert mean.cls_logits[0, 0, 1:3].tolist() == pytest.approx([2.0, 4.0])
    assert torch.isfinite(mean.cls_logits).all()
