"""Weights by the angle between the gradients of labels and teacher."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from locdistill.objective import balance as module
from locdistill.objective.balance import LEAST_SHARE, Balance
from locdistill.types import Dense

numbers = st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12)


def leaf() -> Tensor:
    """Edge logits of a location: twelve numbers."""
    return torch.zeros(1, 1, 4, 3, requires_grad=True)


def dense_of(edges: Tensor, classes: Tensor | None = None) -> Dense:
    return Dense(torch.zeros(1, 1, 2, requires_grad=True) if classes is None else classes, edges)


def losses(gradient: Tensor, value: float, at: Tensor) -> Tensor:
    """A loss of this value that has this gradient."""
    product = (at.flatten() * gradient).sum()
    return product + value - product.detach()


def shortest(g1: Tensor, g2: Tensor) -> float:
    """The share of the first whose combination is shortest, by search."""
    shares = torch.linspace(LEAST_SHARE, 1, 20001, dtype=torch.float64)[:, None]
    return float(shares[(shares * g1.double() + (1 - shares) * g2.double()).norm(dim=1).argmin()])


@settings(deadline=None, max_examples=60)
@given(numbers, numbers, st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_share_is_that_of_the_shortest_combination(
    first: list[float], second: list[float], labels: float, own: float
) -> None:
    g1, g2 = torch.tensor(first), torch.tensor(second)
    edges = leaf()
    balance = Balance({"ld": "pareto"})
    scaled = balance({"ld": losses(g2, own, edges)}, losses(g1, labels, edges), dense_of(edges))["ld"]
    share = float(balance.pareto()[0][0])
    by_search = shortest(g1 / labels, g2 / own)
    combined = [(s * g1 / labels + (1 - s) * g2 / own).norm() for s in (share, by_search)]
    assert float(combined[0]) <= float(combined[1]) * (1 + 1e-4) + 1e-5
    assert LEAST_SHARE <= share <= 1
    assert float(scaled.detach()) >= 0
    # The direction of the step is that of the combination.
    (total,) = torch.autograd.grad(losses(g1, labels, edges) + scaled, edges)
    expected = (share * g1 / labels + (1 - share) * g2 / own) * labels / share
    torch.testing.assert_close(total.flatten(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()) + 1e-6)


def test_known_shares() -> None:
    edges = leaf()
    one = torch.eye(12)[0]
    cases = [
        (one, one, 0.5),  # equal gradients: as much as the labels
        (one, -one, 0.5),  # opposed ones of equal length
        (one, torch.eye(12)[1], 0.5),  # independent ones
        (one, 3 * one, 1.0),  # the shorter one alone
        (one, -3 * one, 0.75),  # opposed: as short as it gets
        (2 * one, one, LEAST_SHARE),  # the teacher's is the shorter one
    ]
    for labels, own, expected in cases:
        balance = Balance({"ld": "pareto"})
        balance({"ld": losses(own, 1.0, edges)}, losses(labels, 1.0, edges), dense_of(edges))
        assert float(balance.pareto()[0][0]) == pytest.approx(expected)
    factors = Balance({"ld": "pareto"}).pareto()[1]
    assert factors.tolist() == [1, 1, 1]  # nothing was measured


def test_the_scale_of_a_term_cancels() -> None:
    edges = leaf()
    generator = torch.Generator().manual_seed(0)
    g1, g2 = torch.randn(2, 12, generator=generator)
    values = []
    for scale in (1.0, 100.0):
        balance = Balance({"ld": "pareto"})
        term = scale * losses(g2, 2.0, edges)
        values.append(float(balance({"ld": term}, losses(g1, 1.0, edges), dense_of(edges))["ld"].detach()))
    assert values[0] == pytest.approx(values[1], rel=1e-5)


def test_descent_ends_at_a_pareto_point() -> None:
    """Of two bowls in the plane, the Pareto points lie between their centres; neither loss rises above its start."""
    centres = torch.zeros(2, 12)
    centres[0, 0], centres[1, 0], centres[:, 2] = -1.0, 1.0, 0.5
    stretch = torch.ones(12)
    stretch[1] = 3.0
    edges = torch.zeros(12)
    edges[1] = 2.0
    edges = edges.view(1, 1, 4, 3).requires_grad_()

    def bowl(centre: Tensor) -> Tensor:
        return ((edges.flatten() - centre).square() * stretch).sum() + 0.5

    start = [float(bowl(centre).detach()) for centre in centres]
    balance = Balance({"ld": "pareto"})
    optimizer = torch.optim.SGD([edges], lr=0.02)
    for _ in range(800):
        labels, own = (bowl(centre) for centre in centres)
        total = labels + balance({"ld": own}, labels, dense_of(edges))["ld"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    end = [float(bowl(centre).detach()) for centre in centres]
    assert all(after <= before for after, before in zip(end, start, strict=True))
    x = edges.detach().flatten()
    assert float(x[1]) == pytest.approx(0, abs=1e-3)
    assert float(x[2]) == pytest.approx(0.5, abs=1e-3)
    assert -1 <= float(x[0]) <= 1
    assert float(balance.watched()["balance/edges_cosine"][0]) < -0.9


def test_terms_are_weighted_in_groups() -> None:
    """Two terms on edges share a factor, one on classes and one on maps have their own."""
    edges, classes = leaf(), torch.zeros(1, 1, 2, requires_grad=True)
    level = torch.zeros(1, 1, 1, 2, requires_grad=True)
    dense = dense_of(edges, classes)._replace(features=(level,))
    supervised = edges.sum() + 2 * classes.sum() + level.sum() + 3
    values = {
        "ld": edges[:, :, :2].sum() + 1,
        "ld_vlr": 1 - 2 * edges[:, :, 2:].sum(),
        "kd": classes[0, 0, 0] - classes[0, 0, 1] + 1,
        "im": 1 - level.sum() / 5,
        "fixed": edges.sum(),
    }
    balance = Balance(dict.fromkeys(("ld", "ld_vlr", "kd", "im"), "pareto") | {"fixed": 0.5})
    scaled = balance(values, supervised, dense, ["im"])
    factors = {name: float((scaled[name] / values[name]).detach()) for name in ("ld", "ld_vlr", "kd", "im")}
    assert factors["ld"] == pytest.approx(factors["ld_vlr"])
    assert len({round(value, 4) for value in factors.values()}) == 3
    assert balance.group_of == {"ld": 0, "ld_vlr": 0, "kd": 1, "im": 2}
    assert set(balance.watched()) == {
        f"balance/{group}_{what}" for group in ("edges", "classes", "features") for what in ("cosine", "labels")
    }
    (gradient,) = torch.autograd.grad(scaled["fixed"], edges)
    assert float(gradient.norm()) == pytest.approx(0.5 * math.sqrt(12))


def test_several_processes_weigh_as_one_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has half of the images, and the mean over processes of its losses as its own."""
    generator = torch.Generator().manual_seed(1)
    targets = torch.randn(2, 2, 12, generator=generator)  # (labels or teacher, image, edges)

    def measured(images: slice, balance: Balance) -> Balance:
        count = images.stop - images.start
        edges = torch.zeros(count, 1, 4, 3, requires_grad=True)
        labels, own = (edges.flatten(1) - targets[:, images]).square().sum((1, 2)) / count
        balance({"ld": own}, labels, Dense(torch.zeros(count, 1, 2, requires_grad=True), edges))
        return balance

    whole = measured(slice(0, 2), Balance({"ld": "pareto"}))
    seen: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        seen.append(value)
        return value

    monkeypatch.setattr(module, "world_size", lambda: 2)
    monkeypatch.setattr(module, "reduce_mean", keep)
    for rank in range(2):
        measured(slice(rank, rank + 1), Balance({"ld": "pareto"}))
    monkeypatch.setattr(module, "reduce_mean", lambda _: torch.stack(seen).mean(0))
    several = measured(slice(0, 1), Balance({"ld": "pareto"}))
    torch.testing.assert_close(several.sums, whole.sums)


@pytest.mark.parametrize("case", ["no gradient", "no labels", "equal"])
def test_nothing_breaks_where_there_is_nothing_to_weigh(case: str) -> None:
    edges = leaf()
    labels, own = edges.sum() + 1, edges.square().sum() + edges[0, 0, 0, 0] + 1
    if case == "no gradient":
        own = torch.zeros(())
    elif case == "no labels":
        labels = 0 * labels
    else:
        own = 0 * own
    balance = Balance({"ld": "pareto"})
    scaled = balance({"ld": own}, labels, dense_of(edges))["ld"]
    assert scaled.isfinite()
    assert all(value.isfinite().all() for value in balance.watched().values())


def test_the_state_is_kept(tmp_path: Any) -> None:
    edges = leaf()
    balance = Balance({"ld": "pareto", "kd": 0.5})
    values = {"ld": edges.sum() + 1, "kd": 2 * edges.sum()}
    balance(values, edges[:, :, 0].sum() + 2, dense_of(edges))
    again = Balance({"ld": "pareto", "kd": 0.5})
    again.load_state_dict(balance.state_dict())
    assert torch.equal(again.pareto()[1], balance.pareto()[1])
    assert torch.equal(again.factors(), balance.factors())
    assert "sums" not in Balance({"kd": 0.5}).state_dict()  # checkpoints of runs without it are as they were
