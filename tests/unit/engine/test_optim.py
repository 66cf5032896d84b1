"""Which parameters learn, at which rate, when."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from locdistill.engine.optim import (
    build_optimizer,
    parameter_groups,
    scaled_lr,
    schedule,
    warmup_length,
)
from locdistill.engine.plan import Plan
from locdistill.engine.settings import EngineSettings
from locdistill.errors import RecipeError, RunError
from tests.unit.engine.fakes import FakeDetector, Loaders


def plan_of(batches: int, settings: EngineSettings, **changes: int) -> Plan:
    values = {
        "batches_per_epoch": batches,
        "accumulate": settings.accumulate,
        "batch_per_device": 8,
        "world": 2,
        "total_steps": settings.steps or math.ceil(settings.epochs * batches / settings.accumulate),
    }
    return Plan(**(values | changes))


def decays(settings: EngineSettings, plan: Plan) -> list[int]:
    """Steps from which the learning rate is lower."""
    factor = schedule(settings, plan)
    return [step for step in range(1, plan.total_steps + 1) if factor(step) < factor(step - 1)]


def test_published_schedule_by_hand() -> None:
    # 12 epochs of 1000 steps: warm-up from a thousandth over 500 steps, a tenth from epoch 8, a hundredth from 11.
    settings = EngineSettings()
    factor = schedule(settings, plan_of(1000, settings))
    assert factor(0) == pytest.approx(0.001)
    assert factor(1) == pytest.approx(1 - (1 - 1 / 500) * 0.999)
    assert factor(250) == pytest.approx(0.5005)
    assert factor(499) == pytest.approx(1 - (1 / 500) * 0.999)
    assert [factor(k) for k in (500, 7999, 8000, 10999, 11000, 11999)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])


def test_two_times_schedule_of_the_table() -> None:
    settings = EngineSettings(epochs=24, milestones=(16, 22))
    assert decays(settings, plan_of(7330, settings)) == [16 * 7330, 22 * 7330]


def test_cosine_falls_from_one_to_nearly_zero() -> None:
    settings = EngineSettings(schedule="cosine", warmup_steps=0, epochs=10)
    factor = schedule(settings, plan_of(100, settings))
    assert factor(0) == 1
    assert factor(500) == pytest.approx(0.5)
    assert factor(250) == pytest.approx(0.5 * (1 + math.sqrt(0.5)))
    assert 0 < factor(999) < 1e-5
    assert factor(1000) == 0


def test_warmup_takes_at_most_a_fifth_of_a_short_run() -> None:
    settings = EngineSettings(steps=100)
    assert warmup_length(settings, 100) == 20
    factor = schedule(settings, plan_of(10, settings))
    assert factor(0) == pytest.approx(0.001)
    assert factor(20) == 1


def test_milestones_follow_steps_and_shares() -> None:
    by_steps = EngineSettings(steps=1200)
    assert decays(by_steps, plan_of(7, by_steps)) == [800, 1100]
    shares = EngineSettings(steps=1000, milestones=(0.5, 0.9))
    assert decays(shares, plan_of(7, shares)) == [500, 900]
    straddling = EngineSettings(epochs=3, milestones=(1, 2), accumulate=3)  # 4 batches an epoch, 3 a step
    assert decays(straddling, plan_of(4, straddling)) == [2, 3]


@pytest.mark.parametrize(("images", "lr"), [(16, 0.01), (8, 0.005), (64, 0.04), (6, 0.00375)])
def test_learning_rate_is_linear_in_images_per_step(images: int, lr: float) -> None:
    assert scaled_lr(EngineSettings(), images) == pytest.approx(lr)
    assert scaled_lr(EngineSettings(scale_lr=False), images) == 0.01


def test_images_per_step_count_processes_and_accumulation() -> None:
    plan = Plan.of(Loaders(count=32, batch=4)(0, 2), EngineSettings(accumulate=3), 2)
    assert plan.images_per_step == 4 * 2 * 3
    assert plan.batches_per_epoch == 4
    assert plan.total_steps == 16


def test_epochs_end_with_the_step_that_takes_their_last_batch() -> None:
    settings = EngineSettings(epochs=3, accumulate=3)
    plan = plan_of(4, settings)
    assert plan.total_steps == 4
    assert [plan.epochs_done(s) for s in range(5)] == [0, 0, 1, 2, 3]
    assert [plan.completes(s) for s in range(1, 5)] == [False, True, True, True]
    assert [plan.completes(s, 2) for s in range(1, 5)] == [False, False, True, False]
    assert not any(plan.completes(s, never) for s in range(1, 5) for never in (0, None))
    assert decays(EngineSettings(milestones=(1, 2, 3)), plan) == [2, 3, 4]


def test_groups_leave_out_frozen_parameters() -> None:
    detector = FakeDetector()
    groups = parameter_groups(detector, EngineSettings(), 0.01)
    found = {id(p) for group in groups for p in group["params"]}
    assert found == {id(p) for p in detector.parameters() if p.requires_grad}
    assert not found & {id(p) for p in detector.backbone["stem"].parameters()}
    assert {g["name"]: (g["lr"], g["weight_decay"]) for g in groups} == {"backbone": (0.01, 1e-4), "rest": (0.01, 1e-4)}


def test_groups_split_by_decay_and_backbone() -> None:
    detector = FakeDetector()
    settings = EngineSettings(norm_bias_decay=False, backbone_lr_factor=0.1, weight_decay=0.05)
    groups = {g["name"]: g for g in parameter_groups(detector, settings, 0.2)}
    assert set(groups) == {"backbone", "rest", "rest_no_decay"}
    assert groups["backbone"]["lr"] == pytest.approx(0.02)
    assert groups["rest"]["lr"] == 0.2
    assert groups["rest_no_decay"]["weight_decay"] == 0
    assert all(p.ndim == 1 for p in groups["rest_no_decay"]["params"])
    assert len(groups["rest_no_decay"]["params"]) == 3  # weight and bias of the norm, bias of the head


def test_optimizers() -> None:
    sgd = build_optimizer(parameter_groups(FakeDetector(), EngineSettings(), 0.3), EngineSettings())
    assert isinstance(sgd, torch.optim.SGD)
    assert sgd.param_groups[0]["momentum"] == 0.9
    settings = EngineSettings(optimizer="adamw", weight_decay=0.05)
    adamw = build_optimizer(parameter_groups(FakeDetector(), settings, 0.002), settings)
    assert isinstance(adamw, torch.optim.AdamW)
    assert adamw.param_groups[0]["lr"] == 0.002
    assert adamw.param_groups[0]["weight_decay"] == 0.05


def test_a_wholly_frozen_detector_is_refused() -> None:
    with pytest.raises(RecipeError, match="frozen"):
        parameter_groups(FakeDetector().requires_grad_(False), EngineSettings(), 0.1)


def test_the_batch_size_may_be_told_by_the_sampler() -> None:
    class Sampler:
        batch_size = 3

    class Batches:
        batch_size = None  # of a loader whose items are batches already
        sampler = Sampler()

        def __len__(self) -> int:
            return 2

    assert Plan.of(Batches(), EngineSettings(), 1).batch_per_device == 3


def test_empty_and_silent_loaders_are_refused() -> None:
    with pytest.raises(RunError, match="no batch"):
        Plan.of(Loaders(count=2, batch=4)(0, 1), EngineSettings(), 1)
    with pytest.raises(RunError, match="batch_size"):
        Plan.of([1, 2, 3], EngineSettings(), 1)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"milestones": (11, 8)}, "must rise"),
        ({"milestones": (0.5, 8)}, "one kind"),
        ({"patience": 3, "eval_every": 0}, "eval_every"),
        ({"devices": ()}, "at least one device"),
        ({"epochs": 0}, "greater than 0"),
        ({"ema": 1.0}, "less than 1"),
        ({"precision": "64"}, "'32', 'bf16' or 'fp16'"),
        ({"learning_rate": 1}, "Extra inputs"),
    ],
)
def test_impossible_settings_are_explained(wrong: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        EngineSettings(**wrong)
